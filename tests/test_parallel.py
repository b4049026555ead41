"""1, 2 and 4 workers, one batch: the same losses, gradients and weights, over gloo."""

from __future__ import annotations

import copy
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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

_BATCH, _EDGE = 8, 16


@dataclass(frozen=True)
class _Case:
    """What is learned, for how long, and how exactly the teams must agree."""

    loss: str
    outputs: int
    norm: Literal["batch", "group"] = "batch"
    exact: bool = True
    """float64"""
    steps: int = 3
    accumulate: int = 1
    network: str = "unet"

    @property
    def settings(self) -> Resolved:
        return Resolved(
            steps_per_epoch=self.steps, tile=_EDGE, warmup=0, precision="fp32", loss=self.loss, depth=2, base_width=4,
            batch_size=_BATCH, dropout=0.4, epochs=1, lr=1e-3, norm=self.norm, accumulate=self.accumulate,
            architecture=self.network, deep_supervision=self.network == "unet-keras",
        )  # fmt: skip

    @property
    def architecture(self) -> dict[str, Any]:
        keys = ("base_width", "depth", "dropout", *(["norm"] if self.network == "unet" else []))
        kept = {key: getattr(self.settings, key) for key in keys}
        return {"name": self.network, "in_channels": 2, "out_channels": self.outputs, **kept}


def _train(workers: Workers, case: _Case) -> dict[str, Any]:
    """Steps on this worker's share of fixed batches, from 0 % to 100 % ignored."""
    prior = [0.3] if case.outputs == 1 else [1 / case.outputs] * case.outputs
    weights = [1.0, 2.0, 0.5][: max(2, case.outputs)]
    learner = Learner(case.settings, case.architecture, prior, weights, workers, torch.device("cpu"))
    assert learner.average is not None
    if case.exact:
        learner.learned.double()
        learner.average.double()
    gradients: list[torch.Tensor] = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(torch.cat([p.grad.flatten() for p in learner.module.parameters()]))
    )
    rng = np.random.default_rng(7)
    losses = []
    for step in range(case.steps):
        images = torch.from_numpy(rng.normal(size=(_BATCH, 2, _EDGE, _EDGE)))
        targets = rng.integers(0, max(2, case.outputs), (_BATCH, _EDGE, _EDGE)).astype(np.uint8)
        ignored = rng.permutation(np.linspace(0, 1, _BATCH))[:, None, None]
        targets[rng.random(targets.shape) < ignored] = IGNORE
        mine = list(workers.share(_BATCH))
        indices = [step * _BATCH + i for i in mine]
        pixels = images[mine].to(torch.float64 if case.exact else torch.float32)
        losses.append(float(learner.learn(pixels, torch.from_numpy(targets)[mine], step, indices)))
    return {
        "losses": losses,
        "gradient": gradients[0],
        "model": learner.module.state_dict(),
        "ema": learner.average.state_dict(),
    }


_CURVES = [_Case("ce+dice", 3, norm, steps=50) for norm in ("batch", "group")]
_SINGLE = [_Case("ce+dice", 3, norm, exact=False, steps=10) for norm in ("batch", "group")]
_PARTS = [_Case("ce+dice", 3, norm, accumulate=2) for norm in ("batch", "group")]
#: Every term, both norms, another network, a batch in parts.
_QUICK = [
    _Case("ce+0.5*dice", 3),
    _Case("focal+dice", 1),
    _Case("bce", 1, "group"),
    _Case("ce+tversky(alpha=0.3,beta=0.7,gamma=0.75)", 3, "group"),
    _Case("lovasz", 1),
    _Case("lovasz+focal", 3, "group"),
    _Case("ce+dice", 3, network="unet-keras"),
    _Case("ce+dice", 3, network="unet-keras", accumulate=2),
    *_PARTS,
]
_LONG = [*_CURVES, *_SINGLE]
_Teams = dict[int, dict[_Case, dict[str, Any]]]


def _rank(rank: int, port: int, out: str, cases: list[_Case]) -> None:
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


def _spread(cases: list[_Case], folder: Path) -> _Teams:
    """What 1, 2 and 4 workers come to in every case."""
    torch.set_num_threads(1)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_rank, (port, str(folder / "results.pt"), cases), nprocs=4)
    results = torch.load(folder / "results.pt", weights_only=True)
    shared = {size: dict(zip(cases, found, strict=True)) for size, found in results.items()}
    return {1: {case: _train(Workers(), case) for case in cases}, **shared}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> _Teams:
    return _spread(_QUICK, tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> _Teams:
    return _spread(_LONG, tmp_path_factory.mktemp("long"))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", _QUICK, ids=str)
def test_loss_gradient_and_weights_do_not_depend_on_the_number_of_workers(
    quick: _Teams, case: _Case, size: int
) -> None:
    alone, shared = quick[1][case], quick[size][case]
    assert len(set(alone["losses"])) == case.steps
    assert shared["losses"] == pytest.approx(alone["losses"], abs=1e-10)
    assert _distance(shared["gradient"], alone["gradient"]) < 1e-12
    for part in ("model", "ema"):
        for name, value in alone[part].items():
            torch.testing.assert_close(shared[part][name], value, rtol=0, atol=1e-10, msg=f"{part} {name}")


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", _CURVES, ids=str)
def test_in_float64_fifty_steps_have_the_same_losses(long: _Teams, case: _Case, size: int) -> None:
    alone, shared = long[1][case], long[size][case]
    assert alone["losses"][-1] != alone["losses"][0]
    assert shared["losses"] == pytest.approx(alone["losses"], abs=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", _SINGLE, ids=str)
def test_in_float32_losses_and_gradients_agree_to_rounding(long: _Teams, case: _Case, size: int) -> None:
    alone, shared = long[1][case], long[size][case]
    assert shared["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert _distance(shared["gradient"], alone["gradient"]) < 1e-5


def _distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_a_batch_in_parts_is_the_same_batch() -> None:
    """Without BatchNorm, which knows a part alone."""
    torch.set_num_threads(1)
    whole = _train(Workers(), _Case("ce+dice", 3, "group"))
    for count in (2, 3, 8):
        parts = _train(Workers(), _Case("ce+dice", 3, "group", accumulate=count))
        assert parts["losses"] == pytest.approx(whole["losses"], abs=1e-12)
        assert _distance(parts["gradient"], whole["gradient"]) < 1e-12
    batch = _train(Workers(), _Case("ce+dice", 3, "batch", accumulate=2))
    assert int(batch["model"]["down.0.1.num_batches_tracked"]) == 3 * 2  # each part counted once


@pytest.mark.parametrize("limit", [0.0, 1e-3])
def test_gradients_are_clipped_to_what_was_asked(limit: float) -> None:
    settings = _Case("ce", 1).settings.model_copy(update={"clip_grad": limit})
    learner = Learner(settings, _Case("ce", 1).architecture, [0.3], None, Workers(), torch.device("cpu"))
    found: list[float] = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: found.append(
            float(torch.cat([p.grad.flatten() for p in learner.module.parameters()]).norm())
        )
    )
    images = torch.randn(8, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    learner.learn(images, torch.ones(8, 16, 16, dtype=torch.uint8), 0, range(8))
    assert found[0] == pytest.approx(1e-3, rel=1e-3) if limit else found[0] > 0.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_summed_normalisation_is_torchs_own(dtype: torch.dtype) -> None:
    """One worker told that it is two, the other of which has the same pixels."""

    class Twins(Workers):
        def stack(self, own: torch.Tensor) -> torch.Tensor:
            return torch.stack([own, own])

        def sum(self, values: torch.Tensor) -> torch.Tensor:
            return 2 * values

    twins = Twins()
    twins.size = 2
    generator = torch.Generator().manual_seed(0)
    x = (3 + 2 * torch.randn(2, 5, 6, 7, generator=generator, dtype=torch.float64)).to(dtype)
    exact = torch.float32 if dtype == torch.bfloat16 else dtype
    plain, summed = nn.BatchNorm2d(5, dtype=exact), SummedBatchNorm2d(5, workers=twins).to(exact)
    found = []
    for layer, pixels in ((plain, torch.cat([x, x])), (summed, x)):
        pixels = pixels.clone().requires_grad_()
        y = layer(pixels)
        ((y.to(exact)) ** 3).sum().backward()
        assert layer.running_mean.dtype == layer.weight.grad.dtype == exact
        found.append((y[:2], pixels.grad[:2], layer.running_mean, layer.running_var))
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 6e-2}[dtype]
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(2 * summed.weight.grad, plain.weight.grad, rtol=tolerance, atol=tolerance)


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
