"""How many workers, with what each: what is understood, what fits the nodes, what is refused before any wait."""

from __future__ import annotations

from typing import Any

import pytest

from raysegment.errors import UsageError
from raysegment.training import team
from raysegment.training.settings import Settings
from raysegment.training.team import Team, assemble


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Say what this machine has, or which nodes a running Ray has."""

    def has(*nodes: dict[str, float], connected: bool = False) -> None:
        monkeypatch.setattr(team, "is_connected", lambda: connected)
        monkeypatch.setattr(team, "_this_machine", lambda: nodes[0])
        monkeypatch.setattr(team, "cluster_nodes", lambda: list(nodes))

    return has


def _assemble(wish: int | str, gpus: int | None = None, **options: Any) -> Team:
    return assemble(wish, gpus, Settings.of({"batch_size": 8, **options}))


@pytest.mark.parametrize(
    ("wish", "found"),
    [
        ("auto", Team(4, 4, 0, 1)),
        (1, Team(1, 1, 0, 4)),
        ("3", Team(3, 3, 0, 1)),
        (6, Team(6, 6, 0, 1)),
        ("1:2", Team(1, 2, 0, 2)),
        ("2:8", Team(2, 4, 0, 1)),
        ("6:8", Team(6, 6, 0, 1)),
    ],
)
def test_on_this_machine_workers_share_its_cores(machine: Any, wish: int | str, found: Team) -> None:
    machine({"CPU": 4, "GPU": 0})
    assert _assemble(wish) == found


def test_gpus_are_used_where_every_worker_finds_one(machine: Any) -> None:
    machine({"CPU": 16, "GPU": 2})
    assert _assemble("auto") == Team(2, 2, 1, 1)
    assert _assemble(2) == Team(2, 2, 1, 1)
    assert _assemble(3) == Team(3, 3, 0, 5)
    assert _assemble("1:4") == Team(1, 4, 1, 1)
    assert _assemble("auto", gpus=0) == Team(8, 8, 0, 2)
    with pytest.raises(
        UsageError, match=r"--workers 3: 3 workers of 1 CPU and 1 GPU each; this Ray has room for 2"
    ):
        _assemble(3, gpus=1)


def test_in_a_running_ray_the_nodes_decide(machine: Any) -> None:
    machine({"CPU": 5}, {"CPU": 3}, {"GPU": 1.0}, connected=True)
    assert _assemble(2) == Team(2, 2, 0, 3)
    assert _assemble(3) == Team(3, 3, 0, 2)
    assert _assemble("1:8") == Team(1, 8, 0, 1)
    assert _assemble("auto") == Team(8, 8, 0, 1)
    with pytest.raises(
        UsageError, match=r"--workers 9:12: 9 workers of 1 CPU each; this Ray has room for 8: give"
    ):
        _assemble("9:12", batch_size=16)
    assert Team(1, 4, 1, 1).room([{"CPU": 8, "GPU": 2}, {"CPU": 1, "GPU": 4}, {"GPU": 4}]) == 3


@pytest.mark.parametrize(
    ("wish", "options", "message"),
    [
        (0, {}, r"--workers 0: give auto, a number of 1 or more, or MIN:MAX"),
        ("3:2", {}, r"--workers 3:2: give"),
        ("two", {}, r"--workers two: give"),
        (
            9,
            {},
            r"--workers 9 is more than --batch-size 8 has for all: .* at most --workers 8, or --batch-size 9 or more",
        ),
        ("1:9", {}, r"--workers 1:9 is more than --batch-size 8"),
        (
            4,
            {"accumulate": 4},
            r"--workers 4 is more than --batch-size 8 in --accumulate 4 parts has for all",
        ),
        ("auto", {"accumulate": 9}, r"--accumulate 9 is more than --batch-size 8"),
        (1, {"gpus": 2}, r"--gpus-per-worker 2: a worker trains on one device"),
        (1, {"gpus": 1}, r"no GPU here for --workers 1 of 1 each: give --gpus-per-worker 0"),
    ],
)
def test_what_cannot_be_is_said_at_once(
    machine: Any, wish: Any, options: dict[str, Any], message: str
) -> None:
    machine({"CPU": 4})
    with pytest.raises(UsageError, match=message):
        _assemble(wish, **options)
