"""An encoder of another library, before it is trained: under which licence it is, and that its weights can be had."""

from __future__ import annotations

from raysegment import console
from raysegment.errors import UsageError
from raysegment.training.settings import Settings


def check_encoder(settings: Settings) -> None:
    """Raises UsageError where its library is missing, and where it is non-commercial and that was not allowed;
    InputError for pretrained weights that cannot be had."""
    if ":" not in settings.architecture:
        return
    from raysegment.model.architectures import build_pretrained
    from raysegment.model.encoder import licence

    found = licence(settings.architecture, pretrained=settings.pretrained)
    if found.non_commercial and not settings.allow_non_commercial:
        raise UsageError(
            f"--architecture {settings.architecture} is not for commercial use ({found}): name another encoder, "
            "or pass --allow-non-commercial"
        )
    if settings.pretrained:
        build_pretrained({"name": settings.architecture, "in_channels": 3, "out_channels": 1})


def say_licence(settings: Settings) -> str | None:
    """Tell people the licence; the one that a model trained from it carries on, if that is no matter of course."""
    if ":" not in settings.architecture:
        return None
    from raysegment.model.encoder import licence

    found = licence(settings.architecture, pretrained=settings.pretrained)
    console.say(f"encoder {settings.architecture}: {found}")
    return str(found) if settings.pretrained or found.non_commercial else None
