"""Networks in `.pt2`, the format of `torch.export.save`."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from raysegment.console import counted
from raysegment.errors import InputError
from raysegment.model.brought import BroughtNetwork, InputShape, first_line
from raysegment.model.model import Model
from raysegment.model.pt2_archive import clean

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from raysegment.model.spec import ModelSpec

#: Operators that do something else in training, and which of their arguments says so.
_TRAINING_FLAG = {
    torch.ops.aten.batch_norm.default: 5,
    torch.ops.aten.dropout.default: 2,
    torch.ops.aten.feature_dropout.default: 2,
}


def open_pt2(path: Path, spec: ModelSpec) -> Model:
    """The network of a `.pt2`. Raises InputError when it is damaged, may run code, or does not fit `spec`."""
    archive = clean(path.read_bytes(), str(path))
    program = _load(archive, str(path))
    takes = _input_shape(program, str(path))
    takes.check(spec, str(path))
    _refuse_training(program, str(path))
    return Model(BroughtNetwork(Pt2Network(archive, program), takes, path.name).eval(), spec)


class Pt2Network(nn.Module):
    """An exported program as a module. It travels between processes as its archive, which is the same in all."""

    def __init__(self, archive: bytes, program: ExportedProgram) -> None:
        super().__init__()
        self._archive = archive
        # its guards were left out of the archive: what it takes is checked by BroughtNetwork
        self.program = program.module(check_guards=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.program(x)

    def train(self, mode: bool = True) -> Self:
        """Nothing: an exported network is frozen in the mode it was exported in."""
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """What :meth:`to` comes to; moves also the devices that the export wrote into its calls, such as arange's."""
        super()._apply(fn, recurse)
        device = fn(torch.empty(0)).device
        for part in self.program.modules():
            if isinstance(part, torch.fx.GraphModule):
                for node in part.graph.nodes:
                    if "device" in node.kwargs:
                        node.kwargs = {**node.kwargs, "device": device}
                    if node.target is torch.ops.aten.to.device:
                        node.args = (node.args[0], device, *node.args[2:])
                part.recompile()
        return self

    def __reduce__(self) -> Any:
        return _revive, (self._archive,)


def _revive(archive: bytes) -> Pt2Network:
    return Pt2Network(archive, _load(archive, "the network that was sent"))


def _load(archive: bytes, name: str) -> ExportedProgram:
    try:
        with _quiet():
            return torch.export.load(io.BytesIO(archive))
    except Exception as e:  # a file of another version fails in as many ways as there are versions
        raise InputError(
            f"{name} cannot be read by torch {torch.__version__}: {first_line(e)}; export it again with that version"
        ) from e


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch logs a traceback before it raises."""
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _input_shape(program: ExportedProgram, name: str) -> InputShape:
    inputs = program.graph_signature.user_inputs
    if len(inputs) != 1:
        raise InputError(
            f"{name} takes {counted(len(inputs), 'input')}: export a network of one, (n, channels, h, w)"
        )
    node = next(n for n in program.graph.nodes if n.name == inputs[0])
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError(f"{name} takes {kind}: export it for float32 input")
    return InputShape.of([d if isinstance(d, int) else None for d in value.shape], name)


def _refuse_training(program: ExportedProgram, name: str) -> None:
    for node in program.graph.nodes:
        flag = _TRAINING_FLAG.get(node.target)
        if flag is not None and len(node.args) > flag and node.args[flag] is True:
            raise InputError(f"{name} was exported in training mode: call .eval() before torch.export.export")
