"""Long proofs on mosaics of real microscope slices: equal to the reference, flat in memory, at real size."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import process_tree
import pytest
import tifffile
import torch
import zarr
from PIL import Image
from reference import whole_image

import raysegment as rs
from raysegment.model.architectures import build
from raysegment.model.file import load_model, save_model

pytestmark = [pytest.mark.slow, pytest.mark.ray]

GB = 1 << 30


@pytest.fixture(scope="module")
def mosaics(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """BigTIFFs of 8192² and 16384² px, laid from the slices of ISBI 2012, by edge."""
    slices = [np.asarray(Image.open(p)) for p in sorted((shared_data / "isbi2012" / "images").glob("*.png"))]
    folder = tmp_path_factory.mktemp("mosaics")
    made = {}
    for edge in (8192, 16384):
        rng = np.random.default_rng(edge)

        def tiles(edge: int = edge, rng: np.random.Generator = rng) -> Iterator[np.ndarray]:
            for _ in range(0, edge, 512):
                strip = np.concatenate(
                    [slices[rng.integers(len(slices))] for _ in range(0, edge, 512)], axis=1
                )
                for y in (0, 256):
                    for x in range(0, edge, 256):
                        yield strip[y : y + 256, x : x + 256]

        made[edge] = folder / f"mosaic{edge}.tif"
        tifffile.imwrite(
            made[edge],
            tiles(),
            shape=(edge, edge),
            dtype=np.uint8,
            tile=(256, 256),
            compression="deflate",
            bigtiff=True,
        )
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default U-Net, untrained."""
    torch.manual_seed(0)
    architecture = {"name": "unet", "in_channels": 1, "out_channels": 2, "base_width": 16, "depth": 4}
    spec = rs.ModelSpec(
        classes=[rs.Class(name=n, colour=(i, i, i)) for i, n in enumerate(("membrane", "cell"))],
        channels=1,
        scale=1 / 255,
        mean=(0.5,),
        std=(0.2,),
        tile=512,
        multiple=16,
        architecture=architecture,
    )
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(build(architecture), spec, path)
    return path


def measured(source: Path, model: Path, out: Path) -> tuple[dict[str, int], int]:
    """The result of the command in fp32, and the peak memory of all its processes together."""
    options = ["--model", str(model), "--out", str(out), "--precision", "fp32", "--workers", "2", "--json"]
    usage = process_tree.run([sys.executable, "-m", "raysegment", "infer", str(source), *options])
    return json.loads(usage.stdout.splitlines()[-1]), usage.peak_pss_bytes


def test_the_mask_of_a_big_mosaic_equals_the_reference_in_flat_memory(
    mosaics: dict[int, Path], model: Path, tmp_path: Path
) -> None:
    result, small = measured(mosaics[8192], model, tmp_path / "8.zarr")
    assert result["forward_pixels"] == result["tiles"] * 512**2
    loaded = load_model(model)
    torch.set_num_threads(2)
    image = tifffile.imread(mosaics[8192])[..., None]
    p = whole_image(loaded, image, 512, 64, "hann")
    mask = zarr.open_array(tmp_path / "8.zarr" / "0", mode="r")[:]
    sure = np.abs(p[1] - p[0]) > 1e-5
    assert sure.mean() > 0.99
    assert np.array_equal(mask[sure], p.argmax(axis=0)[sure])
    del p, image

    _, large = measured(mosaics[16384], model, tmp_path / "16.zarr")
    print(f"peak memory: {small / GB:.2f} GB at 8192², {large / GB:.2f} GB at 16384²")
    assert max(small, large) < 3 * GB
    assert large <= 1.1 * small
