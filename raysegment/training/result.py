"""What a finished training answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from raysegment.metrics import ClassScore, Scores
from raysegment.storage import Location


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The model of a run and how good it is on the validation images."""

    model: Location
    epochs: int
    steps: int
    best: dict[str, Any]
    """Epoch of the best model and its score then, by the run's metric."""
    metrics: Scores
    """Of the model that was kept, on all validation pixels."""
    thresholds: tuple[float, ...] | None
    """Operating thresholds that the model carries; None = all equal."""
    images_per_s: float
    workers: int
    wall_s: float
    validation: dict[str, str]
    """How the scores came about: over what, and at which thresholds, chosen on what."""
    already_done: bool = False

    @classmethod
    def of_record(cls, model: Location, record: dict[str, Any], *, already_done: bool) -> TrainResult:
        """From a finished run's run.json."""
        result = record["result"]
        thresholds = result["thresholds"]
        return cls(
            model=model,
            epochs=result.get("epochs", record["settings"]["epochs"]),
            steps=result["steps"],
            best=result["best"],
            metrics=Scores.from_json(result["metrics"]),
            thresholds=None if thresholds is None else tuple(thresholds),
            images_per_s=result["images_per_s"],
            workers=result.get("workers", record["workers"]),
            wall_s=result["wall_s"],
            validation=result.get("validation", {}),
            already_done=already_done,
        )

    @property
    def exit_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        return {
            "model": str(self.model),
            "epochs": self.epochs,
            "steps": self.steps,
            "best": self.best,
            "metrics": self.metrics.to_json(),
            "images_per_s": self.images_per_s,
            "workers": self.workers,
            "wall_s": self.wall_s,
        }

    def summary(self) -> str:
        scores = self.metrics
        width = max(len(name) for name in (*scores.classes, "class"))
        lines = [
            f"{'class':<{width}}    IoU   Dice  precision  recall  pixels",
            *(
                f"{name:<{width}}  {_row(None if name in scores.absent else c)}"
                for name, c in scores.classes.items()
            ),
            f"mean IoU {scores.mean_iou:.4f}   mean Dice {scores.mean_dice:.4f}   accuracy {scores.accuracy:.4f} "
            f"(the best constant answer: {scores.constant_accuracy:.4f})",
        ]
        beside = {"mean IoU per image": scores.mean_iou_per_image, "mean Dice per image": scores.mean_dice_per_image,
                  "boundary F1": scores.boundary_f1, "V_Rand": scores.v_rand}  # fmt: skip
        counted = [f"{name} {_text(value)}" for name, value in beside.items() if value is not None]
        lines += ["   ".join(counted)] if counted else []
        if self.thresholds is not None:
            named = zip(scores.classes, self.thresholds, strict=True)
            lines.append("thresholds " + ", ".join(f"{name} {t:.3f}" for name, t in named))
        lines += [f"{of}: {how}" for of, how in self.validation.items()]
        done = f"best of epoch {self.best['epoch']} of {self.epochs}, {self.images_per_s:.1f} images/s"
        took = "already done" if self.already_done else f"{self.wall_s:.0f} s"
        return "\n".join(
            [
                *lines,
                f"{self.model}  ({done}, {took})",
                f"{self.model.with_name('report.html')}  (what happened)",
            ]
        )


def _row(score: ClassScore | None) -> str:
    """Of one class in the table; None where there is nothing to say."""
    if score is None:
        return f"{'–':>5}  {'–':>5}  {'–':>9}  {'–':>6}  0"
    return f"{score.iou:.3f}  {score.dice:.3f}  {score.precision:9.3f}  {score.recall:6.3f}  {score.support}"


def _text(score: float) -> str:
    return "–" if math.isnan(score) else f"{score:.4f}"
