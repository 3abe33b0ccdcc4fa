"""Artificial T1-weighted heads in the layout of NFBS, for tests and where no data are available."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from decathlete.data.nfbs import BRAIN, FOLDER, IMAGE, LABELS, MASK
from decathlete.phantoms.anatomy import Canvas, Field, Mask
from decathlete.phantoms.cases import check_request, save_phantom, write_phantoms
from decathlete.progress import ProgressBar

_VERSION = 1  # raise it when the same seed would draw something else
_SIZE_MM = (192, 256, 256)  # (X, Y, Z) in RAS order: NFBS's field of view
_SHAPE = (96, 128, 128)  # voxels of 2 mm: small and quick
_FIRST_ID = 80001
_CORD_MM = 15  # of the cord below the cerebellum are brain
_BOTTOM = -40  # of the cerebellum, mm

# T1-weighted, in units of white matter
WHITE, GRAY, FLUID, SKIN, FAT, MUSCLE, EYE = 1.0, 0.62, 0.22, 0.62, 1.45, 0.55, 0.2
COMPACT, SPONGY, DURA, MUCOSA, AIR = 0.11, 0.8, 0.46, 0.55, 0.0


def make_heads(n: int, folder: str | Path, seed: int = 0, shape: Sequence[int] | None = None) -> Path:
    """Write ``n`` artificial heads, each with brain and brain mask, and return the data set's folder.

    The folder is ``folder/NFBS_Dataset``, or ``folder`` itself where it has that name already. It appears when all is
    written; the same call again keeps it. Head i is the same whatever ``n`` is. Files are stored as NFBS's are: first
    axis to the back, second downwards, third to the right; int16, the mask uint8.

    Args:
        n: heads, 1 to 900.
        folder: where the data set's folder goes.
        seed: 0 or more; same seed and same versions of NumPy and SciPy, same bytes.
        shape: voxels along (X, Y, Z) in RAS order, at least 16, 16, 8; the field of view stays 192 x 256 x 256 mm, so
            that 192, 256, 256 is NFBS's own grid. By default 96, 128, 128, voxels of 2 mm.

    Raises:
        UsageError: a number or shape out of range.
        DataError: the folder holds other data.
    """
    shape = check_request(n, seed, shape)
    folder = Path(folder)
    target = folder if folder.name.lower() == FOLDER.lower() else folder / FOLDER
    made_from = {"version": _VERSION, "seed": seed, "cases": n, "shape": shape}
    return write_phantoms(target, made_from, lambda part: _write(part, made_from))


def draw_head(
    rng: np.random.Generator, shape: Sequence[int] = _SHAPE
) -> tuple[NDArray[np.int16], NDArray[np.uint8], Field]:
    """Image, brain mask and bias field of one head, axes in RAS order.

    The mask follows NFBS's convention: parenchyma, ventricles, the fluid in fissures and sulci, and 15 mm of the cord
    below the cerebellum; neither dura nor the fluid outside the envelope of the gyri. The head's middle lies where NFBS
    has it: the brain's top about 28 mm below the upper face of the grid, its back about 22 mm from the rear one.

    Args:
        rng: the head's own generator.
        shape: voxels along (X, Y, Z); the head fills 192 x 256 x 256 mm whatever their size.

    Returns:
        image int16, with noise; mask uint8, 0 or 1; field float32, by which the image was multiplied before the noise.
    """
    c = Canvas(shape, _SIZE_MM, rng, warp_mm=4)
    _draw_outside(c)
    mask = _draw_brain(c)
    if rng.random() < 0.5:  # the public scans are defaced
        near = ndimage.binary_dilation(mask, iterations=max(1, round(6 / c.step)))
        c.value[(c.y > 48 - 0.3 * c.z) & (c.z < 12) & ~near] = AIR
    image, field = _scan(c)
    return image, mask.astype(np.uint8), field


def _write(part: Path, made_from: dict) -> None:
    numbers = range(_FIRST_ID, _FIRST_ID + made_from["cases"])
    entries = []
    for number in ProgressBar(numbers, desc=f"{FOLDER} phantoms", unit="case"):
        # the generator knows the head alone: head i does not change with the number of heads
        rng = np.random.default_rng([made_from["seed"], number])
        image, mask, _ = draw_head(rng, made_from["shape"] or _SHAPE)
        affine = _affine(image.shape, rng)
        subject = f"A000{number:05d}"
        stem = f"{subject}/sub-{subject}_ses-NFB3"
        (part / subject).mkdir()
        for suffix, voxels in ((IMAGE, image), (BRAIN, image * mask), (MASK, mask)):
            stored = voxels.transpose(1, 2, 0)[::-1, ::-1]  # from R, A, S to P, I, R
            save_phantom(stored, affine, part / f"{stem}{suffix}")
        entries.append({"image": f"./{stem}{IMAGE}", "label": f"./{stem}{MASK}"})
    dataset = {
        "name": FOLDER,
        "description": "PHANTOMS: heads drawn by a program in the manner of NFBS; no patient's data",
        "reference": "decathlete.phantoms.heads",
        "licence": "no rights claimed",
        "modality": {"0": "T1w"},
        "labels": {"0": "background"} | {str(value): name for name, value in LABELS.items()},
        "numTraining": len(entries),
        "training": entries,
        "phantom": made_from,
    }
    (part / "dataset.json").write_text(json.dumps(dataset, indent=1) + "\n", "utf-8")


def _affine(shape: Sequence[int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Affine of an array that is stored P, I, R, of a picture with ``shape`` voxels in R, A, S."""
    spacing = np.array(_SIZE_MM) / shape
    affine = np.zeros((4, 4))
    affine[0, 2], affine[1, 0], affine[2, 1], affine[3, 3] = spacing[0], -spacing[1], -spacing[2], 1
    half = spacing * (np.array(shape) - 1) / 2
    affine[:3, 3] = np.array([-half[0], half[1], half[2]]) + np.round(rng.uniform(-6, 6, 3), 3)
    return affine


def _draw_outside(c: Canvas) -> None:
    """Paint neck, face, scalp and skull from the outside in, and fluid into the skull."""
    wide = c.near(1, 0.04)
    fat = 0.02 * c.waves(40)  # thickness of the fat wanders
    skull = c.radius((0, -18, 36), (80 * wide, 97 * wide, 76 * wide))
    face = c.radius((0, 42, -40), (62 * wide, 58, 80), bumps=0.04 * c.waves(50))
    neck = np.sqrt((c.x / (58 * wide)) ** 2 + ((c.y + 28) / 62) ** 2) + 10.0 * (c.z > 10)
    nose = c.radius((0, 104, -22), (14, 20, 26))
    soft = np.minimum(np.minimum(face, neck), nose).astype(np.float32)  # 1 at its surface
    scalp = skull / 1.09
    for depth, value in ((0, SKIN), (0.035, FAT)):
        c.paint((soft < 1 - depth) | (scalp < 1 - depth / 1.5), value)
    muscle = (soft < 0.88 + fat) & (c.waves(16) + 0.6 * c.waves(8) > -0.25)  # septa of fat between the muscles
    c.paint(muscle & (scalp > 0.9), MUSCLE)

    jaw = c.radius((0, 48, -72), (44, 46, 18))
    c.paint((jaw < 1) & (jaw > 0.8) & (c.y > 20), SPONGY)
    for side in (-1, 1):
        c.paint(c.ellipsoid((side * 52, 32, -18), (8, 26, 9)), SPONGY)  # cheek
        c.paint(c.ellipsoid((side * 32, 58, 4), (20, 22, 19)), FAT)  # orbit
        c.paint(c.ellipsoid((side * 32, 66, 4), (12.5, 12.5, 12.5)), EYE)
        c.paint(c.ellipsoid((side * 26, 60, -28), (12, 17, 15)), AIR)  # maxillary sinus
        c.paint(c.tube([(side * 30, 56, 4), (side * 12, 26, 8)], 2.5), WHITE * 0.8)  # optic nerve
        c.paint(c.ellipsoid((side * 64, -24, -14), (13, 18, 14)) & (c.waves(9) > -0.1), COMPACT)  # ear bone
    c.paint(c.ellipsoid((0, 66, -22), (9, 30, 20)), MUCOSA)
    c.paint(c.ellipsoid((0, 66, -22), (9, 30, 20)) & (c.waves(9) > 0.05), AIR)
    c.paint(c.tube([(0, 52, -58), (0, 18, -56), (0, 14, -128)], [12, 9, 8]), AIR)  # mouth and throat
    for level in range(8):  # vertebrae
        c.paint(c.ellipsoid((0, -18, -56 - 11 * level), (14, 10, 4.8)), SPONGY)
        c.paint(c.ellipsoid((0, -58, -58 - 11 * level), (5, 14, 4)), COMPACT)

    top = (skull < 1.0) & (c.z > -26 - 0.25 * c.y)
    c.paint(top, COMPACT)
    c.paint((skull < 0.975 + 0.3 * fat) & (skull > 0.945) & top & (c.z > 10), SPONGY)
    c.paint((skull < 0.925) & top, DURA)
    c.paint((skull < 0.905) & top, FLUID)


def _draw_brain(c: Canvas) -> Mask:
    """Paint the brain and return NFBS's mask of it."""
    small = c.near(0.97, 0.03)
    halves = c.radius((0, -19, 40), (66 * small, 82 * small, 60 * small))
    for side in (-1, 1):  # temporal lobes
        halves = np.minimum(halves, c.radius((side * 42, 2, 2), (22, 38, 23)))
    fissure = (np.abs(c.x) < 1.6) & (halves > 0.45)
    cerebellum_depth = c.radius((0, -62, -14), (50, 31, 26))
    cerebellum = (cerebellum_depth < 1) & (c.z < 6)
    stem = c.tube([(0, -14, 20), (0, -20, -8), (0, -32, _BOTTOM - 5)], [17, 15, 9])
    cord = c.tube([(0, -32, _BOTTOM - 5), (0, -38, -75), (0, -36, -128)], [9, 6, 5.5])
    around = c.tube([(0, -30, -30), (0, -38, -75), (0, -36, -128)], [18, 10, 9])
    c.paint(around, FLUID)  # the canal
    envelope = (halves < 1) | cerebellum | stem

    # gray matter on both sides of folds that run inward from the surface, fluid in their depth
    fold = np.abs(c.waves(30, 8) + 0.45 * c.waves(14, 8)) * 2.2 + np.clip(0.68 - halves, 0, None) * 3
    cerebrum = halves < 1
    gyri = cerebrum & (fold > 0.07) & ~fissure
    white = gyri & (fold > 0.42) & (halves < 0.91) & (np.abs(c.x) > 4)
    c.paint(cerebrum, FLUID)
    c.paint(gyri, GRAY + 0.03 * c.waves(7))
    c.paint(white, WHITE + 0.03 * c.waves(7))
    c.paint(c.ellipsoid((0, -18, 32), (16, 34, 7)), WHITE)  # corpus callosum
    leaves = np.cos(2 * np.pi * c.z / 6.5 + c.y / 6) > 0.25
    c.paint(cerebellum, np.where(leaves & (cerebellum_depth < 0.9), 0.93 * WHITE, 0.6 * WHITE).astype(np.float32))
    c.paint(stem & ~cerebellum, 0.9 * WHITE + 0.02 * c.waves(7))
    c.paint(cord, 0.78 * WHITE)
    size = c.rng.uniform(0.7, 1.5)  # of the ventricles
    for side in (-1, 1):
        horn = [(side * 8, 20, 28), (side * 11, -4, 34), (side * 14, -34, 33), (side * 22, -56, 24)]
        c.paint(c.ellipsoid((side * 13, -22, 20), (9, 14, 8)), 0.81 * WHITE)  # thalamus
        c.paint(c.ellipsoid((side * 26, -6, 22), (6, 16, 9), turn=-side * 15), 0.76 * WHITE)  # putamen
        c.paint(c.tube([*horn, (side * 28, -34, 8)], np.array([5, 6, 7, 7, 4]) * size), FLUID)
    c.paint(c.ellipsoid((0, -22, 18), (2.5 * size, 12, 7)), FLUID)
    c.paint(c.ellipsoid((0, -40, -16), (8, 5, 9)) & envelope, FLUID)

    brain = envelope | (cord & (c.z > _BOTTOM - _CORD_MM))
    brain = ndimage.binary_fill_holes(brain)
    parts, count = ndimage.label(brain)
    return brain if count < 2 else parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))


def _scan(c: Canvas) -> tuple[NDArray[np.int16], Field]:
    """What a scanner gives: blurred edges, a gain that changes smoothly and falls to the neck, Rician noise."""
    value = np.maximum(c.value * (1 + 0.04 * c.waves(10)), 0)
    value = ndimage.gaussian_filter(value, 0.65 / c.step if c.step < 1 else 0.5)
    down, aside = c.rng.uniform(0.1, 0.3), c.rng.uniform(0.1, 0.3)
    outward = (c.x / 96) ** 2 + (c.y / 128) ** 2
    log_field = 0.25 * c.waves(1.2 * max(_SIZE_MM), 3) + down * c.z / 128 + aside * (outward - 0.5)
    field = np.exp(np.broadcast_to(log_field, c.shape), dtype=np.float32)
    sigma = np.float32(c.rng.uniform(0.022, 0.04))
    real, imaginary = (sigma * c.rng.standard_normal(c.shape, np.float32) for _ in range(2))
    image = np.hypot(value * field + real, imaginary) * c.rng.uniform(300, 360)
    return np.rint(image).astype(np.int16), field
