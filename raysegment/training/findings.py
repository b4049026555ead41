"""What a reader of a run's scores should know before believing them, in whole sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raysegment.classes import spelled_codes
from raysegment.metrics import Scores
from raysegment.report.page import count, share

#: Ignored validation pixels below this share go without saying.
_MUCH_IGNORED = 0.001


def coding_text(record: Mapping[str, Any]) -> str:
    """What the masks were understood to mean: "0 → class 0 (22.0%), 128–255 → class 1 (78.0%)"."""
    shares = record["data"]["class_shares"].items()
    return ", ".join(f"{coded(record, i)} → {name} ({part:.1%})" for i, (name, part) in enumerate(shares))


def coded(record: Mapping[str, Any], index: int) -> str:
    """All values or colours that mean a class in the masks."""
    codes = [int(code) for code, target in record["codes"].items() if target == index]
    return spelled_codes(
        codes, as_colours=isinstance(record["spec"]["classes"][index]["value"], (list, tuple))
    )


def findings(
    record: Mapping[str, Any], history: Sequence[Mapping[str, Any]], scores: Scores | None
) -> Iterator[str]:
    """From run.json, the lines of metrics.jsonl and the scores of the best model so far."""
    data, result = record["data"], record.get("result")
    yield from record.get("warnings", ())
    if scores is not None:
        yield from _about_scores(data, scores)
    if result is not None:
        yield from _about_choices(result, len(history))
    if leaks := data.get("leaks"):
        worst = max(leaks, key=lambda leak: leak["share"])
        yield (
            f"{len(leaks)} pair{'s' * (len(leaks) > 1)} of training and validation images overlap on the ground, "
            f"{worst['train']} and {worst['val']} by {share(worst['share'])}: the scores flatter."
        )
    if len(data["val"]) == 1:
        yield "The validation set is a single image: its scores may be luck."
    if str(record["git"] or "").endswith("-dirty"):
        yield "The code that ran had changes that were not committed."


def _about_scores(data: Mapping[str, Any], scores: Scores) -> Iterator[str]:
    if not scores.beats_constant:
        yield "The model is no better than a constant answer: train longer, or look at the validation images."
    for name, score in scores.classes.items():
        if score.support == 0:
            yield f"No validation pixel is of class {name}: its scores say nothing."


def _about_choices(result: Mapping[str, Any], epochs: int) -> Iterator[str]:
    chosen = ["the best epoch"] if epochs > 1 else []
    chosen += ["the operating thresholds"] if result["thresholds"] is not None else []
    if chosen:
        yield (
            f"{' and '.join(chosen).capitalize()} {'were' if len(chosen) > 1 or 'thresholds' in chosen[0] else 'was'} "
            "chosen on the same validation pixels that are scored here: expect a little less on new images."
        )
    if epochs > 2 and result["best"]["epoch"] == epochs:
        yield "The last epoch was the best: the model was still improving, more epochs may help."


def ignored(data: Mapping[str, Any], counted: int) -> str | None:
    """How many validation pixels have no truth, in words; None where it is next to none."""
    missing = data["val_pixels"] - counted
    if missing <= _MUCH_IGNORED * data["val_pixels"]:
        return None
    return f"{count(missing)} px ({share(missing / data['val_pixels'])}) are ignored: no class, or no data"
