"""The forms that a training set comes in: each gives the pixels that were put in, and says what is wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from PIL import Image
from records import example, framed

from raysegment.classes import ClassMap
from raysegment.errors import InputError, RaysegmentError
from raysegment.geometry import Window
from raysegment.inspection import inspect
from raysegment.model.spec import default_classes
from raysegment.training.dataset import Scene, common_format, find_scenes, identities
from raysegment.training.division import divide
from raysegment.training.forms import File, listing_of
from raysegment.training.survey import survey
from raysegment.training.windows import WindowReader

_TWO = ClassMap(default_classes(2), {0: 0, 1: 1}, source="a test")
_SIZE = (20, 30)


def _pixels(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(image (20, 30, 3), mask (20, 30) of 0 and 1, which is the first channel's highest bit)."""
    image = np.random.default_rng(seed).integers(0, 256, (*_SIZE, 3), dtype=np.uint8)
    return image, image[:, :, 0] >> 7


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _files(root: Path, count: int) -> list[dict[str, str]]:
    """Rows of a manifest: pictures in deep/, masks beside them."""
    (root / "deep").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        row = {"image": f"deep/i{i}.tif", "mask": f"deep/m{i}.png"}
        image, mask = _pixels(i)
        tifffile.imwrite(root / row["image"], image, photometric="rgb")
        Image.fromarray(mask).save(root / row["mask"])
        rows.append(row)
    return rows


def _csv(path: Path, rows: list[dict[str, str]]) -> Path:
    columns = list(rows[0])
    lines = [",".join(columns), *(",".join(row[c] for c in columns) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")  # as spreadsheets write it
    return path


def _jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    return path


def _parquet(path: Path, rows: list[dict[str, str]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def _records(root: Path, count: int) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    made = []
    for i in range(count):
        image, mask = _pixels(i)
        made.append(example({"height": 20, "image_raw": _png(image), "p": 0.5, "image_label": _png(mask)}))
    (root / "a.tfrecord").write_bytes(framed(*made[:2]))
    (root / "b-00001-of-00002").write_bytes(framed(*made[2:]))
    return root


def _stores(root: Path, count: int) -> Path:
    for i in range(count):
        image, mask = _pixels(i)
        group = zarr.create_group(root / f"{i}.zarr")
        for name, pixels in (("image", image), ("mask", mask)):
            axes = ("y", "x", "c")[: pixels.ndim]
            group.create_array(name, data=pixels, chunks=(8, 8, 3)[: pixels.ndim], dimension_names=axes)
    return root


def _stack(root: Path, count: int) -> Path:
    images, masks = zip(*map(_pixels, range(count)), strict=True)
    group = zarr.create_group(root / "stack.zarr")
    group.create_array("image", data=np.stack(images), dimension_names=("n", "y", "x", "c"))
    group.create_array("mask", data=np.stack(masks), dimension_names=("n", "y", "x"))
    return root / "stack.zarr"


def _ome(root: Path, count: int) -> Path:
    """One OME-Zarr 0.5 image with a z axis, c first, and a label image in two resolutions."""
    images, masks = zip(*map(_pixels, range(count)), strict=True)
    group = zarr.create_group(root / "cells.ome.zarr")
    volume = np.stack(images).transpose(3, 0, 1, 2)
    for place, data in (("", volume), ("labels/nuclei", np.stack(masks))):
        axes = [{"name": n, "type": "channel" if n == "c" else "space"} for n in "czyx"[4 - data.ndim :]]
        here = group if not place else group.create_group(place)
        levels = [data] if not place else [data, data[..., ::2, ::2]]
        for level, pixels in enumerate(levels):
            here.create_array(str(level), data=pixels)
        scales = [{"path": str(i)} for i in range(len(levels))]
        here.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": scales}]}
    group["labels"].attrs["ome"] = {"version": "0.5", "labels": ["nuclei"]}
    return root / "cells.ome.zarr"


_FORMS: dict[str, Callable[[Path, int], Path]] = {
    "csv": lambda root, n: _csv(root / "set.csv", _files(root, n)),
    "jsonl": lambda root, n: _jsonl(root / "set.jsonl", _files(root, n)),
    "parquet": lambda root, n: _parquet(root / "set.parquet", _files(root, n)),
    "tfrecords": _records,
    "zarr pairs": _stores,
    "zarr stack": _stack,
    "ome-zarr": _ome,
}


@pytest.mark.parametrize("form", _FORMS)
def test_every_form_gives_the_pixels_that_were_put_in(tmp_path: Path, form: str) -> None:
    data = _FORMS[form](tmp_path / "set", 3)
    scenes = find_scenes(data)
    assert [s.size for s in scenes] == [_SIZE] * 3
    assert common_format(scenes).channels == (0, 1, 2)
    reader = WindowReader(scenes, (0, 1, 2), _TWO)
    for i in range(3):
        image, mask = _pixels(i)
        for window in (Window(y=0, x=0, height=20, width=30), Window(y=3, x=7, height=9, width=11)):
            sample = reader.read(i, window)
            assert np.array_equal(sample.pixels, image[window.slices()])
            assert np.array_equal(sample.target, mask[window.slices()])
    assert len({image for image, _ in identities(scenes)}) == 3
    assert dict(survey(scenes[:2], scenes[2:], common_format(scenes)).classes.codes) == {0: 0, 1: 1}
    facts = inspect(data).facts
    assert (inspect(data).kind, facts["pairs"], facts["problems"]) == ("dataset", 3, [])
    assert [f["coding"] for f in facts["files"]] == ["class index"] * 3
    assert [c["pixels"] for c in facts["classes"]] == list(
        np.bincount(np.stack([_pixels(i)[1] for i in range(3)]).ravel())
    )


def test_a_manifest_divides_itself(tmp_path: Path) -> None:
    rows = [
        {**row, "split": s}
        for row, s in zip(
            _files(tmp_path, 5), ["train", "val", "test", "Training", "VALIDATION"], strict=True
        )
    ]
    train, val = divide(listing_of(data := _csv(tmp_path / "set.csv", rows)), data, 0.2)
    assert [s.name for s in train] == ["deep/i0.tif", "deep/i3.tif"]
    assert [s.name for s in val] == ["deep/i1.tif", "deep/i4.tif"]
    facts = inspect(tmp_path / "set.csv").facts
    assert [f["split"] for f in facts["files"]] == ["train", "val", "train", "val"]
    assert facts["notes"] == ["set.csv: the rows of the split test are left out (1)"]
    other = _jsonl(tmp_path / "other.jsonl", rows[4:])
    train, val = divide(listing_of(data), data, str(other))
    assert [s.name for s in (*train, *val)] == ["deep/i0.tif", "deep/i3.tif", "deep/i4.tif"]


def test_absolute_paths_and_file_urls_are_the_same(tmp_path: Path) -> None:
    row = _files(tmp_path / "with space", 1)[0]
    image, mask = (tmp_path / "with space" / row[k] for k in ("image", "mask"))
    scenes = find_scenes(_csv(tmp_path / "set.csv", [{"image": image.as_uri(), "mask": str(mask)}]))
    assert np.array_equal(scenes[0].image.open().read(Window(y=0, x=0, height=20, width=30)), _pixels(0)[0])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,mask\n", r"set\.csv holds no rows"),
        ("", r"set\.csv has no column 'image' \(found: nothing\)"),
        ("image,label\na.tif,b.png\n", r"no column 'mask' \(found: image, label\): name the columns image,mask"),
        ("image|mask\na.tif|b.png\n", r"no column 'image' \(found: image\|mask\)"),
        ("image,mask,split\ndeep/i0.tif,deep/m0.png,test\n", r"set\.csv: all rows are of the split test"),
        ("image,mask\nC:\\deep\\i0.tif,deep/m0.png\n", r"row 2: the image C:/deep/i0\.tif does not exist"),
        ("image,mask\ndeep/i0.tif,deep/m0.png\ndeep/i1.tif,deep/no.png\n",
         r"set\.csv, row 3: the mask deep/no\.png does not exist in /"),
        ("image,mask\ndeep/i0.tif,\n", r"set\.csv, row 2: no mask is given"),
        ("image,mask,split\ndeep/i0.tif,deep/m0.png,training\ndeep/i1.tif,deep/m1.png,holdout\n",
         r"row 3: split 'holdout' is unknown: give train, val or test"),
        ("image,mask\ndeep/i0.tif,deep/m0.png\ndeep/i0.tif,deep/m1.png\n", r"2 rows name the image deep/i0\.tif"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_wrong_says_where(tmp_path: Path, text: str, says: str) -> None:
    _files(tmp_path, 2)
    (tmp_path / "set.csv").write_text(text)
    with pytest.raises(InputError, match=says) as e:
        find_scenes(tmp_path / "set.csv")
    assert "\n" not in str(e.value)


def test_all_problems_of_a_manifest_are_listed_by_inspect(tmp_path: Path) -> None:
    rows = _files(tmp_path, 3)
    rows[0]["mask"] = "deep/none.png"
    rows[1]["image"] = "deep/none.tif"
    data = _csv(tmp_path / "set.csv", rows)
    with pytest.raises(InputError, match=r"row 2: .*\(and 1 more: raysegment inspect .*set\.csv lists all"):
        find_scenes(data)
    facts = inspect(data).facts
    assert (facts["images"], facts["masks"], facts["pairs"], len(facts["problems"])) == (2, 2, 1, 2)


def test_rows_that_are_no_json_or_parquet_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"image": "x", "mask": "y"}\n{"image": \n')
    with pytest.raises(InputError, match=r"a\.jsonl, line 2 is not JSON"):
        find_scenes(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("[1]\n")
    with pytest.raises(InputError, match=r"b\.jsonl, line 1 is no JSON object"):
        find_scenes(tmp_path / "b.jsonl")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 rubbish")
    with pytest.raises(InputError, match=r"c\.parquet is not a readable Parquet"):
        find_scenes(tmp_path / "c.parquet")
    pq.write_table(pa.table({"image": ["a"], "truth": ["b"]}), tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"d\.parquet has no column 'mask' \(found: image, truth\)"):
        find_scenes(tmp_path / "d.parquet")


def test_a_url_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    rows = [{"image": "nosuch://scenes/a.tif", "mask": "nosuch://scenes/a.png"}]
    with pytest.raises(RaysegmentError, match=r"nosuch://scenes/a\.tif") as e:
        find_scenes(_csv(tmp_path / "set.csv", rows))
    assert e.value.exit_code == 2


def test_records_are_found_without_reading_their_pictures(tmp_path: Path) -> None:
    _records(tmp_path, 3)
    whole = (tmp_path / "a.tfrecord").read_bytes()
    scenes = find_scenes(tmp_path)
    assert [s.name for s in scenes] == ["a.tfrecord/000000", "a.tfrecord/000001", "b-00001-of-00002/000000"]
    picture = scenes[1].image
    assert whole[picture.offset : picture.offset + picture.length] == _png(_pixels(1)[0])  # type: ignore[attr-defined]
    assert str(picture).endswith("a.tfrecord, record 1, image_raw")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda b: b[:-9], "ends within the record at byte"),
        (lambda b: bytes([b[0] ^ 1]) + b[1:], "damaged at byte 0, or no TFRecord file"),
        (lambda b: b"", "is empty"),
        (lambda b: framed(b"\x0a\xff\xff"), r"record 0 is no tf\.train\.Example"),
        (lambda b: framed(example({"image_raw": b"x", "label": b"y"})), r"record 0 has no image_label"),
        (lambda b: framed(example({"image_raw": b"xyz", "image_label": b"y"})), "record 0, image_raw: .*no image"),
        (lambda b: __import__("gzip").compress(b), "unpack it with gunzip"),
    ],
)  # fmt: skip
def test_damaged_records_are_named(tmp_path: Path, spoil: Callable[[bytes], bytes], says: str) -> None:
    path = _records(tmp_path, 3) / "a.tfrecord"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=says) as e:
        find_scenes(path)
    assert "a.tfrecord" in str(e.value)
    assert "\n" not in str(e.value)
    if "image_raw: " in says:
        assert str(e.value) in inspect(path).facts["problems"]


def test_zarr_stores_that_do_not_fit_are_named(tmp_path: Path) -> None:
    data = _ome(tmp_path, 3)
    labels = zarr.open_group(data / "labels", mode="a")
    labels.attrs["ome"] = {"version": "0.5", "labels": ["nuclei", "tissue"]}
    with pytest.raises(
        InputError, match=r"has several labels \(nuclei, tissue\): name one, e\.g\. .*labels/nuclei"
    ):
        find_scenes(data)
    assert len(find_scenes(data / "labels" / "nuclei")) == 3
    group = zarr.create_group(tmp_path / "p.zarr")
    group.create_array("image", shape=(4, 9, 9), dtype="u1", dimension_names=("t", "y", "x"))
    group.create_array("mask", shape=(5, 9, 9), dtype="u1", dimension_names=("t", "y", "x"))
    with pytest.raises(InputError, match=r"p\.zarr: the mask has the axes t=5, the image t=4"):
        find_scenes(tmp_path / "p.zarr")


def test_what_is_no_training_set_is_told_what_is_one(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(
            InputError, match="is no training set: give a folder with images/ and masks/, a CSV"
        ):
            find_scenes(place)


def test_real_labels_of_ome_zarr(shared_data: Path) -> None:
    for name in ("yx", "cyx", "c1yx", "zyx", "tzyx"):
        data = shared_data / "zarr_stores" / "ngio" / f"test_image_{name}.zarr"
        scenes: tuple[Scene, ...] = find_scenes(data)
        assert {s.size for s in scenes} == {scenes[0].size}
        assert inspect(data).facts["pairs"] == len(scenes)


@pytest.mark.ray
def test_records_and_planes_travel_to_workers(tmp_path: Path, ray_cluster: None) -> None:
    """What is read there is learned: the mask is a function of the pixel."""
    from raysegment.training import train

    data = _ome(tmp_path, 4)
    options = {
        "epochs": 1,
        "steps_per_epoch": 40,
        "batch_size": 4,
        "tile": 16,
        "lr": 0.02,
        "augment": "none",
        "base_width": 4,
        "depth": 1,
        "workers": 2,
    }
    records = _records(tmp_path / "records", 3)
    for name, place in (("planes", data), ("records", records)):
        result = train(place, out=tmp_path / "runs" / name, **options)
        assert result.metrics.accuracy > 0.8
        record = json.loads((tmp_path / "runs" / name / "run.json").read_text())
        assert (
            record["data"]["val"]
            == {"planes": ["cells.ome.zarr/z=3"], "records": ["b-00001-of-00002/000000"]}[name]
        )
        assert (tmp_path / "runs" / name / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.ray
def test_land_cover_with_two_codings_trains_after_a_classes_file(
    shared_data: Path, tmp_path: Path, ray_cluster: None
) -> None:
    from raysegment.training import train

    data, toml = shared_data / "s2_india_landcover", tmp_path / "classes.toml"
    options = {"epochs": 1, "steps_per_epoch": 30, "batch_size": 4, "tile": 128, "base_width": 8, "depth": 2}
    with pytest.raises(InputError, match="mix codings"):
        train(data, out=tmp_path / "run", **options)
    toml.write_text("\n".join(inspect(data).facts["suggested_classes_file"]))
    assert inspect(data, classes=toml).facts["problems"] == []
    result = train(data, out=tmp_path / "run", classes=toml, **options)
    assert result.metrics.accuracy > 0


def test_the_columns_of_a_manifest_are_known_however_they_are_written(tmp_path: Path) -> None:
    rows = _files(tmp_path, 4)
    for row, part in zip(rows, ("val", "train", "train", "testing"), strict=True):
        row["split"] = part
    written = [{"Image": r["image"], " MASK": r["mask"], "Split ": r["split"]} for r in rows]
    for path in (
        _csv(tmp_path / "a.csv", written),
        _parquet(tmp_path / "a.parquet", written),
        _jsonl(tmp_path / "a.jsonl", written),
    ):
        assert [p.split for p in listing_of(path).pairs] == ["val", "train", "train"]
    bom = tmp_path / "b.jsonl"
    bom.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.jsonl").read_bytes())
    assert len(listing_of(bom).pairs) == 3


def test_names_that_look_the_same_pair_up(tmp_path: Path) -> None:
    row = _files(tmp_path, 1)[0]
    for name, folder, stem in ((row["image"], "images", "a\u0308"), (row["mask"], "masks", "\u00e4")):
        (tmp_path / "set" / folder).mkdir(parents=True)
        (tmp_path / name).rename(tmp_path / "set" / folder / f"{stem}{Path(name).suffix}")
    assert len(find_scenes(tmp_path / "set")) == 1


@pytest.mark.parametrize("mark", [";", "\t", ","])
def test_a_manifest_of_a_spreadsheet_on_windows_is_read(tmp_path: Path, mark: str) -> None:
    rows = [
        {**row, "split": s} for row, s in zip(_files(tmp_path, 3), ("train", "valid", "dev"), strict=True)
    ]
    lines = [mark.join(rows[0]), *(mark.join(row.values()).replace("/", "\\") for row in rows)]
    data = tmp_path / "set.csv"
    data.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    train, val = divide(listing_of(data), data, 0.2)
    assert [s.image for s in (*train, *val)] == [File.at(tmp_path / row["image"]) for row in rows]
    data.write_bytes("\r\n".join(lines).encode("utf-16"))
    with pytest.raises(InputError, match=r"set\.csv is not UTF-8 \(.* at byte 0\): save it as UTF-8"):
        find_scenes(data)


def test_what_a_folder_passes_over_is_said(tmp_path: Path) -> None:
    row = _files(tmp_path, 1)[0]
    for name, folder in ((row["image"], "images"), (row["mask"], "masks")):
        (tmp_path / "set" / folder / "site2").mkdir(parents=True)
        suffix = Path(name).suffix
        (tmp_path / "set" / folder / f"a{suffix}").write_bytes((tmp_path / name).read_bytes())
        (tmp_path / "set" / folder / "site2" / f"b{suffix}").write_bytes((tmp_path / name).read_bytes())
        for beside in ("desktop.ini", "a.tif.msk", "a.dbf", "a.shx", "a.cpg"):
            (tmp_path / "set" / folder / beside).write_bytes(b"x")
    found = listing_of(tmp_path / "set")
    assert (len(found.pairs), found.problems) == (1, ())
    assert [note.split(" is a folder")[0][-12:] for note in found.notes] == ["images/site2", "/masks/site2"]
