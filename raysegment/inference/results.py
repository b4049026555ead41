"""What `infer` and `plan` answer: frozen, with the keys of --json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class InferResult:
    """What `infer` did; the keys of its --json."""

    output: str
    shape: tuple[int, int]
    classes: list[str]
    class_pixels: dict[str, int]
    tiles: int
    tiles_skipped: int
    blocks: int
    blocks_resumed: int
    failed_regions: list[dict[str, Any]]
    forward_pixels: int
    """Of this run, calibration apart."""
    calibration_pixels: int
    wall_s: float
    megapixels_per_s: float
    peak_rss_bytes: int
    """Of the largest worker."""
    already_done: bool = field(default=False, compare=False)

    @property
    def exit_code(self) -> int:
        return 3 if self.failed_regions else 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        height, width = self.shape
        if self.already_done:
            return f"{self.output}: already done ({width} × {height} px)"
        total = max(1, sum(self.class_pixels.values()))
        shares = ", ".join(f"{name} {100 * n / total:.1f} %" for name, n in self.class_pixels.items())
        resumed = f", {self.blocks_resumed} of them resumed" if self.blocks_resumed else ""
        return (
            f"{self.output}: {width} × {height} px in {self.wall_s:.1f} s ({self.megapixels_per_s:.2f} MP/s), "
            f"{self.tiles} tiles in {self.blocks} blocks{resumed}\n{shares}"
        )


@dataclass(frozen=True)
class PlanResult:
    """What `infer` would do; the keys of its --plan --json."""

    shape: tuple[int, int]
    tile: int
    overlap: int
    block: int
    tiles: int
    tiles_skipped: int
    blocks: int
    forward_pixels: int
    read_bytes: int
    read_amplification: float
    scratch_bytes: int
    output_bytes: int
    worker_bytes: int
    estimated_s: float
    auto: dict[str, Any]
    exit_code: int = field(default=0, repr=False)

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "exit_code"}

    def summary(self) -> str:
        lines = {
            "image": f"{self.shape[1]} × {self.shape[0]} px",
            "tiles": f"{self.tiles} of {self.tile} px, overlap {self.overlap}; {self.tiles_skipped} skipped",
            "blocks": f"{self.blocks} of {self.block} px",
            "forward passes": f"{self.tiles} ({self.forward_pixels / 1e6:.1f} MP)",
            "reading": f"{readable_bytes(self.read_bytes)}, {self.read_amplification:.2f} × the image",
            "scratch": f"at most {readable_bytes(self.scratch_bytes)}",
            "output": f"at most {readable_bytes(self.output_bytes)}",
            "memory": f"{readable_bytes(self.worker_bytes)} a worker",
            "time": f"about {self.estimated_s:.0f} s",
            **{f"auto {key}": str(value) for key, value in self.auto.items()},
        }
        return "\n".join(f"{key:>16}  {value}" for key, value in lines.items())


def readable_bytes(n: float) -> str:
    """1234567 → "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"
