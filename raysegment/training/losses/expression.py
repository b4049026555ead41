"""The loss as the user writes it: a sum of weighted terms, ``ce``, ``0.5*focal(alpha=0.25, gamma=2) + dice``.

Every term is a sum over this worker's pixels together with what it is divided by, a count over the whole
batch. So neither the loss nor its gradient depends on how many workers share the batch, and a worker whose
pixels are all ignored contributes 0, not NaN. Terms compute in float32 (float64 stays), whatever the logits are.

Two classes are one logit: class 1 against class 0. More classes are softmax for ``ce`` and one against the
rest for ``bce`` and ``focal``; the two cannot be mixed there. To add a term: a function and a line in `_TERMS`.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from raysegment.errors import UsageError
from raysegment.training.losses.answers import Activation, Answers
from raysegment.training.losses.cross_entropy import bce, ce
from raysegment.training.losses.focal import focal
from raysegment.training.losses.lovasz import lovasz
from raysegment.training.losses.overlap import dice, tversky
from raysegment.training.parallel import Workers

_EXPRESSION = re.compile(
    r"\s*(?:(?P<weight>[0-9.eE+-]*[0-9.])\s*\*\s*)?(?P<name>\w+)\s*(?:\((?P<args>[^()]*)\))?\s*"
)
_TERMS: dict[str, Callable[..., torch.Tensor]] = {
    "ce": ce,
    "bce": bce,
    "focal": focal,
    "dice": dice,
    "tversky": tversky,
    "lovasz": lovasz,
}
_SIGMOID = frozenset({"bce", "focal"})
#: What a share cannot exceed.
_AT_MOST = {("focal", "alpha"): 1.0}


@dataclass(frozen=True)
class Loss:
    """A parsed loss expression. Call it with logits and targets."""

    terms: tuple[tuple[float, str, tuple[tuple[str, float], ...]], ...]
    """(weight, name, arguments)"""

    @classmethod
    def parse(cls, expression: str) -> Loss:
        """Raises UsageError naming the nearest term or argument."""
        terms = tuple(_term(part, expression) for part in re.split(r"(?<![0-9.][eE])\+", expression))
        if not any(weight for weight, _, _ in terms):
            raise UsageError(f"--loss {expression!r}: every weight is 0: there is nothing to learn from")
        return cls(terms)

    def activation(self, classes: int) -> Activation:
        """What turns the network's answer into probabilities. Raises UsageError when the terms disagree."""
        names = {name for _, name, _ in self.terms}
        if classes == 2:
            return "sigmoid"
        if "ce" in names and names & _SIGMOID:
            other = min(names & _SIGMOID)
            raise UsageError(
                f"--loss mixes ce and {other}: of {classes} classes ce needs softmax, {other} sigmoid"
            )
        return "sigmoid" if names & _SIGMOID else "softmax"

    def __call__(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        workers: Workers,
        weights: Sequence[float] | None = None,
    ) -> torch.Tensor:
        """The loss of the whole batch, a scalar that is the same on every worker.

        `logits` (n, outputs, h, w) and `target` (n, h, w), class indices or IGNORE, are this worker's share;
        the gradient is that of its share, to be summed over the workers. `weights`: one per class.
        """
        activation = self.activation(max(2, logits.shape[1]))
        answers = Answers.of(logits, target, weights, activation, workers)
        total = answers.logits.new_zeros(())
        for weight, name, arguments in self.terms:
            total = total + weight * _TERMS[name](answers, **dict(arguments))
        return total


def _term(text: str, expression: str) -> tuple[float, str, tuple[tuple[str, float], ...]]:
    found = _EXPRESSION.fullmatch(text)
    if found is None:
        raise UsageError(
            f"--loss {expression!r}: {text.strip()!r} is no term: write e.g. 0.5*focal(gamma=2)+dice"
        )
    name = found["name"]
    if name not in _TERMS:
        near = difflib.get_close_matches(name, _TERMS, n=1, cutoff=0)[0]
        raise UsageError(f"--loss {expression!r}: unknown term {name!r}; the nearest is {near!r}")
    weight = _number(found["weight"] or "1", f"--loss {expression!r}")
    known = [p for p in inspect.signature(_TERMS[name]).parameters if p != "a"]
    arguments = []
    for piece in filter(None, (found["args"] or "").split(",")):
        key, _, value = (part.strip() for part in piece.partition("="))
        if key not in known:
            near_keys = difflib.get_close_matches(key, known, n=1, cutoff=0)
            hint = f"the nearest is {near_keys[0]!r}" if near_keys else "it takes none"
            raise UsageError(f"--loss {expression!r}: {name} has no argument {key!r}; {hint}")
        most = _AT_MOST.get((name, key), float("inf"))
        arguments.append((key, _number(value, f"--loss {expression!r}: {key}", most)))
    return weight, name, tuple(arguments)


def _number(text: str, where: str, most: float = float("inf")) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 <= number <= most or number == float("inf"):
        bounds = f"from 0 to {most:g}" if most < float("inf") else "of 0 or more"
        raise UsageError(f"{where}: {text!r} is not a number {bounds}")
    return number
