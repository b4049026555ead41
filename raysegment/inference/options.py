"""What a caller may say, as keyword arguments; and how many workers that makes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from pydantic import ValidationError

from raysegment import console
from raysegment.console import counted
from raysegment.errors import UsageError
from raysegment.geometry import Window
from raysegment.hardware import available_cores, available_memory
from raysegment.inference.plan import Plan
from raysegment.inference.request import Request
from raysegment.runtime.connected import fitted, is_foreign

if TYPE_CHECKING:
    from raysegment.inference.blend import Blend
    from raysegment.inference.job import Job

Auto = Literal["auto"]


class Options(TypedDict, total=False):
    """What decides the plan; every one may be left out."""

    tile: int | None
    overlap: int | None
    blend: Blend
    level: int | None
    pixel_size: float | Literal["native"] | None
    channels: tuple[int, ...] | None
    region: Window | None
    foreground: str | os.PathLike[str]
    tta: Literal["none", "flip", "d4"]
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    device: Literal["auto", "cpu", "cuda"]
    batch_size: int | Auto
    block: int | Auto
    max_memory: int | str | None
    probabilities: bool
    uncertainty: bool
    on_error: Literal["fail", "skip"]


def request_of(options: Mapping[str, Any]) -> Request:
    try:
        return Request.model_validate(options)
    except ValidationError as e:
        first = e.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"--{option} {first['input']!r}: {message[:1].lower()}{message[1:]}") from e


def check_workers(workers: int | Auto) -> None:
    """Raise UsageError for what is no number of processes."""
    is_number = isinstance(workers, Integral) and not isinstance(workers, bool)
    if workers != "auto" and not (is_number and workers >= 1):
        raise UsageError(f"--workers {workers!r}: give auto or a number from 1")


def itemsize_of(job: Job) -> int:
    return max(image.view.dtype.itemsize for image in job.images)


def worker_count(asked: int | Auto, made: Plan, itemsize: int) -> int:
    """Processes: one per GPU, or one per core a worker's threads take, as far as the memory goes."""
    is_cuda = made.device == "cuda"
    if is_cuda and not is_foreign():
        return _on_gpus_here(asked)
    each = made.worker_bytes(itemsize)
    count = fitted(
        None if asked == "auto" else asked,
        cpus=0 if is_cuda else made.threads,
        gpus=int(is_cuda),
        memory=0 if is_cuda else each,
    )
    if count is not None:
        return count
    cores = max(1, available_cores() // made.threads)
    return max(1, min(cores, int(0.8 * available_memory()) // each))


def _on_gpus_here(asked: int | Auto) -> int:
    """Processes on this machine's GPUs, each with one to itself."""
    import torch

    there = torch.cuda.device_count()
    if asked == "auto" or asked <= there:
        return there if asked == "auto" else asked
    console.say(f"--workers {asked}: {counted(there, 'GPU')} here, and a worker needs one: {there} it is")
    return there
