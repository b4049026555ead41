"""The workers of a run, over Ray: actors that are given work as they come free, and replaced when they die.

On a CPU each of them does all there is to do, one piece at a time. Beside a GPU those that have one only segment, and
others, on the CPUs, write the shards.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import ray

from raysegment.errors import WorkError
from raysegment.inference.agenda import Agenda, BlockWork, Work
from raysegment.inference.answer import Row
from raysegment.inference.plan import BLOCKS_IN_HAND, Plan
from raysegment.inference.worker import InferenceWorker
from raysegment.runtime import FRUGAL_ENVIRONMENT, WORKER_ENVIRONMENT

Kind = Literal["block", "shard"]
#: Seconds without an answer of any worker after which a run gives up: on a cluster that grows, the first takes minutes.
NO_PROGRESS_S = 1800
#: Pieces that wait in a worker's hands beyond those it is at, so that it does not wait for the driver.
_AHEAD = 1


@dataclass(frozen=True)
class Role:
    """A kind of worker."""

    takes: frozenset[Kind]
    most: int
    """How many there may be."""
    at_once: int
    """Pieces that one works at, each in a thread."""
    resources: dict[str, float]


@dataclass(eq=False)
class Member:
    """One worker, as the driver sees it."""

    role: Role
    actor: Any
    in_hand: set[Any] = field(default_factory=set)
    """References to the answers that it owes."""
    is_here: bool = False
    has_suspect: bool = False
    """What it has in hand may be what kills: it gets nothing beside it."""


class Crew:
    """Workers of a plan. `arguments` are what an InferenceWorker is made of; references are fetched where it starts."""

    def __init__(self, plan: Plan, workers: int, blocks: int, arguments: tuple[Any, ...]) -> None:
        self._roles = _roles(plan, workers)
        self._environment = _environment(plan)
        self._arguments = arguments
        self._members: list[Member] = []
        self._owed: dict[Any, tuple[Member, Work | None]] = {}
        """By the reference of each answer; no work: the worker was asked whether it is there."""
        for _ in range(min(workers, max(1, blocks))):
            self._hire(self._roles[0])

    @property
    def is_busy(self) -> bool:
        """Whether any work is in hand."""
        return any(work is not None for _, work in self._owed.values())

    @property
    def has_blocks(self) -> bool:
        """Whether a block is in hand."""
        return any(isinstance(work, BlockWork) for _, work in self._owed.values())

    def take_from(self, agenda: Agenda) -> None:
        """Give work to all who can take some, the emptiest hands first: shards before blocks, for what they are made of
        was read or written just now. Where more shards wait than there are workers for them, another one is hired."""
        for role in self._roles:
            there = sum(member.role is role for member in self._members)
            if "shard" in role.takes and agenda.shards > there < role.most:
                self._hire(role)
        for hands in range(max(role.at_once for role in self._roles) + _AHEAD):
            for member in self._members:
                if member.is_here and not member.has_suspect and len(member.in_hand) == hands:
                    work = self._next(member, agenda)
                    if work is not None:
                        self._give(member, work)

    def _next(self, member: Member, agenda: Agenda) -> Work | None:
        """With fewer blocks left than workers nobody gets one ahead: another may be free sooner."""
        ahead = len(member.in_hand) - member.role.at_once
        work: Work | None = None
        if "shard" in member.role.takes and ahead < _AHEAD:
            work = agenda.next_shard()
        if work is None and "block" in member.role.takes:
            few = agenda.blocks < sum("block" in each.role.takes for each in self._members)
            if ahead < (0 if few else _AHEAD):
                work = agenda.next_block(member, is_free=not member.in_hand)
        return work

    def _give(self, member: Member, work: Work) -> None:
        if isinstance(work, BlockWork):
            member.has_suspect = work.is_suspect
            reference = member.actor.segment.remote(work.image, work.block.row, work.block.col)
        else:
            reference = member.actor.write.remote(work.shard, work.window, work.in_image)
        member.in_hand.add(reference)
        self._owed[reference] = member, work

    def answers(self, until: float | None = None) -> list[tuple[Work, Row | None]]:
        """Wait until something happens: what was done, each with its worker's answer. None: its worker died with it.

        Empty when a worker came, nothing is to be waited for, or it has become `until` (seconds since the epoch).

        Raises WorkError when nothing happens for long, or workers cannot start.
        """
        if not self._owed:
            return []
        left_s = math.inf if until is None else until - time.time()
        is_ending = 0 < left_s < NO_PROGRESS_S
        wait_s = left_s if is_ending else NO_PROGRESS_S
        ready, _ = ray.wait(list(self._owed), num_returns=1, timeout=wait_s)
        if not ready and is_ending:
            return []
        if not ready:
            raise WorkError(
                f"no worker has answered for {NO_PROGRESS_S // 60} minutes: see what the cluster's nodes are busy "
                "with, and repeat the call to go on"
            )
        ready, _ = ray.wait(list(self._owed), num_returns=len(self._owed), timeout=0)
        return [answer for reference in ready if (answer := self._answer(reference)) is not None]

    def _answer(self, reference: Any) -> tuple[Work, Row | None] | None:
        member, work = self._owed.pop(reference)
        member.in_hand.discard(reference)
        member.has_suspect = False
        try:
            row = ray.get(reference)
        except ray.exceptions.RayTaskError:  # our own mistake: a worker answers with its errors
            raise
        except ray.exceptions.RayError as e:
            if work is None:
                raise WorkError(f"workers cannot start: {_cause(e)}") from e
            if member.is_here:
                member.is_here = False
                self._call(member)
            return work, None
        if work is None:
            member.is_here = True
            return None
        return work, row

    def _hire(self, role: Role) -> None:
        # Ray starts it anew, on any node that has room; what it had in hand is given to whoever is free.
        how = {"max_restarts": -1, "max_concurrency": role.at_once, "scheduling_strategy": "SPREAD"}
        hired: Any = ray.remote(InferenceWorker)
        actor = hired.options(**how, **role.resources, **self._environment).remote(*self._arguments)
        member = Member(role, actor)
        self._members.append(member)
        self._call(member)

    def _call(self, member: Member) -> None:
        """Ask whether it is there: answered when it has started, however often it must."""
        self._owed[member.actor.here.remote()] = member, None

    def close(self) -> None:
        """Nothing more is wanted; what is in hand is dropped."""
        for member in self._members:
            ray.kill(member.actor)
        self._members.clear()
        self._owed.clear()


def _roles(plan: Plan, workers: int) -> list[Role]:
    at_once = BLOCKS_IN_HAND[plan.device]
    if plan.device == "cpu":
        return [Role(frozenset({"block", "shard"}), workers, at_once, {"num_cpus": plan.threads})]
    return [
        Role(frozenset({"block"}), workers, at_once, {"num_gpus": 1, "num_cpus": 0}),
        Role(frozenset({"shard"}), workers, 1, {"num_cpus": 1}),
    ]


def _environment(plan: Plan) -> dict[str, Any]:
    """What the workers' processes must be started with, where Ray was not started with it."""
    wanted = FRUGAL_ENVIRONMENT if plan.frugal else WORKER_ENVIRONMENT
    given = {} if plan.frugal else os.environ
    missing = {key: value for key, value in wanted.items() if key not in given}
    return {"runtime_env": {"env_vars": missing}} if missing else {}


def _cause(error: Exception) -> str:
    """The last line of Ray's long story."""
    return next(
        (line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__
    )
