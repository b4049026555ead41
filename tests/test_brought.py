"""Networks that users bring as .pt2 and .onnx: what is taken, what is refused, and that a file can run no code."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import raysegment as rs
from raysegment.model.file import file_identity, load_model, load_spec
from raysegment.model.shipping import ship, unship
from raysegment.model.sidecar import KEYS, read_sidecar, sidecar_text
from raysegment.model.spec import Class, ModelSpec, default_classes
from tests.networks import convolutional

TILE = 32
SIDECAR = f"""
classes = ["water", {{name = "land", colour = "#00ff00"}}, "snow"]
channels = 1
scale = 0.015625
mean = 2
tile = {TILE}
"""


def pixels(n: int = 2, height: int = TILE, width: int = TILE) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, height, width, 1), dtype=np.uint8)


def save_pt2(module: nn.Module, path: Path, shapes: dict[int, Any] | None = None, batch: int = 2) -> Path:
    x = torch.zeros(batch, 1, TILE, TILE)
    program = torch.export.export(module.eval(), (x,), dynamic_shapes=(shapes,) if shapes else None)
    torch.export.save(program, path)
    path.with_suffix(".toml").write_text(SIDECAR)
    return path


def save_onnx(path: Path, **changes: Any) -> Path:
    """A 3 × 3 convolution of one channel to three, made by hand: (n, 1, h, w) float32."""
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    from onnx import TensorProto, helper, numpy_helper

    element = changes.get("element", TensorProto.FLOAT)
    dtype = helper.tensor_dtype_to_np_dtype(element)
    weight = np.random.default_rng(0).normal(size=(3, 1, 3, 3)).astype(dtype)
    nodes = [helper.make_node("Conv", ["x", "w"], ["logits"], pads=[1, 1, 1, 1])]
    kind, answer = element, "logits"
    if changes.get("argmax"):
        nodes.append(helper.make_node("ArgMax", ["logits"], ["index"], axis=1))
        kind, answer = TensorProto.INT64, "index"
    shape = changes.get("shape", ["n", 1, "h", "w"])
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info(answer, kind, [None] * 4)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(
        model,
        path,
        save_as_external_data=changes.get("external", False),
        location="weights.bin",
        size_threshold=0,
    )
    path.with_suffix(".toml").write_text(SIDECAR)
    return path


def reference(x: np.ndarray) -> np.ndarray:
    """What the network of :func:`save_onnx` answers."""
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 1, 3, 3)).astype(np.float32))
    inputs = torch.from_numpy(x.astype(np.float32)).permute(0, 3, 1, 2) * 0.015625 - 2
    return torch.nn.functional.conv2d(inputs, weight, padding=1).softmax(dim=1).numpy()


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .pt2 frozen at a batch of two and one size."""
    torch.set_num_threads(1)
    return save_pt2(convolutional().module, tmp_path_factory.mktemp("pt2") / "net.pt2")


@pytest.fixture
def copied(frozen: Path, tmp_path: Path) -> Path:
    for suffix in (".pt2", ".toml"):
        shutil.copy(frozen.with_suffix(suffix), tmp_path / f"net{suffix}")
    return tmp_path / "net.pt2"


# --- the sidecar


def test_a_sidecar_says_what_a_network_is_used_with(copied: Path) -> None:
    spec = load_spec(copied)
    assert spec.class_names == ("water", "land", "snow")
    assert [c.colour for c in spec.classes] == [
        default_classes(3)[0].colour,
        (0, 255, 0),
        default_classes(3)[2].colour,
    ]
    assert (spec.channels, spec.scale, spec.mean, spec.std, spec.tile) == (1, 0.015625, (2.0,), (1.0,), TILE)
    assert spec.activation == "softmax"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("multipel = 16", "'multiple'"),
        ("architecture = {}", "unknown key"),
        ('activation = "relu"', "activation"),
        ("std = 0", "positive"),
        ("std = [-0.2]", "positive"),
        ("std = inf", "std 1: Input should be a finite number"),
        ("std = nan", "std 1: Input should be a finite number"),
        ("mean = nan", "mean 1: Input should be a finite number"),
        ("scale = inf", "scale: Input should be a finite number"),
        ("scale = -1", "scale"),
        ("nodata = inf", "nodata: Input should be a finite number"),
        ("pixel_size = [0.5, inf]", "pixel_size"),
        ("thresholds = [0.5, nan, 0.5]", "thresholds 2"),
        (
            'classes = ["a", {name = "b", colour = [300, 0, 0]}]',
            "class 2: colour 1: Input should be less than",
        ),
        ('classes = ["a", {name = "b", colour = [0, -1, 0]}]', "class 2: colour 2"),
        ("mean = [1, 2]", "mean"),
        ("thresholds = [0.5]", "1 value for 3 classes"),
        ('classes = "a"', "list of names"),
        ("classes = []", "list of names"),
        ('classes = ["a", 7]', "class 2 is 7"),
        ('classes = ["a", {name = "b", color = "#000000"}]', "'colour'"),
        ('classes = ["a", {name = "b", colour = "green"}]', "#808000"),
        ('classes = ["a", {colour = "#000000"}]', "class 2: name"),
        ('classes = ["a", "a"]', "must differ"),
        ("pixel_size = 0.5", 'y, x, "unit"'),
        ("pixel_size = [0.5, -1]", 'y, x, "unit"'),
        ("channels = 0", "channels"),
        ("tile = [", "not valid TOML"),
    ],
)
def test_a_wrong_sidecar_is_named(copied: Path, line: str, says: str) -> None:
    key = line.partition(" ")[0]
    kept = [old for old in SIDECAR.splitlines() if not old.startswith(f"{key} =")]
    copied.with_suffix(".toml").write_text("\n".join([*kept, line]))
    for use in (load_spec, load_model, file_identity):
        with pytest.raises(rs.InputError) as caught:
            use(copied)
        assert "net.toml" in str(caught.value)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_missing_sidecar_says_what_to_write(copied: Path) -> None:
    copied.with_suffix(".toml").unlink()
    for use in (load_spec, load_model, file_identity):
        with pytest.raises(rs.InputError, match=r"write net\.toml beside it.*classes = .*channels = "):
            use(copied)


@given(data=st.data())
def test_a_spec_survives_its_sidecar(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    names = data.draw(st.lists(st.text(min_size=1), min_size=2, max_size=4, unique=True))
    byte, number = st.integers(0, 255), st.floats(-1e6, 1e6)
    plain = st.recursive(
        st.booleans() | st.integers(-(2**60), 2**60) | number | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    )
    channels = data.draw(st.integers(1, 3))
    spec = ModelSpec(
        classes=tuple(
            Class(
                name=name,
                colour=data.draw(st.tuples(byte, byte, byte)),
                value=data.draw(st.none() | byte | st.tuples(byte, byte, byte)),
            )
            for name in names
        ),
        channels=channels,
        scale=data.draw(st.floats(1e-9, 1e9)),
        mean=tuple(data.draw(st.lists(number, min_size=channels, max_size=channels))),
        std=(data.draw(st.floats(1e-6, 1e6)),),
        activation=data.draw(st.sampled_from(["softmax", "sigmoid", "none"])),
        tile=data.draw(st.integers(1, 4096)),
        multiple=data.draw(st.integers(1, 64)),
        margin=data.draw(st.integers(0, 100)),
        pixel_size=data.draw(
            st.none()
            | st.tuples(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.sampled_from([None, "m", "um"]))
        ),
        nodata=data.draw(st.none() | number),
        licence=data.draw(st.none() | st.text()),
        provenance=data.draw(st.dictionaries(st.text(), plain, max_size=3)),
    )
    network = tmp_path_factory.mktemp("sidecar") / "net.onnx"
    network.with_suffix(".toml").write_text(sidecar_text(spec), encoding="utf-8")
    assert read_sidecar(network) == spec


def test_the_keys_are_those_of_the_contract() -> None:
    promised = (
        "classes channels scale mean std tile multiple activation pixel_size thresholds nodata margin licence"
    )
    assert set(KEYS) == {*promised.split(), "provenance"}


def test_reading_a_sidecar_loads_no_torch(copied: Path) -> None:
    code = (
        "import sys; from raysegment.model import load_spec; "
        f"load_spec({str(copied)!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- .pt2


def test_a_frozen_batch_is_fed_piece_by_piece(frozen: Path) -> None:
    model, expected = load_model(frozen), convolutional()
    for n in (1, 2, 5):
        np.testing.assert_allclose(model.predict(pixels(n)), expected.predict(pixels(n)), atol=1e-6)


class Counting(nn.Module):
    """Makes a tensor of its own on the device of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(x.shape[3], device=x.device, dtype=torch.float32).to(x.device)
        return x + places


def test_a_network_goes_to_another_device_with_what_it_makes_there(tmp_path: Path) -> None:
    """No GPU is needed to see it: torch's device without memory refuses what lies elsewhere as a GPU does."""
    module = load_model(save_pt2(Counting(), tmp_path / "net.pt2")).module
    x = torch.rand(2, 1, TILE, TILE)
    here = module(x)
    there = module.to(device="meta", memory_format=torch.channels_last)(x.to("meta"))
    assert (there.device.type, there.shape) == ("meta", here.shape)
    assert torch.equal(module.to("cpu")(x), here)


def test_a_frozen_size_is_named(frozen: Path, copied: Path) -> None:
    with pytest.raises(rs.InputError, match="takes 32 × 32 pixels only, not 64 × 32"):
        load_model(frozen).predict(pixels(1, height=64))
    copied.with_suffix(".toml").write_text(SIDECAR.replace("tile = 32", "tile = 64\nmargin = 4"))
    with pytest.raises(rs.InputError, match=r"takes 32 × 32 pixels only, .* tile \+ 2 · margin = 72"):
        load_model(copied)


def test_other_channels_than_the_sidecar_says(copied: Path) -> None:
    copied.with_suffix(".toml").write_text(SIDECAR.replace("channels = 1", "channels = 3"))
    with pytest.raises(rs.InputError, match="takes 1 channel, its sidecar says channels = 3"):
        load_model(copied)


def test_other_classes_than_the_sidecar_says(copied: Path) -> None:
    copied.with_suffix(".toml").write_text(SIDECAR.replace(', "snow"', ""))
    with pytest.raises(rs.InputError, match=r"answered \(2, 3, 32, 32\).* says \(2, 2, 32, 32\)"):
        load_model(copied).predict(pixels(2))


class Halved(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x, x], dim=1)[:, :, ::2, ::2]


class Indices(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x, x], dim=1).to(torch.int64)


class Several(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x * 2


class Dropping(nn.Sequential):
    """Exported as if in training."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5))

    def eval(self) -> Dropping:
        return self


@pytest.mark.parametrize(
    ("module", "says"),
    [(Halved(), "its spec"), (Indices(), "argmax"), (Several(), "one tensor"), (Dropping(), "training mode")],
)
def test_an_answer_that_is_none_is_refused(module: nn.Module, says: str, tmp_path: Path) -> None:
    path = save_pt2(module, tmp_path / "net.pt2")
    with pytest.raises(rs.InputError, match=says):
        load_model(path).predict(pixels(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_is_an_answer(dtype: torch.dtype, tmp_path: Path) -> None:
    class Cast(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, -x, x / 2], dim=1).to(dtype)

    answer = load_model(save_pt2(Cast(), tmp_path / "net.pt2")).predict(pixels(2))
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-6)


def test_a_brought_network_travels_and_keeps_its_identity(frozen: Path) -> None:
    model = load_model(frozen)
    there = unship(ship(model))
    np.testing.assert_array_equal(there.predict(pixels(2)), model.predict(pixels(2)))
    code = f"from raysegment.model import load_model; print(load_model({str(frozen)!r}).identity())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == model.identity() == there.identity()


@pytest.mark.parametrize("suffix", [".pt2", ".toml"])
def test_the_identity_covers_network_and_sidecar(copied: Path, suffix: str) -> None:
    before = file_identity(copied)
    assert before == file_identity(copied)
    with copied.with_suffix(suffix).open("ab") as f:
        f.write(b"\n")
    assert file_identity(copied) != before


# --- a .pt2 that would run code


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"net/{name}", content)


def in_graph(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(members: dict[str, bytes]) -> None:
        program = json.loads(members["models/model.json"])
        change(program)
        members["models/model.json"] = json.dumps(program).encode()

    return apply


def pickled_samples(marker: Path) -> Callable[[dict[str, bytes]], None]:
    out = io.BytesIO()
    torch.save(((Touch(marker),), {}), out)
    return lambda members: members.update({"data/sample_inputs/model.pt": out.getvalue()})


def evaluated_guard(marker: Path) -> Callable[[dict[str, bytes]], None]:
    return in_graph(
        lambda p: p.update(guards_code=[f"__import__('pathlib').Path({str(marker)!r}).touch() is None"])
    )


@pytest.mark.parametrize("make", [pickled_samples, evaluated_guard])
def test_what_could_run_is_left_out(copied: Path, tmp_path: Path, make: Callable[[Path], Any]) -> None:
    marker = tmp_path / "ran"
    rewritten(copied, make(marker))
    np.testing.assert_allclose(
        load_model(copied).predict(pixels(2)), convolutional().predict(pixels(2)), atol=1e-6
    )
    assert not marker.exists()


def pickled_weight(marker: Path, members: dict[str, bytes]) -> None:
    config = json.loads(members["data/weights/model_weights_config.json"])
    entry = next(iter(config["config"].values()))
    entry["use_pickle"] = True
    members["data/weights/model_weights_config.json"] = json.dumps(config).encode()
    members[f"data/weights/{entry['path_name']}"] = pickle.dumps(Touch(marker))


def opaque_constant(marker: Path, members: dict[str, bytes]) -> None:
    members["data/constants/opaque_obj_0"] = pickle.dumps(Touch(marker))


def legacy_weights(marker: Path, members: dict[str, bytes]) -> None:
    members["data/weights/model.pt"] = pickle.dumps(Touch(marker))


def compiled(marker: Path, members: dict[str, bytes]) -> None:
    members["data/aotinductor/model/model.so"] = b"\x7fELF"


def expression(marker: Path, members: dict[str, bytes]) -> None:
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"

    def change(program: dict[str, Any]) -> None:
        tensors = program["graph_module"]["graph"]["tensor_values"]
        next(iter(tensors.values()))["sizes"][0] = {"as_expr": {"expr_str": code, "hint": {"as_int": 2}}}

    in_graph(change)(members)


def operator(target: str) -> Callable[[Path, dict[str, bytes]], None]:
    def change(marker: Path, members: dict[str, bytes]) -> None:
        in_graph(lambda p: p["graph_module"]["graph"]["nodes"][0].update(target=target))(members)

    return change


def placeholder(marker: Path, members: dict[str, bytes]) -> None:
    code = f"x=__import__('pathlib').Path({str(marker)!r}).touch()"
    text = members["models/model.json"].decode()
    members["models/model.json"] = text.replace('"input"', json.dumps(code)).encode()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (pickled_weight, "is pickled"),
        (opaque_constant, "opaque_obj_0"),
        (legacy_weights, "model.pt"),
        (compiled, "aotinductor"),
        (expression, "expression"),
        (operator("torch.os.system"), "torch.os.system"),
        (operator("torch.ops.aten.save.default"), "aten.save"),
        (operator("torch.ops.aten.from_file.default"), "from_file"),
        (operator("_operator.methodcaller"), "methodcaller"),
        (placeholder, "no name"),
    ],
)
def test_what_would_run_is_refused(
    copied: Path, tmp_path: Path, change: Callable[[Path, dict[str, bytes]], None], says: str
) -> None:
    marker = tmp_path / "ran"
    rewritten(copied, lambda members: change(marker, members))
    with pytest.raises(rs.InputError, match=says) as caught:
        load_model(copied)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 torn"])
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, content: bytes, suffix: str) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    (tmp_path / "net.toml").write_text(SIDECAR)
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    with pytest.raises(rs.InputError, match=f"net{suffix}") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_a_torn_or_twisted_graph_is_one_clear_line(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rewritten(copied, in_graph(lambda p: p["graph_module"]["graph"]["nodes"].reverse()))
    with pytest.raises(rs.InputError, match="cannot be read by torch") as caught:
        load_model(copied)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err
    copied.write_bytes(copied.read_bytes()[:2000])
    with pytest.raises(rs.InputError, match="damaged"):
        load_model(copied)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_a_pickle_says_what_to_do(tmp_path: Path, suffix: str) -> None:
    marker = tmp_path / "ran"
    (tmp_path / f"net{suffix}").write_bytes(pickle.dumps(Touch(marker)))
    for use in (load_model, load_spec, file_identity):
        with pytest.raises(rs.InputError, match=r"torch\.export\.save"):
            use(tmp_path / f"net{suffix}")
    assert not marker.exists()


# --- .onnx


def test_an_onnx_network_answers(tmp_path: Path) -> None:
    model = load_model(save_onnx(tmp_path / "net.onnx"))
    x = pixels(3, 40, 56)
    np.testing.assert_allclose(model.predict(x), reference(x), atol=1e-6)
    there = unship(ship(model))
    np.testing.assert_array_equal(there.predict(x), model.predict(x))
    assert there.identity() == model.identity()


def test_its_session_has_as_many_threads_as_torch_has_by_then(tmp_path: Path) -> None:
    model = load_model(save_onnx(tmp_path / "net.onnx"))
    torch.set_num_threads(2)
    try:
        model.predict(pixels(1))
        (session,) = model.module.network._sessions.values()
        assert session.get_session_options().intra_op_num_threads == 2
    finally:
        torch.set_num_threads(1)


def test_half_precision_and_one_size_and_one_image_at_a_time(tmp_path: Path) -> None:
    element = pytest.importorskip("onnx").TensorProto.FLOAT16
    model = load_model(save_onnx(tmp_path / "net.onnx", element=element, shape=[1, 1, TILE, TILE]))
    np.testing.assert_allclose(model.predict(pixels(3)), reference(pixels(3)), atol=0.02)
    with pytest.raises(rs.InputError, match="takes 32 × 32 pixels only"):
        model.predict(pixels(1, height=64))


def test_weights_beside_the_network_belong_to_it(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "net.onnx", external=True)
    assert (tmp_path / "weights.bin").is_file()
    x, before = pixels(2), file_identity(path)
    model = load_model(path)
    np.testing.assert_allclose(model.predict(x), reference(x), atol=1e-6)
    (tmp_path / "weights.bin").write_bytes(bytes(108))
    assert file_identity(path) != before
    np.testing.assert_allclose(unship(ship(model)).predict(x), reference(x), atol=1e-6)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(rs.InputError, match=r"weights\.bin"):
        load_model(path)


def test_weights_elsewhere_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = save_onnx(tmp_path / "in" / "net.onnx", external=True)
    (tmp_path / "in" / "weights.bin").rename(tmp_path / "weights.bin")
    path.write_bytes(path.read_bytes().replace(b"weights.bin", b"../eights.bin"[:11]))
    (tmp_path / "eights.bi").write_bytes(bytes(108))
    with pytest.raises(rs.InputError, match="beside it"):
        load_model(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"argmax": True}, "argmax"),
        ({"shape": ["n", 3, "h", "w"]}, "takes 3 channels"),
        ({"shape": ["n", 1, 48, 48]}, r"48 × 48 pixels only.*= 32"),
        ({"shape": ["n", 1, "h"]}, "3 dimensions"),
        ({"shape": [1, TILE, TILE, 1]}, "channels last"),
        ({"shape": ["n", "h", "w", 1]}, "channels last"),
    ],
)
def test_an_onnx_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(rs.InputError, match=says) as caught:
        load_model(save_onnx(tmp_path / "net.onnx", **changes)).predict(pixels(1))
    assert "\n" not in str(caught.value)


# the older exporter is full of warnings about itself
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layer", [nn.Dropout(), nn.BatchNorm2d(1)])
def test_an_onnx_of_training_is_refused(layer: nn.Module, tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "net.onnx")
    network, x = nn.Sequential(nn.Conv2d(1, 1, 1), layer).train(), torch.zeros(1, 1, TILE, TILE)
    how: dict[str, Any] = {"dynamo": False, "do_constant_folding": False}
    torch.onnx.export(network, (x,), path, training=torch.onnx.TrainingMode.TRAINING, **how)
    with pytest.raises(rs.InputError, match=f"training mode .{type(layer).__name__[:5]}"):
        load_model(path)
    torch.onnx.export(network.eval(), (x,), path, **how)
    load_model(path)


def test_without_the_extra_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_onnx(tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(rs.UsageError, match=r"pip install 'raysegment\[onnx\]'"):
        load_model(path)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_inspect_shows_them(suffix: str, copied: Path) -> None:
    path = save_onnx(copied.with_suffix(".onnx")) if suffix == ".onnx" else copied
    result = rs.inspect(path)
    facts = result.to_json()
    assert facts["kind"] == "model"
    assert facts["format"] == suffix[1:]
    weights = 27 if suffix == ".onnx" else sum(p.numel() for p in convolutional().module.parameters())
    assert facts["parameters"] == weights
    assert facts["identity"] == file_identity(path) != facts["sha256"]
    assert [c["name"] for c in facts["classes"]] == ["water", "land", "snow"]
    assert "water" in result.summary()
