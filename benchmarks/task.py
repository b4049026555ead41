"""What is asked of every contestant, and the parts that all of them share: network, normalisation, classes, mask."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    import zarr

    from raysegment.model.model import Model

#: Rows of the image that are turned into labels, or written, at once.
BAND_PX = 1024
Network = Callable[["torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Task:
    """What is asked of a contestant, and the moments at which it got somewhere."""

    source: Path
    network: str
    out: Path
    """A Zarr of labels, uint8; temporary files go beside it."""
    tile: int
    overlap: int
    batch: int
    threads: int
    processes: int
    device: str
    precision: str
    error_only: bool
    """Print how far the constant network's probabilities are off instead of writing a mask."""
    moments: dict[str, float]

    def reached(self, moment: str) -> None:
        self.moments[moment] = time.time()

    def open_model(self) -> Model:
        import torch
        from models import open_network

        torch.set_num_threads(self.threads)
        model = open_network(self.network)
        model.module.to(device=self.device, memory_format=torch.channels_last)
        return model

    def read(self) -> np.ndarray:
        """The whole image: uint8 (h, w, 3)."""
        import tifffile

        image = tifffile.imread(self.source)
        self.reached("read")
        return image

    def home_of_sums(self, pixels: int, classes: int) -> str:
        """Where a library that keeps all sums should keep them: on the GPU when they fit twice over."""
        import torch

        if self.device != "cuda":
            return "cpu"
        free, _ = torch.cuda.mem_get_info()
        return "cuda" if 2 * pixels * 4 * (classes + 1) < free else "cpu"

    def finish(self, p: torch.Tensor) -> None:
        """Label and write class probabilities (classes, h, w), or print how far they are off."""
        height, width = p.shape[1:]
        if self.error_only:
            print_error(p[:, y : y + BAND_PX].cpu().numpy() for y in range(0, height, BAND_PX))
            return
        import numpy as np

        labels = np.empty((height, width), np.uint8)
        for y in range(0, height, BAND_PX):
            labels[y : y + BAND_PX] = labels_of(p[:, y : y + BAND_PX]).cpu().numpy()
        self.reached("worked")
        mask = new_mask(self.out, height, width)
        mask[:] = labels


def prepared(model: Model, task: Task) -> tuple[Network, Network]:
    """Two functions: a batch (n, c, h, w) as stored → the network's input on its device, and that → its answer."""
    import torch

    spec = model.spec
    mean = torch.tensor(spec.mean, device=task.device).view(1, -1, 1, 1)
    std = torch.tensor(spec.std, device=task.device).view(1, -1, 1, 1)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[task.precision]

    def normalised(batch: torch.Tensor) -> torch.Tensor:
        x = (batch.to(task.device).float() * spec.scale - mean) / std
        return x.contiguous(memory_format=torch.channels_last)

    def answer(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(torch.device(task.device).type, dtype, enabled=task.precision != "fp32"):
            return model.module(x)

    return normalised, answer


def predictor(model: Model, task: Task) -> Network:
    """Tiles as stored (n, c, h, w) → class probabilities float32 (n, classes, h, w)."""
    from raysegment.model.model import probabilities

    normalised, answer = prepared(model, task)
    return lambda batch: probabilities(answer(normalised(batch)), model.spec.activation)


def labels_of(p: torch.Tensor) -> torch.Tensor:
    """The likeliest class: (classes, h, w) → uint8 (h, w). By comparisons: torch's argmax is far slower here."""
    import torch

    best, labels = p[0], torch.zeros(p.shape[1:], dtype=torch.uint8, device=p.device)
    for index in range(1, len(p)):
        labels[p[index] > best] = index
        best = torch.maximum(best, p[index])
    return labels


def new_mask(out: Path, height: int, width: int) -> zarr.Array:
    import zarr

    return zarr.create_array(out, shape=(height, width), dtype="uint8", chunks=(BAND_PX, BAND_PX))


def print_error(bands: Iterator[np.ndarray]) -> None:
    """The largest distance of class probabilities (classes, h, w) from the constant that they should be."""
    import numpy as np
    from models import PROBABILITIES

    want = np.array(PROBABILITIES)[:, None, None]
    print(json.dumps({"error": max(float(np.abs(band - want).max()) for band in bands)}))


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items each, the last one shorter."""
    some: list = []
    for item in items:
        some.append(item)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some
