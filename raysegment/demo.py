"""The main job from end to end, on this machine, in a few minutes: synth → train → infer → evaluate → preview."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysegment import console
from raysegment.errors import OutputExistsError, UsageError
from raysegment.evaluation import EvaluateResult, evaluate
from raysegment.geometry import Window
from raysegment.inference.results import InferResult
from raysegment.inference.run import infer
from raysegment.mask.preview import preview
from raysegment.scene import synth
from raysegment.storage.objects import check_writable
from raysegment.training import TrainResult, train

#: Seeds of the scenes: what is trained on, validated on and held out never share a landscape.
_TRAINING_SEEDS, _VALIDATION_SEED, _HELD_OUT_SEED = (1, 2), 3, 4
_TRAINING_PX, _VALIDATION_PX = 2048, 1024
#: Many small windows and a high learning rate: the most that two cores learn of six classes in about two minutes.
_RECIPE: dict[str, Any] = {"tile": 128, "lr": 1e-2, "epochs": 8, "steps_per_epoch": 60}


@dataclass(frozen=True)
class DemoResult:
    """What the demo found, and where it lies."""

    folder: Path
    scene: Path
    mask: Path
    pictures: tuple[Path, ...]
    trained: TrainResult
    inferred: InferResult
    scores: EvaluateResult
    wall_s: float

    @property
    def exit_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "scene": str(self.scene),
            "mask": str(self.mask),
            "pictures": [str(p) for p in self.pictures],
            "train": self.trained.to_json(),
            "infer": self.inferred.to_json(),
            "evaluate": self.scores.to_json(),
            "wall_s": self.wall_s,
        }

    def summary(self) -> str:
        height, width = self.inferred.shape
        return "\n".join(
            [
                self.scores.summary(),
                "",
                f"A U-Net that had never seen it segmented a scene of {width} × {height} px at "
                f"{self.inferred.megapixels_per_s:.1f} MP/s: mean IoU {self.scores.mean_iou:.3f}. "
                f"All in {self.wall_s / 60:.1f} minutes.",
                "",
                "Where to look",
                *(f"  {p}" for p in self.pictures),
                f"  {self.mask}  (the mask: OME-Zarr, any viewer that reads it)",
                f"  {self.trained.model}  (the model)",
                f"  {self.trained.model.with_name('report.html')}  (how it was trained; opens in a browser)",
            ]
        )


def demo(out: str | Path = "demo-out", *, size: int = 4096) -> DemoResult:
    """Make scenes, train on some, segment a held-out one of `size` px, score it and draw it, all inside `out`.

    Called again after an interruption it goes on where it stopped. Raises OutputExistsError when `out` holds
    something else, UsageError when nothing can be written there.
    """
    started = time.monotonic()
    folder = Path(out).absolute()
    if folder.exists() and any(folder.iterdir()) and not (folder / "training").is_dir():
        raise OutputExistsError(f"{folder} exists and holds no demo: name another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"cannot make the folder --out {folder}: {e.strerror}") from e
    check_writable(folder, f"--out {out}")
    training, validation = folder / "training", folder / "validation"
    for i, seed in enumerate(_TRAINING_SEEDS):
        _scene_pair(training, f"scene{i}", _TRAINING_PX, seed)
    _scene_pair(validation, "scene", _VALIDATION_PX, _VALIDATION_SEED)

    console.say(f"1/4  train on {len(_TRAINING_SEEDS)} scenes of {_TRAINING_PX} px")
    trained = train(training, val=validation, out=folder / "run", **_RECIPE)

    console.say(f"2/4  segment a held-out scene of {size} px")
    scene = folder / f"held-out-{size}.tif"
    if not scene.exists():
        synth(scene, size=size, seed=_HELD_OUT_SEED)
    mask = folder / f"mask-{size}.zarr"
    inferred = infer(scene, model=trained.model, out=mask, tile=512, overwrite=True)

    console.say("3/4  score it against the truth")
    scores = evaluate(mask, scene.with_suffix(".mask.tif"))

    console.say("4/4  draw it")
    overview, detail = folder / "overview.png", folder / "detail.png"
    preview(scene, mask, out=overview, overwrite=True)
    edge = min(768, size)
    start = (size - edge) // 2
    preview(scene, mask, out=detail, region=Window(y=start, x=start, height=edge, width=edge), overwrite=True)
    return DemoResult(
        folder, scene, mask, (overview, detail), trained, inferred, scores, time.monotonic() - started
    )


def _scene_pair(folder: Path, name: str, size: int, seed: int) -> None:
    """A scene and its mask, laid out as `train` reads them."""
    image, mask = folder / "images" / f"{name}.tif", folder / "masks" / f"{name}.tif"
    if image.exists() and mask.exists():
        return
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    synth(image, size=size, seed=seed, overwrite=True)
    image.with_suffix(".mask.tif").replace(mask)
