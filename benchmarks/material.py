"""What is measured on: scenes and a trained network, made once into a cache folder by raysegment's own commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

#: Seeds of the scenes: what is measured on, trained on and validated on never share a landscape.
SCENE_SEED, TRAINING_SEEDS, VALIDATION_SEED = 4, (1, 2), 3
#: The class of a synthetic scene that the network tells from all others.
FOREST = 2
#: Odd on purpose: no tile, block or chunk divides it.
ODD_PX = 1337
_RECIPE = ("--tile", "128", "--lr", "1e-2", "--epochs", "8", "--steps-per-epoch", "60")


def scene(cache: Path, size: int) -> Path:
    """A tiled, deflated TIFF of `size` × `size` px, three bands of uint8; the true classes lie beside it."""
    path = cache / f"scene-{size}.tif"
    if not path.exists():
        _raysegment("synth", str(path), "--size", str(size), "--seed", str(SCENE_SEED))
    return path


def truth_of(scene: Path) -> Path:
    """The true classes of a scene; see :data:`FOREST`."""
    return scene.with_suffix(".mask.tif")


def trained_unet(cache: Path) -> Path:
    """The default U-Net (base width 16, depth 4, batch norm), trained for two minutes to find forest."""
    path = cache / "run" / "model.safetensors"
    if not path.exists():
        training, validation = cache / "training", cache / "validation"
        for seed in TRAINING_SEEDS:
            _training_pair(training, seed, 2048)
        _training_pair(validation, VALIDATION_SEED, 1024)
        _raysegment("train", str(training), "--val", str(validation), "--out", str(cache / "run"), *_RECIPE)
    return path


def into_page_cache(path: Path) -> None:
    """Read the file once, so that no contestant pays for the disk."""
    with open(path, "rb", buffering=0) as f:
        while f.read(16 << 20):
            pass


def _training_pair(folder: Path, seed: int, size: int) -> None:
    """A scene and where its forest is, laid out as `train` reads them."""
    import tifffile

    image, mask = folder / "images" / f"{seed}.tif", folder / "masks" / f"{seed}.tif"
    if mask.exists():
        return
    mask.parent.mkdir(parents=True, exist_ok=True)
    _raysegment("synth", str(image), "--size", str(size), "--seed", str(seed), "--overwrite")
    classes = truth_of(image)
    tifffile.imwrite(mask, (tifffile.imread(classes) == FOREST).astype("uint8"), compression="deflate")
    classes.unlink()


def _raysegment(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "raysegment", *arguments], check=True, stdout=subprocess.DEVNULL)
