"""RUN/report.html: what happened in a run, gathered from the files in its folder.

The page is a function of run.json, metrics.jsonl and last/exhibits.json, so it can be written at any time: it is,
after every epoch, at the end, and when the run fails.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysegment.metrics import ClassScore, Scores
from raysegment.model.spec import Class, Colour
from raysegment.report.charts import Chart, Line, line_chart
from raysegment.report.colours import DARK, LIGHT, hexadecimal, legible
from raysegment.report.page import render, score, spelled, write_page
from raysegment.report.pictures import WRONG
from raysegment.training.findings import coded, findings, ignored
from raysegment.training.metric import Metric
from raysegment.training.run import RunFolder
from raysegment.training.settings import Resolved

#: Lines of one chart, and points of a curve that is known in closed form.
_MOST_LINES = 12
_CURVE_POINTS = 200
#: Names of images that the page lists; run.json has all.
_MOST_NAMES = 500
_SCORES = ("mean_iou", "mean_dice", "accuracy")


@dataclass(frozen=True, slots=True)
class Row:
    """One class in the tables."""

    name: str
    look: str
    """CSS class of its colour."""
    colour: str
    coded: str
    """Values or colours in the masks."""
    train_share: float
    val_share: float | None
    score: ClassScore | None
    constant: ClassScore | None
    """Of the commonest class answered everywhere."""
    threshold: float | None


def write_report(run: RunFolder, failure: str | None = None) -> None:
    """Write RUN/report.html of what stands in RUN now. `failure`: why the run ended before its time.

    Raises InputError when run.json cannot be read, WorkError when the page cannot be written.
    """
    record = run.read_record()
    assert record is not None
    history = _lines(run)
    shown = json.loads(run.exhibits.read_text(encoding="utf-8")) if run.exhibits.is_file() else None
    values = gather(record, history, shown, failure)
    write_page(run.report, render("training.html", {"run": run.root.name, **values}))


def gather(
    record: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    shown: Mapping[str, Any] | None,
    failure: str | None,
) -> dict[str, Any]:
    """What templates/training.html shows."""
    settings, result = record["settings"], record.get("result")
    metric = settings["metric"]
    best = _best(history, metric)
    told = best if result is None else result["metrics"]
    classes = [Class.model_validate(c) for c in record["spec"]["classes"]]
    names = [c.name for c in classes]
    scores = None if told is None else Scores.of(np.array(told["confusion"]), names)
    constant = None if scores is None else constant_scores(scores)
    rows = _rows(record, classes, scores, constant)
    counted = None if scores is None else sum(s.support for s in scores.classes.values())
    return {
        "title": f"{spelled(metric)} {score(told[metric])}" if told else "no epoch finished yet",
        "failure": failure,
        "finished": result is not None,
        "written": time.strftime("%Y-%m-%d %H:%M %Z"),
        "record": record,
        "settings": settings,
        "result": result,
        "history": history,
        "best_epoch": None if best is None else best["epoch"],
        "headline": _headline(metric, told, constant),
        "findings": list(findings(record, history, scores)),
        "curves": _charts(settings, history, best, constant, rows),
        "rows": rows,
        "scores": scores,
        "constant": constant,
        "constant_class": None if scores is None else max(names, key=lambda n: scores.classes[n].support),
        "ignored": None if counted is None else ignored(record["data"], counted),
        "counted": counted,
        "shown": shown,
        "wrong": hexadecimal(WRONG),
        "most_names": _MOST_NAMES,
        "means": _numbers(record["data"]["mean"]),
        "stds": _numbers(record["data"]["std"]),
        "looks": [
            (f"k{i}", hexadecimal(c.colour), _hex_on(c.colour, LIGHT), _hex_on(c.colour, DARK))
            for i, c in enumerate(classes)
        ],
    }


def constant_scores(scores: Scores) -> Scores:
    """What answering the commonest class everywhere scores on the same pixels."""
    support = np.array([s.support for s in scores.classes.values()])
    counts = np.zeros((len(support), len(support)), np.int64)
    counts[:, int(support.argmax())] = support
    return Scores.of(counts, list(scores.classes))


def _lines(run: RunFolder) -> list[dict[str, Any]]:
    if not run.metrics.is_file():
        return []
    return [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]


def _best(history: Sequence[Mapping[str, Any]], metric: str) -> Mapping[str, Any] | None:
    """The epoch whose model is kept: the first of the highest score, where it is defined."""
    scored = [line for line in history if line[metric] is not None]
    return max(scored or history[:1], key=lambda line: line[metric], default=None)


def _headline(
    metric: str, told: Mapping[str, Any] | None, constant: Scores | None
) -> list[tuple[str, float | None, float | None]]:
    """(name, score, what the constant answer scores), the run's own metric first."""
    if told is None:
        return []
    names = dict.fromkeys((metric, *_SCORES))
    return [(name, told[name], _of_constant(constant, name)) for name in names]


def _of_constant(constant: Scores | None, metric: str) -> float | None:
    """What the constant answer scores; None where pixel counts cannot tell."""
    asked = Metric.parse(metric)
    if constant is None or asked.name == "v_rand":
        return None
    return asked.value(constant) if asked.of_class else getattr(constant, asked.name)


def _rows(
    record: Mapping[str, Any], classes: Sequence[Class], scores: Scores | None, constant: Scores | None
) -> list[Row]:
    shares = record["data"]["class_shares"]
    thresholds = (record.get("result") or {}).get("thresholds")
    total = 0 if scores is None else sum(s.support for s in scores.classes.values())
    return [
        Row(
            name=c.name,
            look=f"k{i}",
            colour=hexadecimal(c.colour),
            coded=coded(record, i),
            train_share=shares[c.name],
            val_share=None if scores is None or not total else scores.classes[c.name].support / total,
            score=None if scores is None else scores.classes[c.name],
            constant=None if constant is None else constant.classes[c.name],
            threshold=None if thresholds is None else thresholds[i],
        )
        for i, c in enumerate(classes)
    ]


def _charts(
    settings: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any] | None,
    constant: Scores | None,
    rows: Sequence[Row],
) -> list[Chart]:
    if best is None:
        return []
    mark = (best["epoch"], "best")
    metric = settings["metric"]
    names = dict.fromkeys((metric, *_SCORES))
    level = _of_constant(constant, metric)
    chosen = sorted(rows, key=lambda row: best["classes"][row.name]["iou"])[:_MOST_LINES]
    which = "per class" if len(chosen) == len(rows) else f"of the {_MOST_LINES} worst classes"

    def epochs(key: str) -> list[tuple[float, float]]:
        return [(line["epoch"], line[key]) for line in history if line[key] is not None]

    return [
        line_chart("Training loss", [Line("loss", epochs("loss"), "a")], x_name="epoch", mark=mark, low=0),
        line_chart(
            "Validation scores",
            [Line(spelled(n), epochs(n), look) for n, look in zip(names, "abcd", strict=False) if epochs(n)],
            x_name="epoch",
            mark=mark,
            level=None if level is None else (level, f"constant answer, {spelled(metric)}"),
        ),
        line_chart(
            f"Validation IoU {which}",
            [
                Line(r.name, [(h["epoch"], h["classes"][r.name]["iou"]) for h in history], r.look)
                for r in rows
                if r in chosen
            ],
            x_name="epoch",
            mark=mark,
            low=0,
        ),
        line_chart("Learning rate", [_learning_rate(settings, history)], x_name="step", low=0),
    ]


def _learning_rate(settings: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Line:
    """Of the steps that were done."""
    schedule, done = Resolved.model_validate(settings), history[-1]["step"]
    steps = np.unique(np.linspace(0, done - 1, min(done, _CURVE_POINTS)).round().astype(int)).tolist()
    return Line("learning rate", [(step + 1, schedule.learning_rate(step)) for step in steps], "a")


def _hex_on(colour: Colour, background: Colour) -> str:
    return hexadecimal(legible(colour, background))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.4g}" for v in values)
