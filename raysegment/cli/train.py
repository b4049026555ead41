"""`raysegment train`: from a training set to a model."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from raysegment.cli.common import Places, Result, command


class Schedule(StrEnum):
    constant = "constant"
    cosine = "cosine"
    poly = "poly"


class Augment(StrEnum):
    none = "none"
    light = "light"
    strong = "strong"


class Sampling(StrEnum):
    uniform = "uniform"
    balanced = "balanced"


class Norm(StrEnum):
    batch = "batch"
    group = "group"
    none = "none"


class Normalisation(StrEnum):
    auto = "auto"
    zscore = "zscore"
    unit = "unit"
    imagenet = "imagenet"


class Padding(StrEnum):
    same = "same"
    valid = "valid"


class Precision(StrEnum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


def _auto_or_number(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError as e:
        raise typer.BadParameter(f"{text!r}: give auto or a number") from e


@command(
    "train",
    places=Places(carried=("classes",), read=("data", "val"), written=("out",)),
    epilog="""
    Examples:
      raysegment train DATA --out run
      raysegment train DATA --out run --val 0.3 --epochs 20 --loss "0.5*focal(alpha=0.25,gamma=2)+dice"
      raysegment train DATA --out run --classes classes.toml --class-weights balanced --workers 4
      raysegment train scenes.csv --out run          # image,mask[,split]; masks may be polygons
      raysegment train DATA --out run2 --config run/config.toml --seed 1
    """,
)
def train(
    data: Annotated[
        str,
        typer.Argument(
            help="Folder with images/ and masks/, CSV/Parquet/JSONL manifest, Zarr, or TFRecords; path or URL."
        ),
    ],
    out: Annotated[
        str, typer.Option(help="Folder for the model and all that the run writes; path, s3:// or gs://.")
    ],
    val: Annotated[
        str,
        typer.Option(
            metavar="FRACTION|DATA", help="Share of the images, last by name, or another training set."
        ),
    ] = "0.2",
    classes: Annotated[
        str | None, typer.Option(metavar="FILE.toml", help="What the masks' values or colours mean.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Times to train and validate.")] = 8,
    steps_per_epoch: Annotated[
        int | None, typer.Option(help="Default: one pass over the pixels, 30 to 1000 steps.")
    ] = None,
    batch_size: Annotated[
        str,
        typer.Option(metavar="auto|N", help="Windows per step, of all workers together; auto: 8 or less."),
    ] = "auto",
    tile: Annotated[
        int | None, typer.Option(help="Edge of a window in px. Default: 256, by images and objects.")
    ] = None,
    pixel_size: Annotated[
        float | None,
        typer.Option(help="Resample to this, in the images' own unit (µm or CRS units). Default: as stored."),
    ] = None,
    sampling: Annotated[
        Sampling, typer.Option(help="balanced: a third of the windows shows a rarer class.")
    ] = Sampling.uniform,
    lr: Annotated[float, typer.Option(help="Highest learning rate (AdamW).")] = 3e-3,
    schedule: Annotated[Schedule, typer.Option(help="How the learning rate falls.")] = Schedule.cosine,
    warmup: Annotated[
        int | None, typer.Option(help="Steps over which the learning rate rises. Default: 5 % of all.")
    ] = None,
    clip_grad: Annotated[float, typer.Option(help="Longest gradient (2-norm); 0: any length.")] = 1.0,
    accumulate: Annotated[
        int, typer.Option(help="Parts in which a batch goes through the network, to save memory.")
    ] = 1,
    loss: Annotated[
        str,
        typer.Option(
            metavar="auto|EXPR",
            help="Sum of ce, bce, focal(), dice, tversky(), lovasz with weights. auto: ce+dice, for v_rand focal.",
        ),
    ] = "auto",
    class_weights: Annotated[
        str, typer.Option(metavar="none|balanced|A,B,…", help="How much each class counts in the loss.")
    ] = "none",
    ignore_index: Annotated[
        int | None,
        typer.Option(metavar="VALUE", help="Mask pixels of this value are neither learned nor scored."),
    ] = None,
    augment: Annotated[Augment, typer.Option(help="How far windows are varied.")] = Augment.light,
    normalisation: Annotated[
        Normalisation, typer.Option(help="auto: zscore; imagenet for pretrained encoders of RGB.")
    ] = Normalisation.auto,
    architecture: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="unet, unet-keras, smp:DECODER:ENCODER, timm:ENCODER, monai:ENCODER."
        ),
    ] = "unet",
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Start from the encoder's weights in its library (download).")
    ] = False,
    allow_non_commercial: Annotated[
        bool, typer.Option("--allow-non-commercial", help="Also encoders under such a licence.")
    ] = False,
    deep_supervision: Annotated[
        bool, typer.Option("--deep-supervision", help="Coarser levels learn too; of unet and unet-keras.")
    ] = False,
    base_width: Annotated[
        int | None, typer.Option(help="Channels at full resolution. Default: 16; of unet-keras 64.")
    ] = None,
    depth: Annotated[
        str, typer.Option(metavar="auto|N", help="Levels of pooling; auto: 4, less for small windows.")
    ] = "auto",
    norm: Annotated[Norm, typer.Option(help="Normalisation after each convolution.")] = Norm.batch,
    padding: Annotated[Padding, typer.Option(help="valid: the 2015 paper's.")] = Padding.same,
    dropout: Annotated[
        float | None,
        typer.Option(help="Share dropped at the two deepest levels. Default: 0; of unet-keras 0.5."),
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="auto: bf16 where the hardware has it.")
    ] = Precision.auto,
    ema: Annotated[bool, typer.Option("--ema/--no-ema", help="Keep a moving average of the weights.")] = True,
    metric: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Validation score that the best model has, and thresholds are chosen for: mean_iou, mean_dice, "
            "accuracy, mean_iou_per_image, mean_dice_per_image, boundary_f1, iou:CLASS, dice:CLASS, v_rand[:CLASS].",
        ),
    ] = "mean_iou",
    early_stop: Annotated[
        int | None, typer.Option(metavar="N", help="End after N epochs without a better --metric.")
    ] = None,
    keep: Annotated[int, typer.Option(help="Checkpoints to keep, of the ends of the last epochs.")] = 1,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    workers: Annotated[
        str,
        typer.Option(metavar="auto|N|MIN:MAX", help="Workers that share each batch; the result is the same."),
    ] = "auto",
    mlflow: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Log to this MLflow server too. Default: $MLFLOW_TRACKING_URI."),
    ] = None,
    gpus_per_worker: Annotated[
        int | None, typer.Option(metavar="0|1", help="Default: 1 where every worker finds one.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, or fail.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run with other data or options in --out.")
    ] = False,
) -> Result:
    """Train a U-Net. The same command again goes on where it stopped."""
    from raysegment.training import train as run

    return run(
        data,
        out=out,
        val=val,
        classes=classes,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=_auto_or_number(batch_size),
        tile=tile,
        pixel_size=pixel_size,
        sampling=sampling.value,
        lr=lr,
        schedule=schedule.value,
        warmup=warmup,
        clip_grad=clip_grad,
        accumulate=accumulate,
        loss=loss,
        class_weights=class_weights,
        ignore_index=ignore_index,
        augment=augment.value,
        normalisation=normalisation.value,
        architecture=architecture,
        pretrained=pretrained,
        allow_non_commercial=allow_non_commercial,
        deep_supervision=deep_supervision,
        base_width=base_width,
        depth=_auto_or_number(depth),
        norm=norm.value,
        padding=padding.value,
        dropout=dropout,
        precision=precision.value,
        ema=ema,
        metric=metric,
        early_stop=early_stop,
        keep=keep,
        seed=seed,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        mlflow=mlflow,
        resume=resume,
        overwrite=overwrite,
    )
