"""One run while it goes: what becomes of each image, told to the ledger, to Prometheus and to the report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raysegment import console
from raysegment.nightly.discovery import Found
from raysegment.nightly.ledger import Entry, Ledger

if TYPE_CHECKING:
    from raysegment.inference.finish import InferredImage
    from raysegment.nightly.metrics import Metrics
    from raysegment.storage.lease import Lease


@dataclass
class Night:
    """Is told of each image by :func:`raysegment.inference.many.infer_many`."""

    name: str
    work: Sequence[tuple[Found, Entry]]
    ledger: Ledger
    lease: Lease
    images: list[dict[str, Any]] = field(default_factory=list)
    """What the report says of every image done or set aside, in the order that it happened."""
    workers: int = 0
    metrics: Metrics | None = None
    megapixels: float = 0.0
    """Of masks that this run made, not found."""

    def working(self, images: int, workers: int) -> None:
        from raysegment.nightly.metrics import Metrics

        self.workers, self.metrics = workers, Metrics(self.name, images)

    def done(self, at: int, image: InferredImage) -> None:
        found, claim = self.work[at]
        height, width = image.shape
        was_there = image.blocks == 0
        if not was_there:
            self.megapixels += height * width / 1e6
        entry = claim.model_copy(update={"state": "done", "digest": image.identity})
        said = {
            "source": found.source,
            "output": claim.output,
            "state": "done",
            "shape": [height, width],
            "class_pixels": image.class_pixels,
            "failed_regions": image.failed_regions,
            "blocks_resumed": image.blocks_resumed,
            "was_there": was_there,
            "finished": time.time(),
        }
        self._note(found.source, entry, said)
        if self.metrics is not None:
            self.metrics.done(height * width / 1e6, time.time())

    def failed(self, at: int, reason: str, passing: bool) -> None:
        found, claim = self.work[at]
        reason = reason.removeprefix(f"{found.source}: ")
        console.warn(f"{found.source} is set aside: {reason}")
        entry = claim if passing else claim.model_copy(update={"state": "failed", "reason": reason})
        said = {"source": found.source, "output": claim.output, "state": "failed", "reason": reason}
        self._note(found.source, entry, {**said, "finished": time.time()})
        if self.metrics is not None:
            self.metrics.failed()

    def check(self) -> None:
        """Raise WorkError when another run took the lock: whoever lost it writes nothing more."""
        self.lease.check()

    def _note(self, source: str, entry: Entry, said: dict[str, Any]) -> None:
        self.check()
        self.images.append(said)
        self.ledger.set(source, entry)

    def count(self, state: str) -> int:
        return sum(image["state"] == state for image in self.images)

    @property
    def failed_regions(self) -> int:
        return sum(len(image.get("failed_regions", ())) for image in self.images)
