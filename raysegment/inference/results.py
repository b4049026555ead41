"""What `infer` and `plan` answer: frozen, with the keys of --json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from raysegment.console import counted


@dataclass(frozen=True)
class InferResult:
    """What `infer` did with one image; the keys of its --json."""

    output: str
    shape: tuple[int, int]
    classes: list[str]
    class_pixels: dict[str, int]
    tiles: int
    tiles_skipped: int
    """Of these, those without a foreground pixel: they were not forwarded."""
    blocks: int
    blocks_resumed: int
    failed_regions: list[dict[str, Any]]
    """{image, y, x, height, width, reason}, in full-resolution source pixels: nodata in the mask."""
    forward_pixels: int
    """Of this run, calibration apart."""
    calibration_pixels: int
    wall_s: float
    megapixels_per_s: float
    peak_rss_bytes: int
    """Of the largest worker."""
    work_s: float = 0.0
    """From the first block taken in hand to the last shard written: wall_s without start-up and end."""
    device_wait: float = 0.0
    """Share of that time that the devices waited for something else."""
    stitch_s: float = 0.0
    """CPU time of stitching and of making the pyramid, the writing of shards included."""
    side_outputs: dict[str, str] = field(default_factory=dict)
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
        total = max(1, height * width)
        nodata = total - sum(self.class_pixels.values())
        shares = [f"{name} {100 * n / total:.1f} %" for name, n in self.class_pixels.items()]
        if nodata:
            shares.append(f"nodata {100 * nodata / total:.1f} %")
        resumed = f", {self.blocks_resumed} of them resumed" if self.blocks_resumed else ""
        skipped = f" ({self.tiles_skipped} skipped)" if self.tiles_skipped else ""
        lines = [
            f"{self.output}: {width} × {height} px in {self.wall_s:.1f} s ({self.megapixels_per_s:.2f} MP/s), "
            f"{counted(self.tiles, 'tile')}{skipped} in {counted(self.blocks, 'block')}{resumed}",
            ", ".join(shares),
        ]
        lines += [f"{name}: {path}" for name, path in self.side_outputs.items()]
        lines += [
            f"failed: y {r['y']}–{r['y'] + r['height']}, x {r['x']}–{r['x'] + r['width']}: {r['reason']}"
            for r in self.failed_regions
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class InferResults:
    """What `infer` did with several images; --json gives them all, and totals."""

    output: str
    images: list[InferResult]
    wall_s: float
    calibration_pixels: int
    peak_rss_bytes: int
    work_s: float = 0.0
    device_wait: float = 0.0

    @property
    def exit_code(self) -> int:
        return max((image.exit_code for image in self.images), default=0)

    def total(self, key: str) -> int:
        """The sum of one figure over all images."""
        return sum(getattr(image, key) for image in self.images)

    def to_json(self) -> dict[str, Any]:
        sums = ("tiles", "tiles_skipped", "blocks", "blocks_resumed", "forward_pixels")
        pixels = sum(i.shape[0] * i.shape[1] for i in self.images if not i.already_done)
        return {
            "output": self.output,
            "images": [image.to_json() for image in self.images],
            **{key: self.total(key) for key in sums},
            "failed_regions": [region for image in self.images for region in image.failed_regions],
            "calibration_pixels": self.calibration_pixels,
            "wall_s": self.wall_s,
            "megapixels_per_s": pixels / 1e6 / self.wall_s if self.wall_s else 0.0,
            "peak_rss_bytes": self.peak_rss_bytes,
            "work_s": self.work_s,
            "device_wait": self.device_wait,
        }

    def summary(self) -> str:
        done = sum(image.already_done for image in self.images)
        return "\n".join(
            [
                *(image.summary() for image in self.images),
                f"{self.output}: {counted(len(self.images), 'mask')} in {self.wall_s:.1f} s"
                + (f", {done} of them done before" if done else ""),
            ]
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
    """Of these, those that are known to hold no foreground before a pixel is read: at least that many are skipped."""
    blocks: int
    forward_passes: int
    forward_pixels: int
    read_bytes: int
    read_amplification: float
    transcode: bool
    """Whether the source is copied once, because its layout makes windows dear."""
    scratch_bytes: int
    output_bytes: int
    worker_bytes: int
    estimated_s: float
    auto: dict[str, Any]
    looks: bool = field(default=False, repr=False)
    """Whether `infer` looks at the pixels of the other tiles, too, and skips those that hold none that counts."""
    whole: str = field(default="", repr=False)
    """When the mask is that of the network on the whole image at once; "" where that is not known."""
    exit_code: int = field(default=0, repr=False)

    def to_json(self) -> dict[str, Any]:
        unsaid = ("looks", "whole", "exit_code")
        return {key: value for key, value in asdict(self).items() if key not in unsaid}

    def summary(self) -> str:
        skipped, at_most = f"{self.tiles_skipped} skipped", ""
        if self.looks:
            skipped, at_most = f"at least {skipped}, told without reading pixels", "at most "
        copied = "; copied once, because its layout makes windows dear" if self.transcode else ""
        lines = {
            "image": f"{self.shape[1]} × {self.shape[0]} px",
            "tiles": f"{self.tiles} of {self.tile} px, overlap {self.overlap}; {skipped}",
            "blocks": f"{self.blocks} of {self.block} px",
            "forward passes": f"{at_most}{self.forward_passes} ({self.forward_pixels / 1e6:.1f} MP)",
            "reading": f"{readable_bytes(self.read_bytes)}, {self.read_amplification:.2f} × the image{copied}",
            "scratch": f"at most {readable_bytes(self.scratch_bytes)}",
            "output": f"at most {readable_bytes(self.output_bytes)}",
            "memory": f"{readable_bytes(self.worker_bytes)} a worker",
            **({"labels": self.whole} if self.whole else {}),
            "time": f"about {self.estimated_s:.0f} s of forward passes, after start-up",
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
