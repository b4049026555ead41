"""`synth`: a synthetic scene and its true mask, written streaming."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raysegment import console
from raysegment.errors import OutputExistsError, UsageError, WorkError
from raysegment.scene.landscape import Landscape
from raysegment.scene.materials import CLASSES

#: Half the width of a UTM zone at the scene's pixel size, with room to spare.
_MOST_PX = 500_000


@dataclass(frozen=True, slots=True)
class SynthResult:
    """What was written."""

    image: str
    mask: str
    classes: tuple[str, ...]
    """Names by class index."""
    shape: tuple[int, int]
    """(height, width)."""

    @property
    def exit_code(self) -> int:
        return 0

    def summary(self) -> str:
        height, width = self.shape
        return f"{self.image} and {self.mask}: {height} × {width} px, {', '.join(self.classes)}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "classes": list(self.classes), "shape": list(self.shape)}


def synth(out: str | os.PathLike[str], *, size: int, seed: int = 0, overwrite: bool = False) -> SynthResult:
    """Write a realistic aerial scene of `size` × `size` px, three bands of uint8, and its mask beside it.

    `out`: ``NAME.tif`` (tiled GeoTIFF; the mask is ``NAME.mask.tif``) or ``NAME.zarr`` (OME-Zarr; ``NAME.mask.zarr``).
    A pixel depends on `seed` and its place alone: a larger scene of the same seed begins with the smaller one.
    Memory does not grow with `size`. Both outputs appear when they are complete, the image last.

    Raises UsageError, OutputExistsError (either is there and not `overwrite`), WorkError (no space left).
    """
    image, mask = _outputs(Path(out))
    if not 1 <= size <= _MOST_PX:
        raise UsageError(f"size {size} is out of range: give 1 to {_MOST_PX} px")
    if seed < 0:
        raise UsageError(f"seed {seed} is negative: give 0 or more")
    there = [path for path in (image, mask) if path.exists()]
    if there and not overwrite:
        raise OutputExistsError(f"{there[0]} exists: pass --overwrite, or name another output")
    try:
        image.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"cannot make the folder {image.parent}: {e.strerror}") from e
    if not os.access(image.parent, os.W_OK):
        raise UsageError(f"cannot write into {image.parent}: no permission")

    folder = image.with_name(f".{image.name}.{os.getpid()}.tmp")
    drafts = [folder / path.name for path in (image, mask)]  # a Zarr remembers the name it is written under
    try:
        folder.mkdir()
        _write(size, seed, *drafts)
        for draft, path in zip(drafts[::-1], (mask, image), strict=True):
            _remove(path)
            draft.rename(path)
    except OSError as e:
        raise WorkError(f"cannot write {image}: {e.strerror or e}") from e
    finally:
        _remove(folder)
    return SynthResult(str(image), str(mask), tuple(c.name for c in CLASSES), (size, size))


def _outputs(out: Path) -> tuple[Path, Path]:
    if out.suffix not in (".tif", ".tiff", ".zarr"):
        raise UsageError(f"cannot write a scene as {out.name!r}: name it *.tif or *.zarr")
    return out, out.with_suffix(f".mask{out.suffix}")


def _write(size: int, seed: int, image: Path, mask: Path) -> None:
    scene = Landscape(seed)
    if image.suffix == ".zarr":
        from raysegment.scene.scene_zarr import write_zarrs as write
    else:
        from raysegment.scene.scene_tiff import write_tiffs as write
    with console.progress("synth", size * size / 1e6, "MP") as progress:
        write(scene, size, image, mask, progress)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
