"""Shared by all tests: where the real data is, Ray kept to itself."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from raysegment.training.run import RunFolder

# Ray would write a token into the home folder: a test leaves nothing there.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.pop("RAY_ADDRESS", None)

settings.register_profile("house", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("house")

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images beside the checkout; tests that need them skip where they are not."""
    if not _DATA.is_dir():
        pytest.skip(f"no real data at {_DATA}")
    return _DATA


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Whoever ran a command in this process leaves it as a library finds it."""
    from raysegment import console

    yield
    console.configure("silent")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One embedded Ray for all tests that need one, with room for four workers."""
    from raysegment.runtime import cluster

    with cluster(4):
        yield


@pytest.fixture(scope="session")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small training set, to be read alone."""
    from trained import make

    return make(tmp_path_factory.mktemp("data") / "discs")


@pytest.fixture(scope="session")
def undisturbed(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A training on the discs that nothing interrupted, on the disk; to be read alone."""
    from trained import run_here

    return run_here(discs, tmp_path_factory.mktemp("undisturbed") / "run")
