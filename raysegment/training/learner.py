"""One step of learning: a network, its moving average and its optimiser, and nothing about data or Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from raysegment.model.architectures import StartsAtPrior, build, build_pretrained
from raysegment.training.losses import Loss
from raysegment.training.parallel import Workers, key_dropout, share_batches
from raysegment.training.settings import Resolved
from raysegment.training.supervision import Supervised, supervised_loss

_WEIGHT_DECAY = 1e-2
_EMA_DECAY = 0.999


class Learner:
    """Takes one step at a time on this worker's share of the batch; every worker's copy stays the same."""

    def __init__(
        self,
        settings: Resolved,
        architecture: dict[str, Any],
        prior: Sequence[float],
        weights: Sequence[float] | None,
        workers: Workers,
        device: torch.device,
    ) -> None:
        """`prior`: one class frequency per output of the network; `weights`: one per class, for the loss."""
        self.settings, self.workers, self.device, self.weights = settings, workers, device, weights
        self.loss = Loss.parse(settings.loss)
        torch.manual_seed(settings.seed)
        fresh = build_pretrained(architecture) if settings.pretrained else build(architecture)
        if isinstance(fresh, StartsAtPrior):
            fresh.set_prior(prior, self.loss.activation(max(2, len(prior))))
        self.average = None
        if settings.ema:
            self.average = build(architecture).eval().requires_grad_(False)
            self.average.load_state_dict(fresh.state_dict())
            place(self.average, device)
        self.module = place(share_batches(fresh, workers), device)
        self.learned = self.module
        """The network, and with deep supervision the heads that only training has."""
        if settings.deep_supervision:
            self.learned = place(Supervised(self.module, len(prior)), device)
        self.optimizer = torch.optim.AdamW(_groups(self.learned), lr=settings.lr)

    def learn(
        self, images: torch.Tensor, targets: torch.Tensor, step: int, indices: Sequence[int]
    ) -> torch.Tensor:
        """One step on this worker's share; the loss of the whole batch, detached.

        `images` (n, c, e, e) normalised, `targets` (n, t, t) uint8, e = t + 2·margin. `step` from 0.
        """
        self.learned.train()
        self.optimizer.zero_grad(set_to_none=True)
        if self.settings.accumulate == 1:
            loss = self._loss(self._answers(images, indices), targets)
            loss.backward()
        else:
            loss = self._accumulate(images, targets, indices)
        self.workers.sum_gradients(self.learned)
        if self.settings.clip_grad:
            nn.utils.clip_grad_norm_(self.learned.parameters(), self.settings.clip_grad)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(step)
        self.optimizer.step()
        self._follow(step)
        return loss.detach()

    def _accumulate(
        self, images: torch.Tensor, targets: torch.Tensor, indices: Sequence[int]
    ) -> torch.Tensor:
        """The loss of the whole batch and its gradient, with the activations of one part at a time.

        Dice needs the answers to the whole batch before any pixel has a gradient. So the parts go through the
        network twice: first for their logits, which are small, then for the gradient that the loss has there.
        """
        parts = self._parts(indices)
        stored = [buffer.clone() for buffer in self.learned.buffers()]
        with torch.no_grad():
            answers = [self._answers(images[part], [indices[i] for i in part]) for part in parts]
        for buffer, before in zip(self.learned.buffers(), stored, strict=True):
            buffer.copy_(before)  # the second time counts
        logits = [torch.cat(level).requires_grad_() for level in zip(*answers, strict=True)]
        loss = self._loss(logits, targets[[i for part in parts for i in part]])
        sizes = [len(part) for part in parts]
        wanted = zip(*(g.split(sizes) for g in torch.autograd.grad(loss, logits)), strict=True)
        for part, gradients in zip(parts, wanted, strict=True):
            torch.autograd.backward(self._answers(images[part], [indices[i] for i in part]), gradients)
        return loss

    def _parts(self, indices: Sequence[int]) -> list[list[int]]:
        """This worker's places in each part. A part is the same samples however many workers share it, so that
        BatchNorm, which knows a part alone, sees the same statistics."""
        count, size = self.settings.accumulate, self.settings.batch_size
        parts: list[list[int]] = [[] for _ in range(count)]
        for place, index in enumerate(indices):
            parts[index % size * count // size].append(place)
        return parts

    def _answers(self, images: torch.Tensor, indices: Sequence[int]) -> list[torch.Tensor]:
        """Logits, with deep supervision those of every level, the finest first."""
        key_dropout(self.module, ((self.settings.seed, 2, i) for i in indices))
        with self.autocast():
            answer = self.learned(images)
        return answer if self.settings.deep_supervision else [answer]

    def _loss(self, answers: Sequence[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        if self.settings.deep_supervision:
            return supervised_loss(self.loss, answers, targets, self.workers, self.weights)
        return self.loss(answers[0], targets, self.workers, self.weights)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    @property
    def best(self) -> nn.Module:
        """The network to validate and to keep: the moving average, if there is one."""
        return self.average if self.average is not None else self.module

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        average = None if self.average is None else self.average.state_dict()
        return {"model": self.learned.state_dict(), "ema": average, "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.learned.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """The average follows with a horizon that grows with the run, so a short run is averaged too."""
        if self.average is None:
            return
        decay = min(_EMA_DECAY, (1 + step) / (10 + step))
        for kept, new in zip(
            self.average.state_dict().values(), self.module.state_dict().values(), strict=True
        ):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)


def place(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to `device` in the layout that convolutions are fastest in."""
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _groups(module: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for what is multiplied with pixels, none for biases and norms."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": _WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
