"""Shared by all tests: where the real data is, Ray kept to itself."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

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


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One embedded Ray for all tests that need one, with room for four workers."""
    from raysegment.runtime import cluster

    with cluster(4):
        yield
