"""Training sets: what pairs up, what is refused, and what is found about the pixels."""

from __future__ import annotations

import functools
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image

from raysegment.errors import InputError
from raysegment.geometry import Size
from raysegment.raster.walk import WINDOW_PIXELS, windows
from raysegment.training import survey as survey_module
from raysegment.training.dataset import common_format, find_scenes, identity
from raysegment.training.division import split
from raysegment.training.survey import survey


def _put(root: Path, name: str, image: np.ndarray | None, mask: np.ndarray | None, **tags: object) -> None:
    for folder, pixels in (("images", image), ("masks", mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        if pixels is not None:
            tifffile.imwrite(root / folder / name, pixels, **tags)


def _square(value: int = 0, edge: int = 8, dtype: type = np.uint8) -> np.ndarray:
    return np.full((edge, edge), value, dtype)


def _halves(edge: int = 8) -> np.ndarray:
    mask = _square(0, edge)
    mask[:, edge // 2 :] = 1
    return mask


def test_pairs_are_sorted_and_sidecars_left_out(tmp_path: Path) -> None:
    for name in ("b.tif", "a.ome.tif", "c.tiff"):
        _put(tmp_path, name, _square(), _halves())
    (tmp_path / "masks" / "a.ome.tif").rename(tmp_path / "masks" / "a.tif")
    for stray in ("images/b.tfw", "images/b.tif.aux.xml", "masks/.hidden"):
        (tmp_path / stray).write_text("x")
    assert [s.name for s in find_scenes(tmp_path)] == ["a.ome.tif", "b.tif", "c.tiff"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "masks" / "b.tif").unlink(), "b.tif has no partner of the same stem in masks/"),
        (lambda root: (root / "images" / "a.tif").unlink(), "a.tif has no partner of the same stem in images/"),
        (lambda root: tifffile.imwrite(root / "masks" / "b.tif", _square(0, 6)),
         r"images/b.tif is 8 × 8 px, its mask .*masks/b.tif 6 × 6"),
        (lambda root: tifffile.imwrite(root / "images" / "a.tiff", _square()), "a.tif and a.tiff: one file per stem"),
        (lambda root: [p.unlink() for p in root.glob("*/*")], "holds no images"),
        (lambda root: (root / "images" / "a.tif").rename(root / "a.tif") and
         (root / "images" / "a.tif").symlink_to("nowhere.tif"), "images/a.tif does not exist"),
    ],
)  # fmt: skip
def test_what_does_not_pair_up_is_named(tmp_path: Path, spoil: object, message: str) -> None:
    for name in ("a.tif", "b.tif"):
        _put(tmp_path, name, _square(), _halves())
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        find_scenes(tmp_path)


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        find_scenes(tmp_path / "nowhere")
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="has no folder masks/"):
        find_scenes(tmp_path)


def test_images_of_two_kinds_are_refused_naming_both(tmp_path: Path) -> None:
    _put(tmp_path, "a.tif", _square(), _halves())
    _put(tmp_path, "b.tif", _square(0, 8, np.uint16), _halves())
    with pytest.raises(InputError, match=r"a.tif has 1 channel of uint8, .*b.tif has 1 of uint16"):
        common_format(find_scenes(tmp_path))


def test_the_last_fifth_is_for_validation(tmp_path: Path) -> None:
    for i in range(10):
        _put(tmp_path, f"{i}.tif", _square(), _halves())
    scenes = find_scenes(tmp_path)
    train, val = split(scenes, 0.2)
    assert [s.name for s in val] == ["8.tif", "9.tif"]
    assert train + val == scenes
    assert len(split(scenes[:2], 0.01)[1]) == len(split(scenes[:2], 0.99)[1]) == 1
    with pytest.raises(InputError, match="the only image"):
        split(scenes[:1], 0.2)


def test_identity_is_the_contents(tmp_path: Path) -> None:
    for root in ("one", "two", "three"):
        _put(tmp_path / root, "a.tif", _square(1 if root != "three" else 2), _halves())
    one, two, three = (identity(find_scenes(tmp_path / root)) for root in ("one", "two", "three"))
    assert one == two != three


def test_the_survey_holds_little_of_an_image_at_once(tmp_path: Path) -> None:
    """Of one that is a single piece, however large: a window of it, and less than that in float64."""
    picture = SimpleNamespace(shape=(6000, 6000, 3), chunk=Size(6000, 6000))
    some = list(survey_module._some(picture, 1))  # type: ignore[arg-type]
    assert sum(w.area for w in some) == 6000**2
    assert max(w.area for w in some) <= 4 * WINDOW_PIXELS
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for folder in ("images", "masks"):
        Image.fromarray(_halves(2000)).save(tmp_path / folder / "a.png")
    scene = find_scenes(tmp_path)[0]
    tracemalloc.start()
    try:
        moments = survey_module._measured(scene, common_format([scene]), 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert moments[0].summary() == pytest.approx((0.5, 0.5))
    assert peak < 8 * 2000**2


def test_mean_and_spread_are_those_of_the_valid_training_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.normal(5000, 30, (20, 30, 2)).astype(np.float32) for _ in range(3)]
    images[0][3, 4] = np.nan  # both channels: no data
    images[1][5, 6, 1] = np.nan  # one channel alone
    masks = [rng.integers(0, 2, (20, 30)).astype(np.uint8) for _ in range(3)]
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        _put(tmp_path, f"{i}.tif", None, mask)
        tifffile.imwrite(
            tmp_path / "images" / f"{i}.tif", image, photometric="minisblack", planarconfig="contig"
        )
    scenes = find_scenes(tmp_path)
    seen = survey(scenes[:2], scenes[2:], common_format(scenes))
    pixels = np.concatenate([i.reshape(-1, 2) for i in images[:2]]).astype(np.float64)
    assert seen.mean == pytest.approx(np.nanmean(pixels, axis=0), rel=1e-12)
    assert seen.std == pytest.approx(np.nanstd(pixels, axis=0), rel=1e-9)
    assert seen.frequencies == pytest.approx(np.bincount(np.stack(masks[:2]).ravel()) / 1200)


@pytest.mark.parametrize("value", [np.inf, 1e300])
def test_inf_is_refused_with_its_place(tmp_path: Path, value: float) -> None:
    image = _square(0, 8, np.float64)
    image[2, 2] = value
    _put(tmp_path, "a.tif", image, _halves())
    scenes = find_scenes(tmp_path)
    with pytest.raises(InputError, match=r"a\.tif holds (inf|1e\+300, which is beyond float32,) \(y 0"):
        survey(scenes, (), common_format(scenes))


def test_a_constant_channel_keeps_a_usable_spread(tmp_path: Path) -> None:
    _put(tmp_path, "a.tif", _square(7), _halves())
    seen = survey(find_scenes(tmp_path), (), common_format(find_scenes(tmp_path)))
    assert (seen.mean, seen.std) == ((7.0,), (1.0,))


def test_a_named_class_must_occur_and_a_found_value_must_be_named(tmp_path: Path) -> None:
    _put(tmp_path, "a.tif", _square(), _halves())
    scenes, toml = find_scenes(tmp_path), tmp_path / "classes.toml"
    fmt = common_format(scenes)
    three = "".join(
        f'[[class]]\nname = "{n}"\nvalue = {v}\n' for n, v in (("land", 0), ("water", 1), ("ice", 2))
    )
    toml.write_text(three)
    with pytest.raises(
        InputError, match=r"class 'ice' of .*classes.toml does not occur in .*: mend its value"
    ):
        survey(scenes, (), fmt, toml)
    toml.write_text('[[class]]\nname = "land"\nvalue = 0\n[[class]]\nname = "ice"\nvalue = 2\n')
    with pytest.raises(InputError, match=r"masks/a.tif: .*value 1 belongs to no class"):
        survey(scenes, (), fmt, toml)


def test_a_nodata_value_that_is_named_is_a_class(tmp_path: Path) -> None:
    _put(tmp_path, "a.tif", _square(), None)
    tifffile.imwrite(tmp_path / "masks" / "a.tif", _halves(), extratags=[(42113, "s", 0, "0", True)])
    scenes, toml = find_scenes(tmp_path), tmp_path / "classes.toml"
    with pytest.raises(InputError, match="a single class"):
        survey(scenes, (), common_format(scenes))
    toml.write_text('[[class]]\nname = "no"\nvalue = 0\n[[class]]\nname = "yes"\nvalue = 1\n')
    assert survey(scenes, (), common_format(scenes), toml).frequencies == (0.5, 0.5)


def test_of_a_huge_set_some_blocks_stand_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 255, (1024, 1024), dtype=np.uint8)
    _put(tmp_path, "a.tif", image, _halves(1024), tile=(256, 256))
    monkeypatch.setattr(survey_module, "windows", functools.partial(windows, pixels=256 * 256))
    monkeypatch.setattr(survey_module, "AFFORDABLE_PX", 1024 * 1024 // 4)
    scenes = find_scenes(tmp_path)
    seen = survey(scenes, (), common_format(scenes))
    assert seen.mean[0] != image.mean()
    assert seen.mean[0] == pytest.approx(image.mean(), rel=0.1)
    assert 0.2 < seen.frequencies[0] < 0.8


def test_images_of_several_palettes_are_refused(tmp_path: Path) -> None:
    """Entry 3 is another colour in each: nothing that a network could learn."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(2):
        picture = Image.fromarray(np.eye(16, dtype=np.uint8), "P")
        picture.putpalette([0, 0, 0, 10 * i, 0, 0])
        picture.save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(np.eye(16, dtype=np.uint8)).save(tmp_path / "masks" / f"{i}.png")
    scenes = find_scenes(tmp_path)
    with pytest.raises(InputError, match=r"not of one palette \(.*0\.png, .*1\.png\): convert them to RGB"):
        common_format(scenes)
    assert common_format(scenes[:1]).channels == (0,)
