"""What the caller asks for, and how it is settled against the image and the network, value by value."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from raysegment.console import counted
from raysegment.errors import InputError, UsageError
from raysegment.geometry import Window
from raysegment.inference.blend import Blend
from raysegment.raster.resolution import snap_region

if TYPE_CHECKING:
    from raysegment.model.spec import ModelSpec
    from raysegment.raster import Raster

Augmentation = Literal["none", "flip", "d4"]
OnError = Literal["fail", "skip"]

#: Bounds of an automatic block edge. It depends on the image alone: the mask's files must not depend on the workers.
BLOCK_EDGES = (1024, 2048)


def parse_bytes(text: str) -> int:
    """ "600M", "2G", "2GiB" or plain bytes. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise ValueError("give a size such as 600M or 2G")
    power = "kmgt".find(match[2].lower()) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def _as_bytes(value: Any) -> Any:
    return parse_bytes(value) if isinstance(value, str) else value


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class Request(BaseModel):
    """What the caller asked for. None and "auto" leave the choice to the plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tile: int | None = Field(default=None, ge=1)
    overlap: int | None = Field(default=None, ge=0)
    blend: Blend = "hann"
    level: int | None = Field(default=None, ge=0)
    pixel_size: Annotated[float, Field(gt=0)] | Literal["native"] | None = None
    channels: tuple[int, ...] | None = None
    region: Window | None = None
    """In full-resolution source pixels."""
    foreground: Annotated[str, BeforeValidator(_as_text)] = "all"
    """"all", "auto", or the path of a mask."""
    tta: Augmentation = "none"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    block: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    max_memory: Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_as_bytes)] = None
    """Bytes that one worker process may hold; "2G" and the like are understood."""
    probabilities: bool = False
    uncertainty: bool = False
    on_error: OnError = "fail"


def choose_tile(request: Request, spec: ModelSpec) -> tuple[int, int]:
    """Tile and overlap that the network allows. Raises UsageError naming the two nearest valid values.

    The network's input edge, tile + 2·margin, and the stride must be multiples of `spec.multiple`; the overlap even.
    """
    tile = request.tile if request.tile is not None else spec.tile
    m, margin = spec.multiple, spec.margin
    below = (tile + 2 * margin) // m * m - 2 * margin
    if below != tile:
        valid = [v for v in (below, below + m) if v > 0]
        raise UsageError(f"--tile {tile} does not fit the model: the nearest that do are {_either(valid)}")

    def allowed(overlap: int) -> bool:
        return 0 <= overlap < tile and overlap % 2 == 0 and (tile - overlap) % m == 0

    def nearest(overlap: int) -> list[int]:
        down = next((v for v in range(min(overlap, tile - 1), -1, -1) if allowed(v)), None)
        up = next((v for v in range(max(overlap, 0), tile) if allowed(v)), None)
        return [v for v in (down, up) if v is not None]

    if request.overlap is not None:
        if allowed(request.overlap):
            return tile, request.overlap
        valid = nearest(request.overlap)
        if request.overlap >= tile:
            raise UsageError(
                f"--overlap {request.overlap} is not smaller than --tile {tile}: the largest valid is {valid[-1]}"
                if valid
                else f"--overlap {request.overlap} is not smaller than --tile {tile}, and no overlap fits that tile"
            )
        hint = f"the nearest that do are {_either(valid)}" if valid else f"none does at --tile {tile}"
        raise UsageError(f"--overlap {request.overlap} does not fit tile {tile} and the model: {hint}")
    choices = nearest(tile // 8)
    if not choices:
        raise UsageError(
            f"--tile {tile} allows no overlap: the stride must be a multiple of {m} and the overlap even"
        )
    return tile, min(choices, key=lambda v: abs(v - tile / 8))


def least_tile_bytes(tile: int, spec: ModelSpec) -> int:
    """Memory that one tile takes at the least, whatever the network holds between its layers: its pixels as stored and
    as float32; the answer, weighted, rounded and summed; the weights."""
    planes = 1 if len(spec.classes) == 2 else len(spec.classes)
    return (tile + 2 * spec.margin) ** 2 * spec.channels * (1 + 4) + tile**2 * (planes * 4 * 4 + 4)


def least_cells(tile: int, overlap: int) -> int:
    """Cells that a block needs per axis, so that a rim is shared with the next block alone."""
    return -(-overlap // (tile - overlap)) + 1


def choose_cells(request: Request, region: Window, tile: int, overlap: int) -> int:
    """Cells per block and axis: ``--block`` rounded up to whole cells, or by the size of the region.

    The edge of a block is even, for it is a shard's, and two by two pixels make one of the next level.
    """
    stride = tile - overlap
    if request.block != "auto":
        cells = -(-request.block // stride)
    else:
        low, high = BLOCK_EDGES
        cells = round(min(max(region.area**0.5 / 4, low), high) / stride)
    cells = max(least_cells(tile, overlap), cells)
    return cells + cells * stride % 2


def choose_region(request: Request, stored: Raster, view: Raster) -> Window:
    """The wanted pixels of `view`, the image at the resolution it is read at; `stored` is the image as it lies there.

    Raises UsageError when they do not lie in the image.
    """
    height, width, _ = stored.shape
    if request.region is None:
        return Window(y=0, x=0, height=view.shape[0], width=view.shape[1])
    whole = Window(y=0, x=0, height=height, width=width)
    if request.region.height < 1 or request.region.width < 1 or not whole.holds(request.region):
        raise UsageError(
            f"--region {request.region} does not lie in {stored.path}, which is {height} high and {width} wide"
        )
    return snap_region(request.region, stored.levels[0], view.levels[0])


def choose_channels(request: Request, raster: Raster, spec: ModelSpec) -> tuple[int, ...]:
    """Stored channels that the network sees, in its order: those asked for, or all, or all but the opacity.

    Raises UsageError and InputError.
    """
    stored = list(range(raster.shape[2]))
    if request.channels is not None:
        asked = ",".join(map(str, request.channels))
        if any(c not in stored for c in request.channels):
            raise UsageError(f"--channels {asked}: {raster.path} has channels 0 to {stored[-1]}")
        if len(request.channels) != spec.channels:
            raise UsageError(
                f"--channels {asked} names {counted(len(request.channels), 'channel')}, the model takes {spec.channels}"
            )
        return request.channels
    if len(stored) != spec.channels and raster.alpha is not None:
        stored.remove(raster.alpha)
    if len(stored) != spec.channels:
        raise InputError(
            f"{raster.path} has {counted(len(stored), 'channel')}, the model takes {spec.channels}: "
            "choose with --channels, or give a model that was trained on such images"
        )
    return tuple(stored)


def _either(values: list[int]) -> str:
    return " and ".join(map(str, sorted(set(values))))
