"""1, 2 and 4 workers, one batch: the same loss, the same gradients, the same weights, over gloo."""

from __future__ import annotations

import copy
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from raysegment.errors import UsageError
from raysegment.training.learner import Learner
from raysegment.training.parallel import (
    SampleDropout,
    SummedBatchNorm2d,
    Workers,
    key_dropout,
    share_batches,
)
from raysegment.training.settings import Resolved
from raysegment.training.windows import IGNORE

_BATCH, _EDGE = 5, 16


@dataclass(frozen=True)
class _Case:
    loss: str
    outputs: int
    norm: str
    steps: int = 3
    dtype: torch.dtype = torch.float64
    network: str = "unet"


#: Every term, and both norms.
_CASES = [
    _Case("ce+0.5*dice", 3, "batch"),
    _Case("focal+dice", 1, "batch"),
    _Case("bce", 1, "group"),
    _Case("ce+tversky(alpha=0.3,beta=0.7,gamma=0.75)", 3, "group"),
    _Case("lovasz", 1, "batch"),
    _Case("lovasz+focal", 3, "group"),
    _Case("ce+dice", 3, "batch", network="unet-keras"),
    _Case("ce+dice", 3, "batch", 10, torch.float32),
    _Case("0.5*focal+tversky+lovasz", 1, "group", 10, torch.float32),
]
_LONG = [_Case("ce+dice", 3, "batch", 50), _Case("0.5*focal+dice+lovasz", 1, "group", 50)]


def _settings(case: _Case) -> Resolved:
    return Resolved(
        steps_per_epoch=case.steps, tile=_EDGE, warmup=0, precision="fp32", loss=case.loss, depth=2, base_width=4,
        batch_size=_BATCH, dropout=0.4, epochs=1, norm=case.norm, architecture=case.network,
        deep_supervision=case.network == "unet-keras",
    )  # fmt: skip


def _train(workers: Workers, case: _Case) -> dict[str, Any]:
    """Some steps on this worker's share of fixed batches, from 0 % to 100 % ignored."""
    outputs, settings = case.outputs, _settings(case)
    arch: dict[str, Any] = {
        "name": case.network,
        "in_channels": 2,
        "out_channels": outputs,
        "base_width": 4,
        "depth": 2,
        "dropout": 0.4,
    }
    if case.network == "unet":
        arch["norm"] = case.norm
    prior = [0.3] if outputs == 1 else [1 / outputs] * outputs
    learner = Learner(settings, arch, prior, [1.0, 2.0, 0.5][: max(2, outputs)], workers, torch.device("cpu"))
    learner.learned.to(case.dtype)
    assert learner.average is not None
    learner.average.to(case.dtype)
    rng = np.random.default_rng(7)
    losses, gradients = [], {}
    for step in range(case.steps):
        images = torch.from_numpy(rng.normal(size=(_BATCH, 2, _EDGE, _EDGE))).to(case.dtype)
        targets = torch.from_numpy(rng.integers(0, max(2, outputs), (_BATCH, _EDGE, _EDGE)).astype(np.uint8))
        share_ignored = np.linspace(0, 1, _BATCH)[:, None, None]
        targets[torch.from_numpy(rng.random((_BATCH, _EDGE, _EDGE)) < share_ignored)] = IGNORE
        mine = list(workers.share(_BATCH))
        indices = [step * _BATCH + i for i in mine]
        losses.append(float(learner.learn(images[mine], targets[mine], step, indices)))
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in learner.module.named_parameters()}
    return {
        "losses": losses,
        "gradients": gradients,
        "model": learner.module.state_dict(),
        "ema": learner.average.state_dict(),
    }


def _rank(rank: int, port: int, cases: list[_Case], out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=4)
    pair = dist.new_group([0, 1])
    results = {4: [_train(Workers(), case) for case in cases]}
    if rank < 2:
        results[2] = [_train(Workers(pair), case) for case in cases]
    rows = torch.full((rank, 2), float(rank))
    gathered = Workers().gather(rows)
    assert gathered[:, 0].tolist() == [1, 2, 2, 3, 3, 3]
    if rank == 0:
        torch.save(results, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "cases", [_CASES, pytest.param(_LONG, marks=pytest.mark.slow)], ids=["terms", "curves"]
)
def test_losses_gradients_and_weights_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, cases: list[_Case]
) -> None:
    torch.set_num_threads(1)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_rank, (port, cases, str(tmp_path / "results.pt")), nprocs=4)
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    for k, case in enumerate(cases):
        alone = _train(Workers(), case)
        assert len(set(alone["losses"])) == case.steps
        near = 1e-10 if case.dtype == torch.float64 else 1e-5
        largest = max(float(g.abs().max()) for g in alone["gradients"].values())
        for size in (2, 4):
            shared = results[size][k]
            assert shared["losses"] == pytest.approx(alone["losses"], rel=near, abs=near)
            for name, value in alone["gradients"].items():
                torch.testing.assert_close(
                    shared["gradients"][name], value, rtol=0, atol=near * largest, msg=f"{case} {name}"
                )
            for part in ("model", "ema") if case.dtype == torch.float64 else ():
                for name, value in alone[part].items():
                    torch.testing.assert_close(
                        shared[part][name], value, rtol=0, atol=1e-10, msg=f"{case} {name}"
                    )


def test_the_shared_layers_keep_names_and_answers() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=1e-3, momentum=0.3), nn.Dropout2d(0.5))
    shared = share_batches(copy.deepcopy(plain), Workers())
    assert isinstance(shared[1], SummedBatchNorm2d)
    assert shared[1].eps == 1e-3
    assert shared[1].momentum == 0.3
    assert list(shared.state_dict()) == list(plain.state_dict())
    x = torch.randn(3, 1, 8, 8)
    key_dropout(shared, [(0, i) for i in range(3)])
    plain[:2](x), shared[:2](x)
    for (name, a), b in zip(plain.state_dict().items(), shared.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(plain.eval()(x), shared.eval()(x))


def test_dropout_belongs_to_the_sample() -> None:
    layer = SampleDropout(0.5, place=0, axes=1).train()
    layer.keys = tuple((1, i) for i in range(4))
    x = torch.ones(4, 64, 2, 2)
    whole = layer(x)
    layer.keys = ((1, 2), (1, 0))
    assert torch.equal(layer(x[:2]), whole[[2, 0]])
    assert set(whole.unique().tolist()) == {0.0, 2.0}
    assert 0.3 < float((whole == 0).float().mean()) < 0.7
    assert torch.equal(whole[:, :, 0, 0], whole[:, :, 1, 1])
    assert not torch.equal(whole[0], whole[1])


def test_single_values_and_whole_samples_drop_by_the_sample_too() -> None:
    x = torch.ones(3, 8, 6, 6)
    for axes, kinds in ((None, 2), (0, 1)):
        layer = SampleDropout(0.5, place=1, axes=axes).train()
        layer.keys = tuple((5, i) for i in range(3))
        whole = layer(x)
        layer.keys = ((5, 2), (5, 1))
        assert torch.equal(layer(x[:2]), whole[[2, 1]])
        assert max(len(sample.unique()) for sample in whole) == kinds
    many = SampleDropout(0.25, place=0, axes=None).train()
    many.keys = ((0,),)
    kept = many(torch.ones(1, 64, 32, 32))
    assert float((kept == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(kept.mean()) == pytest.approx(1, abs=0.02)


class BatchNormAct2d(nn.BatchNorm2d):
    """Norm, then activation: named as timm's, whose place the shared layer takes by that name."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.5), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


def test_a_norm_with_activation_and_a_layer_at_two_places() -> None:
    once = nn.BatchNorm2d(4)
    plain = nn.Sequential(BatchNormAct2d(4), once, nn.ReLU(), once)
    shared = share_batches(copy.deepcopy(plain), Workers())
    assert isinstance(shared[0], SummedBatchNorm2d)
    assert isinstance(shared[0].drop, SampleDropout)
    assert shared[1] is shared[3]
    assert list(shared.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(plain.eval()(x), shared.eval()(x))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.BatchNorm2d(3, affine=False), nn.SyncBatchNorm(3)])
def test_a_layer_that_mixes_samples_is_refused(layer: nn.Module) -> None:
    with pytest.raises(UsageError, match=rf"{type(layer).__name__}\(3\) mixes the samples of one worker"):
        share_batches(nn.Sequential(nn.Conv2d(1, 3, 1), layer), Workers())


def test_shares_hold_every_sample_once() -> None:
    for size in (1, 2, 3, 4):
        found = []
        for rank in range(size):
            worker = Workers()
            worker.rank, worker.size = rank, size
            found += worker.share(10)
        assert sorted(found) == list(range(10))
