"""A model for other runtimes: ONNX or torch.export, proven against the original before it is kept."""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from raysegment import console
from raysegment.errors import InputError, OutputExistsError, UsageError, WorkError
from raysegment.model.brought import first_line
from raysegment.model.file import load_model, load_spec
from raysegment.model.fold import fold_batchnorm
from raysegment.model.model import Model, evaluating, probabilities
from raysegment.model.onnx import OnnxNetwork, require
from raysegment.model.sidecar import sidecar_path, sidecar_text
from raysegment.model.spec import ModelSpec
from raysegment.storage.objects import check_writable

Format = Literal["onnx", "pt2"]

#: The largest difference of a probability that an export may show.
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was written, and how far it differs from the original."""

    model: str
    """Path of the model, or the name of the network's class."""
    format: Format
    output: str
    sidecar: str
    max_difference: float
    """Of a class probability, on random and structured input at the model's tile."""
    dynamic: tuple[str, ...]
    """Which of batch, height and width are not frozen."""
    tile: int

    @property
    def exit_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "format": self.format,
            "output": self.output,
            "sidecar": self.sidecar,
            "max_difference": self.max_difference,
            "dynamic": list(self.dynamic),
        }

    def summary(self) -> str:
        takes = f"any {', '.join(self.dynamic)}" if self.dynamic else "one image at a time"
        frozen = "" if "height" in self.dynamic else f", tiles of {self.tile} pixels only"
        return (
            f"{self.output} and {self.sidecar} written: {takes}{frozen}; "
            f"probabilities differ from the original's by at most {self.max_difference:.2g}"
        )


def export(
    model: str | os.PathLike[str] | Model, *, to: Format, out: str | os.PathLike[str], overwrite: bool = False
) -> ExportResult:
    """Write a model as `.onnx` or `.pt2`, with its sidecar beside it, and compare the answers.

    Batch, height and width stay dynamic where the network can be exported so; else it is frozen to its tile.
    Nothing is left behind when the answers differ by more than 1e-4.

    Args:
        model: path of a model, or a :class:`raysegment.Model` of a PyTorch network.
        to: the format; `out` must end in it.
        out: the file to write; the sidecar has the same stem and `.toml`.
        overwrite: replace both where they are there already; a sidecar that says the same stays anyway.

    Raises UsageError, InputError, OutputExistsError; WorkError when the answers differ.
    """
    out = Path(out).absolute()
    _check_format(out, to)
    text = sidecar_text(model.spec if isinstance(model, Model) else load_spec(model)).encode()
    _check_free(out, text, overwrite)
    if to == "onnx":
        for library in ("onnx", "onnxruntime", "onnxscript"):
            require(library)
    original = model if isinstance(model, Model) else load_model(model)
    if any(isinstance(m, OnnxNetwork) for m in original.module.modules()):
        raise UsageError(
            f"{model} is an ONNX network: only PyTorch networks are exported, give what it was made of"
        )
    module = copy.deepcopy(fold_batchnorm(original.module)).cpu().eval()
    program, dynamic = _trace(module, original.spec)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        temp = Path(folder) / out.name
        _write(program, temp, to)
        sidecar_path(temp).write_bytes(text)
        with evaluating(original.module):
            difference = _largest_difference(original, load_model(temp))
        if not difference <= TOLERANCE:  # NaN too
            raise WorkError(
                f"the exported network's probabilities differ from the original's by up to {difference:.2g}, more than "
                f"{TOLERANCE:g}: nothing was written; try the other format"
            )
        # the network last: whoever sees it finds its sidecar
        for part in (sidecar_path(temp), temp):
            os.replace(part, out.parent / part.name)
    return ExportResult(
        model=type(original.module).__name__ if isinstance(model, Model) else str(model),
        format=to,
        output=str(out),
        sidecar=str(sidecar_path(out)),
        max_difference=difference,
        dynamic=dynamic,
        tile=original.spec.tile,
    )


def _check_format(out: Path, to: str) -> None:
    if to not in ("onnx", "pt2"):
        raise UsageError(f"--to {to}: give onnx or pt2")
    if out.suffix != f".{to}":
        raise UsageError(f"--out {out.name}: name it *.{to}, as --to says")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: the folder {out.parent} does not exist")
    check_writable(out.parent, f"--out {out}")


def _check_free(out: Path, sidecar: bytes, overwrite: bool) -> None:
    """Raise OutputExistsError for what is in the way. The same sidecar is not: another format of this model has it."""
    beside = sidecar_path(out)
    has_same = beside.is_file() and beside.read_bytes() == sidecar
    for path in (out,) if has_same else (out, beside):
        if path.exists() and not overwrite:
            raise OutputExistsError(f"{path} exists: pass --overwrite, or name another --out")


def _trace(module: nn.Module, spec: ModelSpec) -> tuple[ExportedProgram, tuple[str, ...]]:
    """The network's graph, as dynamic as it lets itself be traced. Raises InputError."""
    edge, step = spec.tile + 2 * spec.margin, spec.multiple
    example = torch.zeros(2, spec.channels, edge, edge)
    batch = Dim("batch", min=1, max=1 << 16)
    attempts: list[tuple[dict[int, Any], tuple[str, ...]]] = [
        (
            {0: batch, 2: _multiple_of("height", step), 3: _multiple_of("width", step)},
            ("batch", "height", "width"),
        ),
        ({0: batch}, ("batch",)),
        ({}, ()),
    ]
    for shapes, dynamic in attempts:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, about itself
                pixels = example if dynamic else example[:1]
                return torch.export.export(module, (pixels,), dynamic_shapes=(shapes,)), dynamic
        except Exception as e:  # the tracer fails in as many ways as there are networks
            failed = first_line(e)
            console.detail(f"export with any {' and '.join(dynamic) or 'batch'} failed: {failed}")
    raise InputError(f"{type(module).__name__} cannot be exported: {failed}")


def _multiple_of(name: str, step: int) -> Any:
    """A dimension that is a multiple of `step`, up to 65536 pixels."""
    factor = Dim(f"{name}_steps" if step > 1 else name, min=2, max=max(3, 65536 // step))
    return step * factor if step > 1 else factor


def _write(program: ExportedProgram, path: Path, to: Format) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if to == "pt2":
            torch.export.save(program, path)
            return
        talk = logging.getLogger("torch.onnx")
        level = talk.level
        # it warns of every library that it could express, too, and that is not installed
        talk.setLevel(logging.ERROR)
        try:
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
        except Exception as e:  # an operator that ONNX lacks
            raise InputError(f"the network cannot be expressed in ONNX: {first_line(e)}; try --to pt2") from e
        finally:
            talk.setLevel(level)
        assert exported is not None
        exported.save(path, external_data=False)


@torch.inference_mode()
def _largest_difference(original: Model, exported: Model) -> float:
    """Of the class probabilities, over random and structured inputs at the model's tile."""
    spec, worst = original.spec, 0.0
    device = next((p.device for p in original.module.parameters()), torch.device("cpu"))
    for x in _probes(spec):
        wanted = probabilities(original.module(x.to(device)), spec.activation).cpu()
        got = probabilities(exported.module(x), spec.activation)
        if got.shape != wanted.shape:
            raise WorkError(
                f"the exported network answers {tuple(got.shape)}, the original {tuple(wanted.shape)}"
            )
        difference = float((got - wanted).abs().max())
        if not difference <= worst:
            worst = difference
    return worst


def _probes(spec: ModelSpec) -> Iterator[torch.Tensor]:
    """Normalised inputs: a batch of noise, then one by one a step, a ramp, and stripes one pixel wide.

    No constant image: InstanceNorm turns its rounding into the answer, which then differs from itself in float64.
    """
    edge = spec.tile + 2 * spec.margin
    yield torch.randn(2, spec.channels, edge, edge, generator=torch.Generator().manual_seed(0))
    place = torch.arange(edge)
    for profile in ((place < edge // 2) * 2.0 - 1, torch.linspace(-2, 2, edge), place % 2 * 4.0 - 2):
        yield profile.expand(1, spec.channels, edge, edge).contiguous()
