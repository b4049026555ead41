"""The plan of a run that takes up the unfinished plan of the one before, whatever has come, gone or changed since."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from raysegment import console
from raysegment.errors import InputError, RaysegmentError, UsageError, WorkError
from raysegment.inference.image import Image
from raysegment.inference.job import Job, check_space
from raysegment.inference.plan import ImagePlan, Plan
from raysegment.inference.request import choose_tile
from raysegment.inference.resolve import copy_dear_sources, draft, is_dear, measured_plan, planned
from raysegment.inference.writing import outputs_of
from raysegment.mask.outputs import SIDE_OUTPUTS, side_path
from raysegment.mask.store import finished, is_ours, remove_store
from raysegment.storage import location
from raysegment.storage.objects import is_passing

if TYPE_CHECKING:
    from raysegment.inference.scratch import Scratch


class Joining:
    """Images `todo`, closed, by their place in the call; `fail` is told of those that cannot be planned, and why."""

    def __init__(
        self, job: Job, todo: dict[int, Image], scratch: Scratch, fail: Callable[[int, str, bool], None]
    ) -> None:
        self.job, self.todo, self.scratch, self.fail = job, todo, scratch, fail

    def settle(self) -> tuple[Plan, dict[int, int]] | None:
        """The plan, written down; for each of its images that is to be worked on, its place in the call.

        None when every image was set aside.
        """
        old = self._resumable()
        kept = self._kept(old) if old is not None else {}
        if old is None or not kept:
            old, kept = None, {}
            self.scratch.clear()
        else:
            self.scratch.forget_attempts()
        new = self._planned(old, [at for at in self.todo if at not in kept])
        if not self.todo:
            return None
        if old is None:
            plan = self._measured(list(new), list(new.values()))
        else:
            plan = old.model_copy(update={"images": (*kept.values(), *new.values())})
        if plan is None:
            return None
        self._warn_of_space(plan, len(kept))
        self.job.clear_outputs([self.todo[at] for at in new], self.scratch, plan)
        return plan, dict(enumerate([*kept, *new]))

    def _resumable(self) -> Plan | None:
        """The unfinished plan that is there, where further images can join it."""
        plan = self.scratch.load_plan(overwrite=True)
        if plan is not None:
            self._clear_half_made(plan)
        if plan is None or self.job.differences_of_settings(plan):
            return None
        asked = (self.job.model_identity, *choose_tile(self.job.request, self.job.spec))
        return plan if asked == (plan.model, plan.tile, plan.overlap) else None

    def _clear_half_made(self, plan: Plan) -> None:
        """Remove half-made masks of images that are not wanted now: once the plan is gone nobody looks for them."""
        wanted = {str(image.out) for image in self.todo.values()}
        for made in plan.images:
            out = location(made.output)
            if made.output not in wanted and finished(out) is None:
                for path in (out, *(side_path(out, name) for name in SIDE_OUTPUTS)):
                    if is_ours(path):
                        remove_store(path)

    def _kept(self, plan: Plan) -> dict[int, ImagePlan]:
        """What the plan says of images that are still the same, by their places in the call. Forgets what is left of
        others."""
        wanted = {str(image.out): at for at, image in self.todo.items()}
        kept: dict[int, ImagePlan] = {}
        for index, made in enumerate(plan.images):
            at = wanted.get(made.output)
            same = at is not None and not self.job.differences_of_image(self.todo[at], plan, made)
            if at is not None and same and outputs_of(plan, index).may_go_on():
                # the same content may lie elsewhere by now
                kept[at] = made.model_copy(update={"source": self.todo[at].stored.path})
            else:
                self.scratch.forget_image(made.key)
        return kept

    def _planned(self, old: Plan | None, places: list[int]) -> dict[int, ImagePlan]:
        """What the plan says of further images; their copies and foregrounds are made."""
        frame = old or draft(self.job, [])
        most = max((image.cells_per_block for image in old.images), default=0) if old is not None else 0
        new: dict[int, ImagePlan] = {}
        for at in places:
            image = self.todo[at]
            try:
                one = planned(image, frame.tile, frame.overlap)
                if most and self.job.request.max_memory is not None:  # measured then, and not again
                    one = one.model_copy(update={"cells_per_block": min(most, one.cells_per_block)})
                alone = frame.model_copy(update={"images": (one,)})
                if is_dear(alone, 0, image):
                    one = copy_dear_sources(alone, [reopened(image)], self.scratch).images[0]
                if image.foreground is not None:
                    self.scratch.save_foreground(one.key, image.foreground)
            except RaysegmentError as e:
                self.fail(at, str(e), is_passing(e))
            else:
                new[at] = one
        return new

    def _measured(self, places: list[int], images: list[ImagePlan]) -> Plan | None:
        """The first plan, measured on the first image whose pixels can be read; None when there is none such."""
        model = self.job.load()
        plan = draft(self.job, []).model_copy(update={"images": tuple(images)})
        reasons: dict[int, RaysegmentError] = {}
        for at, one in zip(places, images, strict=True):
            rotated = plan.model_copy(update={"images": (one, *(i for i in images if i is not one))})
            try:
                first = reopened(self.todo[at])
                others = [self.todo[p] for p in places if p != at]
                settled, _ = measured_plan(self.job, rotated, [first, *others], model)
                first.stored.close()
            except (WorkError, InputError) as e:
                reasons[at] = e
                continue
            by_output = {i.output: i for i in settled.images}
            ordered = tuple(by_output[i.output] for i in images)
            return settled.model_copy(update={"images": ordered})
        for at, error in reasons.items():
            self.fail(at, str(error), is_passing(error))
        return None

    def _warn_of_space(self, plan: Plan, first: int) -> None:
        """What a night takes at most is seldom what it takes: its scratch empties as images are finished."""
        try:
            check_space(plan.model_copy(update={"images": plan.images[first:]}), 0, self.scratch.path)
        except UsageError as e:
            console.warn(str(e))


def reopened(image: Image) -> Image:
    """An image that was closed, open. Raises InputError."""
    return Image.open(image.stored.path, image.out, image.request, image.spec, image.select)
