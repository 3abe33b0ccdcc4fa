"""A picture of a training batch after augmentation, as the network gets it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.utils import set_rnd
from numpy.typing import NDArray

from decathlete.bundle import bundle_folder, config_file
from decathlete.bundle.configs import load
from decathlete.bundle.labels import foreground
from decathlete.data.folders import data_folder
from decathlete.drawing.canvas import Palette, Tile, legend, picture_size, sheet
from decathlete.drawing.slices import fullest_slice, gray_window
from decathlete.errors import ConfigError, DataError, UsageError, shape_text
from decathlete.failures import find_error
from decathlete.files import atomic_write, check_output_folder
from decathlete.names import inert
from decathlete.training.trainer import case_names, seed_everything

TILE_SIZE = 256  # longer side of a picture in pixels
MAX_SAMPLES = 48  # nobody looks at more
# settings of datasets that would otherwise preprocess every case before the first one is ready
AT_ONCE: dict[str, dict[str, Any]] = {"CachedDataset": {"mode": "none"}, "CacheDataset": {"cache_num": 0}}


def batch_montage(
    bundle: str | Path, output: str | Path, overrides: Mapping[str, Any] | None = None, *, size: int = TILE_SIZE
) -> Path:
    """Write a sheet of the first batch of a bundle's training, and return its path.

    The batch comes from ``train::dataloader`` and passes through ``train::augmentation`` if there is one, with the
    random seed of a training's first epoch. Of a 3D sample, the slice with most foreground across the last axis is
    shown; channels stand side by side. No network is built. Only the sheet is written, and the cache of the bundle's
    dataset, which the training uses too.

    Args:
        bundle: a bundle's folder or name.
        output: the ``.png``, written completely or not at all.
        overrides: id of the training config to value, as ``decathlete run training`` takes them.
        size: longer side of a picture in pixels.

    Raises:
        UsageError: an unknown bundle, another suffix, or an output that cannot be written.
        ConfigError: an override of an unknown id, or a config without ``train::dataloader``.
        DataError: no data, or a batch without image and label.
    """
    output = Path(output)
    if output.suffix.lower() != ".png":
        raise UsageError(
            output, "expected a name that ends in .png", f"'{output.suffix}'" if output.suffix else "no suffix"
        )
    check_output_folder(output.parent)
    folder = bundle_folder(bundle).resolve()
    file = config_file(folder, "train")
    parser = _training_config(folder, file, dict(overrides or {}))
    try:
        batch = _first_batch(parser, file)
    except Exception as error:  # MONAI wraps what a transform raises
        if (ours := find_error(error)) is None or ours is error:
            raise
        raise ours from None
    image, label = _array(batch["image"]), _values(_array(batch["label"]))
    classes = _class_names(parser, label)
    palette = Palette(list(classes), filled=False)
    spacing = _spacing(parser, image.ndim - 2)
    names, numbers = case_names(batch), batch.get("slice")
    tiles = []
    for n in range(min(len(image), MAX_SAMPLES)):
        name = names[n] if n < len(names) else f"sample {n + 1}"
        at = None if numbers is None else int(numbers[n])
        tiles.append(_tile(image[n], label[n], spacing, palette, size, name, at))
    title = [folder.name, "a training batch" + (" after augmentation" if "train::augmentation" in parser else "")]
    title += [f"fold {parser.get('fold')}"] if "fold" in parser else []
    more = "" if len(tiles) == len(image) else f"{len(tiles)} of "
    note = f"{more}{len(image)} samples of {shape_text(image.shape[2:])}, each in its own gray window"
    entries = legend(classes, {"outline": "label"}, None, 0)
    with atomic_write(output) as part:
        sheet(tiles, palette, "   ".join(title), entries, note).save(part, format="PNG", optimize=True)
    return output


def _training_config(folder: Path, file: Path, overrides: dict[str, Any]) -> Any:
    parser = load(folder, "train", overrides, where="command line")
    data = data_folder(parser.get("dataset_dir"), overrides.get("dataset_dir"), file=file)
    if data is not None:
        parser.update({"dataset_dir": inert(data)})
    if "train::dataloader" not in parser:
        raise ConfigError(file, "no 'train::dataloader' to take a batch from", remedy="Add one to the config")
    target = str(parser.get("train::dataset::_target_", "")).rpartition(".")[2]
    for name, value in AT_ONCE.get(target, {}).items():
        if parser.get(f"train::dataset::{name}", "auto") == "auto":
            parser.update({f"train::dataset::{name}": value})
    return parser


def _first_batch(parser: Any, file: Path) -> dict[str, Any]:
    loader = parser.get_parsed_content("train::dataloader")
    augmentation = parser.get_parsed_content("train::augmentation") if "train::augmentation" in parser else None
    seed = int(parser.get_parsed_content("seed")) if "seed" in parser else 0
    # as Trainer does at the start of its first epoch
    seed_everything(seed, epoch=1)
    own = int(np.random.SeedSequence([seed, 1, 0, 1]).generate_state(1)[0])
    set_rnd(getattr(loader, "dataset", None), own)
    set_rnd(augmentation, own + 1)
    batch = next(iter(loader), None)
    if not isinstance(batch, Mapping) or not {"image", "label"} <= batch.keys():
        where = f"{file}, train::dataloader"
        if batch is None:
            raise DataError(where, "no batch", remedy="Check that the data set has cases")
        found = ", ".join(sorted(map(str, batch))) if isinstance(batch, Mapping) else type(batch).__name__
        raise DataError(where, "expected batches with image and label", found)
    if augmentation is None:
        return dict(batch)
    tensors = {key: _plain(batch[key]) for key in ("image", "label")}
    return {**batch, **augmentation(tensors)} | {"case_id": case_names(batch)}


def _plain(tensor: Any) -> Any:
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor


def _array(values: Any) -> NDArray[Any]:
    values = values.detach().cpu()
    return np.asarray(values.float() if values.dtype.is_floating_point else values)


def _values(label: NDArray[Any]) -> NDArray[np.int64]:
    """Label values (B, *spatial) from label values (B, 1, *spatial) or class probabilities (B, classes, *spatial)."""
    return np.rint(label[:, 0]).astype(np.int64) if label.shape[1] == 1 else label.argmax(1)


def _class_names(parser: Any, label: NDArray[np.int64]) -> dict[int, str]:
    """Classes named in the config, then the values that it does not name."""
    named = foreground(parser.get_parsed_content("labels")) if "labels" in parser else {}
    return named | {int(v): str(v) for v in np.unique(label) if v > 0 and int(v) not in named}


def _spacing(parser: Any, dims: int) -> NDArray[np.float64]:
    """Voxel edge lengths of the samples from the config; all equal if it does not state them."""
    stated = parser.get_parsed_content("spacing") if "spacing" in parser else None
    if isinstance(stated, Sequence) and len(stated) == dims and all(isinstance(s, (int, float)) for s in stated):
        spacing = np.array(stated, dtype=float)
        if (spacing > 0).all():
            return spacing
    return np.ones(dims)


def _tile(
    image: NDArray[Any],
    label: NDArray[np.int64],
    spacing: NDArray[np.float64],
    palette: Palette,
    size: int,
    name: str,
    number: int | None,
) -> Tile:
    """One sample: image (C, *spatial), its channels side by side, and label (*spatial)."""
    fraction = np.count_nonzero(label) / label.size
    where = [] if number is None else [f"slice {number + 1}"]
    windows = [gray_window(channel) for channel in image]
    if label.ndim == 3:
        at = fullest_slice(2, label, shape=label.shape)
        where = [f"slice {at + 1} of {label.shape[2]}"]
        image, label = image[..., at], label[..., at]
    where.append(f"{100 * fraction:.2g}% labelled" if fraction else "no label")
    side = max(size // 2, min(size, 2 * size // len(image)))
    extent = np.array(label.shape) * spacing[:2]
    pictures = [
        palette.paint(channel, label, None, window, picture_size(extent, side))
        for channel, window in zip(image, windows, strict=True)
    ]
    gap = np.full((pictures[0].shape[0], 2), palette.gray[0])
    row = [part for picture in pictures for part in (picture, gap)][:-1]
    return Tile(np.concatenate(row, axis=1), name, "   ".join(where))
