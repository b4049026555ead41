"""Mirroring, tiles and blocks: what must hold for every size, tile, overlap, block and region."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysegment.geometry import Size, Window, mirror, reflect, unfold
from raysegment.inference.blend import weights, window
from raysegment.inference.grid import Axis, Grid

BLENDS = ("hann", "gaussian", "linear", "none")


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    stride = draw(st.integers(1, 24))
    overlap = 2 * draw(st.integers(0, 24))
    length = draw(st.integers(1, 200))
    least = -(-overlap // stride) + 1
    start = draw(st.integers(0, length - 1))
    stop = draw(st.integers(start + 1, length))
    wanted = draw(st.sampled_from([(0, length), (start, stop)]))
    return Axis(length, stride + overlap, overlap, draw(st.integers(least, least + 4)), wanted)


@given(st.integers(1, 40), st.integers(0, 100), st.integers(0, 100))
def test_reflect_is_numpys_mirror(length: int, before: int, after: int) -> None:
    row = np.arange(length)
    assert np.array_equal(
        reflect(np.arange(-before, length + after), length), np.pad(row, (before, after), "reflect")
    )


@given(st.integers(1, 9), st.integers(1, 9), st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 30))
def test_a_window_that_sticks_out_is_cut_from_the_mirrored_image(
    height: int, width: int, y: int, x: int, edge: int
) -> None:
    image = np.arange(height * width).reshape(height, width)
    window = Window(y=y, x=x, height=edge, width=edge)
    hull, index = mirror(window, Size(height, width))
    found = image[hull.slices()] if index is None else image[hull.slices()][index]
    padded = np.pad(image, 60, "reflect")
    assert np.array_equal(found, padded[60 + y : 60 + y + edge, 60 + x : 60 + x + edge])
    if index is not None:
        assert np.array_equal(unfold(image[hull.slices()], index), found)
        bands = np.stack([image, -image], axis=2)
        assert np.array_equal(unfold(bands[hull.slices()], index), np.stack([found, -found], axis=2))


@given(axes())
def test_needed_tiles_are_those_that_reach_a_wanted_pixel(axis: Axis) -> None:
    start, stop = axis.wanted
    touching = [
        k for k in range(axis.cells) if axis.tile_start(k) < stop and axis.tile_start(k) + axis.tile > start
    ]
    assert touching == list(range(*axis.needed))


@given(axes())
def test_every_needed_tile_belongs_to_one_block(axis: Axis) -> None:
    run = [k for b in range(*axis.needed_blocks) for k in range(*axis.block_tiles(b))]
    assert run == list(range(*axis.needed))


@given(axes())
def test_own_spans_partition_what_is_wanted(axis: Axis) -> None:
    owned = [p for b in range(axis.blocks) for p in range(*axis.own(b))]
    assert owned == list(range(*axis.wanted))


@given(axes())
def test_the_core_is_where_no_other_block_answers(axis: Axis) -> None:
    def reached(b: int) -> set[int]:
        tiles = range(b * axis.cells_per_block, min((b + 1) * axis.cells_per_block, axis.cells))
        return {p for k in tiles for p in range(axis.tile_start(k), axis.tile_start(k) + axis.tile)}

    wanted = set(range(*axis.wanted))
    by_block = [reached(b) & wanted for b in range(axis.blocks)]
    for b, pixels in enumerate(by_block):
        others = set().union(*(p for o, p in enumerate(by_block) if o != b))
        assert set(range(*axis.core(b))) == pixels - others
        assert set(range(*axis.extent(b))) >= pixels


@given(axes(), st.sampled_from(BLENDS))
def test_weights_sum_to_one_at_every_pixel(axis: Axis, blend: str) -> None:
    total = np.zeros(axis.length)
    for k in range(axis.cells):
        start = axis.tile_start(k)
        a, b = max(0, start), min(axis.length, start + axis.tile)
        total[a:b] += weights(axis, k, blend)[a - start : b - start]  # type: ignore[arg-type]
    np.testing.assert_allclose(total, 1, atol=1e-12)


@pytest.mark.parametrize("blend", ["hann", "linear"])
@given(half=st.integers(1, 32), stride=st.integers(1, 64))
def test_ramps_of_neighbours_sum_to_one_before_normalisation(blend: str, half: int, stride: int) -> None:
    overlap = 2 * half
    if overlap > stride:
        overlap = stride // 2 * 2
    w = window(blend, stride + overlap, overlap)  # type: ignore[arg-type]
    if overlap:
        np.testing.assert_allclose(w[:overlap] + w[-overlap:], 1, atol=1e-12)
    assert np.all(w[overlap : len(w) - overlap] == 1)


def test_half_overlap_is_the_full_hann_window() -> None:
    tile = 64
    full = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2
    np.testing.assert_allclose(window("hann", tile, tile // 2), full, atol=1e-12)


@given(axes(), axes())
def test_rims_and_core_partition_the_extent(y: Axis, x: Axis) -> None:
    tile, overlap, cells = y.tile, y.overlap, y.cells_per_block
    region = Window.between(y.wanted[0], min(x.wanted[0], x.length - 1), y.wanted[1], x.wanted[1])
    grid = Grid(Size(y.length, x.length), tile, overlap, cells, region)
    seen = np.zeros((y.length, x.length), int)
    for block in grid.blocks():
        extent = grid.extent(block)
        covered = np.zeros(extent.size, int)
        for window_ in (grid.core(block), *(w for _, w in grid.rims(block).items())):
            covered[window_.slices(extent)] += 1
        assert np.all(covered == 1)
        seen[grid.own(block).slices()] += 1
    assert np.all(seen[region.slices()] == 1)
    assert seen.sum() == region.area


@given(axes(), st.data())
def test_blocks_reaching_finds_every_block_that_touches(axis: Axis, data: st.DataObject) -> None:
    grid = Grid(
        Size(axis.length, axis.length),
        axis.tile,
        axis.overlap,
        axis.cells_per_block,
        Window.between(axis.wanted[0], axis.wanted[0], axis.wanted[1], axis.wanted[1]),
    )
    y = data.draw(st.integers(axis.wanted[0], axis.wanted[1] - 1))
    window_ = Window.between(y, axis.wanted[0], data.draw(st.integers(y + 1, axis.wanted[1])), axis.wanted[1])
    touching = {b for b in grid.blocks() if grid.extent(b).intersect(window_).area}
    assert set(grid.blocks_reaching(window_)) == touching


def test_a_window_says_where_it_is() -> None:
    assert str(Window(y=1, x=2, height=3, width=4)) == "y 1–4, x 2–6"
    assert not Window.between(5, 5, 3, 9).area
