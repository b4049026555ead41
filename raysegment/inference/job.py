"""One call of `infer`, opened and settled: what is asked of which images, with which network, into which masks.

Settling decides which masks are finished, whether a run is to be resumed, or a new plan is made; the plan, once
written, is obeyed. Nothing here starts Ray.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raysegment import console
from raysegment.errors import OutputExistsError, UsageError
from raysegment.inference.image import Image
from raysegment.inference.plan import ImagePlan, Plan
from raysegment.inference.request import Request, choose_cells, choose_tile, least_tile_bytes
from raysegment.inference.results import readable_bytes
from raysegment.inference.writing import outputs_of
from raysegment.mask.outputs import SIDE_OUTPUTS, side_path
from raysegment.mask.store import finished, is_ours, remove_store
from raysegment.model.file import file_identity, load_model, load_spec
from raysegment.runtime.device import Device, is_here, traits, worker_device
from raysegment.storage import Location, Url, is_url, location

if TYPE_CHECKING:
    from raysegment.inference.scratch import Scratch
    from raysegment.model.model import Model
    from raysegment.model.spec import ModelSpec


@dataclass(frozen=True)
class Job:
    """What the caller gave, opened."""

    images: tuple[Image, ...]
    model: str | Model
    """Absolute path or URL, or the caller's own network."""
    model_identity: str
    spec: ModelSpec
    request: Request
    workers: int | Literal["auto"] = "auto"

    @classmethod
    def open(
        cls,
        sources: Sequence[tuple[str | Path, Location]],
        model: str | os.PathLike[str] | Model,
        request: Request,
        select: Mapping[str, int] | None,
        workers: int | Literal["auto"] = "auto",
    ) -> Job:
        """Open the images, each with its output, and the model. Raises InputError and UsageError."""
        job = cls.of_model(model, request)
        images = tuple(Image.open(source, out, request, job.spec, select) for source, out in sources)
        return replace(job, images=images, workers=workers)

    @classmethod
    def of_model(cls, model: str | os.PathLike[str] | Model, request: Request) -> Job:
        """What is asked of no image yet. Raises InputError."""
        if isinstance(model, (str, os.PathLike)):
            path = str(location(model))
            return cls((), path, file_identity(path), load_spec(path), request)
        from raysegment.model.model import Model

        if not isinstance(model, Model):
            raise UsageError(
                f"model is a {type(model).__name__}: give a model's path, or wrap a network of your own: "
                "raysegment.Model(module, spec)"
            )
        return cls((), model, model.identity(), model.spec, request)

    def check(self) -> None:
        """Raise UsageError or InputError for what does not fit, before anything is touched."""
        choose_tile(self.request, self.spec)
        if self.request.device == "cuda":
            _ = self.device  # looked for only now if it is asked for: torch is slow to load
        for image in self.images:
            image.check()

    def check_memory(self) -> None:
        """Raise UsageError for a tile that no memory here could hold, or a device that is not there."""
        if not is_here(self.device):
            return  # a GPU of the cluster, which says by itself when it is too small
        tile, _ = choose_tile(self.request, self.spec)
        need, there = least_tile_bytes(tile, self.spec), traits(self.device).memory
        if need > there:
            raise UsageError(
                f"--tile {tile}: one tile takes at least {readable_bytes(need)} of memory and there are "
                f"{readable_bytes(there)}: choose a smaller one"
            )

    @cached_property
    def device(self) -> Device:
        """Of this run's workers; found once, for nodes come and go. Raises UsageError."""
        return worker_device(self.request.device, may_come=self.workers != "auto")

    def load(self) -> Model:
        """The network, in this process: this run's own, for what is asked of it may change it."""
        if isinstance(self.model, str):
            return load_model(self.model)
        from raysegment.model.model import Model
        from raysegment.model.shipping import copied

        return Model(copied(self.model.module), self.spec)

    def shipped(self) -> str | bytes:
        """The network for other processes: the path of its file, or all of it.

        A URL is fetched once, here: what lies there may be another network tomorrow.
        """
        if isinstance(self.model, str) and not is_url(self.model):
            return self.model
        from raysegment.model.shipping import ship

        return ship(load_model(self.model) if isinstance(self.model, str) else self.model)

    @property
    def sides(self) -> tuple[str, ...]:
        """What is to be written beside each mask."""
        return tuple(name for name in SIDE_OUTPUTS if getattr(self.request, name))

    def differences(self, image: Image, recipe: Mapping[str, Any]) -> list[str]:
        """What the caller asks of an image that `recipe` (of :meth:`Plan.recipe`) was not made with."""
        tile, overlap = choose_tile(self.request, self.spec)
        asked = {
            **image.asked(),
            "model": self.model_identity,
            "tile": tile,
            "overlap": overlap,
            "blend": self.request.blend,
            "tta": self.request.tta,
        }
        if self.request.precision != "auto":
            asked["precision"] = self.request.precision
        return [key for key, value in asked.items() if recipe.get(key) != value]

    def differences_of_mask(self, image: Image, about: Mapping[str, Any]) -> list[str]:
        """What the caller asks for that a finished mask, which says `about` of itself, is not or lacks beside it."""
        lacks = [n for n in self.sides if not (side_path(image.out, n) / "zarr.json").is_file()]
        return self.differences(image, about["recipe"]) + lacks

    def finished_mask(self, image: Image, overwrite: bool) -> dict[str, Any] | None:
        """What the finished mask of this very call says of itself; None when there is work to do.

        Raises OutputExistsError when something else is in the way.
        """
        for path in (image.out, *(side_path(image.out, name) for name in self.sides)):
            if path.exists():
                check_in_the_way(path, overwrite)
        about = finished(image.out)
        if about is None:
            return None
        differences = self.differences_of_mask(image, about)
        if differences and not overwrite:
            raise OutputExistsError(
                f"{image.out} holds a mask made with another {' and '.join(differences)}: "
                "pass --overwrite to replace it, or name another output"
            )
        return None if differences else about

    def resume(self, todo: Sequence[Image], scratch: Scratch, overwrite: bool) -> Plan | None:
        """The plan of the run that was interrupted, where it is this very call's. The scratch must be locked.

        Raises OutputExistsError when it is another call's, unless it may be overwritten.
        """
        plan = scratch.load_plan(overwrite=overwrite)
        if plan is None:
            return None
        differences = self._unlike(plan, todo)
        if differences and not overwrite:
            raise OutputExistsError(
                f"{scratch.path} holds an unfinished run with another {' and '.join(differences)}: "
                "repeat that call to finish it, or pass --overwrite to start anew"
            )
        if differences:
            return None
        scratch.forget_attempts()
        outs = {str(image.out) for image in todo}
        mine = (outputs_of(plan, i) for i, image in enumerate(plan.images) if image.output in outs)
        if not all(outputs.may_go_on() for outputs in mine):  # a call with another scratch came between
            self.clear_outputs(todo, scratch, plan)
        return self._here(plan)

    def _unlike(self, plan: Plan, todo: Sequence[Image]) -> list[str]:
        """What this call asks for that the plan was not made with."""
        planned = {image.output: image for image in plan.images}
        if {str(image.out) for image in todo} - planned.keys():
            return ["out"]
        if planned.keys() - {str(image.out) for image in self.images}:
            return ["list of images"]
        found: list[str] = []
        for image in todo:
            found += self.differences_of_image(image, plan, planned[str(image.out)])
        return list(dict.fromkeys(found + self.differences_of_settings(plan)))

    def differences_of_image(self, image: Image, plan: Plan, made: ImagePlan) -> list[str]:
        """What this call asks of an image that it was not planned with."""
        found = self.differences(image, plan.recipe(made))
        cells = choose_cells(self.request, image.region, plan.tile, plan.overlap)
        if self.request.max_memory is None and cells != made.cells_per_block:
            found.append("block")
        return found

    def differences_of_settings(self, plan: Plan) -> list[str]:
        """What this call asks for of all images, besides their recipes, that the plan was not made with."""
        asked = {key: getattr(self.request, key) for key in ("device", "batch_size")}
        found = [key for key, value in asked.items() if value not in ("auto", getattr(plan, key))]
        if plan.device == "cuda" and self.device == "cpu" and not found:
            found.append("device (cuda, and there is no GPU now)")
        found += [k for k in (*SIDE_OUTPUTS, "on_error") if getattr(self.request, k) != getattr(plan, k)]
        return found

    def clear_outputs(self, todo: Sequence[Image], scratch: Scratch, plan: Plan) -> None:
        """Put what is at the outputs out of the way and write the plan down, so that no crash in between leaves
        half a mask that looks whole. (Object storage cannot rename: there they are deleted.)"""
        olds = []
        for image in todo:
            for path in (image.out, *self._sides_of(image.out)):
                if isinstance(path, Url):
                    remove_store(path)
                    continue
                old = path.with_name(f".{path.name}.old")
                if path.exists():
                    shutil.rmtree(old, ignore_errors=True)
                    path.rename(old)
                olds.append(old)
        scratch.save_plan(plan)
        for old in olds:
            shutil.rmtree(old, ignore_errors=True)

    def _sides_of(self, mask: Location) -> list[Location]:
        """What is to be written beside a mask, and what was written beside the one before it."""
        sides = [(name, side_path(mask, name)) for name in SIDE_OUTPUTS]
        return [path for name, path in sides if name in self.sides or is_ours(path)]

    def _here(self, plan: Plan) -> Plan:
        """The plan with the sources where they lie now: the same content may have moved since."""
        now = {str(image.out): image.stored.path for image in self.images}
        images = tuple(i.model_copy(update={"source": now[i.output]}) for i in plan.images)
        return plan.model_copy(update={"images": images})


def check_in_the_way(path: Location, overwrite: bool) -> None:
    """Raise OutputExistsError for something at an output that is none of ours. What is ours and unfinished may be
    begun anew: nothing of it is a result."""
    if not (is_ours(path) or _is_empty(path) or (overwrite and _is_zarr(path))):
        raise OutputExistsError(f"{path} exists and is no mask of raysegment: name another output")


def check_space(plan: Plan, copies: int, scratch: Location) -> None:
    """Raises UsageError when scratch, with `copies` bytes of copied sources, and masks would not fit on their disks.

    Object storage has no end.
    """
    needs: dict[int, tuple[Path, int]] = {}
    wanted = [(scratch, copies + sum(map(plan.scratch_bytes, range(len(plan.images)))))]
    wanted += [(location(image.output).parent, plan.output_bytes(i)) for i, image in enumerate(plan.images)]
    for place, need in wanted:
        if isinstance(place, Url):
            continue
        folder = place if place.exists() else place.parent  # of several masks, made with the first
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


def _is_empty(path: Location) -> bool:
    """Whether it is a folder without a file; a run that was killed in its first moment leaves a temporary one."""
    if isinstance(path, Url):
        return path.is_dir() and not any(path.iterdir())
    begun = path / "0"
    return path.is_dir() and all(
        p.match("0/zarr.*.partial") or (p == begun and begun.is_dir()) for p in path.rglob("*")
    )


def _is_zarr(path: Location) -> bool:
    """Only a Zarr, or what is left of one, is ever deleted to make room for another."""
    names = ("zarr.json", ".zgroup", ".zarray", "0/zarr.json")
    return any((path / name).is_file() for name in names) or (
        isinstance(path, Url) and (path / "0/c").is_dir()
    )
