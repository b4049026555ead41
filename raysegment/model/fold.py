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
from raysegment.model.brought import first_line


def fold_batchnorm(module: nn.Module) -> nn.Module:
    """A copy in eval mode with every BatchNorm2d that directly follows a Conv2d folded into it.

    The module itself, untouched, where there is nothing to fold or its forward cannot be followed (control flow
    that depends on the pixels or their size). Answers differ by rounding: the folding is done in float64.
    """
    if not any(type(m) is nn.BatchNorm2d for m in module.modules()):
        return module
    folded = own_copy(module)
    if folded is None:
        return module
    pairs = [
        (conv, norm)
        for conv, norm in followers(folded, nn.BatchNorm2d)
        if folded.get_submodule(norm).running_mean is not None  # without, it normalises by the batch
    ]
    for conv_name, norm_name in pairs:
        # apart from those that share their weights
        conv, norm = (copy.deepcopy(folded.get_submodule(name)) for name in (conv_name, norm_name))
        dtype = conv.weight.dtype
        with torch.no_grad():
            fused = fuse_conv_bn_eval(conv.double(), norm.double()).to(dtype)  # type: ignore[arg-type,type-var]
        folded.set_submodule(conv_name, fused)
        folded.set_submodule(norm_name, nn.Identity())
    return folded if pairs else module


def own_copy(module: nn.Module) -> nn.Module | None:
    """A copy in eval mode; None where the module lets itself not be copied, as a pruned one that has been trained."""
    try:
        return copy.deepcopy(module).eval()
    except Exception as e:  # the network's own code
        console.detail(f"{type(module).__name__} stays as it is, for it cannot be copied: {first_line(e)}")
        return None


def followers(module: nn.Module, kind: type[nn.Module]) -> Iterator[tuple[str, str]]:
    """Names of every Conv2d and the `kind` that is all its answer goes into, each called once and as it stands."""
    try:
        graph = fx.Tracer().trace(module)
    except Exception as e:  # the network's own code runs on placeholders and may fail in any way
        console.detail(
            f"no {kind.__name__} is joined to a convolution: {type(module).__name__} cannot be traced "
            f"({type(e).__name__}: {e})"
        )
        return
    parts = dict(module.named_modules(remove_duplicate=False))
    calls = Counter(id(parts[str(n.target)]) for n in graph.nodes if n.op == "call_module")
    read = {str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"}
    for node in graph.nodes:
        if node.op != "call_module" or type(parts[str(node.target)]) is not kind:
            continue
        before = _before(node, parts)
        if before is None:
            continue
        names = str(before.target), str(node.target)
        conv, follower = (parts[name] for name in names)
        if (
            type(conv) is nn.Conv2d
            and calls[id(conv)] == calls[id(follower)] == 1
            and not read.intersection(names)
            and not any(map(_is_hooked, (conv, follower)))
        ):
            yield names


def _before(node: fx.Node, parts: dict[str, nn.Module]) -> fx.Node | None:
    """The module call whose answer goes into `node` alone; what passes its input on unchanged does not count."""
    before = node.args[0] if node.args else None
    while isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1:
        if type(parts[str(before.target)]) is not nn.Identity:
            return before
        before = before.args[0] if before.args else None
    return None


def _is_hooked(module: nn.Module) -> bool:
    """Whether something else than its class's forward has a say: hooks, spectral norm and its like, another forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or hasattr(module, "parametrizations")
        or "forward" in vars(module)
    )
