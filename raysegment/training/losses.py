"""The loss, written as a sum of weighted terms: ``ce``, ``0.5*focal(alpha=0.25, gamma=2) + dice``.

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
from typing import Literal

import torch
import torch.nn.functional as F

from raysegment.errors import UsageError
from raysegment.training.parallel import Workers
from raysegment.training.windows import IGNORE

#: Pixels added to numerator and denominator of Dice, so that a class of no pixels has one.
_SMOOTH = 1.0

_EXPRESSION = re.compile(
    r"\s*(?:(?P<weight>[0-9.eE+-]*[0-9.])\s*\*\s*)?(?P<name>\w+)\s*(?:\((?P<args>[^()]*)\))?\s*"
)


@dataclass(frozen=True)
class Answers:
    """What every term looks at: this worker's pixels."""

    logits: torch.Tensor
    """(n, outputs, h, w)"""
    target: torch.Tensor
    """(n, h, w) int64 class indices; 0 where the pixel does not count."""
    valid: torch.Tensor
    """(n, h, w) 1 where the pixel counts, otherwise 0."""
    weights: torch.Tensor | None
    """One per class."""
    activation: Literal["softmax", "sigmoid"]
    workers: Workers
    count: torch.Tensor
    """Valid pixels of the whole batch, at least 1."""

    @property
    def one_hot(self) -> torch.Tensor:
        """(n, outputs, h, w): the class as 0 and 1; of one output, whether it is class 1."""
        if self.logits.shape[1] == 1:
            return self.target[:, None].to(self.logits.dtype)
        return F.one_hot(self.target, self.logits.shape[1]).permute(0, 3, 1, 2).to(self.logits.dtype)

    def mean(self, per_pixel: torch.Tensor) -> torch.Tensor:
        """Weighted sum of (n, h, w) over the valid pixels of the whole batch, by their count."""
        per_pixel = per_pixel * self.valid
        if self.weights is not None:
            per_pixel = per_pixel * self.weights.to(per_pixel.dtype)[self.target]
        return self.workers.total(per_pixel.sum()) / self.count


def ce(a: Answers) -> torch.Tensor:
    """Cross-entropy."""
    if a.logits.shape[1] == 1:
        return bce(a)
    return a.mean(F.cross_entropy(a.logits, a.target, reduction="none"))


def bce(a: Answers) -> torch.Tensor:
    """Binary cross-entropy, summed over the outputs."""
    return a.mean(F.binary_cross_entropy_with_logits(a.logits, a.one_hot, reduction="none").sum(dim=1))


def focal(a: Answers, alpha: float = 0.25, gamma: float = 2.0) -> torch.Tensor:
    """Focal loss (Lin et al. 2017): α(1−p)^γ·(−log p) where y = 1 and (1−α)p^γ·(−log(1−p)) where y = 0.

    α weighs class 1, 1 − α class 0. The powers are exp(γ·log p), so that value and gradient are finite for
    every γ ≥ 0 and every logit.
    """
    y, log_p, log_q = a.one_hot, F.logsigmoid(a.logits), F.logsigmoid(-a.logits)
    at_one = -alpha * torch.exp(gamma * log_q) * log_p
    at_zero = -(1 - alpha) * torch.exp(gamma * log_p) * log_q
    return a.mean((y * at_one + (1 - y) * at_zero).sum(dim=1))


def dice(a: Answers) -> torch.Tensor:
    """1 − soft Dice of the batch, mean over the classes that occur in it (weighted, if classes are)."""
    y = a.one_hot
    p = a.logits.softmax(dim=1) if a.activation == "softmax" else a.logits.sigmoid()
    if p.shape[1] == 1:
        p, y = torch.cat([1 - p, p], dim=1), torch.cat([1 - y, y], dim=1)
    p, y = p * a.valid[:, None], y * a.valid[:, None]
    sums = [t.sum(dim=(0, 2, 3)) for t in (p * y, p, y)]
    both, predicted, true = a.workers.total(torch.stack(sums))
    score = (2 * both + _SMOOTH) / (predicted + true + _SMOOTH)
    weights = (true > 0).to(score.dtype)
    if a.weights is not None:
        weights = weights * a.weights.to(score.dtype)
    return ((1 - score) * weights).sum() / weights.sum().clamp(min=torch.finfo(score.dtype).tiny)


_TERMS: dict[str, Callable[..., torch.Tensor]] = {"ce": ce, "bce": bce, "focal": focal, "dice": dice}
_SIGMOID = frozenset({"bce", "focal"})


@dataclass(frozen=True)
class Loss:
    """A parsed loss expression. Call it with logits and targets."""

    terms: tuple[tuple[float, str, tuple[tuple[str, float], ...]], ...]
    """(weight, name, arguments)"""

    @classmethod
    def parse(cls, expression: str) -> Loss:
        """Raises UsageError naming the nearest term or argument."""
        terms = tuple(_term(part, expression) for part in re.split(r"(?<![0-9.][eE])\+", expression))
        return cls(terms)

    def activation(self, classes: int) -> Literal["softmax", "sigmoid"]:
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
        classes = max(2, logits.shape[1])
        exact = logits if logits.dtype == torch.float64 else logits.float()
        valid = target != IGNORE
        answers = Answers(
            exact,
            torch.where(valid, target, 0).long(),
            valid.to(exact.dtype),
            None if weights is None else torch.tensor(weights, dtype=exact.dtype, device=exact.device),
            self.activation(classes),
            workers,
            workers.sum(valid.sum()).clamp(min=1),
        )
        total = exact.new_zeros(())
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
        arguments.append((key, _number(value, f"--loss {expression!r}: {key}")))
    return weight, name, tuple(arguments)


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise UsageError(f"{where}: {text!r} is not a number of 0 or more")
    return number
