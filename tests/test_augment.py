"""Augmentation: image and target move together, by the sample alone, and what is unknown is ignored."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.training import augment as module
from raysegment.training.augment import POLICIES, Policy, augment, context
from raysegment.training.windows import IGNORE

_EDGE = 48


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batch(policy: Policy, n: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images that show their target: 1 where class 1, −1 where class 0, in blobs of 8 px."""
    edge = _EDGE + 2 * context(policy, _EDGE)
    small = torch.randint(0, 2, (n, edge // 8 + 1, edge // 8 + 1), generator=_generator(seed))
    target = small.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :edge, :edge].to(torch.uint8)
    return target[:, None].float() * 2 - 1, target, torch.ones_like(target, dtype=torch.bool)


def _run(
    policy: Policy, *batch: torch.Tensor, indices: range = range(6), seed: int = 1
) -> tuple[torch.Tensor, ...]:
    return augment(*batch, indices, edge=_EDGE, policy=policy, seed=seed)


@pytest.mark.parametrize("policy", ["none", "light", "strong"])
def test_a_sample_does_not_depend_on_its_batch(policy: Policy) -> None:
    batch = _batch(policy)
    images, targets = _run(policy, *batch)
    some = tuple(t[1::2] for t in batch)
    part, part_targets = augment(*some, range(1, 6, 2), edge=_EDGE, policy=policy, seed=1)
    assert torch.equal(part, images[1::2])
    assert torch.equal(part_targets, targets[1::2])
    assert images.shape == (6, 1, _EDGE, _EDGE)
    assert targets.shape == (6, _EDGE, _EDGE)
    assert targets.dtype == torch.uint8


def test_seed_and_index_decide() -> None:
    batch = _batch("strong")
    images, _ = _run("strong", *batch)
    again, _ = _run("strong", *batch)
    assert torch.equal(images, again)
    for other in (_run("strong", *batch, seed=2), _run("strong", *batch, indices=range(6, 12))):
        assert not torch.allclose(images, other[0])


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(POLICIES), st.integers(0, 2**32), st.integers(0, 10**9), st.integers(0, 10**6))
def test_an_image_that_is_its_mask_stays_its_mask(policy: Policy, seed: int, index: int, blobs: int) -> None:
    """Blobs of three classes, ignored pixels (shown as 3) and pixels without data, told apart by their value."""
    edge = _EDGE + 2 * context(policy, _EDGE)
    coarse = torch.randint(0, 5, (1, edge // 12 + 1, edge // 12 + 1), generator=_generator(blobs))
    shown = coarse.repeat_interleave(12, 1).repeat_interleave(12, 2)[:, :edge, :edge]
    valid = shown < 4
    target = torch.where(shown < 3, shown, IGNORE).to(torch.uint8)
    image = (shown * valid)[:, None].float()
    given = image.clone(), target.clone(), valid.clone()
    with mock.patch.object(module, "_NOISE", 0.0):
        moved, moved_target = augment(*given, [index], edge=_EDGE, policy=policy, seed=seed)
    assert all(torch.equal(a, b) for a, b in zip(given, (image, target, valid), strict=True))
    plan = module._plan(seed, index, _EDGE)
    undone = moved if policy == "none" else (moved - plan.brightness) / plan.contrast
    expected = torch.where(moved_target == IGNORE, 3, moved_target).float()
    expected[(moved[:, 0] == 0) & (moved_target == IGNORE)] = 4
    undone = torch.where(moved == 0, torch.where(moved_target[:, None] == IGNORE, 4.0, undone), undone)
    # between two blobs a bilinear image is a mixture; three pixels from any other class it is not
    flat = F.max_pool2d(expected, 5, 1, 2) == -F.max_pool2d(-expected, 5, 1, 2)
    assert torch.allclose(undone[:, 0][flat], expected[flat], atol=1e-4)
    assert float(flat.float().mean()) > 0.2


def test_what_a_balanced_window_shows_stays_in_view() -> None:
    """The pixel that a window was drawn for lies up to a quarter of the tile from its centre, in both axes."""
    tile = 256
    edge = tile + 2 * context("strong", tile)
    target = torch.zeros((1, edge, edge), dtype=torch.uint8)
    y, x = edge // 2 - tile // 4, edge // 2 + tile // 4
    target[0, y - 4 : y + 5, x - 4 : x + 5] = 1
    image, valid = target[:, None].float(), torch.ones_like(target, dtype=torch.bool)
    for index in range(100):
        _, moved = augment(image, target, valid, [index], edge=tile, policy="strong", seed=0)
        assert bool((moved == 1).any())


def test_none_changes_nothing() -> None:
    batch = _batch("none")
    images, targets = _run("none", *batch)
    assert torch.equal(images, batch[0])
    assert torch.equal(targets, batch[1])


def test_light_is_one_of_eight_symmetries_with_new_light() -> None:
    batch = _batch("light", 6)
    images, targets = _run("light", *batch)
    for i in range(6):
        views = [torch.rot90(v, k) for v in (batch[1][i], batch[1][i].flip(-1)) for k in range(4)]
        assert any(torch.equal(targets[i], v) for v in views)
        one, zero = images[i, 0][targets[i] == 1], images[i, 0][targets[i] == 0]
        assert float(one.std()) == pytest.approx(0, abs=1e-6)
        assert float(zero.std()) == pytest.approx(0, abs=1e-6)
        assert float(one.mean() - zero.mean()) > 1
    assert len({float(images[i, 0][targets[i] == 1].mean()) for i in range(6)}) == 6


def test_strong_moves_image_and_target_together() -> None:
    batch = _batch("strong", 6)
    images, targets = _run("strong", *batch)
    for i in range(6):
        known = targets[i] != IGNORE
        light = images[i, 0]
        middle = (light[known & (targets[i] == 1)].mean() + light[known & (targets[i] == 0)].mean()) / 2
        agree = ((light > middle) == (targets[i] == 1))[known].float().mean()
        assert float(agree) > 0.93  # bilinear and nearest differ at the blobs' edges
        assert float(known.float().mean()) > 0.75  # the smaller the tile, the more a displacement leaves
        assert not torch.equal(targets[i], batch[1][i][:_EDGE, :_EDGE])


def test_what_lies_outside_is_zero_and_ignored() -> None:
    images, targets, valid = _batch("strong")
    valid[:, : valid.shape[1] // 2] = False
    targets[~valid] = IGNORE
    moved, moved_targets = augment(images + 5, targets, valid, range(6), edge=_EDGE, policy="strong", seed=1)
    dark = moved[:, 0] == 0
    assert 0.2 < float(dark.float().mean()) < 0.8
    assert bool((moved_targets[dark] == IGNORE).all())
    assert not bool((moved_targets[~dark] == IGNORE).any())


def test_ignored_targets_stay_ignored_where_the_image_has_data() -> None:
    images, targets, valid = _batch("light")
    targets[:, ::2] = IGNORE
    moved, moved_targets = _run("light", images, targets, valid)
    assert float((moved_targets == IGNORE).float().mean()) == 0.5
    assert float((moved == 0).float().mean()) < 0.01
