"""At which resolution an image is read, and what is said of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import ArrayRaster

from raysegment.errors import UsageError
from raysegment.geometry import Size, Window
from raysegment.raster.resolution import choose_sampling, snap_region, to_source
from raysegment.raster.sampling import Sampling, sampled


class Image(ArrayRaster):
    """Sizes and a place, and nothing to read."""

    def __init__(self, *levels: tuple[int, int], **described: Any) -> None:
        super().__init__(np.zeros((1, 1, 1), np.uint8))
        self.select: dict[str, int] = {}
        self.levels = tuple(Size(*level) for level in levels)
        self.shape = (*levels[0], 1)
        self.chunks = (Size(1, 1),) * len(levels)
        for name, value in described.items():
            setattr(self, name, value)


SLIDE = Image((4000, 8000), (2000, 4000), (501, 999), pixel_size=(0.25, 0.25, "um"))
SCENE = Image((1000, 1000), pixel_size=(10.0, 10.0, "m"), transform=(10.0, 0.0, 0.0, 0.0, -10.0, 0.0))
WIDE = Image((100_000, 100_000), pixel_size=(10.0, 10.0, "m"), transform=SCENE.transform)
#: 0.0009° at 60° N: 100.2 m along the meridian, half of it across.
NORTH = Image((1000, 1000), pixel_size=(9e-4, 9e-4, "degree"), transform=(9e-4, 0.0, 20.0, 0.0, -9e-4, 60.45))
FEET = Image((1000, 1000), pixel_size=(0.3048, 0.3048, "m"), transform=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
PLAIN = Image((1000, 1000), pixel_size=(2.0, 2.0, None), transform=(2.0, 0.0, 0.0, 0.0, -2.0, 0.0))
UNKNOWN = Image((300, 200))


def test_nothing_asked_nothing_done() -> None:
    assert choose_sampling(SLIDE) == (None, None)
    assert choose_sampling(SLIDE, trained=(0.25, 0.25, "um")) == (None, None)
    assert choose_sampling(SLIDE, pixel_size="native", trained=(4.0, 4.0, "um")) == (None, None)
    assert choose_sampling(SLIDE, level=0) == (None, None)


def test_a_level_by_its_number() -> None:
    assert choose_sampling(SLIDE, level=2) == (Sampling(level=2, size=(501, 999)), None)
    assert choose_sampling(SLIDE, level=1, trained=(0.5, 0.5, "um"))[1] is None
    assert choose_sampling(SLIDE, level=2, trained=(0.5, 0.5, "um"))[1] == (
        "read at 1.996 × 2.002 um/px, the model learned at 0.5 um/px"
    )


@pytest.mark.parametrize(
    ("pixel_size", "expected"),
    [
        (0.25, None),
        (0.2495, None),  # within 1 %: no arithmetic for that
        (0.3, Sampling(level=0, size=(3333, 6667))),
        (0.5, Sampling(level=1, size=(2000, 4000))),
        (0.7, Sampling(level=1, size=(1429, 2857))),
        (2.0, Sampling(level=2, size=(501, 999))),
        (3.0, Sampling(level=2, size=(333, 667))),
        (0.1, Sampling(level=0, size=(10000, 20000))),
    ],
)
def test_a_pixel_size_takes_the_coarsest_level_that_is_fine_enough(
    pixel_size: float, expected: Sampling | None
) -> None:
    assert choose_sampling(SLIDE, pixel_size=pixel_size)[0] == expected


def test_what_is_done_is_said() -> None:
    assert choose_sampling(SLIDE, pixel_size=0.3)[1] == "resampled from 0.25 to 0.3 um/px"
    assert choose_sampling(SLIDE, pixel_size=0.5)[1] == "read at level 1: from 0.25 to 0.5 um/px"
    assert choose_sampling(SCENE, trained=(20.0, 20.0, "m"))[1] == (
        "resampled from 10 to 20 m/px, the pixel size the model learned at"
    )
    assert choose_sampling(SCENE, pixel_size=20, trained=(10.0, 10.0, "m"))[1] == (
        "resampled from 10 to 20 m/px; read at 20 m/px, the model learned at 10 m/px"
    )


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        ((11.0, 11.0, "m"), None),
        ((9.1, 10.9, "m"), None),
        ((11.5, 11.5, "m"), (870, 870)),
        ((8.5, 8.5, "m"), (1176, 1176)),
        ((10.0, 20.0, "m"), (1000, 500)),
        ((2e7, 2e7, "um"), (500, 500)),
    ],
)
def test_the_models_pixel_size_counts_beyond_ten_percent(trained: Any, expected: Any) -> None:
    sampling, said = choose_sampling(SCENE, trained=trained)
    assert (None if sampling is None else sampling.size) == expected
    assert (said is None) == (expected is None)


def test_degrees_are_compared_in_metres_at_the_scenes_centre() -> None:
    sampling, said = choose_sampling(NORTH, trained=(50.0, 50.0, "m"))
    across = 9e-4 * 111_320 * math.cos(math.radians(60))
    assert sampling is not None
    assert sampling.size == (round(1000 * 9e-4 * 111_320 / 50), round(1000 * across / 50)) == (2004, 1002)
    assert said == "resampled from 100.2 × 50.09 to 50 m/px, the pixel size the model learned at"
    place = sampled(NORTH, sampling)  # type: ignore[arg-type]
    assert place.pixel_size is not None
    assert place.pixel_size[0] * 2 == pytest.approx(place.pixel_size[1], rel=1e-3)
    assert choose_sampling(NORTH, trained=(100.0, 50.0, "m")) == (None, None)
    assert choose_sampling(NORTH, trained=(9e-4, 9e-4, "degree")) == (None, None)
    assert choose_sampling(NORTH, pixel_size=18e-4)[0] == Sampling(level=0, size=(500, 500))


def test_the_number_is_in_the_units_of_the_crs() -> None:
    sampling, said = choose_sampling(FEET, pixel_size=2)
    assert sampling == Sampling(level=0, size=(500, 500))
    assert said == "resampled from 1 to 2 CRS units/px"
    assert choose_sampling(FEET, trained=(0.6096, 0.6096, "m"))[0] == sampling
    assert choose_sampling(PLAIN, pixel_size=4)[0] == Sampling(level=0, size=(500, 500))


@pytest.mark.parametrize(
    ("image", "trained", "said"),
    [
        (SCENE, (1e-4, 1e-4, "degree"), "(model: 0.0001 degree, image: 10 m): read as stored"),
        (PLAIN, (1.0, 1.0, "um"), "(model: 1 um, image: 2): read as stored"),
        (PLAIN, (1.0, 1.0, None), "(model: 1, image: 2): read as stored"),
        (SCENE, (0.0, 1.0, "m"), "(model: 0 × 1 m, image: 10 m): read as stored"),
        (Image((9, 9), pixel_size=(1.0, 1.0, "degree")), (1.0, 1.0, "m"), "image: 1 degree): read as stored"),
        (UNKNOWN, (0.5, 0.5, "um"), "the image has no pixel size (the model learned at 0.5 um/px)"),
    ],
)
def test_what_cannot_be_compared_is_said_and_not_resampled(image: Any, trained: Any, said: str) -> None:
    sampling, told = choose_sampling(image, trained=trained)
    assert sampling is None
    assert told is not None
    assert said in told


def test_equal_numbers_without_a_unit_need_no_word() -> None:
    assert choose_sampling(PLAIN, trained=(2.0, 2.0, None)) == (None, None)


@pytest.mark.parametrize(
    ("image", "asked", "said"),
    [
        (
            SLIDE,
            {"level": 3},
            r"--level 3 is not in memory: it has 0 \(4000 × 8000 px\), 1 \(2000 × 4000 px\)",
        ),
        (SLIDE, {"level": -1}, "--level -1 is not in"),
        (SLIDE, {"level": 1, "pixel_size": 0.5}, "--level 1 and --pixel-size 0.5 both"),
        (SLIDE, {"level": 1, "pixel_size": "native"}, "contradict"),
        (UNKNOWN, {"pixel_size": 0.5}, "does not say its own; give --level"),
        (SLIDE, {"pixel_size": 0.0}, "--pixel-size 0.0 must be a positive number"),
        (SLIDE, {"pixel_size": -1.0}, "must be a positive number"),
        (SLIDE, {"pixel_size": math.nan}, "must be a positive number"),
        (SLIDE, {"pixel_size": 1e4}, "on pixels of 0.25 um, would make memory 0.1 × 0.2 px"),
        (SLIDE, {"pixel_size": 1e-9}, "check the unit"),
        (SCENE, {"pixel_size": 0.099}, "would make memory 1.01e.05 × 1.01e.05 px: check the unit"),
        (SCENE, {"trained": (10.0, 10.0, "um")}, "1e.09 × 1e.09 px: check the unit, or read it as stored"),
        (SCENE, {"trained": (0.01, 10.0, "m")}, "1e.06 × 1e.03 px: check the unit"),
        (WIDE, {"pixel_size": 0.2}, "5e.06 × 5e.06 px: check the unit"),
        (SLIDE, {"trained": (10.0, 10.0, "m")}, "--pixel-size native"),
        (SCENE, {"trained": (0.5, 0.5, "um")}, "the model learned at, 0.5 um, on pixels of 1e.07 um"),
    ],
)
def test_wrong_usage(image: Any, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as e:
        choose_sampling(image, **asked)
    assert "\n" not in str(e.value)


def test_a_hundredfold_is_not_too_much_and_a_large_image_may_shrink() -> None:
    assert choose_sampling(SCENE, pixel_size=0.1)[0] == Sampling(level=0, size=(100_000, 100_000))
    vast = Image((2**22, 2**22), pixel_size=(10.0, 10.0, "m"), transform=SCENE.transform)
    assert choose_sampling(vast, pixel_size=11)[0] == Sampling(level=0, size=(round(2**22 / 1.1),) * 2)


@given(data=st.data(), full=st.tuples(*[st.integers(1, 50)] * 2), target=st.tuples(*[st.integers(1, 50)] * 2))
def test_regions_snap_outward_and_no_further(
    data: st.DataObject, full: tuple[int, int], target: tuple[int, int]
) -> None:
    y, x = data.draw(st.integers(0, full[0] - 1)), data.draw(st.integers(0, full[1] - 1))
    region = Window.between(
        y, x, data.draw(st.integers(y + 1, full[0])), data.draw(st.integers(x + 1, full[1]))
    )
    snapped = snap_region(region, Size(*full), Size(*target))
    touched = [
        [
            i
            for i in range(target[a])
            if i * full[a] < stop * target[a] and start * target[a] < (i + 1) * full[a]
        ]
        for a, (start, stop) in enumerate(((region.y, region.bottom), (region.x, region.right)))
    ]
    assert snapped == Window.between(touched[0][0], touched[1][0], touched[0][-1] + 1, touched[1][-1] + 1)
    assert to_source(snapped, Size(*full), Size(*target)).holds(region)
    assert snap_region(region, Size(*full), Size(*full)) == region


def test_what_sticks_out_is_cut() -> None:
    region = Window(y=-10, x=90, height=50, width=50)
    assert snap_region(region, Size(100, 100), Size(50, 50)) == Window(y=0, x=45, height=20, width=5)
