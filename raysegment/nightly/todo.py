"""What is to be done tonight: every image whose content, model or settings are not those of its mask."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from raysegment.errors import UsageError
from raysegment.nightly.discovery import Found
from raysegment.nightly.job import JobFile
from raysegment.nightly.ledger import Entry, Ledger
from raysegment.storage import location
from raysegment.storage.objects import before_work

#: Options that decide how the work is done, and not the mask.
_HOW = ("device", "batch_size", "block", "max_memory")


@dataclass
class Todo:
    """The images of a night, sorted."""

    work: list[tuple[Found, Entry]] = field(default_factory=list)
    """To be segmented, with what the ledger is to say when they are claimed."""
    done: int = 0
    """Whose masks are there already."""
    set_aside: dict[str, str] = field(default_factory=dict)
    """Images that failed before and are the same since, with the reason."""
    touched: dict[str, Entry] = field(default_factory=dict)
    """Images whose listing changed and whose content did not: what the ledger is to say."""
    forgotten: list[str] = field(default_factory=list)
    """Of the ledger: images whose mask is another's from now on, to which they were moved, or is not there any more."""

    @property
    def images(self) -> int:
        return len(self.work) + self.done + len(self.set_aside)


def recipe_of(job: JobFile, model: str) -> str:
    """Digest of all that decides a mask besides its image; `model`: the model's own digest."""
    settings = job.infer.request.model_dump(mode="json", exclude=set(_HOW))
    text = json.dumps([model, settings, job.infer.select], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def decide(
    job: JobFile,
    found: Sequence[Found],
    ledger: Ledger,
    recipe: str,
    began: datetime,
    run: str,
    *,
    retry: bool = False,
) -> Todo:
    """Sort the images found. `began`: of the run, in the job's time zone; `retry`: those set aside, too.

    Raises UsageError when two images would become one mask, or a new one that of one that was done before.
    """
    todo = Todo()
    pattern = job.output_pattern
    newest = job.input.newer_than
    oldest = began.timestamp() - newest.total_seconds() if newest is not None else None
    masks: dict[str, str] = {}
    ours = {entry.output for entry in ledger.images.values()}
    for one in found:
        entry = ledger.images.get(one.source)
        if one.source in ours:
            continue
        is_claimed = entry is not None and entry.state == "claimed"
        if oldest is not None and one.modified is not None and one.modified < oldest and not is_claimed:
            continue
        is_placed = entry is not None and entry.pattern == pattern
        output = entry.output if entry is not None and is_placed else _output(pattern, one, began)
        if (other := masks.setdefault(output, one.source)) != one.source:
            raise UsageError(
                f"{other} and {one.source} would both become {output}: "
                "tell them apart in [output] path, with {relpath} or {parent}"
            )
        if entry is not None and is_placed and entry.recipe == recipe and _is_same(one, entry):
            if entry.tag != one.tag:
                todo.touched[one.source] = entry.model_copy(update={"tag": one.tag})
            if entry.state == "done":
                todo.done += 1
                continue
            if entry.state == "failed" and not retry:
                todo.set_aside[one.source] = entry.reason or ""
                continue
        claim = Entry(
            state="claimed",
            output=output,
            pattern=pattern,
            size=one.size,
            tag=one.tag,
            recipe=recipe,
            run=run,
        )
        todo.work.append((one, claim))
    todo.forgotten = _forgotten(todo, ledger, {one.source for one in found})
    return todo


def _forgotten(todo: Todo, ledger: Ledger, listed: set[str]) -> list[str]:
    """Images of the ledger whose places others take rightly. Raises UsageError where one is taken wrongly."""
    working = {one.source for one, _ in todo.work}
    holders = {
        entry.output: source
        for source, entry in ledger.images.items()
        if entry.state != "failed" and source not in working
    }
    found = []
    for one, claim in todo.work:
        own, holder = ledger.images.get(one.source), holders.get(claim.output)
        if holder is None or (own is not None and own.output == claim.output):
            continue
        is_moved = holder not in listed and _is_copy(one, ledger.images[holder])
        if not is_moved and _has_mask(claim.output):
            raise UsageError(
                f"{claim.output} is the mask of {holder}, made before, and would become that of {one.source}: "
                "tell them apart in [output] path, with {relpath} or {parent}, or move that mask away"
            )
        found.append(holder)
    return found


def _has_mask(output: str) -> bool:
    with before_work():
        return (location(output) / "zarr.json").is_file()


def _output(pattern: str, one: Found, began: datetime) -> str:
    return pattern.format(**one.names(began.date().isoformat()))


def _is_same(one: Found, entry: Entry) -> bool:
    """Whether an image is what it was. On a disk a file that was only touched, or copied anew, is read to see that."""
    if (one.size, one.tag) == (entry.size, entry.tag):
        return True
    return one.size == entry.size and entry.digest is not None and one.digest() == entry.digest


def _is_copy(one: Found, entry: Entry) -> bool:
    """Whether an image has the content of one of another name. Files of equal size and time need not be the same."""
    if one.size != entry.size:
        return False
    digest = one.digest()
    return digest == entry.digest if digest is not None else one.tag == entry.tag != ""
