"""Many workers, one batch: what makes the loss, the statistics and the gradient those of the whole batch.

Every worker holds a share of the global batch. Three sums cross the workers, and nothing is averaged:

* the loss's counts and sums (:meth:`Workers.total`): each worker then knows the global loss and takes the
  gradient of it with respect to its own share;
* BatchNorm's statistics (:class:`SummedBatchNorm2d`), forward and backward;
* the gradients (:meth:`Workers.sum_gradients`): the sum over shares is the gradient of the global loss.

So 1, 2 and 4 workers give the same loss and the same gradient up to rounding. DistributedDataParallel
averages per-worker means instead, which on crops with 0–100 % ignored pixels was 30 to 44 % off.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from raysegment.errors import RaysegmentError, UsageError

#: Gradients travel in buckets of about this many elements.
_BUCKET = 1 << 22


class Stopped(Exception):
    """All workers stop at one place, because one of them cannot go on; on that one, `error` says why."""

    def __init__(self, error: RaysegmentError | None) -> None:
        super().__init__(str(error) if error is not None else "another worker cannot go on")
        self.error = error


class Workers:
    """This worker among all: `rank` of `size`. Without a process group, the only one."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank(group) if together else 0
        self.size = dist.get_world_size(group) if together else 1
        on_gpu = together and dist.get_backend(group) == "nccl"
        self._device = torch.device("cuda" if on_gpu else "cpu")

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over the workers, without gradient."""
        if self.size == 1:
            return values
        values = values.detach().clone().contiguous()
        dist.all_reduce(values, group=self.group)
        return values

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the workers whose gradient goes to this worker's share alone.

        The shares' gradients meet again in :meth:`sum_gradients`, so they must not be summed here too.
        """
        if self.size == 1:
            return values
        return self.sum(values) + (values - values.detach())  # the second is 0: the same bits on every worker

    def agree(self, error: RaysegmentError | None = None, *, wish: bool = False) -> bool:
        """Meet the other workers here; whether any of them has the wish. Raises Stopped on every one of them when
        any brings an error, so that none waits for ever for one that has gone."""
        said = torch.tensor([float(error is not None), float(wish)], device=self._device)
        failed, wished = self.sum(said).tolist()
        if failed:
            raise Stopped(error) from error
        return wished > 0

    def sum_array(self, counts: np.ndarray, device: torch.device) -> np.ndarray:
        """Sum of an int64 array over the workers."""
        return self.sum(torch.from_numpy(counts).to(device)).cpu().numpy()

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The workers' rows (n_r, …) one after the other, in the order of their ranks."""
        if self.size == 1:
            return rows
        counts = torch.zeros(self.size, dtype=torch.int64, device=rows.device)
        counts[self.rank] = len(rows)
        counts = self.sum(counts)
        padded = rows.new_zeros((int(counts.max()), *rows.shape[1:]))
        padded[: len(rows)] = rows
        return torch.cat([p[:n] for p, n in zip(self.stack(padded), counts.tolist(), strict=True)])

    def stack(self, own: torch.Tensor) -> torch.Tensor:
        """(size, …): every worker's tensor, of one shape, in the order of their ranks."""
        pieces = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(pieces, own, group=self.group)
        return torch.stack(pieces)

    def sum_gradients(self, module: nn.Module) -> None:
        """Replace every parameter's gradient by its sum over the workers."""
        if self.size == 1:
            return
        for bucket in _buckets(p.grad for p in module.parameters() if p.grad is not None):
            flat = torch.cat([g.reshape(-1) for g in bucket])
            dist.all_reduce(flat, group=self.group)
            for grad, piece in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                grad.copy_(piece.view_as(grad))

    def share(self, count: int) -> range:
        """Which of `count` things are this worker's: every `size`-th, from its rank on."""
        return range(self.rank, count, self.size)


def _buckets(gradients: Iterable[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    for gradient in gradients:
        if bucket and sum(g.numel() for g in bucket) + gradient.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


class SummedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the pixels of all workers; the state dict is BatchNorm2d's.

    torch's own SyncBatchNorm runs on GPUs alone. Mean and centred squares are combined as Chan, Golub and
    LeVeque (1979) do, so nothing cancels.
    """

    def __init__(self, channels: int, *, workers: Workers, **options: Any) -> None:
        super().__init__(channels, **options)
        self.workers = workers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.workers.size == 1:
            return super().forward(x)
        y, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.eps, self.workers)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            unbiased = var * (count / (count - 1).clamp(min=1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        return y


class _Normalise(torch.autograd.Function):
    """y = (x − mean) / √(var + eps) · weight + bias with statistics over all workers.

    The gradients of weight and bias are this worker's share; :meth:`Workers.sum_gradients` adds them up. What is
    per pixel is left to torch's own kernels: the same in plain operations took three times as long.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, workers: Workers
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        # its dtype is that of the statistics: float32 even where x is bfloat16
        exact = torch.zeros_like(weight)
        own_mean, own_var = torch.batch_norm_update_stats(x, exact, exact.clone(), 0.0)
        n = x.numel() // x.shape[1]
        own = torch.stack([own_mean, own_var * n, torch.full_like(own_mean, n)])
        means, squares, counts = workers.stack(own).unbind(dim=1)
        count = counts.sum(dim=0)
        mean = (means * counts).sum(dim=0) / count
        var = (squares + counts * (means - mean) ** 2).sum(dim=0) / count
        y = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.workers, ctx.eps = workers, eps
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        _, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        all_bias, all_weight = ctx.workers.sum(torch.stack([d_bias, d_weight])) / count
        # weight/σ · (dy − all_bias − (x − mean)/σ · all_weight), as one factor for dy, one for x and a constant
        invstd = torch.rsqrt(var + ctx.eps)
        at_dy = weight * invstd
        at_x = -at_dy * invstd * all_weight
        constant = -at_dy * all_bias - at_x * mean
        at_dy, at_x, constant = (t.view(1, -1, 1, 1) for t in (at_dy, at_x, constant))
        exact = mean.dtype
        d_x = torch.addcmul(constant, dy.to(exact), at_dy).addcmul_(x.to(exact), at_x).to(x.dtype)
        return d_x, d_weight.to(weight.dtype), d_bias.to(weight.dtype), None, None


class SampleDropout(nn.Module):
    """Dropout by a mask that is a function of the sample and not of the worker that has it.

    The mask is drawn over the first `axes` axes of a sample: 0 drops the whole sample (stochastic depth),
    1 whole channels (Dropout2d), None single values (Dropout).
    """

    def __init__(self, p: float, place: int, axes: int | None) -> None:
        super().__init__()
        self.p, self.place, self.axes = p, place, axes
        self.keys: tuple[tuple[int, ...], ...] = ()
        """One per sample of the batch, set before every forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        shape = x.shape[1:] if self.axes is None else x.shape[1 : 1 + self.axes]
        kept = [np.random.default_rng((*key, self.place)).random(shape) >= self.p for key in self.keys]
        mask = torch.from_numpy(np.stack(kept)).to(x.device, x.dtype) / (1 - self.p)
        return x * mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim))


class SummedBatchNormAct2d(SummedBatchNorm2d):
    """timm's BatchNormAct2d, which drops and activates after the norm, over the pixels of all workers."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


def share_batches(module: nn.Module, workers: Workers) -> nn.Module:
    """Replace, in place, every layer that sees more than one sample or draws at random; weights are kept.

    Raises UsageError, naming the layer, where it has no counterpart here.
    """
    made: dict[nn.Module, nn.Module] = {}  # a layer may stand at two places
    parents, seen = [module], {module}
    for parent in parents:
        for name, child in list(parent._modules.items()):
            if child is None:
                continue
            if child not in made:
                drops = sum(isinstance(layer, SampleDropout) for layer in made.values())
                counterpart = _counterpart(child, workers, place=drops)
                if counterpart is not None:
                    made[child] = counterpart
            child = made.get(child, child)
            setattr(parent, name, child)
            if child not in seen:
                parents.append(child)
                seen.add(child)
    return module


def _counterpart(layer: nn.Module, workers: Workers, place: int) -> nn.Module | None:
    """The layer to put in the place of one that must not stay, None for one that may."""
    kind = type(layer).__name__
    if type(layer) is nn.Dropout2d:
        return SampleDropout(layer.p, place, axes=1)
    if type(layer) is nn.Dropout:
        return SampleDropout(layer.p, place, axes=None)
    if kind == "DropPath" and getattr(layer, "scale_by_keep", False):
        return SampleDropout(float(layer.drop_prob or 0), place, axes=0)  # type: ignore[arg-type]
    if isinstance(layer, _BatchNorm) and not isinstance(layer, SummedBatchNorm2d):
        known = {"BatchNorm2d": SummedBatchNorm2d, "BatchNormAct2d": SummedBatchNormAct2d}.get(kind)
        if (
            known is None
            or not isinstance(layer, nn.BatchNorm2d)
            or not (layer.affine and layer.track_running_stats)
        ):
            raise UsageError(
                f"the network's {kind}({layer.num_features}) mixes the samples of one worker: "
                "give a network with BatchNorm2d, GroupNorm or LayerNorm"
            )
        summed = known(layer.num_features, workers=workers, eps=layer.eps, momentum=layer.momentum)
        summed.load_state_dict(layer.state_dict())
        for name, part in layer.named_children():
            setattr(summed, name, part)
        return summed.to(layer.weight)
    return None


def key_dropout(module: nn.Module, keys: Iterable[tuple[int, ...]]) -> None:
    """Tell every :class:`SampleDropout` which samples come next."""
    fixed = tuple(keys)
    for child in module.modules():
        if isinstance(child, SampleDropout):
            child.keys = fixed
