"""One image of a call, opened at the resolution that the network wants; and opened again, by the plan, in a worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from raysegment import console
from raysegment.errors import UsageError
from raysegment.geometry import Size
from raysegment.inference.foreground import Foreground, find_foreground
from raysegment.inference.request import choose_channels, choose_region
from raysegment.raster import open_raster
from raysegment.raster.resolution import choose_sampling
from raysegment.raster.sampling import Sampling, sampled
from raysegment.raster.transcoded import open_transcoded
from raysegment.raster.validity import declare_nodata
from raysegment.storage import Location, location

if TYPE_CHECKING:
    from raysegment.geometry import Window
    from raysegment.inference.plan import ImagePlan
    from raysegment.inference.request import Request
    from raysegment.inference.scratch import Scratch
    from raysegment.model.spec import ModelSpec
    from raysegment.raster import Raster


@dataclass(frozen=True)
class Image:
    """What is asked of one image."""

    stored: Raster
    """As it lies on the disk."""
    view: Raster
    """As the network sees it."""
    sampling: Sampling | None
    select: dict[str, int] | None
    request: Request
    spec: ModelSpec
    out: Location

    @classmethod
    def open(
        cls,
        source: str | Path,
        out: Location,
        request: Request,
        spec: ModelSpec,
        select: Mapping[str, int] | None,
    ) -> Image:
        """Open an image, and choose its resolution. Raises InputError and UsageError."""
        stored = declare_nodata(open_raster(source, select=select), spec.nodata)
        if _overlap(out, location(stored.path)):
            raise UsageError(
                f"--out {out} and the source {stored.path} lie in one another: name another output"
            )
        _tell_of_others(stored)
        sampling, remark = choose_sampling(
            stored, level=request.level, pixel_size=request.pixel_size, trained=spec.pixel_size
        )
        if remark is not None:
            console.say(f"{stored.path}: {remark}")
        return cls(
            stored, sampled(stored, sampling), sampling, dict(select) if select else None, request, spec, out
        )

    @cached_property
    def region(self) -> Window:
        """The wanted pixels, of the view."""
        return choose_region(self.request, self.stored, self.view)

    @cached_property
    def channels(self) -> tuple[int, ...]:
        """Stored channels that the network sees."""
        return choose_channels(self.request, self.stored, self.spec)

    @cached_property
    def identity(self) -> str:
        """The source's digest, taken once: it may cost reading a gigabyte."""
        return self.stored.identity()

    @cached_property
    def foreground(self) -> Foreground | None:
        """The pixels that count; None = every valid one. Found on the whole image, and said."""
        asked = self.request.foreground
        choice = cast(Literal["all", "auto"], asked) if asked in ("all", "auto") else location(asked)
        found = find_foreground(self.stored, choice, Size(*self.view.shape[:2]))
        if found is not None:
            console.say(f"{self.stored.path}: {100 * found.share:.3g} % of the image is foreground")
        return found

    def check(self) -> None:
        """Raise UsageError or InputError for what does not fit, before anything is touched."""
        _ = self.region, self.channels

    def asked(self) -> dict[str, Any]:
        """What this image contributes to the recipe of its mask; see :meth:`Plan.recipe`."""
        region = self.region
        return {
            "source": self.identity,
            "resolution": [self.sampling.level if self.sampling else 0, *self.view.shape[:2]],
            "channels": list(self.channels),
            "foreground": self.foreground.digest if self.foreground is not None else None,
            "region": [region.y, region.x, region.height, region.width],
        }


def _tell_of_others(stored: Raster) -> None:
    """Say which image of the file is read where another is as good a guess: an area of a slide, a well's field."""
    if stored.format not in ("OME-TIFF", "SCN slide"):
        return
    height, width, _ = stored.shape
    alike = [
        f"{name} ({s.height} × {s.width} px)"
        for name, s in stored.other_images
        if s.area * 10 > height * width
    ]
    if alike:
        console.warn(
            f"{stored.path} holds further images, which are not read: {', '.join(alike[:4])}"
            f"{', …' if len(alike) > 4 else ''}; read is the one of {height} × {width} px"
        )


def _overlap(out: Location, source: Location) -> bool:
    """Whether one lies in the other, or they are one."""
    if isinstance(out, Path) and isinstance(source, Path):
        here, there = out.resolve(), source.resolve()
        return here == there or here in there.parents or there in here.parents
    ours, theirs = f"{out}/", f"{source}/"
    return ours.startswith(theirs) or theirs.startswith(ours)


def open_planned(image: ImagePlan, scratch: Scratch | None = None) -> Raster:
    """The image of a plan as the network sees it; its copy where the scratch is given. Raises InputError."""
    raster = declare_nodata(open_raster(image.source, select=image.select), image.nodata)
    if image.copy_name is not None and scratch is not None:
        raster = open_transcoded(scratch.copies / image.copy_name, raster)
    return sampled(raster, image.sampling)
