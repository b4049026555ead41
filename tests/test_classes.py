"""The classes file and the codes of mask pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysegment.classes import ClassMap, colour_code, label_code, pixel_codes, spelled_codes
from raysegment.errors import InputError

FILE = """
ignore = [254, "#ff0000"]
[[class]]
name = "land"
value = 0
[[class]]
name = "water"
values = [1, 7]
display = "#0072b2"
[[class]]
name = "city"
colours = ["#808000", "#800000"]
"""


def load(tmp_path: Path, text: str) -> ClassMap:
    path = tmp_path / "classes.toml"
    path.write_text(text)
    return ClassMap.load(path)


def test_values_and_colours_become_classes(tmp_path: Path) -> None:
    found = load(tmp_path, FILE)
    assert found.names == ("land", "water", "city")
    assert found.classes[1].colour == (0x00, 0x72, 0xB2)
    assert [c.value for c in found.classes] == [0, 1, (0x80, 0x80, 0)]
    index = found.map(np.array([[[0], [1], [7], [254]]], np.int16))
    assert index.dtype == np.uint8
    assert index.tolist() == [[0, 1, 1, 255]]


def test_colours_of_rgb_rgba_and_palette_pictures(tmp_path: Path) -> None:
    found = load(tmp_path, FILE)
    rgb = np.array([[[128, 128, 0], [255, 0, 0], [7, 7, 7], [128, 0, 0]]], np.uint8)
    assert found.map(rgb).tolist() == [[2, 255, 1, 2]]
    rgba = np.concatenate([rgb, np.full((1, 4, 1), 9, np.uint8)], axis=2)
    assert found.map(rgba).tolist() == [[2, 255, 1, 2]]
    palette = [(0, 0, 0), (128, 0, 0), (255, 0, 0)]
    assert found.map(np.array([[[0], [1], [2]]], np.uint8), palette=palette).tolist() == [[0, 2, 255]]


def test_a_palette_picture_coded_by_value_is_looked_at_by_its_indices(tmp_path: Path) -> None:
    text = '[[class]]\nname = "a"\nvalue = 0\n[[class]]\nname = "b"\nvalue = 1\n'
    index = load(tmp_path, text).map(np.array([[[0], [1]]], np.uint8), palette=[(9, 9, 9), (0, 0, 0)])
    assert index.tolist() == [[0, 1]]


def test_an_unknown_value_is_named_unless_it_is_no_data(tmp_path: Path) -> None:
    found = load(tmp_path, FILE)
    pixels = np.array([[[0], [3], [9]]], np.uint8)
    with pytest.raises(InputError, match=r"values 3, 9 belong to no class of .*classes\.toml"):
        found.map(pixels)
    assert found.map(pixels, np.array([[True, False, False]])).tolist() == [[0, 255, 255]]
    with pytest.raises(InputError, match="#010203"):
        found.map(np.array([[[1, 2, 3]]], np.uint8))


def test_many_classes_need_two_bytes(tmp_path: Path) -> None:
    text = "\n".join(f'[[class]]\nname = "c{i}"\nvalue = {i}' for i in range(255))
    index = load(tmp_path, text + "\n").map(np.array([[[254]]], np.uint16))
    assert (index.dtype, index.item()) == (np.uint16, 254)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[class]]\nname = 'a'\nvalue = 0", "class: .*at least 2"),
        ("ignore = 3", "class|ignore"),
        (
            FILE.replace('name = "water"', "nam = 'water'"),
            "class 2: unknown key 'nam'; the nearest is 'name'$",
        ),
        (FILE.replace("[1, 7]", '"1"'), "class 2 values"),
        (FILE.replace("[1, 7]", "[1.5]"), "class 2 values 1: .*integer"),
        (FILE.replace("[1, 7]", "[]"), "class 2: give value"),
        (FILE.replace("#808000", "808000"), "class 3 colours 1: '808000' is not a colour"),
        (FILE.replace("[1, 7]", "[1, 0]"), "value 0 is given twice: to class 'land' and to class 'water'"),
        (FILE.replace("[1, 7]", "[1, 254]"), "value 254 is given twice: to class 'water' and to ignore"),
        (FILE.replace('"water"', '"land"'), "two classes are named 'land'"),
        (FILE.replace("display", "colr"), "class 2: unknown key 'colr'; the nearest is 'colour'$"),
        (FILE.replace("display", "color"), "class 2: unknown key 'color'; the nearest is 'colour'$"),
        (FILE.replace("[[class]]", "[[classes]]"), "unknown key 'classes'; the nearest is 'class'$"),
        (FILE.replace("#ff0000", "#00f"), "ignore 2: '#00f' is not a colour: write it like \"#808000\"$"),
        (
            FILE.replace("254", "1.5"),
            "ignore 1: 1.5 is neither a pixel value nor a colour: write it like 254 or",
        ),
        (FILE.replace("value = 0", "value = '#00f'"), "class 1 value: '#00f' is not an integer.* colour = "),
        ("[[class]", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_named_with_the_key_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load(tmp_path, text)
    assert "classes.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the classes file .*none\.toml"):
        ClassMap.load(tmp_path / "none.toml")


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=40))
def test_equal_codes_mean_equal_colours(colours: list[tuple[int, int, int]]) -> None:
    codes = pixel_codes(np.array([colours], np.uint8))[0].tolist()
    assert codes == [colour_code(c) for c in colours]
    assert len(set(codes)) == len(set(colours))


def test_grey_pictures_of_any_number_of_channels_have_the_same_codes() -> None:
    grey = np.array([[[0], [7], [255]]], np.uint8)
    for channels in (1, 3):
        assert pixel_codes(np.repeat(grey, channels, axis=2)).tolist() == [[0, 7, 255]]
    with_alpha = np.concatenate([grey, 255 - grey], axis=2)
    assert pixel_codes(with_alpha).tolist() == [[0, 7, 255]]


def test_float_masks_of_whole_numbers_are_masks() -> None:
    assert pixel_codes(np.array([[[0.0], [3.0], [np.nan]]], np.float32)).tolist() == [[0, 3, 0]]
    with pytest.raises(InputError, match="fractions"):
        pixel_codes(np.array([[[0.5]]], np.float32))
    with pytest.raises(InputError, match="5 channels"):
        pixel_codes(np.zeros((1, 1, 5), np.uint8))


def test_a_range_holds_both_its_ends(tmp_path: Path) -> None:
    file = tmp_path / "classes.toml"
    file.write_text(
        '[[class]]\nname = "no"\nrange = [0, 127]\n[[class]]\nname = "road"\nrange = [128, 255]\n'
    )
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert np.array_equal(ClassMap.load(file).map(pixels), (pixels[:, :, 0] > 127).astype(np.uint8))
    for bad in ("[5, 2]", "[0, 70000]", "[1]"):
        file.write_text(f'[[class]]\nname = "no"\nrange = {bad}\n[[class]]\nname = "b"\nvalue = 300\n')
        with pytest.raises(InputError, match="range"):
            ClassMap.load(file)
    file.write_text('[[class]]\nname = "no"\nrange = [0, 9]\n[[class]]\nname = "b"\nvalue = 9\n')
    with pytest.raises(InputError, match="value 9 is given twice"):
        ClassMap.load(file)


def test_the_codes_of_a_class_are_spelled_for_people() -> None:
    assert spelled_codes([3]) == "3"
    assert spelled_codes([255, *range(128), 9]) == "0–127, 255"
    assert spelled_codes([11, 9, 10, 4, 5, -1]) == "-1, 4, 5, 9–11"
    red, black = colour_code((128, 0, 0)), colour_code((0, 0, 0))
    assert spelled_codes([red, 7]) == "7, #800000"
    assert spelled_codes([red, black], as_colours=True) == "#000000, #800000"
    assert spelled_codes([label_code("roof")]) == "polygons"
