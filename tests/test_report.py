"""The report of a run: what its page says, that it needs nothing but itself, and how a browser shows it."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Browser, chromium
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from raysegment.classes import ClassMap
from raysegment.errors import WorkError
from raysegment.metrics import Scores, tally
from raysegment.model.file import load_spec
from raysegment.model.spec import ModelSpec, default_classes
from raysegment.report.charts import HEIGHT, WIDTH, Line, line_chart, ticks
from raysegment.report.colours import DARK, LIGHT, contrast, legible
from raysegment.report.page import count, duration, share
from raysegment.report.pictures import WRONG, data_uri, panels, side_by_side
from raysegment.training import loop
from raysegment.training.dataset import find_scenes
from raysegment.training.exhibits import KEPT, find, window_score
from raysegment.training.findings import findings
from raysegment.training.fit import train
from raysegment.training.loop import work
from raysegment.training.metric import Metric
from raysegment.training.parallel import Workers
from raysegment.training.prepare import job_of, prepare, request
from raysegment.training.report import constant_scores, write_report
from raysegment.training.result import TrainResult
from raysegment.training.run import RunFolder
from raysegment.training.settings import Settings
from raysegment.training.team import Team
from raysegment.training.validate import Validator, views
from raysegment.training.windows import WindowReader

_EVIL = "<script>alert('x')</script>"
_EVIL_FILE = "<img src=x onerror=alert(1)>&amp;.png"
_VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """A page as elements (tag, attributes) and text, and whether its tags are balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.pieces: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split()).replace("\N{NARROW NO-BREAK SPACE}", " ")

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def _data(root: Path) -> Path:
    """Bright squares on noise, an ignored stripe; one file and one class have names that a page must escape."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for name in ("0.png", "1.png", "2.png", "3.png", _EVIL_FILE):
        mask = np.zeros((96, 96), np.uint8)
        for value in (7, 9, 7, 9):
            y, x = rng.integers(0, 80, 2)
            mask[y : y + 16, x : x + 16] = value
        mask[:4] = 200
        image = np.clip(mask.astype(float) * 15 + rng.normal(40, 10, mask.shape), 0, 255)
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / name)
        Image.fromarray(mask).save(root / "masks" / name)
    (root / "classes.toml").write_text(
        "ignore = [200]\n"
        '[[class]]\nname = "ground"\nvalue = 0\ndisplay = "#ffffff"\n'
        f'[[class]]\nname = "{_EVIL}"\nvalue = 7\n'
        '[[class]]\nname = "roof & tile"\nvalues = [9, 11]\n'
    )
    return root


def _started(data: Path, out: Path, **options: Any) -> tuple[RunFolder, loop.Job]:
    """A run as train() prepares it."""
    small = {
        "epochs": 3,
        "steps_per_epoch": 6,
        "base_width": 4,
        "depth": 2,
        "tile": 32,
        "batch_size": 4,
        "lr": 1e-2,
    }
    run = RunFolder(out)
    (run.root / "last").mkdir(parents=True)
    asked = request(Settings.of({**small, **options}), data, 0.4, data / "classes.toml")
    record = {**prepare(asked), "workers": 1}
    run.write_record(record)
    return run, job_of(record, asked, run)


def _worked(job: loop.Job) -> None:
    work(job, Workers(), torch.device("cpu"), threads=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _data(tmp_path_factory.mktemp("report") / "data")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run, job = _started(data, tmp_path_factory.mktemp("report") / "a <b>run")
    _worked(job)
    return run


def _record(run: RunFolder) -> dict[str, Any]:
    record = run.read_record()
    assert record is not None
    return record


def test_a_page_is_one_file_without_script(finished: RunFolder) -> None:
    page = Page(finished.report)
    assert page.open == []
    assert not {"script", "iframe", "object", "form"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "url(" not in page.source
    assert "@import" not in page.source
    policy = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_every_name_shows_as_text(finished: RunFolder) -> None:
    page = Page(finished.report)
    assert _EVIL in page.text
    assert _EVIL_FILE in page.text
    assert "a <b>run" in page.text
    assert "roof & tile" in page.text
    assert all(image["alt"] for image in page.all("img"))
    assert any(_EVIL_FILE in image["alt"] for image in page.all("img"))
    assert any(f"{_EVIL} answered as ground" in cell.get("title", "") for cell in page.all("td"))


def test_the_page_says_what_the_run_scored(finished: RunFolder) -> None:
    page, record = Page(finished.report), _record(finished)
    scores = Scores.of(
        np.array(record["result"]["metrics"]["confusion"]), list(record["data"]["class_shares"])
    )
    constant = constant_scores(scores)
    assert f"mean IoU {scores.mean_iou:.3f} constant answer {constant.mean_iou:.3f}" in page.text
    assert f"accuracy {scores.accuracy:.3f} constant answer {scores.constant_accuracy:.3f}" in page.text
    assert constant.accuracy == scores.constant_accuracy
    for name, s in scores.classes.items():
        c = constant.classes[name]
        row = [name, *(f"{v:.3f}" for q in (s, c) for v in (q.iou, q.dice, q.precision, q.recall))]
        assert " ".join([*row, count(s.support)]).replace("\N{NARROW NO-BREAK SPACE}", " ") in page.text
    for line, s in zip(scores.confusion, scores.classes.values(), strict=True):
        for pixels in line:
            said = f"{share(pixels / s.support)} {count(pixels)}"
            assert said.replace("\N{NARROW NO-BREAK SPACE}", " ") in page.text
    assert record["fingerprint"] in page.text
    assert "values 9, 11" not in page.text
    assert "roof & tile 9, 11" in page.text
    assert "steps-per-epoch 6" in page.text
    assert "768 px (4.2 %) are ignored" in page.text
    assert "chosen on the same validation pixels" in page.text
    assert "Not finished" not in page.text


def test_curves_have_a_point_per_epoch_and_say_what_they_show(finished: RunFolder) -> None:
    page = Page(finished.report)
    charts = [svg["aria-label"] for svg in page.all("svg")]
    assert [label.split(".")[0] for label in charts] == [
        "Training loss", "Validation scores", "Validation IoU per class", "Learning rate"
    ]  # fmt: skip
    losses = [json.loads(line)["loss"] for line in finished.metrics.read_text().splitlines()]
    assert f"from {losses[0]:.4g} at epoch 1 to {losses[-1]:.4g} at epoch 3" in charts[0]
    # loss, three scores, three classes at 3 epochs; 18 steps
    assert len(page.all("circle")) == 7 * 3 + 18
    best = _record(finished)["result"]["best"]
    assert f"of epoch {best['epoch']}" in page.text


def test_best_and_worst_windows_are_pictures_with_their_place(finished: RunFolder) -> None:
    page = Page(finished.report)
    shown = json.loads(finished.exhibits.read_text())
    assert [w["kind"] for w in shown["windows"]] == ["worst"] * KEPT + ["best"] * KEPT
    assert shown["examined"] == 18
    assert len(page.all("img")) == 4 * len(shown["windows"])
    scores = [w["score"] for w in shown["windows"]]
    assert scores[:KEPT] == sorted(scores[:KEPT])
    assert scores[KEPT:] == sorted(scores[KEPT:], reverse=True)
    for window in shown["windows"]:
        y, x, height, width = window["window"]
        assert f"{window['scene']} , y {y}, x {x}, {height} × {width} px" in page.text
        truth = _decoded(window["panels"]["truth"])
        assert truth.shape == (32, 32, 3)


def test_a_run_can_be_looked_at_while_it_runs_and_after_it_failed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, job = _started(data, tmp_path / "run")
    write_report(run)
    page = Page(run.report)
    assert "0 of 3 epochs" in page.text
    assert page.all("svg") == []
    step, taken = loop._Worker._step, []

    def mortal(self: Any, batch: Any) -> float:
        taken.append(1)
        if len(taken) == 15:
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Worker, "_step", mortal)
        with pytest.raises(KeyboardInterrupt):
            _worked(job)
    page = Page(run.report)
    assert "Not finished. 2 of 3 epochs" in page.text
    assert "After step 12" in page.text
    assert len(page.all("svg")) == 4
    assert len(page.all("img")) == 16
    write_report(run, failure=f"the disk is <full>: {_EVIL}")
    page = Page(run.report)
    assert f"The run failed. the disk is <full>: {_EVIL}" in page.text
    assert page.all("script") == []
    _worked(job)
    assert "Not finished" not in Page(run.report).text
    run.clear()
    assert not run.report.exists()
    assert not run.exhibits.exists()


def test_what_ends_a_run_stands_in_its_report(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(job: loop.Job, team: Team, check: object) -> None:
        assert "0 of 8 epochs" in Page(job.run.report).text  # there before the first step
        raise WorkError("the workers <are> gone")

    monkeypatch.setattr("raysegment.training.fit.launch", fails)
    with pytest.raises(WorkError, match="the workers <are> gone"):
        train(data, out=tmp_path / "run", classes=data / "classes.toml", tile=32, depth=2, workers=1)
    assert "The run failed. the workers <are> gone" in Page(tmp_path / "run" / "report.html").text


def test_what_a_reader_should_know_is_said(finished: RunFolder) -> None:
    record = _record(finished)
    history = [json.loads(line) for line in finished.metrics.read_text().splitlines()]
    names = list(record["data"]["class_shares"])
    poor = Scores.of(np.array([[90, 10, 0], [10, 0, 0], [0, 0, 0]]), names)
    result = {**record["result"], "thresholds": [0.2, 0.3, 0.5], "best": {"epoch": 3}}
    told = {**record, "result": result, "git": "abc-dirty", "warnings": ["the driver said so"]}
    leaks = [{"train": "a.tif", "val": f"{i}.tif", "share": i / 10} for i in (1, 4)]
    told["data"] = {**record["data"], "val": ["only.png"], "leaks": leaks}
    assert list(findings(told, history, poor)) == [
        "the driver said so",
        "The model is no better than a constant answer: train longer, or look at the validation images.",
        "No validation pixel is of class roof & tile: its scores say nothing.",
        "The best epoch and the operating thresholds were chosen on the same validation pixels that are scored here: "
        "expect a little less on new images.",
        "The last epoch was the best: the model was still improving, more epochs may help.",
        "2 pairs of training and validation images overlap on the ground, a.tif and 4.tif by 40.0\u202f%: the scores "
        "flatter.",
        "The validation set is a single image: its scores may be luck.",
        "The code that ran had changes that were not committed.",
    ]
    good = Scores.of(np.diag([90, 10, 5]), names)
    quiet = {**told, "result": None, "git": None, "data": record["data"], "warnings": []}
    assert list(findings(quiet, history, good)) == []


def test_thresholds_and_weights_have_their_columns(finished: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    (run.root / "last").mkdir(parents=True)
    run.metrics.write_bytes(finished.metrics.read_bytes())
    record = _record(finished)
    told = (
        "The validation curves are of windows after each epoch{}; all other scores here are of whole images{}"
    )
    text = Page(finished.report).text
    assert "threshold θ" not in text
    assert told.format("", "") in text
    result = {**record["result"], "thresholds": [0.2, 0.3125, 0.5]}
    run.write_record({**record, "result": result, "class_weights": [0.5, 2.25, 4.0]})
    write_report(run)
    page = Page(run.report)
    assert "threshold θ" in page.text
    assert told.format(", at equal thresholds", ", at the thresholds chosen in the end") in page.text
    assert "0.312" in page.text
    assert "2.250" in page.text


def test_a_class_that_is_nowhere_has_no_scores(finished: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    (run.root / "last").mkdir(parents=True)
    record = _record(finished)
    names = list(record["data"]["class_shares"])
    metrics = Scores.of(np.array([[90, 0, 10], [0, 0, 0], [0, 0, 100]]), names).to_json()
    run.write_record({**record, "result": {**record["result"], "metrics": metrics}})
    write_report(run)
    assert f"{_EVIL} – – – – – – – – 0 0.0 %" in Page(run.report).text
    lines = TrainResult.of_record(run.model, _record(run), already_done=False).summary().splitlines()
    assert lines[2].split() == [*_EVIL.split(), "–", "–", "–", "–", "0"]
    assert len({line.rindex("  ") for line in lines[:4]}) == 1  # a column is a column


def test_a_score_that_is_undefined_is_a_dash(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "boundary_counts", lambda *_: np.zeros((3, 4), np.int64))
    run, job = _started(data, tmp_path / "run", metric="boundary_f1", epochs=2)
    _worked(job)
    epochs = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [epoch["boundary_f1"] for epoch in epochs] == [None, None]
    result = _record(run)["result"]
    assert result["metrics"]["boundary_f1"] is None
    assert result["best"] == {"epoch": 1, "boundary_f1": None}
    assert "boundary F1 – no constant answer" in Page(run.report).text
    told = TrainResult.of_record(run.model, _record(run), already_done=False)
    assert "boundary F1 –" in told.summary()
    assert told.to_json()["metrics"]["boundary_f1"] is None
    assert load_spec(run.model).provenance["boundary_f1"] is None


def test_a_page_that_cannot_be_written_is_one_clear_line(finished: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    (run.root / "last").mkdir(parents=True)
    run.write_record(_record(finished))
    run.report.mkdir()
    with pytest.raises(WorkError, match=r"cannot write .*report\.html: Is a directory"):
        write_report(run)
    assert [p.name for p in run.root.glob(".report*")] == []


def test_tensorboard_holds_every_scalar_and_a_panel_of_windows(finished: RunFolder) -> None:
    found: dict[str, list[int]] = {}
    images = []
    for path in finished.events.iterdir():
        for step, tag, is_image in _events(path):
            found.setdefault(tag, []).append(step)
            images += [tag] if is_image else []
    scalars = {"loss", "lr", "images_per_s", "mean_iou", "mean_dice", "accuracy"}
    assert scalars < set(found)
    assert all(found[name] == [6, 12, 18] for name in scalars)
    assert sum(tag.startswith("iou/") for tag in found) == 3
    assert len(images) == 4
    assert len(set(images)) == 1


def _events(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(step, tag, whether it is an image) of an event file: TFRecords of protobufs."""
    from tensorboardX.proto.event_pb2 import Event

    rest = path.read_bytes()
    while rest:
        (length,) = struct.unpack("<Q", rest[:8])
        event = Event.FromString(rest[12 : 12 + length])
        rest = rest[16 + length :]
        for value in event.summary.value:
            yield event.step, value.tag, value.HasField("image")


class _Answers(nn.Module):
    """Logit of class 1 = the pixel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _validator(root: Path, workers: Workers) -> tuple[Validator, np.ndarray, np.ndarray]:
    """Windows of 16 px whose answers are more and more wrong."""
    import tifffile

    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (2, 64, 64)).astype(np.uint8)
    flipped = rng.random(truth.shape) < np.linspace(0.02, 0.6, truth.size).reshape(truth.shape)
    truth[1, 48:, 48:] = 9  # a window without truth
    image = np.where((truth == 1) ^ flipped, 3, -3).astype(np.float32)
    for folder, stack in (("images", image), ("masks", truth)):
        (root / folder).mkdir(exist_ok=True)
        for i, pixels in enumerate(stack):
            tifffile.imwrite(root / folder / f"{i}.tif", pixels)
    classes = ClassMap(default_classes(2), {0: 0, 1: 1, 9: -1}, source="a test")
    spec = ModelSpec(classes=classes.classes, channels=1, activation="sigmoid", tile=16)
    off = lambda: torch.autocast("cpu", enabled=False)  # noqa: E731
    reader = WindowReader(find_scenes(root), (0,), classes)
    metric = Metric.of("mean_iou", spec.class_names, (0.5, 0.5))
    return Validator(reader, spec, metric, workers, torch.device("cpu"), 4, off), image, truth


def test_the_worst_and_the_best_are_those_of_all_windows(tmp_path: Path) -> None:
    validator, image, truth = _validator(tmp_path, Workers())
    seen = views([scene.size for scene in validator.reader.scenes], 16)
    expected = []
    for view in seen:
        labels = (image[view.scene][view.own.slices()] > 0).astype(int)
        score, _ = window_score(truth[view.scene][view.own.slices()], labels, 2)
        expected += [] if score is None else [score]
    assert len(expected) == len(seen) - 1
    found = find(validator, _Answers(), seen)
    assert [s.score for s in found if s.kind == "worst"] == sorted(expected)[:KEPT]
    assert [s.score for s in found if s.kind == "best"] == sorted(expected, reverse=True)[:KEPT]
    for shown in found:
        own = shown.view.own.slices()
        assert np.array_equal(shown.labels, image[shown.view.scene][own] > 0)
    few = find(validator, _Answers(), seen[:3])
    assert [s.kind for s in few] == ["worst", "best", "best"]
    assert find(validator, _Answers(), seen[-1:]) == []


def test_any_number_of_workers_shows_the_same_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validator, _, _ = _validator(tmp_path, Workers())
    seen = views([scene.size for scene in validator.reader.scenes], 16)
    alone = find(validator, _Answers(), seen)
    sent: list[list[torch.Tensor]] = []
    for rank in range(3):
        worker = Workers()
        worker.rank, worker.size = rank, 3
        sent.append([])
        monkeypatch.setattr(worker, "sum", lambda values: values)
        monkeypatch.setattr(worker, "gather", lambda rows, to=sent[-1]: to.append(rows) or rows)
        find(_validator(tmp_path, worker)[0], _Answers(), seen)
    together = [torch.cat(rows) for rows in zip(*sent, strict=True)]
    worker = Workers()
    answers = iter(together)
    monkeypatch.setattr(worker, "gather", lambda rows: next(answers))
    gathered = find(_validator(tmp_path, worker)[0], _Answers(), seen)
    assert [(s.view, s.score, s.kind) for s in gathered] == [(s.view, s.score, s.kind) for s in alone]
    assert all(np.array_equal(a.labels, b.labels) for a, b in zip(gathered, alone, strict=True))


def test_a_window_is_scored_on_what_matters_in_it() -> None:
    truth = np.zeros((20, 20), np.uint8)
    stray = truth.copy()
    stray[0, 0] = 1
    assert window_score(truth, stray, 2) == (pytest.approx(399 / 400), 1)
    stray[0] = 1
    assert window_score(truth, stray, 2) == (pytest.approx((380 / 400 + 0) / 2), 2)
    assert window_score(np.full((20, 20), 255, np.uint8), stray, 2) == (None, 0)


def test_panels_show_truth_answer_and_errors() -> None:
    classes = default_classes(3)
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (40, 30)).astype(np.uint8)
    truth[:10] = 255
    labels = truth.copy() % 255
    labels[20, 5:9] = (labels[20, 5:9] + 1) % 3
    pixels = rng.integers(0, 255, (40, 30, 4), dtype=np.uint8)
    drawn = panels(pixels, np.ones((40, 30), bool), truth, labels, classes)
    assert list(drawn) == ["image", "truth", "prediction", "errors"]
    assert np.array_equal(drawn["image"], pixels[:, :, :3])
    table = np.array([c.colour for c in classes])
    assert np.array_equal(drawn["truth"][10:], table[truth[10:]])
    assert np.array_equal(drawn["prediction"], table[labels])
    red = (drawn["errors"] == WRONG).all(axis=2)
    assert red.sum() == 4
    assert red[20, 5:9].all()
    assert np.array_equal(drawn["truth"][:10], drawn["errors"][:10])  # hatched
    assert np.array_equal(_decoded(data_uri(drawn["errors"])), drawn["errors"])
    assert side_by_side([list(drawn.values())] * 2).shape == (84, 4 * 34 - 4, 3)


@pytest.mark.parametrize("shape", [(1000, 1000), (1, 900), (700, 3)])
def test_large_windows_are_shown_reduced(shape: tuple[int, int]) -> None:
    pixels = np.full((*shape, 13), 700, np.int32)
    truth = np.ones(shape, np.uint8)
    for picture in panels(pixels, np.ones(shape, bool), truth, 1 - truth, default_classes(2)).values():
        assert max(picture.shape[:2]) == 320
        assert picture.shape[2] == 3
        assert picture.dtype == np.uint8


def _decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


_COLOURS = st.tuples(*[st.integers(0, 255)] * 3)


@given(_COLOURS, st.sampled_from([LIGHT, DARK]))
def test_lines_stand_out_from_the_page(colour: tuple[int, int, int], page: tuple[int, int, int]) -> None:
    shown = legible(colour, page)
    assert contrast(shown, page) >= 3
    assert shown == colour or contrast(colour, page) < 3


def test_the_colours_of_the_style_are_readable() -> None:
    import re

    style = (Path(loop.__file__).parents[1] / "report" / "templates" / "style.css").read_text()
    schemes = [
        dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", block)) for block in style.split(":root {")[1:3]
    ]
    for scheme, paper in zip(schemes, (LIGHT, DARK), strict=True):
        colours = {name: tuple(bytes.fromhex(text[1:])) for name, text in scheme.items()}
        assert colours["paper"] == paper
        for name in ("ink", "faint", "accent", "wrong", "a", "b", "c", "d"):
            assert contrast(colours[name], paper) >= 4.5, name
            assert contrast(colours[name], colours["wash"]) >= 4.5, name


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.booleans())
def test_ticks_are_few_and_hold_the_data(low: float, length: float, whole: bool) -> None:
    high = low + length
    marks = ticks(low, high, whole=whole)
    assert 2 <= len(marks) <= 8
    assert marks == sorted(set(marks))
    slack = 1e-6 * max(abs(low), abs(high), 1e-3)
    assert marks[0] <= low + slack
    assert high - slack <= marks[-1]
    if whole:
        assert all(m == round(m) for m in marks)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=80))
def test_curves_stay_inside_their_frame(values: list[float]) -> None:
    line = Line("a", list(enumerate(values)), "a")
    chart = line_chart("t", [line], x_name="epoch", mark=(0, "best"), level=(0.5, "constant"), low=0)
    (drawn,) = chart.lines
    places = [tuple(map(float, pair.split(","))) for pair in drawn.points.split()]
    assert len(places) == len(values)
    for x, y in (*places, *((60.0, y) for y, _ in chart.y_ticks)):
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT
    heights = [y for _, y in places]
    assert heights.index(min(heights)) == heights.index(heights[int(np.argmax(values))])


def test_numbers_as_people_write_them() -> None:
    space = "\N{NARROW NO-BREAK SPACE}"
    assert count(1234567) == f"1{space}234{space}567"
    assert share(0.1234) == f"12.3{space}%"
    assert share(0) == f"0.0{space}%"
    assert share(1e-6) == f"< 0.1{space}%"
    assert [duration(s).replace(space, " ") for s in (7.4, 65, 3725)] == ["7 s", "1 min 5 s", "1 h 2 min"]


def test_a_browser_shows_it(finished: RunFolder, tmp_path: Path) -> None:
    """Alone, without a script, within the width of the screen, in the colours of the reader."""
    if chromium() is None:
        pytest.skip("no chromium on PATH")
    with Browser.started(tmp_path / "profile") as browser:
        for width, dark in ((1200, False), (1200, True), (390, False)):
            browser.open(finished.report, width=width, dark=dark)
            assert browser.requests() == []
            assert browser.complaints() == []
            assert browser.value("document.documentElement.scrollWidth") == width
            assert (
                browser.value("[...document.images].every(i => i.complete && i.naturalWidth === 32)") is True
            )
            paper = browser.value("getComputedStyle(document.body).backgroundColor")
            assert paper == f"rgb{DARK if dark else LIGHT}"
            assert _EVIL in browser.value("document.body.innerText")
        browser.screenshot(tmp_path / "with.png")
        browser.open(finished.report, width=width, dark=dark, scripts=False)
        browser.screenshot(tmp_path / "without.png")
    first, second = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("with", "without"))
    assert first.shape[1] == width
    assert np.array_equal(first, second)
    assert len(np.unique(first.reshape(-1, first.shape[2]), axis=0)) > 100


def test_the_browser_would_tell(tmp_path: Path) -> None:
    """What the test above looks for is seen when it is there."""
    if chromium() is None:
        pytest.skip("no chromium on PATH")
    page = tmp_path / "page.html"
    page.write_text("<img src='elsewhere.png'><script>console.error('no')</script>")
    with Browser.started(tmp_path / "profile") as browser:
        browser.open(page, width=600)
        assert [url.rsplit("/", 1)[1] for url in browser.requests()] == ["elsewhere.png"]
        assert any("no" in text for text in browser.complaints())
