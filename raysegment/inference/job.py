"""One call of `infer`, opened and settled: what is asked of which image, with which network, into which mask.

Settling decides whether the mask is finished, a run is to be resumed, or a new plan is made; the plan, once
written, is obeyed. Nothing here starts Ray.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysegment import console
from raysegment.errors import NotBuiltError, OutputExistsError, UsageError
from raysegment.hardware import pick_device
from raysegment.inference.plan import (
    ImagePlan,
    Plan,
    Precision,
    Request,
    choose_cells,
    choose_channels,
    choose_region,
    choose_tile,
)
from raysegment.inference.results import readable_bytes
from raysegment.mask.store import finished
from raysegment.model.file import file_identity, load_model, load_spec
from raysegment.raster import open_raster

if TYPE_CHECKING:
    from raysegment.inference.auto import Measured
    from raysegment.inference.scratch import Scratch
    from raysegment.model.model import Model
    from raysegment.model.spec import ModelSpec
    from raysegment.raster import Raster


@dataclass(frozen=True)
class Job:
    """What the caller gave, opened."""

    raster: Raster
    select: dict[str, int] | None
    model: str | Model
    """Absolute path, or the caller's own network."""
    model_identity: str
    spec: ModelSpec
    request: Request
    out: Path

    @classmethod
    def open(
        cls,
        source: str | Path,
        model: str | Path | Model,
        request: Request,
        select: Mapping[str, int] | None,
        out: Path,
    ) -> Job:
        """Open image and model. Raises InputError and UsageError."""
        if isinstance(model, (str, Path)):
            path = str(Path(model).absolute())
            spec, identity = load_spec(path), file_identity(path)
            network: str | Model = path
        else:
            spec, identity, network = model.spec, model.identity(), model
        raster = open_raster(source, select=select)
        here, there = out.resolve(), Path(raster.path).resolve()
        if here == there or here in there.parents or there in here.parents:
            raise UsageError(
                f"--out {out} and the source {raster.path} lie in one another: name another output"
            )
        return cls(raster, dict(select) if select else None, network, identity, spec, request, out)

    @cached_property
    def source_identity(self) -> str:
        """The source's digest, taken once: it may cost reading a gigabyte."""
        return self.raster.identity()

    def check(self) -> None:
        """Raise UsageError or InputError for what does not fit, before anything is touched."""
        pick_device(self.request.device)
        choose_tile(self.request, self.spec)
        choose_region(self.request, self.raster)
        choose_channels(self.raster, self.spec)
        trained, stored = self.spec.pixel_size, self.raster.pixel_size
        if trained and stored and trained[2] == stored[2] and trained[2] is not None:
            ratio = max(trained[0] / stored[0], stored[0] / trained[0])
            if ratio > 1.1:
                console.warn(
                    f"{self.raster.path} has pixels of {stored[0]:g} {stored[2]}, the model learned at {trained[0]:g}: "
                    "resampling on read is not built yet, the mask may be wrong"
                )

    def load(self) -> Model:
        """The network, in this process."""
        return load_model(self.model) if isinstance(self.model, str) else self.model

    def resolve(self) -> tuple[Plan, Measured]:
        """Turn every "auto" into a value. Raises UsageError and InputError for what does not fit."""
        from raysegment.inference.auto import measure

        spec, request = self.spec, self.request
        tile, overlap = choose_tile(request, spec)
        region = choose_region(request, self.raster)
        precision: Precision = "fp32" if request.precision == "auto" else request.precision
        thresholds = spec.thresholds if spec.thresholds and len(set(spec.thresholds)) > 1 else None
        plan = Plan(
            model=self.model_identity,
            classes=spec.classes,
            thresholds=thresholds,
            channels=spec.channels,
            margin=spec.margin,
            tile=tile,
            overlap=overlap,
            blend=request.blend,
            cells_per_block=choose_cells(request, region, tile, overlap),
            precision=precision,
            device="cuda" if pick_device(request.device).type == "cuda" else "cpu",
            batch_size=1 if request.batch_size == "auto" else request.batch_size,
            threads=1,
            images=(
                ImagePlan(
                    source=self.raster.path,
                    select=self.select,
                    identity=self.source_identity,
                    shape=self.raster.shape,
                    channels=choose_channels(self.raster, spec),
                    region=region,
                    output=str(self.out),
                ),
            ),
        )
        measured = measure(self.load(), self.raster, plan, choose_precision=request.precision == "auto")
        return plan.model_copy(update={"precision": measured.precision}), measured

    def differences(self, recipe: Mapping[str, Any]) -> list[str]:
        """What the caller asks for that `recipe` (of :meth:`Plan.recipe`) was not made with."""
        tile, overlap = choose_tile(self.request, self.spec)
        region = choose_region(self.request, self.raster)
        asked = {
            "source": self.source_identity,
            "model": self.model_identity,
            "tile": tile,
            "overlap": overlap,
            "blend": self.request.blend,
            "region": [region.y, region.x, region.height, region.width],
        }
        if self.request.precision != "auto":
            asked["precision"] = self.request.precision
        return [key for key, value in asked.items() if recipe.get(key) != value]

    def finished_mask(self, scratch: Scratch, overwrite: bool) -> dict[str, Any] | None:
        """What the finished mask of this very call says of itself; None when there is work to do.

        Raises OutputExistsError when something else is in the way.
        """
        if not self.out.exists():
            return None
        about = finished(self.out)
        if about is None:
            unfinished = scratch.load_plan(overwrite=overwrite) is not None
            empty = self.out.is_dir() and not any(self.out.iterdir())
            if not (unfinished or empty or (overwrite and _is_zarr(self.out))):
                raise OutputExistsError(
                    f"{self.out} exists and is no mask of raysegment: name another output"
                )
            return None
        differences = self.differences(about["recipe"])
        if differences and not overwrite:
            raise OutputExistsError(
                f"{self.out} holds a mask made with another {' and '.join(differences)}: "
                "pass --overwrite to replace it, or name another output"
            )
        return None if differences else about

    def settle(self, scratch: Scratch, overwrite: bool) -> tuple[Plan, Measured | None]:
        """The plan of the run that was interrupted, or a new one, written down. The scratch must be locked."""
        plan = scratch.load_plan(overwrite=overwrite)
        if plan is not None:
            differences = self.differences(plan.recipe(plan.images[0])) + self._run_differences(plan)
            if not differences:
                scratch.forget_attempts()
                if finished(self.out) is not None:  # of another recipe, or it would have been answered
                    self._clear_output(scratch, plan)
                return self._here(plan), None
            if not overwrite:
                raise OutputExistsError(
                    f"{scratch.path} holds an unfinished run with another {' and '.join(differences)}: "
                    "repeat that call to finish it, or pass --overwrite to start anew"
                )
        plan, measured = self.resolve()
        check_space(plan, scratch.path)
        scratch.clear()
        self._clear_output(scratch, plan)
        return plan, measured

    def _clear_output(self, scratch: Scratch, plan: Plan) -> None:
        """Put what is at the output out of the way and write the plan down, so that no crash in between leaves
        half a mask that looks whole."""
        old = self.out.with_name(f".{self.out.name}.old")
        if self.out.exists():
            shutil.rmtree(old, ignore_errors=True)
            self.out.rename(old)
        scratch.save_plan(plan)
        shutil.rmtree(old, ignore_errors=True)

    def _here(self, plan: Plan) -> Plan:
        """The plan with the source where it lies now: the same content may have moved since."""
        image = plan.images[0].model_copy(update={"source": self.raster.path})
        return plan.model_copy(update={"images": (image,)})

    def _run_differences(self, plan: Plan) -> list[str]:
        """Settings that do not decide the mask but do decide whether records fit together."""
        asked: dict[str, Any] = {
            "block": choose_cells(self.request, plan.images[0].region, plan.tile, plan.overlap) * plan.stride
        }
        for key in ("device", "batch_size"):
            value = getattr(self.request, key)
            if value != "auto":
                asked[key] = value
        asked["out"] = str(self.out)
        made = {
            "block": plan.block_edge,
            "device": plan.device,
            "batch_size": plan.batch_size,
            "out": plan.images[0].output,
        }
        return [key for key, value in asked.items() if made[key] != value]


def output_path(out: str | Path) -> Path:
    """Check the output's name and folder. Raises UsageError."""
    path = Path(out).absolute()
    if path.suffix.lower() in (".tif", ".tiff"):
        raise NotBuiltError(f"--out {path.name}: masks as TIFF are not built yet; name it *.zarr")
    if path.suffix != ".zarr":
        raise UsageError(f"--out {path.name}: the mask is an OME-Zarr; name it *.zarr")
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"--out {path}: no right to write into {path.parent}")
    return path


def output_bytes(plan: Plan) -> int:
    """Upper bound of the mask, all levels, uncompressed."""
    return sum(image.region.area for image in plan.images) * plan.label_dtype.itemsize * 4 // 3


def check_space(plan: Plan, scratch: Path) -> None:
    """Raises UsageError when scratch and mask would not fit on their disks."""
    needs: dict[int, tuple[Path, int]] = {}
    for folder, need in (
        (scratch, plan.scratch_bytes),
        (Path(plan.images[0].output).parent, output_bytes(plan)),
    ):
        device = os.stat(folder).st_dev
        needs[device] = (folder, need + needs.get(device, (folder, 0))[1])
    for folder, need in needs.values():
        free = shutil.disk_usage(folder).free
        if need > free:
            raise UsageError(
                f"{folder}: the work may need {readable_bytes(need)} and {readable_bytes(free)} are free: "
                "make room, or name another --out or --scratch"
            )
    console.detail(
        "space: " + ", ".join(f"{folder} needs at most {readable_bytes(n)}" for folder, n in needs.values())
    )


def _is_zarr(path: Path) -> bool:
    """Only a Zarr is ever deleted to make room for another."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray", "0/zarr.json"))
