"""Who does what: the agenda, and workers that come, die and are replaced."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import make_plan
from networks import identity

from raysegment.errors import WorkError
from raysegment.geometry import Block, Window
from raysegment.inference import crew
from raysegment.inference.agenda import Agenda, BlockWork, ShardWork
from raysegment.inference.assembly import Shard
from raysegment.inference.flow import Flow
from raysegment.inference.plan import Plan
from raysegment.inference.policy import Policy
from raysegment.inference.scratch import MAX_ATTEMPTS, Scratch


def grid(rows: int, cols: int, images: int = 1) -> list[tuple[int, Block]]:
    return [(i, Block(r, c)) for i in range(images) for r in range(rows) for c in range(cols)]


def shard(image: int = 0, col: int = 0) -> ShardWork:
    window = Window(y=0, x=col, height=1, width=1)
    return ShardWork(Shard(image, 0, 0, col), window, window)


def taken(agenda: Agenda, worker: object) -> BlockWork:
    work = agenda.next_block(worker, is_free=True)
    assert work is not None
    return work


@given(
    rows=st.integers(1, 7),
    cols=st.integers(1, 7),
    images=st.integers(1, 3),
    workers=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_every_block_is_given_out_once_whoever_asks(
    rows: int, cols: int, images: int, workers: int, seed: int
) -> None:
    turns = random.Random(seed)
    wanted = grid(rows, cols, images)
    agenda = Agenda(wanted, workers)
    assert agenda.blocks == len(wanted)
    got = []
    while (work := agenda.next_block(turns.randrange(workers), is_free=True)) is not None:
        if turns.random() < 0.1:
            agenda.put(work)  # its worker died
        else:
            got.append((work.image, work.block))
        assert agenda.blocks == len(wanted) - len(got)
    assert sorted(got, key=str) == sorted(wanted, key=str)


def test_a_worker_goes_on_beside_its_last_block() -> None:
    agenda = Agenda(grid(4, 16), workers=2)
    for _ in range(3):
        one, other = taken(agenda, "a").block, taken(agenda, "b").block
        for last in (one, other):
            following = taken(agenda, "a" if last is one else "b").block
            assert abs(following.row - last.row) + abs(following.col - last.col) <= 2
            assert following.row // 2 == last.row // 2


def test_nobody_idles_while_another_has_a_run_before_him() -> None:
    agenda = Agenda(grid(1, 4), workers=1)
    first = taken(agenda, "a")
    others = [agenda.next_block("b", is_free=True) for _ in range(3)]
    assert {first, *others} == {BlockWork(0, Block(0, col)) for col in range(4)}
    assert agenda.next_block("a", is_free=True) is None


def test_what_is_not_wanted_any_more_is_not_given_out() -> None:
    agenda = Agenda(grid(2, 2, images=2), workers=1)
    agenda.put(shard(0))
    agenda.put(shard(1))
    taken(agenda, "a")
    agenda.drop(0)
    assert (agenda.blocks, agenda.shards) == (4, 1)
    assert agenda.next_shard() == shard(1)
    assert taken(agenda, "a").image == 1
    agenda.drop_blocks()
    assert agenda.next_block("a", is_free=True) is None
    assert agenda.blocks == 0


def test_what_may_have_killed_a_worker_is_for_one_with_nothing_else_in_hand() -> None:
    agenda = Agenda(grid(1, 3), workers=1)
    agenda.put(taken(agenda, "a"))
    assert agenda.blocks == 3
    others = [agenda.next_block("b", is_free=False) for _ in range(2)]
    assert others == [BlockWork(0, Block(0, col)) for col in (1, 2)]
    assert agenda.next_block("b", is_free=False) is None
    assert taken(agenda, "b") == BlockWork(0, Block(0, 0), is_suspect=True)
    assert agenda.blocks == 0


# ── over Ray ─────────────────────────────────────────────────────────────────────


@pytest.fixture
def plan() -> Plan:
    import numpy as np

    return make_plan(identity(), np.zeros((64, 64, 1), np.uint8))


def hire(
    monkeypatch: pytest.MonkeyPatch, plan: Plan, worker: type, folder: Path, workers: int = 2
) -> crew.Crew:
    monkeypatch.setattr(crew, "InferenceWorker", worker)
    return crew.Crew(plan, workers, 100, (str(folder),))


def work_off(hired: crew.Crew, agenda: Agenda) -> tuple[list[Any], int]:
    """Rows of all that was done, and how often a worker was lost with something."""
    done, lost, end = [], 0, time.monotonic() + 60
    while (agenda.blocks or agenda.shards or hired.is_busy) and time.monotonic() < end:
        hired.take_from(agenda)
        for work, row in hired.answers():
            if row is None:
                lost += 1
                agenda.put(work)
            else:
                done.append(row)
    return done, lost


@pytest.mark.ray
def test_a_workers_death_costs_what_it_had_in_hand(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    import ray

    class _DiesOnce:  # in here: a worker cannot import this module
        def __init__(self, folder: str) -> None:
            self.folder = folder

        @ray.method(max_task_retries=-1)
        def here(self) -> None: ...

        def segment(self, image: int, row: int, col: int) -> tuple[int, int]:
            if col == 3:
                try:
                    os.close(os.open(f"{self.folder}/died", os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    pass
                else:
                    os._exit(1)
            return row, col

        def write(self, shard: Any, window: Any, in_image: Any) -> str:
            return f"shard {shard.col}"

    before = set(threading.enumerate())
    hired = hire(monkeypatch, plan, _DiesOnce, tmp_path)
    agenda = Agenda(grid(2, 8), workers=2)
    agenda.put(shard(col=5))
    done, lost = work_off(hired, agenda)
    hired.close()
    assert (tmp_path / "died").exists()
    assert 1 <= lost <= 2
    assert Counter(done) == Counter([(r, c) for r in range(2) for c in range(8)] + ["shard 5"])
    assert not {thread for thread in set(threading.enumerate()) - before if thread.is_alive()}


@pytest.mark.ray
def test_a_block_that_kills_does_not_take_others_with_it_again(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    """Beside a GPU three blocks are at work in one process."""
    import ray

    class _DiesOfOne:
        def __init__(self, folder: str) -> None:
            self.folder = folder

        @ray.method(max_task_retries=-1)
        def here(self) -> None: ...

        def segment(self, image: int, row: int, col: int) -> tuple[int, int]:
            with open(f"{self.folder}/{col}", "a") as tries:
                tries.write("x")
            time.sleep(0.3)  # so that others are at work
            if col == 3 and os.path.getsize(f"{self.folder}/{col}") <= 3:
                os._exit(1)
            return row, col

    monkeypatch.setitem(crew.BLOCKS_IN_HAND, "cpu", 3)
    hired = hire(monkeypatch, plan, _DiesOfOne, tmp_path, workers=1)
    done, _ = work_off(hired, Agenda(grid(1, 6), workers=1))
    hired.close()
    assert sorted(done) == [(0, col) for col in range(6)]
    tries = {int(file.name): file.stat().st_size for file in tmp_path.iterdir()}
    assert tries.pop(3) == 4
    assert max(tries.values()) == 2


@pytest.mark.ray
def test_workers_that_cannot_start_are_one_clear_line(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    class _Refuses:
        def __init__(self, folder: str) -> None:
            raise ValueError("no torch on this node")

        def here(self) -> None: ...

    hired = hire(monkeypatch, plan, _Refuses, tmp_path)
    with pytest.raises(WorkError, match=r"^workers cannot start: .*no torch on this node") as caught:
        work_off(hired, Agenda(grid(1, 2), workers=2))
    hired.close()
    assert "\n" not in str(caught.value)


@pytest.mark.ray
def test_a_silent_cluster_is_not_waited_for_for_ever(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    class _Sleeps:
        def __init__(self, folder: str) -> None: ...

        def here(self) -> None:
            time.sleep(60)

    monkeypatch.setattr(crew, "NO_PROGRESS_S", 1)
    hired = hire(monkeypatch, plan, _Sleeps, tmp_path)
    assert hired.answers(until=time.time() + 0.2) == []  # a deadline comes before that
    with pytest.raises(WorkError, match="no worker has answered"):
        work_off(hired, Agenda(grid(1, 2), workers=2))
    hired.close()


def test_a_shard_that_kills_ends_the_run_or_its_image(plan: Plan, tmp_path: Path) -> None:
    failed: list[tuple[int, str, bool]] = []

    def fail(*said: Any) -> None:
        failed.append(said)

    def killed(policy: Policy) -> None:
        flow = Flow(plan, {0}, Scratch(tmp_path), lambda *_: None, fail, policy)
        for _ in range(MAX_ATTEMPTS):
            flow._put_back(shard(), Agenda([], 1))

    with pytest.raises(WorkError, match="took its worker down 3 times"):
        killed(Policy())
    killed(Policy(set_aside=True))
    [(image, why, may_pass)] = failed
    assert (image, may_pass) == (0, False)
    assert "took its worker down 3 times" in why
