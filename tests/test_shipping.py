"""A network of the user's on its way: known again in every process, sent whole, and left as it was."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.prune import l1_unstructured

import raysegment as rs
from raysegment.model import shipping
from raysegment.model.shipping import copied, is_installed, ship, unship
from raysegment.model.spec import ModelSpec, default_classes
from tests.made import make_plan, summed

SPEC = ModelSpec(classes=default_classes(2), channels=3, tile=32)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


# --- known again

#: A script as people run it: a class of its own, one from a file beside it, TorchScript.
SCRIPT = """
import torch
from torch import nn
import raysegment as rs
from beside import Halved

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)
        for name in ("alpha", "beta", "gamma", "delta"):
            self.register_buffer(name, torch.ones(1), persistent=False)

    def forward(self, x):
        # a note
        return self.layer(x) if "a" in {"a", "b", "c", "d"} else super().forward(x)

torch.manual_seed(0)
spec = rs.ModelSpec(classes=[rs.Class(name=n, colour=(0, 0, 0)) for n in "ab"], channels=3)
made = [Mine(), Halved(), torch.jit.script(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Dropout()))]
print(*(rs.Model(module, spec).identity() for module in made))
"""
BESIDE = """
from torch import nn
from deeper import half

class Halved(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 2, 1)

    def forward(self, x):
        return half(super().forward(x))
"""


def identities(folder: Path, seed: int, script: str, deeper: str) -> list[str]:
    """What the script prints, with its files as given."""
    for name, text in {"script": script, "beside": BESIDE, "deeper": deeper}.items():
        (folder / f"{name}.py").write_text(text)
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-W", "ignore", "script.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_same_script_makes_the_same_network_until_its_code_changes(tmp_path: Path) -> None:
    before = identities(tmp_path, 1, SCRIPT, "def half(x):\n    return x / 2\n")
    noted = SCRIPT.replace("# a note", "# a longer note\n        # of two lines")
    after = identities(tmp_path, 2, noted, "def half(x):\n    return x / 4\n")
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert len({*before, *after}) == 4


def test_settings_that_code_refers_to_count() -> None:
    def identity(width: int) -> str:
        class Widened(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x * settings["width"]

        settings = {"width": width}
        return rs.Model(Widened(), SPEC).identity()

    assert identity(1) == identity(1) != identity(2)


def test_what_fills_while_a_network_answers_is_no_other_network() -> None:
    class Caching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen[x.shape] = x
            return x[:, :2]

    seen: dict[torch.Size, torch.Tensor] = {}
    model = rs.Model(Caching(), SPEC)
    before = model.identity()
    model.predict(np.zeros((1, 8, 8, 3), np.uint8))
    assert seen
    assert model.identity() == before


# --- sent whole


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def spectral() -> nn.Module:
    net = plain()
    parametrizations.spectral_norm(net[0])
    return net


def pruned() -> nn.Module:
    net = plain()
    l1_unstructured(net[0], "weight", 0.5)
    net(torch.zeros(1, 3, 8, 8))
    return net


def tied() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 1))
    net[1].weight = net[0].weight
    return net


def hooked() -> nn.Module:
    net = plain()
    net[0].register_forward_hook(lambda _m, _i, out: out * 2)
    return net


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    "make",
    [
        plain,
        spectral,
        pruned,
        tied,
        hooked,
        lambda: nn.DataParallel(plain()),
        lambda: torch.compile(plain()),
        lambda: torch.jit.script(plain()),
        lambda: torch.jit.freeze(torch.jit.script(plain()).eval()),
    ],
)
def test_it_answers_the_same_there_and_is_left_as_it_was(make: Callable[[], nn.Module]) -> None:
    model = rs.Model(make(), SPEC)
    modes = [getattr(part, "training", None) for part in model.module.modules()]
    state = {name: (t.clone(), t.stride()) for name, t in model.module.state_dict().items()}
    identity, pixels = model.identity(), np.random.default_rng(0).integers(0, 9, (1, 32, 32, 3), np.uint8)
    own = rs.Model(copied(model.module), SPEC)
    expected = own.predict(pixels)
    np.testing.assert_array_equal(unship(ship(model)).predict(pixels), expected)
    summed(own, make_plan(own, pixels[0]), pixels[0])  # what infer does with it
    assert [getattr(part, "training", None) for part in model.module.modules()] == modes
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, state[name][0]), name
        assert tensor.stride() == state[name][1], name
    assert model.identity() == identity
    if hasattr(model.module, "original_name"):
        return  # TorchScript
    plainest = getattr(model.module, "_orig_mod", model.module).eval()
    with torch.no_grad():
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
        np.testing.assert_allclose(plainest(x).softmax(1), expected, atol=1e-6)


def test_a_copy_shares_classes_and_no_state() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.log = 0, list[int]()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.log.append(self.calls)
            return x

    mine = Counting()
    forward = Counting.forward
    other = copied(mine)
    other(torch.zeros(1))
    assert type(other) is Counting
    assert Counting.forward is forward
    assert (mine.calls, mine.log, other.log) == (0, [], [1])


def test_what_cannot_travel_says_so() -> None:
    class Open(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.file = (i for i in range(3))

    with pytest.raises(rs.InputError, match=r"cannot be sent to the workers.*generator.*\.pt2"):
        ship(rs.Model(Open(), SPEC))


def test_a_class_of_a_file_that_no_worker_can_import_travels(tmp_path: Path) -> None:
    file = tmp_path / "loose.py"
    file.write_text("from torch import nn\nclass Loose(nn.Conv2d):\n    pass\n")
    loading = importlib.util.spec_from_file_location("loose", file)
    assert loading is not None
    assert loading.loader is not None
    loose = importlib.util.module_from_spec(loading)
    loading.loader.exec_module(loose)  # and not into sys.modules, as plug-ins and notebooks do
    model = rs.Model(loose.Loose(3, 2, 1), SPEC)
    assert unship(ship(model)).identity() == model.identity()


def test_workers_look_where_this_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    shipped = ship(rs.Model(plain(), SPEC))
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    unship(shipped)
    assert sys.path.count(str(tmp_path)) == 1


def test_packages_of_the_users_own_site_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "somewhere" / "thing.py"
    file.parent.mkdir()
    file.write_text("")
    loading = importlib.util.spec_from_file_location("thing", file)
    assert loading is not None
    thing = importlib.util.module_from_spec(loading)
    assert is_installed(torch)
    assert not is_installed(thing)
    monkeypatch.setattr("site.getusersitepackages", lambda: str(tmp_path))
    shipping._homes.cache_clear()
    assert is_installed(thing)
    monkeypatch.undo()
    shipping._homes.cache_clear()


# --- asked in this process


def test_predict_takes_arrays_as_readers_give_them() -> None:
    model = rs.Model(plain(), SPEC)
    pixels = np.random.default_rng(0).integers(0, 9, (2, 32, 32, 3), np.uint16)
    expected = model.predict(pixels)
    np.testing.assert_array_equal(model.predict(pixels.astype(">u2")), expected)
    np.testing.assert_array_equal(model.predict(pixels[:, ::-1])[:, :, ::-1].shape, expected.shape)
    np.testing.assert_array_equal(model.predict(np.flip(np.flip(pixels, 1).copy(), 1)), expected)


@pytest.mark.parametrize("value", [1.5, -0.5, float("nan")])
def test_predict_answers_no_probability_that_is_none(value: float) -> None:
    class Loud(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full_like(x[:, :2], value)

    with pytest.raises(rs.AnswerError, match="not within 0 and 1"):
        rs.Model(Loud(), SPEC.model_copy(update={"activation": "none"})).predict(np.zeros((1, 8, 8, 3)))


def test_an_exported_program_says_what_to_do() -> None:
    module = torch.export.export(plain().eval(), (torch.zeros(1, 3, 32, 32),)).module()
    with pytest.raises(rs.UsageError, match=r"torch\.export\.save"):
        rs.Model(module, SPEC).predict(np.zeros((1, 32, 32, 3), np.uint8))
