"""Networks in `.onnx`, run by onnxruntime (extra `onnx`)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from raysegment.console import counted
from raysegment.errors import InputError, UsageError
from raysegment.model.brought import BroughtNetwork, InputShape, first_line
from raysegment.model.model import Model

if TYPE_CHECKING:
    import onnx

    from raysegment.model.spec import ModelSpec


def open_onnx(path: Path, spec: ModelSpec) -> Model:
    """The network of an `.onnx`. Raises InputError when it is damaged or does not fit `spec`; UsageError without
    the extra."""
    require("onnxruntime")
    graph = read_graph(path)
    weights = {tensor.name for tensor in graph.graph.initializer}
    inputs = [i for i in graph.graph.input if i.name not in weights]
    if len(inputs) != 1 or len(graph.graph.output) != 1:
        raise InputError(
            f"{path} has {counted(len(inputs), 'input')} and {counted(len(graph.graph.output), 'output')}: "
            "export a network with one of each"
        )
    tensor = inputs[0].type.tensor_type
    element = require("onnx").TensorProto.DataType.Name(tensor.elem_type)
    if element not in _INPUT_DTYPES:
        raise InputError(f"{path} takes {element}: export it for {', '.join(_INPUT_DTYPES)} input")
    # a symbolic dimension has a name, an unknown one neither name nor value
    takes = InputShape.of([d.dim_value or None for d in tensor.shape.dim], str(path))
    takes.check(spec, str(path))
    _refuse_training(graph.graph, str(path))
    network = OnnxNetwork(_whole(graph, path), inputs[0].name, element)
    return Model(BroughtNetwork(network, takes, path.name).eval(), spec)


_INPUT_DTYPES = {"FLOAT": np.float32, "FLOAT16": np.float16, "DOUBLE": np.float64}


class OnnxNetwork(nn.Module):
    """A network that onnxruntime runs: on the device of its input, with as many threads as torch has by then.

    It travels between processes as its bytes; the session is made where it is first used.
    """

    def __init__(self, content: bytes, input_name: str, element: str) -> None:
        super().__init__()
        self._content, self._input_name, self._element = content, input_name, element
        self._sessions: dict[str, Any] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        session = self._session(x.device)
        pixels = np.ascontiguousarray(x.detach().cpu().numpy(), dtype=_INPUT_DTYPES[self._element])
        (answer,) = session.run(None, {self._input_name: pixels})
        return torch.from_numpy(answer).to(x.device)

    def _session(self, device: torch.device) -> Any:
        if str(device) not in self._sessions:
            runtime = require("onnxruntime")
            options = runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.inter_op_num_threads = 1
            options.use_deterministic_compute = True
            options.log_severity_level = 3  # errors: they are raised as well
            providers: list[Any] = ["CPUExecutionProvider"]
            if device.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers():
                providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
            self._sessions[str(device)] = runtime.InferenceSession(
                self._content, options, providers=providers
            )
        return self._sessions[str(device)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sessions": {}}


def external_files(path: Path) -> list[Path]:
    """The files that hold weights of an `.onnx` outside it, ascending. Raises InputError."""
    return _external(read_graph(path), path)


def parameters(path: Path) -> tuple[int, int]:
    """How many tensors the weights are, and how many numbers. Raises InputError."""
    tensors = read_graph(path).graph.initializer
    return len(tensors), sum(int(np.prod(list(t.dims), dtype=np.int64)) for t in tensors)


def read_graph(path: Path) -> onnx.ModelProto:
    """The file without its external weights. Raises InputError."""
    library = require("onnx")
    try:
        graph: onnx.ModelProto = library.load(path, load_external_data=False)
    except Exception as e:  # protobuf and onnx each have their own kinds
        raise InputError(f"{path} is not a valid ONNX file: {first_line(e)}") from e
    if not graph.graph.node:  # nothing at all is valid protobuf
        raise InputError(f"{path} is not a valid ONNX file: it holds no network")
    return graph


def require(library: str) -> Any:
    """The module of that name. Raises UsageError when the extra `onnx` is not installed."""
    try:
        return importlib.import_module(library)
    except ImportError as e:
        raise UsageError(
            f"ONNX needs {library}, which is not installed: pip install 'raysegment[onnx]'"
        ) from e


def _refuse_training(graph: onnx.GraphProto, name: str) -> None:
    """Raise InputError where it drops at random, or normalises by the batch that it sees."""
    helper = importlib.import_module("onnx.numpy_helper")
    values = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        attributes = {a.name: a for a in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            values[node.output[0]] = attributes["value"].t
        is_norm = node.op_type == "BatchNormalization"
        by_batch = is_norm and "training_mode" in attributes and attributes["training_mode"].i
        flag = values.get(node.input[2]) if node.op_type == "Dropout" and len(node.input) > 2 else None
        if by_batch or (flag is not None and bool(helper.to_array(flag))):
            raise InputError(
                f"{name} was exported in training mode ({node.op_type}): call .eval() before torch.onnx.export"
            )


def _external(graph: onnx.ModelProto, path: Path) -> list[Path]:
    """Only neighbours of the file: a model must not name any file of the machine."""
    helper = importlib.import_module("onnx.external_data_helper")
    files = set()
    for tensor in _tensors(graph.graph):
        if helper.uses_external_data(tensor):
            location = next((e.value for e in tensor.external_data if e.key == "location"), "")
            file = path.parent / location
            if Path(location).name != location or file.is_symlink() or not file.is_file():
                raise InputError(
                    f"{path} keeps weights in {location!r}, which is no file beside it: put it there, "
                    "or export with external_data=False"
                )
            files.add(file)
    return sorted(files)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All stored tensors: the weights, and the constants of nodes and of the graphs inside them."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _tensors(inner)


def _whole(graph: onnx.ModelProto, path: Path) -> bytes:
    """The network in one piece: what was read and hashed is what runs, here and on the workers."""
    if not _external(graph, path):
        return path.read_bytes()
    importlib.import_module("onnx.external_data_helper").load_external_data_for_model(graph, str(path.parent))
    try:
        return graph.SerializeToString(deterministic=True)
    except Exception as e:  # protobuf stops at 2 GiB
        raise InputError(f"{path} is too big to be held in one piece: {first_line(e)}") from e
