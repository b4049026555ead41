"""The classes file: which pixel value or colour of a mask means which class.

ignore = [254, "#000000"]       # optional: values or colours that are neither learned nor scored
[[class]]
name = "water"
value = 1                       # or values = [1, 7], range = [128, 255] (both ends included),
                                # colour = "#808000", colours = ["#808000", …],
                                # label = "Tumor", labels = ["Tumor", …] of polygons (0: where there is none)
display = "#0072b2"             # optional: its colour in pictures
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from raysegment.model.spec import Colour

#: Values that one `range` may stand for.
_LONGEST_RANGE = 1 << 16


def rgb(text: str) -> Colour:
    """Of "#808000"."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def _hex(text: str) -> str:
    digits = text.removeprefix("#")
    if len(digits) != 6 or len(text) != 7 or any(c not in "0123456789abcdefABCDEF" for c in digits):
        raise ValueError(f'{text!r} is not a colour: write it like "#808000"')
    return text


def _whole(value: Any) -> Any:
    if type(value) is not int:
        raise ValueError(
            f'{value!r} is not an integer, as pixel values are; a colour is written colour = "#808000"'
        )
    return value


def _code(value: Any) -> Any:
    if type(value) not in (int, str):
        raise ValueError(f'{value!r} is neither a pixel value nor a colour: write it like 254 or "#808000"')
    return _hex(value) if isinstance(value, str) else value


_Hex = Annotated[str, AfterValidator(_hex)]
_Whole = Annotated[int, BeforeValidator(_whole)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _knows_its_keys(cls, found: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in found if isinstance(found, dict) else ():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
                raise ValueError(f"unknown key {key!r}; the nearest is {near!r}")
        return found


class Entry(_Table):
    """One class."""

    name: str = Field(min_length=1)
    value: _Whole | None = None
    values: list[_Whole] = Field(default_factory=list)
    range: Annotated[list[_Whole], Field(min_length=2, max_length=2)] | None = None
    colour: _Hex | None = None
    colours: list[_Hex] = Field(default_factory=list)
    label: Annotated[str, Field(min_length=1)] | None = None
    labels: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    display: _Hex | None = None

    @model_validator(mode="after")
    def _is_coded(self) -> Self:
        if self.range is not None and not 0 <= self.range[1] - self.range[0] < _LONGEST_RANGE:
            raise ValueError(
                f"range {self.range}: give the lowest and the highest value, at most {_LONGEST_RANGE}"
            )
        if not self.coded_by():
            raise ValueError("give value, values, range, colour, colours, label or labels")
        return self

    def coded_by(self) -> list[int | Colour | str]:
        """Pixel values, colours and labels that stand for it."""
        numbers = [self.value] if self.value is not None else []
        if self.range is not None:
            numbers += range(self.range[0], self.range[1] + 1)
        texts = [self.colour] if self.colour is not None else []
        words = [self.label] if self.label is not None else []
        colours = [rgb(text) for text in [*texts, *self.colours]]
        return [*numbers, *self.values, *colours, *words, *self.labels]

    def value_shown(self) -> int | Colour | None:
        """The first of them; None for a label."""
        first = self.coded_by()[0]
        return None if isinstance(first, str) else first


class ClassesFile(_Table):
    """All of it."""

    entries: list[Entry] = Field(alias="class", min_length=2)
    ignore: list[Annotated[int | str, BeforeValidator(_code)]] = Field(default_factory=list)
