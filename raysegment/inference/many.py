"""Many images, each with a mask of its own place, through one pipeline: whoever fails is set aside, the rest go on.

Unlike `infer`, a run takes up the unfinished plan of the one before whatever has come, gone or changed since: images
that are the same go on where they stood, the others are planned anew and join them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol

from raysegment.errors import OutputExistsError, RaysegmentError, StorageError, WorkError
from raysegment.inference.finish import InferredImage, finish_image
from raysegment.inference.image import Image
from raysegment.inference.job import Job, check_in_the_way
from raysegment.inference.joining import Joining
from raysegment.inference.options import worker_count
from raysegment.inference.plan import Plan
from raysegment.inference.policy import Policy
from raysegment.inference.scratch import Scratch
from raysegment.mask.outputs import side_path
from raysegment.mask.store import finished
from raysegment.runtime import cluster
from raysegment.storage import Location
from raysegment.storage.objects import is_passing
from raysegment.threads import in_order

if TYPE_CHECKING:
    from raysegment.inference.flow import Clock, Tally
    from raysegment.mask.outputs import Outputs

#: Images that are opened, and whose content is read for their identity, at once: that is waiting, not computing.
_AT_ONCE = 8
#: Seconds before an image that could not be opened is tried once more.
_WAIT_S = 1.0


class Told(Protocol):
    """Who is told of each image, by its place in the call."""

    def check(self) -> None:
        """Raise WorkError where this call is to write nothing more. Asked before a mask is finished."""
        ...

    def working(self, images: int, workers: int) -> None:
        """So many images are about to flow, in a Ray that runs."""
        ...

    def done(self, at: int, image: InferredImage) -> None:
        """Its mask is there: made now, or found made of the same, with the same."""
        ...

    def failed(self, at: int, reason: str, passing: bool) -> None:
        """It is set aside: there is no mask of it. `passing`: a storage did not answer, which says nothing of it."""
        ...


def infer_many(
    images: Sequence[tuple[str, Location]],
    job: Job,
    scratch: Location,
    told: Told,
    *,
    select: Mapping[str, int] | None = None,
    workers: int | Literal["auto"] = "auto",
    until: float | None = None,
    self_check: bool = False,
) -> Clock | None:
    """Segment images (source, mask), where that is not done; tell of each. `job`: of the model, without images.

    A mask of ours is replaced where it was made from or with something else. `until`: seconds since the epoch from
    which no block is taken in hand; what is unfinished then, or after a crash, is gone on with by the next such call.
    The clock is None where there was nothing to segment.

    Raises UsageError and InputError before any work; WorkError for what no image is to blame for.
    """
    job = replace(job, workers=workers)
    job.check()
    job.check_memory()
    folder = Scratch(scratch)
    folder.check()
    try:
        with folder.lock() as check_lock:
            run = _Run(job, folder, told, check_lock)
            run.open(images, select)
            clock = run.work(workers, until, self_check)
            if not run.todo:
                folder.remove()
    except StorageError:  # GoneError is an OSError, too
        raise
    except OSError as e:
        raise WorkError(f"{e.filename or scratch}: {e.strerror or e}: mend that and repeat the call") from e
    return clock


class _Run:
    """One call."""

    def __init__(self, job: Job, scratch: Scratch, told: Told, check_lock: Callable[[], None]) -> None:
        self.job, self.scratch, self.told, self.check_lock = job, scratch, told, check_lock
        self.todo: dict[int, Image] = {}
        """Images that are neither done nor set aside, by their place in the call."""

    def open(self, images: Sequence[tuple[str, Location]], select: Mapping[str, int] | None) -> None:
        """See what each is, and which is done already."""

        def opened(wanted: tuple[str, Location]) -> Image | Exception:
            return _opened(self.job, wanted, select)

        for at, image in enumerate(in_order(opened, images, _AT_ONCE)):
            if isinstance(image, Exception):
                self.told.failed(at, str(image), is_passing(image))
            else:
                self.todo[at] = image
                self._look(at, image)

    def _look(self, at: int, image: Image) -> None:
        """Whether its mask is there already, or something else is."""
        try:
            for path in (image.out, *(side_path(image.out, name) for name in self.job.sides)):
                if path.exists():
                    check_in_the_way(path, overwrite=False)
        except OutputExistsError as e:
            self._fail(at, str(e), False)
            return
        about = finished(image.out)
        if about is not None and not self.job.differences_of_mask(image, about):
            del self.todo[at]
            self.told.done(at, InferredImage.of_finished(image, about, self.job.sides))

    def work(self, workers: int | Literal["auto"], until: float | None, self_check: bool) -> Clock | None:
        """Do what is to be done. Raises WorkError."""
        if not self.todo:
            return None
        settled = Joining(self.job, self.todo, self.scratch, self._fail).settle()
        if settled is None:
            return None
        plan, places = settled
        if self_check:
            from raysegment.inference.selfcheck import self_check as check

            check(plan)
        itemsize = max(image.view.dtype.itemsize for image in self.todo.values())
        count = worker_count(workers, plan, itemsize)
        with cluster(count):
            self.told.working(len(self.todo), count)
            return self._flow(plan, places, count, until)

    def _flow(self, plan: Plan, places: dict[int, int], workers: int, until: float | None) -> Clock:
        import ray

        from raysegment.inference.flow import Flow

        failed: list[Image] = []

        def finish(index: int, outputs: Outputs, tally: Tally) -> None:
            self.check_lock()
            self.told.check()
            at = places[index]
            done = finish_image(plan, index, self.todo[at], outputs, tally, self.scratch)
            del self.todo[at]
            self.told.done(at, done)

        def fail(index: int, reason: str, passing: bool) -> None:
            failed.append(self.todo[places[index]])
            self._fail(places[index], reason, passing)

        policy = Policy(tries=3, set_aside=True, until=until)
        flow = Flow(plan, set(places), self.scratch, finish, fail, policy)
        network = self.job.shipped()
        flow.run(network if isinstance(network, str) else ray.put(network), workers)
        for image in failed:  # now that nobody writes to them any more
            self.job.clear_outputs([image], self.scratch, plan)
        return flow.clock

    def _fail(self, at: int, reason: str, passing: bool) -> None:
        del self.todo[at]
        self.told.failed(at, reason, passing)


def _opened(job: Job, wanted: tuple[str, Location], select: Mapping[str, int] | None) -> Image | Exception:
    """An image with all that must be known of it, closed again: a night's images are more than the files that a
    process may hold open. Or why it cannot be had."""
    source, out = wanted
    error: Exception
    for wait_s in (_WAIT_S, None):
        try:
            image = Image.open(source, out, job.request, job.spec, select)
            image.check()
            _ = image.identity, image.foreground
            image.stored.close()
            return image
        except (RaysegmentError, OSError) as e:
            error = e
        if wait_s is not None:
            time.sleep(wait_s)
    return error
