"""What a worker answers: figures, or an error that the driver raises as its own."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from raysegment import console
from raysegment.errors import RaysegmentError, WorkError
from raysegment.hardware import peak_memory
from raysegment.storage.objects import is_passing

Row = dict[str, Any]


class OfTheRun(Exception):
    """What is no image's fault, and would meet the next one as well: the network, the place that is written to."""


def reported(work: Callable[..., Row], **row: int) -> Row:
    """Do the work of one row; an error becomes part of the answer, and the driver raises it as its own."""
    answer: Row = {}
    error = trace = ""
    of_run = passing = False
    try:
        answer = work(**row)
    except RaysegmentError as e:
        error, passing = str(e), is_passing(e)
    except OfTheRun as e:
        of_run, error, trace = True, str(e), traceback.format_exc()
    except OSError as e:  # a disk or a store that fails: the place is what helps
        of_run = True
        error, trace = f"{e.filename}: {e.strerror}" if e.filename else str(e), traceback.format_exc()
    except Exception as e:  # Ray would repeat a failing actor call for ever
        error, trace = f"{type(e).__name__}: {e}", traceback.format_exc()
    told = {"error": error, "trace": trace, "of_run": of_run, "passing": passing}
    return {**row, **answer, **told, "peak_bytes": peak_memory()}


def fail_on_error(answer: Row, *, set_aside: bool = False) -> None:
    """Raise the error that a worker reported; with `set_aside`, only one that is no image's own."""
    if answer["error"]:
        console.detail(answer["trace"])
        if not set_aside or answer["of_run"]:
            raise WorkError(answer["error"])
