"""What a network is like, found by running it on one small window before anything starts.

Any network may be named, so what matters is measured, not looked up: the memory that a window takes in training,
and whether a sample's answer depends on that sample alone. The second is what makes the number of workers
without effect; BatchNorm, whose sums cross the workers, is the one exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from raysegment.errors import UsageError
from raysegment.model.architectures import EncoderSettings, settings
from raysegment.model.brought import first_line
from raysegment.training.parallel import SummedBatchNorm2d, Workers, key_dropout, share_batches

_EDGE = 64
#: Largest difference, as a share of the largest answer, that float64's rounding may make.
_ROUNDING = 1e-9
#: Weight, gradient, two moments of AdamW and the moving average, in float32.
_BYTES_PER_WEIGHT = 5 * 4


@dataclass(frozen=True, slots=True)
class Probe:
    """What training this network takes."""

    weight_bytes: int
    """Of weights, gradients and what the optimiser keeps."""
    pixel_bytes: float
    """That autograd keeps until the backward pass, per pixel of input, in float32."""


def probe(architecture: Mapping[str, Any]) -> Probe:
    """Build the network and run it once, forward, on two samples.

    Raises InputError and UsageError where it cannot be built, does not answer as it should, or mixes samples.
    """
    known = settings(architecture)
    with torch.random.fork_rng(devices=[]):
        module = share_batches(known.build(), Workers()).train()
        smallest = (2 * known.margin // known.multiple + 1) * known.multiple
        edge = max(smallest, -(-_EDGE // known.multiple) * known.multiple)
        samples = torch.randn(2, known.in_channels, edge, edge)
        wanted = (2, known.out_channels, edge - 2 * known.margin, edge - 2 * known.margin)
        try:
            answer, kept = _forward_bytes(module, samples)
            if answer != wanted:
                raise UsageError(
                    f"--architecture {known.name} answers {answer} to {tuple(samples.shape)}, not {wanted}: "
                    "name another encoder or decoder"
                )
            # of our own networks it is known, by tests
            mixed = isinstance(known, EncoderSettings) and _mixes_samples(module, samples)
        except (RuntimeError, ValueError, TypeError, AssertionError) as e:
            # an encoder made for one size of window, say
            raise UsageError(
                f"--architecture {known.name} cannot be trained on windows of {edge} px: {first_line(e)}; "
                "name another encoder"
            ) from e
    if mixed:
        raise UsageError(
            f"--architecture {known.name}: its answer to one sample depends on the others or on chance that is not "
            "the sample's own, so the number of workers would change the result: name another encoder"
        )
    weights = sum(p.numel() for p in module.parameters())
    return Probe(weights * _BYTES_PER_WEIGHT, kept / samples[:, 0].numel())


def _forward_bytes(module: nn.Module, samples: torch.Tensor) -> tuple[tuple[int, ...], int]:
    """(shape of the answer, bytes that autograd keeps of the forward pass, without the weights)."""
    kept: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in module.parameters()}
    held = []  # so that no address is given out twice

    def keep(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        held.append(t)
        return t

    key_dropout(module, [(0,), (1,)])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        answer = module(samples)
    return tuple(answer.shape), sum(kept.values())


@torch.no_grad()
def _mixes_samples(module: nn.Module, samples: torch.Tensor) -> bool:
    """Whether two samples are answered otherwise together than one by one, BatchNorm left aside."""
    module = module.double()
    for layer in module.modules():
        if isinstance(layer, SummedBatchNorm2d):
            layer.eval()  # its act and drop with it; they are of no sample but their own
    x = samples.double()
    key_dropout(module, [(0,), (1,)])
    together = module(x)
    for i in range(2):
        key_dropout(module, [(i,)])
        alone = module(x[i : i + 1])
        if not torch.allclose(
            alone, together[i : i + 1], rtol=0, atol=_ROUNDING * float(together.abs().max())
        ):
            return True
    return False
