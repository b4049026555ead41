"""Whether a network learned anything: one that answers one class everywhere did not, and why."""

from __future__ import annotations

from raysegment.console import counted
from raysegment.errors import WorkError
from raysegment.metrics import Scores
from raysegment.training.settings import Resolved

_FEW_STEPS = 100
_RARE = 0.02


def constant_answer(scores: Scores, settings: Resolved) -> WorkError | None:
    """The error that says that one class is all that is ever answered, with the likeliest cause; None if not so."""
    names = list(scores.classes)
    answered = [name for i, name in enumerate(names) if any(row[i] for row in scores.confusion)]
    missed = [name for name, score in scores.classes.items() if score.support and name not in answered]
    if len(answered) != 1 or not missed:
        return None
    rarest = min(missed, key=lambda name: scores.classes[name].support)
    share = scores.classes[rarest].support / sum(score.support for score in scores.classes.values())
    if settings.total_steps < _FEW_STEPS:
        cause = f"it was trained for {counted(settings.total_steps, 'step')} only: raise --epochs or --steps-per-epoch"
    elif settings.architecture == "unet-keras":
        cause = "the ReLU on the two channels of its head is dead: use --architecture unet, or another --seed"
    elif share < _RARE:
        cause = f"{rarest!r} holds {share:.2%} of the pixels: use --loss ce+dice or --class-weights balanced"
    else:
        cause = (
            "it learned nothing from the pixels: check that the masks belong to the images, "
            f"or lower --lr (now {settings.lr:g})"
        )
    return WorkError(
        f"the network answers {answered[0]!r} everywhere (accuracy {scores.accuracy:.4f}, "
        f"what that constant scores): {cause}"
    )
