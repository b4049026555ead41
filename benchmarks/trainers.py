"""The trainers, each the program that a user of that library would write: crops of the same images, the same network.

    python benchmarks/trainers.py monai --data DATA --work FOLDER --steps 10 --epochs 3 --threads 1 --processes 1

`training.py` starts one per measurement. All of them get the same U-Net (channels_last, fp32), crop, batch, loss terms
and optimiser, flips and quarter turns, brightness and contrast; the last line of stdout tells when each epoch ended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

_SCALE = 1 / 255
_CONTRAST, _BRIGHTNESS = (0.75, 1.33), 0.2
Ends = list[tuple[int, float]]
"""(steps done, seconds of training until then) at the end of each epoch."""


@dataclass(frozen=True)
class Task:
    data: Path
    work: Path
    tile: int
    batch: int
    steps: int
    """Of one epoch."""
    epochs: int
    norm: str
    lr: float
    threads: int
    """Of one process."""
    processes: int

    def network(self) -> nn.Module:
        from raysegment.model.architectures import build

        torch.manual_seed(0)
        arch = {
            "name": "unet",
            "in_channels": 3,
            "out_channels": 1,
            "base_width": 16,
            "depth": 4,
            "norm": self.norm,
        }
        return build(arch).to(memory_format=torch.channels_last)

    def pairs(self) -> list[dict[str, str]]:
        images = sorted((self.data / "images").iterdir())
        return [{"image": str(path), "mask": str(self.data / "masks" / path.name)} for path in images]


# ── one function per trainer ────────────────────────────────────────────────────────


def raysegment(task: Task) -> Ends:
    """`rs.train` with a team of our choice: on Ray Train."""
    from raysegment.errors import WorkError
    from raysegment.training.launch import launch
    from raysegment.training.team import Team

    job = _job(task)
    with contextlib.suppress(WorkError):  # a network of so few steps may answer one class everywhere
        launch(job, Team(task.processes, task.processes, gpus=0, threads=task.threads), check=lambda: None)
    return _ends(job.run.metrics, task)


def loop(task: Task) -> Ends:
    """The same loop in this process, without Ray; as Ray's workers, with memory kept between the layers."""
    _keep_memory()
    from raysegment.training.loop import work
    from raysegment.training.parallel import Stopped, Workers

    job = _job(task)
    with contextlib.suppress(Stopped):  # as above
        work(job, Workers(), torch.device("cpu"), task.threads)
    return _ends(job.run.metrics, task)


def apart(task: Task) -> Ends:
    """As many such loops at once, each with its share of the batch, that exchange nothing: what the cores can do."""
    _keep_memory()
    alone = replace(task, batch=task.batch // task.processes, processes=1)
    torch.multiprocessing.spawn(_alone, (alone,), nprocs=task.processes)
    ends = [json.loads((task.work / f"{i}.json").read_text()) for i in range(task.processes)]
    return max(ends, key=lambda each: each[-1][1] - each[0][1])


def pytorch(task: Task) -> Ends:
    """Dataset, DataLoader, BCE and Dice of the batch; on several processes DistributedDataParallel."""
    if task.processes == 1:
        return _pytorch(task, 0)
    return _together(_pytorch, task)


def monai(task: Task) -> Ends:
    """MONAI's dictionary transforms on decoded images (CacheDataset), its DataLoader and DiceCELoss."""
    from monai import transforms as mt
    from monai.data import CacheDataset
    from monai.data import DataLoader as MonaiLoader
    from monai.losses import DiceCELoss

    keys, crop = ["image", "mask"], (task.tile, task.tile)
    steps = mt.Compose(
        [
            mt.LoadImaged(keys, reader="PILReader", ensure_channel_first=True),
            mt.ScaleIntensityd("image", factor=_SCALE - 1),
            mt.RandSpatialCropd(keys, crop, random_size=False),
            mt.RandFlipd(keys, 0.5, spatial_axis=0),
            mt.RandRotate90d(keys, 0.75, max_k=3),
            mt.RandScaleIntensityd("image", (_CONTRAST[0] - 1, _CONTRAST[1] - 1), prob=1.0),
            mt.RandShiftIntensityd("image", _BRIGHTNESS, prob=1.0),
        ]
    )
    samples = [pair for _ in range(_repeats(task)) for pair in task.pairs()][: task.steps * task.batch]
    dataset = CacheDataset(samples, steps, hash_as_key=True, progress=False)  # each image once, by its name
    loader = MonaiLoader(dataset, batch_size=task.batch, shuffle=True, num_workers=1, persistent_workers=True)
    loss = DiceCELoss(sigmoid=True, batch=True)
    batches = ((b["image"], (b["mask"] > 0).float()) for _ in range(task.epochs) for b in loader)
    return _usual_loop(task, task.network(), loss, batches)


TRAINERS: dict[str, Callable[[Task], Ends]] = {
    "raysegment": raysegment, "loop": loop, "apart": apart, "pytorch": pytorch, "monai": monai
}  # fmt: skip

# ── raysegment ──────────────────────────────────────────────────────────────────────


def _job(task: Task) -> Any:
    from raysegment.training.prepare import job_of, prepare, request
    from raysegment.training.run import RunFolder
    from raysegment.training.settings import Settings

    settings = Settings(
        epochs=task.epochs, steps_per_epoch=task.steps, batch_size=task.batch, tile=task.tile, lr=task.lr,
        schedule="constant", warmup=0, loss="bce+dice", norm=task.norm, precision="fp32", ema=False, clip_grad=0,
    )  # fmt: skip
    asked = request(settings, task.data, str(task.data.with_name("few")), None)
    run = RunFolder(task.work / "run")
    (run.root / "last").mkdir(parents=True)
    record = {**prepare(asked), "workers": task.processes}
    run.write_record(record)
    return job_of(record, asked, run)


def _keep_memory() -> None:
    """Go on with the settings for the C library's memory that Ray's workers have, which it reads at the start."""
    from raysegment.runtime import WORKER_ENVIRONMENT

    if not WORKER_ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **WORKER_ENVIRONMENT})


def _alone(index: int, task: Task) -> None:
    ends = loop(replace(task, work=task.work / str(index)))
    (task.work / f"{index}.json").write_text(json.dumps(ends))


def _ends(metrics: Path, task: Task) -> Ends:
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    if len(lines) != task.epochs:
        raise SystemExit(f"ended after {len(lines)} of {task.epochs} epochs")
    return [(line["step"], line["step"] * task.batch / line["images_per_s"]) for line in lines]


# ── the usual loop ──────────────────────────────────────────────────────────────────


class _Crops(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Random crops of images that are decoded each time, as most training scripts do."""

    def __init__(self, task: Task) -> None:
        self.task, self.pairs = task, task.pairs()

    def __len__(self) -> int:
        return self.task.steps * self.task.batch

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        import numpy as np
        from PIL import Image

        pair, edge = self.pairs[index % len(self.pairs)], self.task.tile
        image, mask = (np.asarray(Image.open(pair[key])) for key in ("image", "mask"))
        y, x = (int(torch.randint(length - edge + 1, ())) for length in mask.shape)
        pixels = torch.from_numpy(image[y : y + edge, x : x + edge].copy()).permute(2, 0, 1).float() * _SCALE
        target = (torch.from_numpy(mask[y : y + edge, x : x + edge].copy()) > 0).float()[None]
        turns = int(torch.randint(4, ()))
        pixels, target = (torch.rot90(t, turns, (1, 2)) for t in (pixels, target))
        if torch.rand(()) < 0.5:
            pixels, target = pixels.flip(2), target.flip(2)
        contrast = torch.empty(()).uniform_(*_CONTRAST)
        return pixels * contrast + _BRIGHTNESS * torch.randn(()), target


def _pytorch(task: Task, rank: int) -> Ends:
    dataset, network = _Crops(task), task.network()
    sampler = None
    if task.processes > 1:
        network = nn.parallel.DistributedDataParallel(network)
        sampler = DistributedSampler(dataset, task.processes, rank)
    loader = DataLoader(
        dataset, task.batch // task.processes, shuffle=sampler is None, sampler=sampler, num_workers=1,
        persistent_workers=True,
    )  # fmt: skip
    return _usual_loop(task, network, _bce_and_dice, (batch for _ in range(task.epochs) for batch in loader))


def _bce_and_dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    p = logits.sigmoid()
    dice = (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    return nn.functional.binary_cross_entropy_with_logits(logits, target) + 1 - dice


def _usual_loop(
    task: Task, network: nn.Module, loss: Callable[..., torch.Tensor], batches: Iterable[Any]
) -> Ends:
    torch.set_num_threads(task.threads)
    optimizer = torch.optim.AdamW(network.parameters(), lr=task.lr)
    network.train()
    ends, started = [], time.monotonic()
    for step, (images, target) in enumerate(batches, start=1):
        found = loss(network(images.contiguous(memory_format=torch.channels_last)), target)
        optimizer.zero_grad(set_to_none=True)
        found.backward()
        optimizer.step()
        if not torch.isfinite(found):
            raise SystemExit(f"the loss is {float(found)} at step {step}")
        if step % task.steps == 0:
            ends.append((step, time.monotonic() - started))
    return ends


def _together(train: Callable[[Task, int], Ends], task: Task) -> Ends:
    """The same function on several processes; what the first answers."""
    store = task.work / "store"
    torch.multiprocessing.spawn(_member, (train, task, str(store)), nprocs=task.processes)
    return json.loads((task.work / "ends.json").read_text())


def _member(rank: int, train: Callable[[Task, int], Ends], task: Task, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=task.processes)
    ends = train(task, rank)
    if rank == 0:
        (task.work / "ends.json").write_text(json.dumps(ends))
    dist.barrier()
    dist.destroy_process_group()


def _repeats(task: Task) -> int:
    return -(-task.steps * task.batch // len(task.pairs()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trainer", choices=sorted(TRAINERS))
    for name in ("data", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("tile", "batch", "steps", "epochs", "threads", "processes"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--norm", required=True)
    parser.add_argument("--lr", type=float, required=True)
    options = vars(parser.parse_args())
    trainer = TRAINERS[options.pop("trainer")]
    task = Task(**options)
    torch.set_num_threads(task.threads)
    with contextlib.redirect_stdout(sys.stderr):
        ends = trainer(task)
    print(json.dumps({"ends": ends}))


if __name__ == "__main__":
    main()
