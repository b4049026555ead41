"""Mask codings: every kind that occurs is read, and every doubtful one is refused with what was found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raysegment import console
from raysegment.classes import NO_CLASS, ClassMap
from raysegment.errors import InputError
from raysegment.training.codes import FileCodes, Kind, count_codes
from raysegment.training.coding import infer
from raysegment.training.dataset import common_format, find_scenes
from raysegment.training.division import split
from raysegment.training.doubt import find_doubt
from raysegment.training.survey import survey


def _file(name: str, counts: dict, kind: Kind = "values", palette: tuple | None = None) -> FileCodes:
    return FileCodes(f"/data/masks/{name}.png", kind, Counter(counts), palette)


def test_values_become_classes_in_ascending_order() -> None:
    classes = infer([_file("a", {255: 5}), _file("b", {0: 9, 255: 1})])
    assert dict(classes.codes) == {0: 0, 255: 1}
    assert [(c.name, c.value) for c in classes.classes] == [("class 0", 0), ("class 1", 255)]
    assert dict(infer([_file("a", {3: 1, 1: 1, 2: 1})]).codes) == {1: 0, 2: 1, 3: 2}


def test_colours_are_ordered_by_packed_rgb_and_kept() -> None:
    classes = infer([_file("a", {(0, 128, 0): 1, (0, 0, 255): 1, (128, 0, 0): 1}, "colours")])
    assert [c.value for c in classes.classes] == [(0, 0, 255), (0, 128, 0), (128, 0, 0)]
    assert [c.colour for c in classes.classes] == [c.value for c in classes.classes]
    pixels = np.array([[[128, 0, 0], [0, 0, 255]]], np.uint8)
    assert classes.map(pixels).tolist() == [[2, 0]]


def test_palettes_are_read_by_index_and_lend_their_colours() -> None:
    palette = ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    classes = infer([_file("a", {0: 1, 2: 1}, "palette", palette)])
    assert [(c.value, c.colour) for c in classes.classes] == [(0, (1, 2, 3)), (2, (7, 8, 9))]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([_file("a", {0: 5}), _file("b", {0: 2})], "a single class .*a.png: values 0.*training needs two"),
        ([_file("a", {0: 90, 255: 90, **dict.fromkeys(range(3, 60, 2), 0.1)})], "hold 29 values between 0 and 255"),
        ([_file("a", {0: 5, 1: 5}), _file("b", {0: 5, 255: 5})], "255 stands beside the values 0 to 1 .*b.png"),
        ([_file("a", {-1: 5, 0: 5, 1: 5})], "negative value -1, which may mean no data"),
        ([_file("a", {1: 5, 2: 5}, "palette", ((0, 0, 0),) * 3), _file("b", {(1, 1, 1): 2}, "colours")],
         "mix codings .*b.png: colours #010101; a.png: palette entries 1, 2"),
        ([_file("a", {0: 5, 1: 5}, "palette", ((0, 0, 0), (9, 9, 9))),
          _file("b", {0: 5, 1: 5}, "palette", ((0, 0, 0), (8, 8, 8)))], "palettes of the masks disagree about entry 1"),
        ([_file("a", dict.fromkeys(range(100), 5))], "100 different values, as .* too many"),
        ([_file("a", {(i, 0, 7): 5 for i in range(80)}, "colours")], "80 different colours, as JPEG-compressed"),
    ],
)  # fmt: skip
def test_what_would_be_a_guess_is_refused(files: list[FileCodes], message: str) -> None:
    with pytest.raises(InputError, match=message) as e:
        infer(files)
    assert "--classes " in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "held",
    [(0, 1, 255), (1, 2, 255), (0, 2, 255), (1, 3, 255), (*range(21), 255), (*range(150), 255),
     (0, 1, 65535), (1, 2, 65535), (111, 523, 65535), (0, 1, 32767), (0, 1, 4294967295)],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["values", "palette"])
def test_the_greatest_number_of_a_dtype_is_not_taken_for_one_more_class(
    tmp_path: Path, held: tuple[int, ...], kind: Kind
) -> None:
    file = _file("a", dict.fromkeys(held, 500), kind, ((0, 0, 0),) * 256 if kind == "palette" else None)
    message = rf"{held[-1]} stands beside the values {held[0]} to {held[-2]} and may mean ignore \(a.png"
    with pytest.raises(InputError, match=message):
        infer([file])
    doubt = find_doubt([file])
    assert doubt is not None
    (tmp_path / "classes.toml").write_text("\n".join(doubt.classes_file))
    settled = ClassMap.load(tmp_path / "classes.toml")
    assert dict(settled.codes) == {**{v: i for i, v in enumerate(held[:-1])}, held[-1]: NO_CLASS}


def test_an_ignored_index_ends_the_doubt_about_it() -> None:
    file = _file("a", {1: 500, 3: 500, 65535: 500})
    assert dict(infer([file.without(65535)]).ignoring(65535).codes) == {1: 0, 3: 1, 65535: NO_CLASS}


@pytest.mark.parametrize(
    "held",
    [(0, 255), (0, 65535), (1, 255), (0, 85, 170, 255), (0, 127, 255), tuple(range(6)), (0, 1, 7, 254)],
)
def test_two_values_grey_levels_and_indices_are_classes(held: tuple[int, ...]) -> None:
    assert dict(infer([_file("a", dict.fromkeys(held, 500))]).codes) == {v: i for i, v in enumerate(held)}


def test_objects_that_are_numbered_to_255_are_objects() -> None:
    with pytest.raises(InputError, match=r"256 different values, as numbered objects do.*range = \[1, 255\]"):
        infer([_file("a", dict.fromkeys(range(256), 500))])


def test_greys_of_resized_edges_are_no_classes() -> None:
    greys = {round(255 * i / 20): 20 for i in range(1, 20)}
    with pytest.raises(
        InputError, match=r"5\.4% of the mask pixels hold 19 values between 0 and 255.*range = \[0, 127"
    ):
        infer([_file("a", {0: 4000, **greys, 255: 2640})])


def test_colours_of_resized_edges_are_no_classes() -> None:
    black, red, blue = (0, 0, 0), (200, 0, 0), (0, 0, 201)
    edges = {(round(200 * t), 0, 0): 20 for t in (0.1, 0.3, 0.6)} | {
        (0, 0, round(201 * t)): 20 for t in (0.1, 0.3)
    }
    held = {black: 9000, red: 800, blue: 500, **edges}
    with pytest.raises(InputError, match="5 of 8 colours of the masks lie between others") as e:
        infer([_file("a", held, "colours")])
    assert 'class = [{name = "class 0", colour = "#000000"}, {name = "class 1", colour = "#0000c9"}, ' in str(
        e.value
    )
    voc = {
        tuple(128 * (i >> c & 1) + 64 * (i >> c + 3 & 1) for c in range(3)): 9000 // (i + 1) ** 2
        for i in range(21)
    }
    assert len(infer([_file("a", voc, "colours")]).classes) == 21


def test_a_value_that_holds_much_of_the_image_is_a_class_and_no_edge() -> None:
    assert len(infer([_file("a", {0: 50, 128: 20, 255: 30})]).classes) == 3


@pytest.mark.parametrize("kind", ["values", "colours"])
def test_codes_are_counted_where_the_mask_has_data(kind: Kind) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 3, (9, 7, 1 if kind == "values" else 3)).astype(np.uint8)
    valid = rng.random((9, 7)) < 0.5
    expected: Counter = Counter()
    for p, v in zip(pixels.reshape(63, -1), valid.ravel(), strict=True):
        if v:
            expected[int(p[0]) if kind == "values" else tuple(int(c) for c in p)] += 1
    assert count_codes(kind, pixels, valid) == expected


@pytest.mark.parametrize(
    ("name", "codes"), [("isbi2012", {0: 0, 255: 1}), ("dsb2018", {0: 0, 255: 1})]
)  # fmt: skip
def test_real_sets_that_are_clear(shared_data: Path, name: str, codes: dict[int, int]) -> None:
    scenes = find_scenes(shared_data / name)[:12]
    train, val = split(scenes, 0.2)
    fmt = common_format(scenes)
    assert fmt.channels == ((0,) if name == "isbi2012" else (0, 1, 2))
    seen = survey(train, val, fmt)
    assert dict(seen.classes.codes) == codes
    assert sum(seen.frequencies) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "epfl_roads",
            "238 different values, as anti-aliased grey does: too many .*satImage_002.png: 237 values from",
        ),
        (
            "s2_india_landcover",
            "mix codings .*0.png: colours #000000, #800000, #808000; .*palette entries 0, 1, 2",
        ),
    ],
)
def test_real_sets_that_are_doubtful(shared_data: Path, name: str, message: str) -> None:
    scenes = find_scenes(shared_data / name)[:4]
    with pytest.raises(InputError, match=message):
        survey(scenes[1:], scenes[:1], common_format(scenes))


def test_a_classes_file_unites_palettes_and_colours(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.toml").write_text(
        'ignore = ["#000000"]\n'
        '[[class]]\nname = "built-up"\ncolour = "#800000"\n'
        '[[class]]\nname = "water"\ncolours = ["#808000", "#008000"]\n'
    )
    scenes = find_scenes(shared_data / "s2_india_landcover")[:2]
    seen = survey(scenes, (), common_format(scenes), tmp_path / "classes.toml")
    assert seen.classes.names == ("built-up", "water")
    expected = np.zeros(2)
    for scene in scenes:
        from PIL import Image

        rgb = np.asarray(Image.open(scene.mask).convert("RGB")).reshape(-1, 3)
        expected[0] += (rgb == (128, 0, 0)).all(axis=1).sum()
        expected[1] += ((rgb == (128, 128, 0)) | (rgb == (0, 128, 0))).all(axis=1).sum()
    assert seen.frequencies == pytest.approx(tuple(expected / expected.sum()))


def test_ranges_make_classes_of_anti_aliased_grey(shared_data: Path, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "classes.toml").write_text(
        '[[class]]\nname = "other"\nrange = [0, 127]\n[[class]]\nname = "road"\nrange = [128, 255]\n'
    )
    scenes = find_scenes(shared_data / "epfl_roads")[:5]
    seen = survey(scenes, (), common_format(scenes), tmp_path / "classes.toml")
    share = np.mean([(np.asarray(Image.open(s.mask)) > 127).mean() for s in scenes])
    assert seen.frequencies == pytest.approx((1 - share, share))


def _set(root: Path, masks: list[np.ndarray]) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i, mask in enumerate(masks):
        Image.fromarray(np.full(mask.shape, 10 * i, np.uint8)).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    return root


_TOLD = '[[class]]\nname = "a"\nvalue = 0\n[[class]]\nname = "b"\nvalue = 1\n'


@pytest.mark.parametrize("told", [None, _TOLD])
def test_an_ignored_value_is_no_class(tmp_path: Path, told: str | None) -> None:
    mask = np.array([[0, 0, 0, 1], [1, 1, 255, 255]], np.uint8).repeat(8, 0).repeat(8, 1)
    scenes = find_scenes(_set(tmp_path, [mask, mask]))
    fmt, path = common_format(scenes), None
    if told is not None:
        (tmp_path / "classes.toml").write_text(told)
        path = str(tmp_path / "classes.toml")
    with pytest.raises(InputError, match="255"):  # ambiguous, or no class of the file
        survey(scenes[:1], scenes[1:], fmt, path)
    seen = survey(scenes[:1], scenes[1:], fmt, path, 255)
    assert len(seen.classes.classes) == 2
    assert dict(seen.classes.codes) == {0: 0, 1: 1, 255: NO_CLASS}
    assert seen.frequencies == (0.5, 0.5)
    assert (seen.classes.map(mask[:, :, None]) == np.where(mask == 255, 255, mask)).all()
    if told is not None:
        with pytest.raises(
            InputError, match=r"value 1 is to be ignored, and .*classes.toml says that it is 'b'"
        ):
            survey(scenes[:1], scenes[1:], fmt, path, 1)


def test_an_ignored_value_that_no_mask_holds_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.eye(16, dtype=np.uint8)
    scenes = find_scenes(_set(tmp_path, [mask, mask]))
    console.configure("human")
    try:
        survey(scenes[:1], scenes[1:], common_format(scenes), None, 9)
    finally:
        console.configure("silent")
    assert "--ignore-index 9: no mask holds that value" in capsys.readouterr().err


def test_validation_masks_that_are_ignored_altogether_are_refused(tmp_path: Path) -> None:
    mask = np.eye(16, dtype=np.uint8)
    scenes = find_scenes(_set(tmp_path, [mask, np.full_like(mask, 7)]))
    with pytest.raises(InputError, match="every pixel of the validation masks is ignored"):
        survey(scenes[:1], scenes[1:], common_format(scenes), None, 7)
