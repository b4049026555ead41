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


def training_set(cache: Path) -> Path:
    """A folder of sixteen PNG pictures of 512 × 512 px and where the forest is in them; beside it, `few`: one more."""
    import tifffile
    from PIL import Image

    data, source = cache / "pictures" / "many", cache / "scenes"
    if not data.exists():
        _training_pair(source, TRAINING_SEEDS[0], 2048)
        _training_pair(source, VALIDATION_SEED, 1024)
        for home, seed, edge in (
            (data.with_name("few"), VALIDATION_SEED, 512),
            (data, TRAINING_SEEDS[0], 2048),
        ):
            for kind, top in (("images", 1), ("masks", 255)):
                pixels = tifffile.imread(source / kind / f"{seed}.tif")
                (home / kind).mkdir(parents=True)
                for number, (y, x) in enumerate(
                    (y, x) for y in range(0, edge, 512) for x in range(0, edge, 512)
                ):
                    crop = pixels[y : y + 512, x : x + 512] * top
                    Image.fromarray(crop.astype("uint8")).save(home / kind / f"{number:02}.png")
    return data


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
