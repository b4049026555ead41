"""The contestants, each the program that a user of that library would write: read an image, segment it, write a mask.

    python benchmarks/contestants.py monai --source scene.tif --network model.safetensors --out mask.zarr …

`inference.py` starts one per measurement. All of them get the same network (channels_last, eval, inference_mode),
tile, overlap, batch and precision, and use the same functions for normalisation, probabilities and classes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from task import BAND_PX, Task, batches, labels_of, new_mask, predictor, prepared, print_error

if TYPE_CHECKING:
    import numpy as np
    import torch
    import zarr

# ── one function per contestant ─────────────────────────────────────────────────────


def raysegment(task: Task) -> None:
    """rs.infer with a network in memory: the constant one is in no file. Files are measured by the command itself."""
    if task.error_only:
        print_error(iter([_raysegment_probabilities(task)]))
        return
    import raysegment as rs

    rs.infer(
        task.source,
        model=task.open_model(),
        out=task.out,
        tile=task.tile,
        overlap=task.overlap,
        batch_size=task.batch,
        workers=task.processes,
        precision=task.precision,
        device=task.device,
    )


def monai(task: Task) -> None:
    """MONAI's sliding_window_inference, Gaussian weights: image and sums in memory."""
    import torch
    from monai.inferers import sliding_window_inference

    model = task.open_model()
    predict = predictor(model, task)
    task.reached("ready")
    image = torch.from_numpy(task.read()).permute(2, 0, 1)[None].float()
    home = task.home_of_sums(image.shape[2] * image.shape[3], len(model.spec.classes))
    with torch.inference_mode():
        p = sliding_window_inference(
            image,
            (task.tile, task.tile),
            task.batch,
            predict,
            overlap=task.overlap / task.tile,
            mode="gaussian",
            padding_mode="reflect",
            sw_device=task.device,
            device=home,
        )
        task.finish(p[0])


def monai_default(task: Task) -> None:
    """The call of MONAI's tutorials: four tiles at once, a quarter of overlap, equal weights, the network as it is."""
    import torch
    from models import open_network
    from monai.inferers import sliding_window_inference

    from raysegment.model.model import probabilities

    model = open_network(task.network)
    network = model.module.to(task.device)
    task.reached("ready")
    spec = model.spec
    image = (
        torch.from_numpy(task.read()).permute(2, 0, 1)[None].float() * spec.scale
        - torch.tensor(spec.mean).view(1, -1, 1, 1)
    ) / torch.tensor(spec.std).view(1, -1, 1, 1)
    with torch.no_grad():
        answer = sliding_window_inference(
            image, (spec.tile, spec.tile), 4, network, sw_device=task.device, device="cpu"
        )
        task.finish(probabilities(answer, spec.activation)[0])


def monai_zarr(task: Task) -> None:
    """MONAI's PatchInferer, plain averages: the image in memory as stored, the sums in Zarr on disk.

    Chunks of the stride, all classes in one, uncompressed: a quarter faster than the merger's defaults.
    """
    import torch
    from monai.inferers import PatchInferer, SlidingWindowSplitter, ZarrAvgMerger
    from zarr.codecs import BytesCodec
    from zarr.storage import LocalStore

    model = task.open_model()
    predict = predictor(model, task)
    task.reached("ready")
    image = torch.from_numpy(task.read()).permute(2, 0, 1)[None]
    height, width = image.shape[2:]
    stores = {
        name: LocalStore(task.out.with_name(f"{task.out.name}.{name}")) for name in ("p", "sum", "count")
    }
    stride = task.tile - task.overlap
    raw = [BytesCodec()]
    inferer = PatchInferer(
        SlidingWindowSplitter((task.tile, task.tile), overlap=task.overlap),
        ZarrAvgMerger,
        batch_size=task.batch,
        postprocessing=lambda p: p.cpu(),
        store=stores["p"],
        value_store=stores["sum"],
        count_store=stores["count"],
        chunks=(1, len(model.spec.classes), stride, stride),
        codecs=raw,
        value_codecs=raw,
        count_codecs=raw,
    )
    with torch.inference_mode():
        merged: zarr.Array = inferer(image, predict)
    bands = (merged[0, :, y : y + BAND_PX] for y in range(0, height, BAND_PX))
    if task.error_only:
        print_error(bands)
        return
    task.reached("worked")
    mask = new_mask(task.out, height, width)
    for y, band in zip(range(0, height, BAND_PX), bands, strict=True):
        mask[y : y + BAND_PX] = labels_of(torch.from_numpy(band)).numpy()


def toolbelt(task: Task) -> None:
    """pytorch-toolbelt's ImageSlicer and TileMerger, pyramid weights: image and sums in memory."""
    import cv2
    import numpy as np
    import torch

    cv2.setNumThreads(task.threads)
    tiles = _toolbelt_tiles()
    model = task.open_model()
    predict = predictor(model, task)
    task.reached("ready")
    image = task.read()
    slicer = tiles.ImageSlicer(image.shape, task.tile, task.tile - task.overlap, weight="pyramid")
    height, width = slicer.target_shape
    home = task.home_of_sums(height * width, len(model.spec.classes))
    merger = tiles.TileMerger((height, width), len(model.spec.classes), slicer.weight, device=home)
    with torch.inference_mode():
        for some in batches(slicer.iter_split(image, border_type=cv2.BORDER_REFLECT_101), task.batch):
            pixels = torch.from_numpy(np.stack([tile for tile, _ in some])).permute(0, 3, 1, 2)
            merger.integrate_batch(predict(pixels), [place for _, place in some])
        del image
        top, left = slicer.margin_top, slicer.margin_left
        p = merger.merge_()
        task.finish(p[:, top : top + slicer.image_height, left : left + slicer.image_width])


def bare(task: Task) -> None:
    """The network alone: `for batch in tiles: model(batch)`, its answers thrown away, in N forked processes."""
    _loop(task, fold=False)


def folded(task: Task) -> None:
    """The bare loop with BatchNorm folded into the convolutions."""
    _loop(task, fold=True)


def _loop(task: Task, fold: bool) -> None:
    import torch

    from raysegment.model.fold import fold_batchnorm

    model = task.open_model()
    if fold:
        model.module = fold_batchnorm(model.module).to(memory_format=torch.channels_last)
    normalised, answer = prepared(model, task)
    task.reached("ready")
    image = task.read()
    stride = task.tile - task.overlap
    corners = [(y, x) for y in range(0, image.shape[0], stride) for x in range(0, image.shape[1], stride)]

    def loop(share: int) -> None:
        with torch.inference_mode():
            for some in batches(corners[share :: task.processes], task.batch):
                answer(normalised(torch.stack([_tile(image, y, x, task.tile) for y, x in some])))
        if task.device == "cuda":
            torch.cuda.synchronize()

    if task.processes == 1:
        loop(0)
    else:  # one thread each: there is no pool of threads yet that a fork would break
        fork = multiprocessing.get_context("fork")
        family = [fork.Process(target=loop, args=(share,)) for share in range(task.processes)]
        for process in family:
            process.start()
        for process in family:
            process.join()
            if process.exitcode:
                raise SystemExit(f"a process of the loop ended with {process.exitcode}")
    task.reached("worked")


def _tile(image: np.ndarray, y: int, x: int, edge: int) -> torch.Tensor:
    """A tile (c, edge, edge) that starts at (y, x), moved inwards at the bottom and right."""
    import torch

    y, x = (max(0, min(start, n - edge)) for start, n in zip((y, x), image.shape, strict=False))
    return torch.from_numpy(image[y : y + edge, x : x + edge]).permute(2, 0, 1)


def _toolbelt_tiles() -> ModuleType:
    """pytorch_toolbelt/inference/tiles.py alone: its package imports torchvision, which this needs not."""
    import importlib.metadata
    import importlib.util

    place = importlib.metadata.distribution("pytorch-toolbelt").locate_file(
        "pytorch_toolbelt/inference/tiles.py"
    )
    spec = importlib.util.spec_from_file_location("toolbelt_tiles", str(place))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _raysegment_probabilities(task: Task) -> np.ndarray:
    """Class probabilities (classes, h, w) before they become labels: the blocks' sums, as the tests add them."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from made import make_plan, probabilities, summed

    model, image = task.open_model(), task.read()
    plan = make_plan(
        model,
        image,
        tile=task.tile,
        overlap=task.overlap,
        batch_size=task.batch,
        precision=task.precision,
        device=task.device,
    )
    return probabilities(summed(model, plan, image))


PROGRAMS = {f.__name__: f for f in (raysegment, monai, monai_default, monai_zarr, toolbelt, bare, folded)}


def main() -> None:
    began = time.time()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--network", required=True, help="constant, or a model file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--error-only", action="store_true")
    chosen = vars(parser.parse_args())
    program = PROGRAMS[chosen.pop("program")]
    task = Task(**chosen, moments={"began": began})
    program(task)
    if not task.error_only:
        task.reached("written")
        print(json.dumps({"moments": task.moments}))


if __name__ == "__main__":
    main()
