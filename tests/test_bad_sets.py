"""Training sets that are wrong cost one clear line before any work; what training can go on with is said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from masks import write_tiff_mask
from PIL import Image
from typer.testing import CliRunner

from raysegment import console
from raysegment.classes import ClassMap, class_code
from raysegment.cli.app import app
from raysegment.errors import InputError, RaysegmentWarning, UsageError
from raysegment.inspection import inspect
from raysegment.model.spec import default_classes
from raysegment.training.codes import FileCodes, greys_as_values
from raysegment.training.dataset import common_format, find_scenes
from raysegment.training.doubt import find_doubt
from raysegment.training.findings import coding_text
from raysegment.training.prepare import prepare, request
from raysegment.training.settings import Settings
from raysegment.training.survey import survey
from raysegment.training.thin import thin_masks
from raysegment.training.windows import WindowReader

_RNG = np.random.default_rng(3)


def _set(root: Path, masks: list[np.ndarray], images: list[np.ndarray] | None = None) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i, mask in enumerate(masks):
        image = images[i] if images is not None else _RNG.integers(0, 255, mask.shape[:2], dtype=np.uint8)
        tifffile.imwrite(root / "images" / f"{i}.tif", image)
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    return root


def _halves(low: int, high: int, edge: int = 40) -> np.ndarray:
    mask = np.full((edge, edge), low, np.uint8)
    mask[:, edge // 2 :] = high
    return mask


def _refused(*words: object) -> str:
    """The one line with which `train` ends, before any work."""
    outcome = CliRunner().invoke(app, ["train", *map(str, words), "--json"])
    assert outcome.exit_code == 2, outcome.output
    error = json.loads(outcome.stdout.splitlines()[-1])["error"]
    assert "\n" not in error
    return str(error)


@pytest.mark.parametrize(
    ("masks", "lines"),
    [
        ([_halves(0, 1), _halves(0, 255)], '[{name = "class 0", value = 0}, {name = "class 1", values = [1, 255]}]'),
        ([_halves(0, 1), np.concatenate([_halves(1, 255), _halves(2, 2)])], "ignore = [255]` and `class = ["),
    ],
)  # fmt: skip
def test_a_doubtful_coding_is_refused_with_lines_that_settle_it(
    tmp_path: Path, masks: list[np.ndarray], lines: str
) -> None:
    data = _set(tmp_path / "data", masks)
    assert lines in _refused(data, "--out", tmp_path / "run")
    (tmp_path / "classes.toml").write_text("\n".join(inspect(data).facts["suggested_classes_file"]))
    scenes = find_scenes(data)
    assert len(survey(scenes, (), common_format(scenes), tmp_path / "classes.toml").frequencies) > 1
    assert inspect(data, classes=tmp_path / "classes.toml").facts["problems"] == []


def _codes(kind: str, counts: dict, palette: tuple | None = None) -> FileCodes:
    from collections import Counter

    return FileCodes("/masks/a.png", kind, Counter(counts), palette)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "coding"),
    [
        (_codes("values", {0: 5, 255: 5}), "0/255"),
        (_codes("values", {0: 5, 1: 5, 7: 3}), "class index"),
        (_codes("palette", {0: 5, 1: 5}, ((0, 0, 0), (1, 1, 1))), "palette"),
        (_codes("colours", {(0, 0, 0): 5, (1, 0, 0): 5}), "RGB colours"),
        (_codes("values", {-1: 5, 0: 5}), "signed, with a negative value"),
        (_codes("values", {0: 900, 255: 900, **dict.fromkeys(range(1, 250, 3), 1)}), "anti-aliased grey"),
        (_codes("values", {0: 900, **dict.fromkeys(range(1, 400), 9)}), "numbered objects"),
        (_codes("labels", {0: 5, "road": 5}), "polygons"),
    ],
)
def test_codings_have_their_names(file: FileCodes, coding: str) -> None:
    assert file.coding == coding


def test_few_numbers_beside_many_are_those_of_objects(tmp_path: Path) -> None:
    many = np.arange(1600).reshape(40, 40) // 16
    few = np.minimum(many, 5)
    data = _set(tmp_path / "data", [many.astype(np.uint8), few.astype(np.uint8)])
    facts = inspect(data).facts
    assert [f["coding"] for f in facts["files"]] == ["numbered objects"] * 2
    assert facts["coding"] == "numbered objects (2 files)"
    assert "as numbered objects do" in facts["problems"][0]
    toml = tmp_path / "classes.toml"
    toml.write_text("".join(f'[[class]]\nname = "{i}"\nvalue = {i}\n' for i in range(100)))
    assert inspect(data, classes=toml).facts["coding"] == "class index (2 files)"


def test_grey_with_alpha_and_colours_with_alpha_are_told(tmp_path: Path) -> None:
    alpha = np.full((40, 40), 255, np.uint8)
    alpha[:5] = 0
    grey = np.dstack([_halves(0, 255), alpha])
    data = _set(tmp_path / "data", [])
    for i in range(2):
        tifffile.imwrite(data / "images" / f"{i}.tif", _RNG.integers(0, 255, (40, 40), dtype=np.uint8))
        Image.fromarray(grey, "LA" if i == 0 else None).save(data / "masks" / f"{i}.png")
    facts = inspect(data).facts
    assert [f["coding"] for f in facts["files"]] == ["grey + alpha, 0/255"] * 2
    assert [c["pixels"] for c in facts["classes"]] == [35 * 20 * 2] * 2


_RED_GREEN = ((0, 0, 0), (255, 0, 0), (0, 255, 0))


@pytest.mark.parametrize(
    "files",
    [
        [
            _codes("palette", {0: 9, 1: 9, 2: 9}, _RED_GREEN),
            _codes("colours", {(0, 0, 0): 9, (255, 0, 0): 9}),
        ],
        [_codes("palette", {0: 9, 2: 9}, _RED_GREEN), _codes("values", {0: 9, 2: 9})],
        [_codes("values", {0: 9, 255: 9}), _codes("colours", {(0, 0, 0): 9, (255, 0, 0): 9})],
        [_codes("palette", {0: 9, 1: 9}, _RED_GREEN), _codes("palette", {0: 9, 1: 9}, _RED_GREEN[1:])],
        [_codes("values", {-1: 5, -2: 5, 0: 9, 1: 9})],
        [_codes("values", {0: 9, 1: 9, 2: 9, 255: 9})],
        [_codes("values", {0: 9, 1: 9}), _codes("values", {0: 9, 255: 9})],
        [_codes("values", {0: 900, 255: 900, **dict.fromkeys(range(1, 250, 3), 1)})],
        [_codes("values", {0: 900, **dict.fromkeys(range(1, 400), 9)})],
        [_codes("colours", {(0, 0, 0): 10**6, (1, 2, 3): 10**6, (9, 0, 0): 3})],
    ],
)
def test_every_suggested_classes_file_names_every_code(tmp_path: Path, files: list[FileCodes]) -> None:
    doubt = find_doubt(files)
    assert doubt is not None
    (tmp_path / "classes.toml").write_text("\n".join(doubt.classes_file))
    found = ClassMap.load(tmp_path / "classes.toml")
    assert len(found.classes) > 1
    for file in files:
        assert {class_code(code) for code in file.counts} <= found.table(file.palette).keys()


def test_a_folder_without_rights_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"cannot read .*: Permission denied"):
        find_scenes(tmp_path)


def test_numbered_objects_become_one_class() -> None:
    doubt = find_doubt([_codes("values", {0: 900, **dict.fromkeys(range(1, 400), 9)})])
    assert doubt is not None
    assert '{name = "object", range = [1, 399]}' in str(doubt)


def test_grey_in_three_channels_is_grey() -> None:
    files = [_codes("colours", {(0, 0, 0): 5, (255, 255, 255): 5}), _codes("values", {0: 5, 255: 5})]
    assert {f.coding for f in greys_as_values(files)} == {"0/255"}


def _tagged(root: Path, mask: np.ndarray, nodata: int = 0) -> Path:
    data = _set(root, [mask])
    (data / "masks" / "0.png").unlink()
    tifffile.imwrite(data / "masks" / "0.tif", mask, extratags=[(42113, "s", 0, str(nodata), True)])
    return data


def test_a_class_that_is_tagged_as_nodata_is_named_with_the_way_out(tmp_path: Path) -> None:
    data = _tagged(tmp_path / "data", _halves(0, 1))
    held = _tagged(tmp_path / "val", _halves(0, 1))
    said = _refused(data, "--val", held, "--out", tmp_path / "run")
    assert "values 1) and training needs two; 0 is tagged as nodata in 0.tif" in said
    lines = '[{name = "class 0", value = 0}, {name = "class 1", value = 1}]'
    assert f"write `class = {lines}` to classes.toml" in said
    (tmp_path / "classes.toml").write_text("\n".join(inspect(data).facts["suggested_classes_file"]))
    scenes = find_scenes(data)
    assert survey(scenes, (), common_format(scenes), tmp_path / "classes.toml").frequencies == (0.5, 0.5)


def test_what_a_nodata_tag_hides_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = _halves(1, 2)
    mask[:10] = 0
    data = _tagged(tmp_path / "data", mask)
    note = "0 is tagged as nodata in 1 mask, which leaves out 25.0% of the pixels: if it is a class"
    scenes = find_scenes(data)
    told: list[str] = []
    monkeypatch.setattr(console, "say", told.append)
    survey(scenes, (), common_format(scenes))
    assert [n for n in told if n.startswith(note)] == told
    assert told
    facts = inspect(data).facts
    assert [n for n in facts["notes"] if n.startswith(note)]
    assert facts["problems"] == []
    entries = "".join(f'[[class]]\nname = "{v}"\nvalue = {v}\n' for v in (1, 2))
    for said, text in (
        (True, entries),
        (False, f"ignore = [0]\n{entries}"),
        (False, f'{entries}[[class]]\nname = "0"\nvalue = 0'),
    ):
        (tmp_path / "classes.toml").write_text(text)
        notes = inspect(data, classes=tmp_path / "classes.toml").facts["notes"]
        assert any("tagged" in n for n in notes) == said


@pytest.mark.parametrize(
    ("orientation", "shape", "mask_shape", "refused"),
    [
        (6, (30, 40), (40, 30), True),
        (6, (30, 30), (30, 30), True),
        (3, (30, 40), (30, 40), True),
        (6, (30, 40), (30, 40), False),
        (1, (30, 40), (30, 40), False),
        (99, (30, 40), (30, 40), False),
    ],
)
def test_pictures_that_are_shown_turned_are_refused_where_it_matters(
    tmp_path: Path, orientation: int, shape: tuple[int, int], mask_shape: tuple[int, int], refused: bool
) -> None:
    mask = np.arange(np.prod(mask_shape)).reshape(mask_shape) % 2
    data = _set(tmp_path / "data", [mask.astype(np.uint8)] * 2)
    for path in (data / "images").iterdir():
        image = Image.fromarray(_RNG.integers(0, 255, shape, dtype=np.uint8))
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(path.with_suffix(".jpg"), exif=exif)
        path.unlink()
    problems = inspect(data).facts["problems"]
    assert [f"(EXIF orientation {orientation}) but read as stored" in p for p in problems] == [
        True
    ] * 2 * refused
    if refused:
        assert _refused(data, "--out", tmp_path / "run") == problems[0]


def test_what_is_transparent_in_masks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colours = np.array([[0, 0, 0, 0], [255, 0, 0, 255], [0, 255, 0, 255]], np.uint8)
    mask = _halves(1, 2)
    mask[:10] = 0
    data = _set(tmp_path / "data", [colours[mask]] * 2)
    note = (
        "pixels without data (alpha 0, NaN or a mask page) in 2 masks are left out, 25.0% of all pixels: if"
    )
    assert [n for n in inspect(data).facts["notes"] if n.startswith(note)]
    told: list[str] = []
    monkeypatch.setattr(console, "say", told.append)
    scenes = find_scenes(data)
    survey(scenes, (), common_format(scenes))
    assert [n for n in told if n.startswith(note)] == told != []
    one = _set(tmp_path / "one", [colours[_halves(0, 1)]] * 2)
    said = _refused(one, "--out", tmp_path / "run")
    assert "a single class" in said
    assert said.endswith("if that is a class, save it opaque, with a value of its own")


def test_masks_that_lie_elsewhere_are_said(tmp_path: Path) -> None:
    data = _set(tmp_path / "data", [_halves(0, 1)] * 4)
    for i, (x, y) in enumerate(((0, 0), (5, 5), (300, 400), (0, 0))):  # of pixels of 10
        mask = data / "masks" / f"{i}.tif"
        mask.with_suffix(".png").unlink()
        tifffile.imwrite(mask, _halves(0, 1))
        for path, at in ((data / "images" / f"{i}.tif", (0, 0)), (mask, (x, y))):
            numbers = 10, 0, 0, -10, 1000 * i + at[0], 2000 + at[1]
            path.with_suffix(".tfw").write_text("\n".join(map(str, numbers)))
    (data / "masks" / "3.tfw").unlink()
    note = (
        "1 mask lies elsewhere on the ground than its image (2.tif by 50 px): they are laid over each other"
    )
    assert [n.startswith(note) for n in inspect(data).facts["notes"]] == [True]
    with pytest.warns(RaysegmentWarning, match=re.escape(note)):
        record = prepare(request(Settings.of({}), data, 0.5, None))
    (told,) = record["warnings"]
    assert told.startswith(note)
    assert told.endswith("together.")


def test_a_mask_with_fractions_is_named(tmp_path: Path) -> None:
    data = _set(tmp_path / "data", [_halves(0, 1)] * 2)
    (data / "masks" / "1.png").unlink()
    tifffile.imwrite(data / "masks" / "1.tif", _halves(0, 1) * np.float32(0.7))
    said = f"{data / 'masks' / '1.tif'}: a mask of float32 with fractions: give whole numbers, one per class"
    assert inspect(data).facts["problems"] == [said]
    assert _refused(data, "--out", tmp_path / "run") == said


def test_a_few_stray_pixels_are_no_class(tmp_path: Path) -> None:
    mask = _halves(0, 1, 200)
    mask[3, 3] = 9
    data = _set(tmp_path / "data", [mask, _halves(0, 1, 200)])
    said = _refused(data, "--out", tmp_path / "run")
    assert "9 (1 px) in 0.png" in said
    assert "write `ignore = [9]` and `class = [" in said


def test_masks_that_hold_too_little_are_said() -> None:
    classes = ClassMap(default_classes(3), {0: 0, 1: 1, 2: 2}, source="a test")
    counts = [np.array(c) for c in ((500, 300, 1), (0, 0, 0), (700, 0, 500))]
    said = list(thin_masks(classes, ["a", "b", "c"], counts, 2, "seen"))
    assert [line.split(":")[0] for line in said] == [
        "nothing is learned from b",
        "class 'class 2' has 1 px in the training masks (a), too few to learn",
        "the validation masks hold no pixel of 'class 1'",
    ]
    assert list(thin_masks(classes, ["a", "c"], [np.array((500, 300, 400))] * 2, 1, "seen")) == []


def test_nothing_but_ignored_pixels_is_refused(tmp_path: Path) -> None:
    data = _set(tmp_path / "data", [_halves(7, 7)] * 2)
    toml = tmp_path / "classes.toml"
    toml.write_text('ignore = [7]\n[[class]]\nname = "a"\nvalue = 0\n[[class]]\nname = "b"\nvalue = 1\n')
    assert "there is nothing to learn from" in _refused(data, "--out", tmp_path / "run", "--classes", toml)
    assert "every pixel of the mask is ignored" in inspect(data, classes=toml).facts["notes"][0]


def test_unknown_values_and_mixed_bands_are_named_by_file(tmp_path: Path) -> None:
    data = _set(tmp_path / "data", [_halves(0, 1), _halves(0, 3)])
    toml = tmp_path / "classes.toml"
    toml.write_text('[[class]]\nname = "a"\nvalue = 0\n[[class]]\nname = "b"\nvalue = 1\n')
    said = _refused(data, "--out", tmp_path / "run", "--classes", toml)
    assert "1.png: pixel value 3 belongs to no class" in said
    assert inspect(data, classes=toml).facts["problems"] == [said]
    tifffile.imwrite(data / "images" / "1.tif", np.zeros((40, 40, 3), np.uint8), photometric="rgb")
    assert "0.tif has 1 channel of uint8" in _refused(data, "--out", tmp_path / "run")


def test_nan_pixels_are_no_data(tmp_path: Path) -> None:
    images = [_RNG.random((40, 40)).astype(np.float32) for _ in range(2)]
    images[0][:10] = np.nan
    data = _set(tmp_path / "data", [_halves(0, 1)] * 2, images)
    scenes = find_scenes(data)
    seen = survey(scenes, (), common_format(scenes))
    assert seen.mean == pytest.approx((np.nanmean(np.stack(images), dtype=np.float64),), rel=1e-9)


def test_the_same_picture_on_both_sides_is_refused_and_named(tmp_path: Path) -> None:
    image = _RNG.integers(0, 255, (40, 40), dtype=np.uint8)
    images = [_RNG.integers(0, 255, (40, 40), dtype=np.uint8), image, image]
    data = _set(tmp_path / "data", [_halves(0, 1)] * 3, images)
    said = _refused(data, "--out", tmp_path / "run")
    assert "the same picture is in training and in validation: 1.tif and 2.tif" in said
    assert inspect(data).facts["problems"] == [
        "the same picture is in training and in validation: 1.tif and 2.tif"
    ]
    assert "0.tif and 0.tif" in _refused(data, "--out", tmp_path / "run", "--val", data)


def test_overlap_on_the_ground_is_said_and_kept_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _set(tmp_path / "data", [_halves(0, 1)] * 2)
    for i, left in enumerate((500000, 500200)):
        geo = [
            (33550, "d", 3, (10.0, 10.0, 0.0), True),
            (33922, "d", 6, (0.0, 0.0, 0.0, left, 4000000.0, 0.0), True),
            (34735, "H", 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32616), True),
        ]
        pixels = _RNG.integers(0, 255, (40, 40), dtype=np.uint8)
        tifffile.imwrite(data / "images" / f"{i}.tif", pixels, extratags=geo)
    warned: list[str] = []
    monkeypatch.setattr(console, "warn", warned.append)
    record = prepare(request(Settings(), data, 0.5, None))
    assert record["data"]["leaks"] == [{"train": "0.tif", "val": "1.tif", "share": pytest.approx(0.5)}]
    assert record["data"]["val"] == ["1.tif"]
    assert "overlap on the ground (0.tif and 1.tif), by up to 50.0%" in warned[0]
    assert inspect(data).facts["notes"] == [
        "training and validation overlap on the ground: 0.tif and 1.tif, 50.0%"
    ]


def test_masks_that_say_what_they_mean_are_believed(tmp_path: Path) -> None:
    data = _set(tmp_path / "data", [])
    for i in range(2):
        tifffile.imwrite(data / "images" / f"{i}.tif", _RNG.integers(0, 255, (40, 40), dtype=np.uint8))
        mask = _halves(0, 1)
        mask[0] = 255  # would be in doubt by itself
        write_tiff_mask(data / "masks" / f"{i}.tif", mask, [("land", None), ("water", None)])
    facts = inspect(data).facts
    assert facts["problems"] == []
    assert [(c["name"], c["pixels"]) for c in facts["classes"]] == [("land", 39 * 40), ("water", 39 * 40)]


def test_a_picture_that_breaks_when_it_is_read_is_a_problem(tmp_path: Path) -> None:
    data = _set(tmp_path / "data", [_halves(0, 1)] * 2)
    for i in range(2):
        (data / "images" / f"{i}.tif").unlink()
        Image.fromarray(_RNG.integers(0, 255, (40, 40), dtype=np.uint8)).save(data / "images" / f"{i}.png")
    broken = data / "images" / "1.png"
    broken.write_bytes(broken.read_bytes()[:300])
    (problem,) = inspect(data).facts["problems"]
    assert "1.png: cannot read y 0–40" in problem


def test_classes_are_for_training_sets_alone(tmp_path: Path) -> None:
    Image.fromarray(_halves(0, 1)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="is for training sets"):
        inspect(tmp_path / "a.png", classes=tmp_path / "c.toml")
    with pytest.raises(InputError, match=r"c\.toml"):
        inspect(_set(tmp_path / "data", [_halves(0, 1)]), classes=tmp_path / "c.toml")


def _told(root: Path, masks: list[np.ndarray], names: tuple[str, ...] = ("land", "water", "snow")) -> Path:
    """A set whose masks name their classes themselves, as those written here do."""
    data = _set(root, masks)
    for i, mask in enumerate(masks):
        (data / "masks" / f"{i}.png").unlink()
        write_tiff_mask(data / "masks" / f"{i}.tif", mask, [(name, j) for j, name in enumerate(names)])
    return data


def test_a_class_that_masks_name_and_do_not_show_is_said_and_kept(tmp_path: Path) -> None:
    data = _told(tmp_path / "data", [_halves(0, 1), _halves(1, 0)])
    asked = request(Settings.of({"class_weights": "balanced"}), data, 0.5, None)
    record = prepare(asked)
    assert [c["name"] for c in record["spec"]["classes"]] == ["land", "water", "snow"]
    assert record["data"]["class_shares"] == {"land": 0.5, "water": 0.5, "snow": 0}
    assert np.isfinite(record["class_weights"]).all()
    facts = inspect(data).facts
    assert facts["problems"] == []
    said = [note for note in facts["notes"] if "'snow'" in note]
    assert len(said) == 1
    assert "does not occur in the training masks: it stays a class of the model" in said[0]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([_halves(0, 0), _halves(0, 0)], r"name 3 classes \(land, water, snow\) and show 'land' alone"),
        ([_halves(7, 7), _halves(0, 1)], "pixel value 7 belongs to no class of the masks' own coding"),
    ],
)
def test_masks_that_name_classes_and_show_too_little(
    tmp_path: Path, masks: list[np.ndarray], message: str
) -> None:
    data = _told(tmp_path / "data", masks)
    with pytest.raises(InputError, match=message):
        prepare(request(Settings(), data, 0.5, None))
    assert any(re.search(message, problem) for problem in inspect(data).facts["problems"])


def test_a_class_of_validation_alone_is_refused_with_what_can_be_done(tmp_path: Path) -> None:
    data = _set(tmp_path / "data", [_halves(0, 1), _halves(1, 2)])
    said = "class 'class 2' occurs in the validation masks alone: choose other images with --val, or leave it out "
    assert said + "with --ignore-index 2" in _refused(data, "--val", "0.5", "--out", tmp_path / "run")
    assert prepare(request(Settings(ignore_index=2), data, 0.5, None))["codes"] == {"0": 0, "1": 1, "2": -1}
    toml = tmp_path / "classes.toml"
    entries = "".join(f'[[class]]\nname = "{name}"\nvalue = {i}\n' for i, name in enumerate("abc"))
    toml.write_text(entries)
    said = _refused(data, "--val", "0.5", "--classes", toml, "--out", tmp_path / "run")
    assert f"class 'c' of {toml} occurs in the validation masks alone: choose" in said
    assert "or name its value under ignore there" in said


def test_inspect_lists_what_train_would_refuse_of_a_classes_file(tmp_path: Path) -> None:
    data = _set(tmp_path / "data", [_halves(0, 1), _halves(1, 0)])
    toml = tmp_path / "classes.toml"
    toml.write_text("".join(f'[[class]]\nname = "{name}"\nvalue = {i}\n' for i, name in enumerate("abc")))
    said = f"class 'c' of {toml} does not occur in the training masks: mend its value there, or take it out"
    assert inspect(data, classes=toml).facts["problems"] == [said]
    for mask in (data / "masks").iterdir():
        mask.unlink()
    assert inspect(data, classes=toml).facts["classes"] == []


@pytest.mark.parametrize("colours", [False, True])
def test_a_value_that_some_masks_tag_and_others_show_is_one_class_everywhere(
    tmp_path: Path, colours: bool
) -> None:
    data = _set(tmp_path / "data", [_halves(0, 1)] * 3)
    for i, share in ((1, 4), (2, 4)):
        (data / "masks" / f"{i}.png").unlink()
        mask = np.zeros((40, 40), np.uint8)
        mask[: 40 // share] = 1
        tags = [(42113, "s", 0, "0", True)]
        pixels = np.dstack([mask] * 3) if colours else mask
        tifffile.imwrite(
            data / "masks" / f"{i}.tif",
            pixels,
            extratags=tags,
            photometric="rgb" if colours else "minisblack",
        )
    scenes = find_scenes(data)
    seen = survey(scenes, (), common_format(scenes))
    targets = WindowReader(scenes, (0,), seen.classes)
    in_windows = np.zeros(256, np.int64)
    for i in range(3):
        for _, target in targets.targets(i):
            in_windows += np.bincount(target.ravel(), minlength=256)
    assert in_windows.nonzero()[0].tolist() == [0, 1]
    assert seen.frequencies == pytest.approx(in_windows[:2] / in_windows.sum())
    facts = inspect(data).facts
    assert [c["pixels"] for c in facts["classes"]] == in_windows[:2].tolist()
    note = "0 is tagged as nodata in 2 masks and a class in others: it counts as 'class 0' in all of them, 50.0% of "
    assert [n for n in facts["notes"] if n.startswith(note)] == facts["notes"]
    assert facts["notes"]


def _gaps(root: Path, blank: tuple[int, ...], mask: np.ndarray, lost: tuple[slice, slice]) -> Path:
    """Four scenes of floats, of which some are NaN at `lost`."""
    images = [_RNG.random((40, 40)).astype(np.float32) for _ in range(4)]
    for i in blank:
        images[i][lost] = np.nan
    return _set(root, [mask] * 4, images)


_EVERYWHERE = (slice(None), slice(None))


@pytest.mark.parametrize(
    ("blank", "message"),
    [
        (
            (3,),
            r"the images have no data \(3.tif\): there is nothing to score; choose other images with --val",
        ),
        (
            (0, 1, 2),
            r"the images have no data \(0.tif, 1.tif, 2.tif\): there is nothing to learn from; give other",
        ),
    ],
)
def test_images_without_data_where_masks_have_a_class_are_refused(
    tmp_path: Path, blank: tuple[int, ...], message: str
) -> None:
    mask = _halves(0, 1)
    mask[:10] = 7
    lost = (slice(10, None), slice(None))  # all but what is ignored: together with the mask nothing is left
    data = _gaps(tmp_path / "data", blank, mask, lost)
    with pytest.raises(InputError, match=message):
        prepare(request(Settings(ignore_index=7), data, 0.25, None))


@pytest.mark.parametrize(
    ("blank", "val", "says"), [(1, 0.25, "learn from in 1.tif"), (3, 0.5, "score in 3.tif")]
)
def test_a_blank_image_among_others_is_said(tmp_path: Path, blank: int, val: float, says: str) -> None:
    data = _gaps(tmp_path / "data", (blank,), _halves(0, 1), _EVERYWHERE)
    with pytest.warns(RaysegmentWarning, match=f"^there is nothing to {says}"):
        record = prepare(request(Settings(), data, val, None))
    assert record["warnings"] == [
        f"There is nothing to {says}: the image has no data where its mask has a class."
    ]


def test_what_masks_mean_is_told_in_ranges_and_colours(tmp_path: Path) -> None:
    data = _set(tmp_path / "data", [_halves(3, 200), _halves(200, 90)])
    toml = tmp_path / "classes.toml"
    toml.write_text(
        '[[class]]\nname = "other"\nrange = [0, 127]\n[[class]]\nname = "road"\nrange = [128, 255]\n'
    )
    record = prepare(request(Settings(), data, 0.5, toml))
    assert coding_text(record) == "0–127 → other (50.0%), 128–255 → road (50.0%)"
    assert [c["value"] for c in inspect(data, classes=toml).facts["classes"]] == ["0–127", "128–255"]
    colours = np.dstack([_halves(0, 128), _halves(0, 0), _halves(0, 0)])
    painted = _set(tmp_path / "painted", [colours, colours[:, ::-1]])
    record = prepare(request(Settings(), painted, 0.5, None))
    assert coding_text(record) == "#000000 → class 0 (50.0%), #800000 → class 1 (50.0%)"
    assert [c["value"] for c in inspect(painted).facts["classes"]] == ["#000000", "#800000"]
