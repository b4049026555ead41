"""BatchNorm folded into the convolution before it: the same answer from fewer passes over memory.

In eval mode BatchNorm is a scale and a shift per channel, and so is what a convolution's weights can absorb:
w' = w · γ/√(σ² + ε), b' = (b − μ) · γ/√(σ² + ε) + β.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from raysegment import console


def fold_batchnorm(module: nn.Module) -> nn.Module:
    """A copy in eval mode with every BatchNorm2d that directly follows a Conv2d folded into it.

    The module itself, untouched, where there is nothing to fold or its forward cannot be followed (control flow
    that depends on the pixels or their size). Answers differ by rounding: the folding is done in float64.
    """
    if not any(type(m) is nn.BatchNorm2d for m in module.modules()):
        return module
    folded = copy.deepcopy(module).eval()
    pairs = list(_pairs(folded))
    for conv_name, norm_name in pairs:
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
        dtype = conv.weight.dtype
        with torch.no_grad():
            fused = fuse_conv_bn_eval(conv.double(), norm.double()).to(dtype)  # type: ignore[arg-type,type-var]
        folded.set_submodule(conv_name, fused)
        folded.set_submodule(norm_name, nn.Identity())
    return folded if pairs else module


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of convolution and norm, where the norm is all that the convolution's answer goes into."""
    try:
        graph = fx.Tracer().trace(module)
    except Exception as e:  # the network's own code runs on placeholders and may fail in any way
        console.detail(
            f"BatchNorm is not folded: {type(module).__name__} cannot be traced ({type(e).__name__}: {e})"
        )
        return
    parts = dict(module.named_modules(remove_duplicate=False))
    calls = Counter(id(parts[str(n.target)]) for n in graph.nodes if n.op == "call_module")
    read = {str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"}
    for node in graph.nodes:
        if node.op != "call_module" or type(parts[str(node.target)]) is not nn.BatchNorm2d:
            continue
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        names = str(before.target), str(node.target)
        conv, norm = (parts[name] for name in names)
        if (
            type(conv) is nn.Conv2d
            and norm.running_mean is not None  # without, it normalises by the batch
            and calls[id(conv)] == calls[id(norm)] == 1
            and not read.intersection(names)
            and not any(map(_is_hooked, (conv, norm)))
        ):
            yield names


def _is_hooked(module: nn.Module) -> bool:
    """Whether something else than its forward has a say: hooks, spectral norm and its like."""
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"))
