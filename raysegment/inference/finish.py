"""The end of one image: its header, its figures, and nothing left of it in the scratch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raysegment.geometry import Size, Window
from raysegment.inference.plan import VIEWS
from raysegment.inference.results import InferResult
from raysegment.mask.header import MaskHeader
from raysegment.mask.outputs import side_path
from raysegment.raster.resolution import to_source
from raysegment.raster.salvage import Failure, merged
from raysegment.storage import Location, location

if TYPE_CHECKING:
    from raysegment.inference.flow import Clock, Tally
    from raysegment.inference.image import Image
    from raysegment.inference.plan import Plan
    from raysegment.inference.scratch import Scratch
    from raysegment.mask.outputs import Outputs


@dataclass
class InferredImage:
    """One image whose mask is there."""

    output: Location
    shape: tuple[int, int]
    class_pixels: dict[str, int]
    tiles: int
    tiles_skipped: int
    failed_regions: list[dict[str, Any]]
    sides: tuple[str, ...]
    identity: str
    """Of the source's content."""
    blocks: int = 0
    """0 when it was there before."""
    blocks_resumed: int = 0
    forward_pixels: int = 0
    calibration_pixels: int = 0
    device_wait: float = 0.0
    clock: Clock | None = field(default=None, repr=False)
    """Of the run that made it; None when it was there before."""

    @classmethod
    def of_finished(cls, image: Image, about: dict[str, Any], sides: tuple[str, ...]) -> InferredImage:
        """By what the finished mask says of itself."""
        _, _, height, width = about["recipe"]["region"]
        return cls(
            output=image.out,
            shape=(height, width),
            class_pixels=about["class_pixels"],
            tiles=about["tiles"],
            tiles_skipped=about.get("tiles_skipped", 0),
            failed_regions=[{"image": image.stored.path, **r} for r in about.get("failed_regions", [])],
            sides=sides,
            identity=image.identity,
        )

    def note(self, clock: Clock, workers: int, calibration_pixels: int) -> None:
        """The run that made it is over."""
        self.clock, self.calibration_pixels = clock, calibration_pixels
        self.device_wait = clock.wait(workers)

    def result(self, wall_s: float) -> InferResult:
        height, width = self.shape
        clock = self.clock
        return InferResult(
            output=str(self.output),
            shape=self.shape,
            classes=list(self.class_pixels),
            class_pixels=self.class_pixels,
            tiles=self.tiles,
            tiles_skipped=self.tiles_skipped,
            blocks=self.blocks,
            blocks_resumed=self.blocks_resumed,
            failed_regions=self.failed_regions,
            forward_pixels=self.forward_pixels,
            calibration_pixels=self.calibration_pixels,
            wall_s=wall_s if clock is not None else 0.0,
            megapixels_per_s=height * width / 1e6 / wall_s if clock is not None else 0.0,
            peak_rss_bytes=clock.peak_bytes if clock is not None else 0,
            work_s=clock.work_s if clock is not None else 0.0,
            device_wait=self.device_wait,
            stitch_s=clock.stitch_s if clock is not None else 0.0,
            side_outputs={name: str(side_path(self.output, name)) for name in self.sides},
            already_done=clock is None,
        )


def finish_image(
    plan: Plan, index: int, image: Image, outputs: Outputs, tally: Tally, scratch: Scratch
) -> InferredImage:
    """Write the header, so that there is a mask, and forget the records."""
    planned, grid = plan.images[index], plan.grids[index]
    done = InferredImage(
        output=outputs.mask.path,
        shape=(planned.region.height, planned.region.width),
        class_pixels={c.name: tally.class_pixels[i] for i, c in enumerate(plan.classes)},
        tiles=grid.tiles,
        tiles_skipped=tally.tiles_skipped,
        failed_regions=_regions(tally.failures, image),
        sides=tuple(outputs.fields),
        identity=planned.identity,
        blocks=len(grid.blocks()),
        blocks_resumed=tally.resumed,
        forward_pixels=tally.tiles * VIEWS[plan.tta] * plan.tile**2,
    )
    outputs.finish(_header(plan, index, image, done))
    scratch.forget_image(planned.key)
    return done


def _regions(failures: list[Failure], image: Image) -> list[dict[str, Any]]:
    """In full-resolution source pixels, as the report lists them."""
    full, own = Size(*image.stored.shape[:2]), Size(*image.view.shape[:2])
    regions = []
    in_order = sorted(failures, key=lambda f: (f.window.y, f.window.x, f.reason))  # not as the blocks came
    for failure in merged(in_order):
        at: Window = to_source(failure.window, full, own)
        regions.append(
            {
                "image": image.stored.path,
                "y": at.y,
                "x": at.x,
                "height": at.height,
                "width": at.width,
                "reason": failure.reason,
            }
        )
    return regions


def _header(plan: Plan, index: int, image: Image, done: InferredImage) -> MaskHeader:
    planned, view, stored = plan.images[index], image.view, image.stored
    y, x = planned.region.y, planned.region.x
    transform = None
    if view.transform is not None:
        a, b, c, d, e, f = view.transform
        transform = (a, b, c + a * x + b * y, d, e, f + d * x + e * y)
    return MaskHeader(
        name=location(planned.source).stem,
        shape=Size(*done.shape),
        classes=plan.classes,
        dtype=plan.label_dtype,
        origin=(y, x),
        scale=(stored.shape[0] / view.shape[0], stored.shape[1] / view.shape[1]),
        source_offset=stored.offset,
        recipe=plan.recipe(planned),
        tiles=done.tiles,
        tiles_skipped=done.tiles_skipped,
        class_pixels=done.class_pixels,
        failed_regions=[{k: v for k, v in r.items() if k != "image"} for r in done.failed_regions],
        pixel_size=view.pixel_size,
        crs=view.crs,
        transform=transform,
    )
