"""Putting a run's weights into a bundle: the only way that ``models/model.pt`` changes."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from decathlete.bundle import bundle_folder
from decathlete.bundle.checkpoints import FINAL, LAST, load_weights, plain_weights, read_checkpoint, save_checkpoint
from decathlete.bundle.description import Bundle
from decathlete.errors import CheckpointError, DataError, DecathleteError
from decathlete.failures import find_error
from decathlete.files import atomic_write, file_sha256
from decathlete.inference.inputs import input_files
from decathlete.inference.likeness import FILE, MAX_SCANS, TrainingScans, check_count
from decathlete.progress import ProgressBar

logger = logging.getLogger(__name__)

MAX_BYTES = 20 * 10**6  # what a repository and a wheel carry without complaint
BEGIN, END = "<!-- figures: written by `decathlete promote` -->", "<!-- end of figures -->"


def promote(run: str | Path, bundle: str | Path, checkpoint: str = FINAL, scans: str | Path | None = None) -> Path:
    """Put a run's weights into a bundle as ``models/model.pt`` and its metrics into the bundle's card.

    The weights must be the network's of the bundle, key by key, and fit into 20 MB. The old file stays as
    ``model.pt.bak-<n>``. The metrics are those of the run's ``summary.json``; of a run on all cases, which has none,
    those of the cross-validation beside it (``summary.json`` of the folder above).

    Args:
        run: folder of a training's output.
        bundle: a bundle's folder or name.
        checkpoint: file of the run to take; by default its final weights, which are the ones that were scored.
        scans: folder of the training scans: they are predicted, and what they look like is kept beside the weights, so
            that `decathlete predict` can warn of a scan that is unlike them. Default: those that the bundle's config
            trains on, for the run's fold, if they are there and at least 20.

    Returns:
        Path of the new weights.

    Raises:
        CheckpointError: no such file, another network's weights, more than 20 MB, or a full disk.
        UsageError: unknown bundle.
        DataError: a ``summary.json`` that cannot be read, or fewer than 20 files of scans: nothing has changed then.
            Or fewer than 20 scans that can be read: the weights are in, what the scans look like is not.
    """
    from decathlete.bundle.configs import load

    folder, run = bundle_folder(bundle), Path(run)
    source, target = run / checkpoint, folder / "models" / "model.pt"
    network = load(folder, "inference", {"device": "cpu"}).get_parsed_content("network_def")
    load_weights(network, source, where=f"to promote into {folder.name}")
    weights = plain_weights(network)
    size = sum(w.numel() * w.element_size() for w in weights.values())
    if size > MAX_BYTES:
        raise CheckpointError(source, "weights of a bundle can have at most 20 MB", f"{size / 10**6:.1f} MB",
                              "Use fewer channels")  # fmt: skip
    figures = _figures(run, checkpoint)
    files = training_images(folder, run) if scans is None else scan_files(folder, scans)  # before anything is written
    if target.is_file():
        shutil.copy2(target, _free_backup(target))
    save_checkpoint(weights, target)
    _write_card(folder / "docs" / "README.md", figures)
    if files:
        fit_training_scans(folder, files)
    return target


def training_images(bundle: str | Path, run: str | Path) -> list[Path]:
    """Files of the scans that a bundle's config trains on; none (and why, in the log) where they cannot be used.

    Args:
        bundle: a bundle's folder or name.
        run: folder of a training's output, whose last checkpoint names the fold; ``all`` where there is none.
    """
    from decathlete.bundle.configs import load

    try:
        last = Path(run) / LAST
        fold = read_checkpoint(last).get("settings", {}).get("fold", "all") if last.is_file() else "all"
        config = load(bundle_folder(bundle), "train", {"fold": fold, "device": "cpu"})
        images = [case["image"] for case in config.get_parsed_content("train::dataset::data")]
        files = [Path(image) for image in images if isinstance(image, (str, Path))]
        check_count(len(files))
    except Exception as error:  # whatever this config or its data lack, the weights can be used
        logger.warning("predictions will not be compared with the training scans; pass --scans to have them: %s",
                       find_error(error) or error)  # fmt: skip
        return []
    return files


def scan_files(bundle: str | Path, scans: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files of the training scans.

    Raises:
        DataError: none, or too few to say what they look like.
    """
    files = input_files(scans, Bundle(bundle).outputs)
    check_count(len(files))
    return files


def fit_training_scans(
    bundle: str | Path, scans: str | Path | Sequence[str | Path], weights: str | Path | None = None
) -> Path:
    """Predict training scans, describe what they look like, and keep the result beside the weights.

    Args:
        bundle: a bundle's folder or name.
        scans: NIfTI files or folders of them; of more than `MAX_SCANS` every second, third, ... one is taken.
        weights: default: the bundle's own.

    Returns:
        The JSON file.

    Raises:
        DataError: too few scans, or none; one that cannot be read is left out, with a warning.
    """
    from decathlete.inference.predictor import Predictor

    files = scan_files(bundle, scans)
    files = files[:: -(-len(files) // MAX_SCANS)]
    predictor = Predictor(bundle, weights)
    figures, people = [], []
    for file in ProgressBar(files, desc="training scans", unit="scan"):
        try:
            volume = predictor.read(file)
            found = predictor(volume.array, volume.affine, name=file, figures=True).figures
        except DecathleteError as error:
            logger.warning("left out: %s", error)
            continue
        figures.append(found or {})
        people.append(file.parent.name)
    path = predictor.checkpoints[0]
    several = len(set(people)) > 1  # folders of a person's scans each, as those of NFBS and the Sunnybrook set are
    fitted = TrainingScans.fit(figures, file_sha256(path), people if several else None)
    return fitted.save(path.with_name(FILE))


def _free_backup(target: Path) -> Path:
    n = 1
    while (backup := target.with_name(f"{target.name}.bak-{n}")).exists():
        n += 1
    return backup


def _figures(run: Path, checkpoint: str) -> str:
    """Text for the card: where the weights come from, and the scores, if there are any."""
    origin = f"Weights: `{checkpoint}` of `{run.name}`, added on {date.today().isoformat()}."
    places = {
        run / "summary.json": "Scores of this run's validation cases",
        run.parent / "summary.json": "Scores of the cross-validation of the same recipe",
    }
    for summary, title in places.items():
        if summary.is_file():
            values = _read(summary)
            from decathlete.evaluation.report import table

            return f"{origin}\n\n{title} ({values.get('cases', '?')} cases):\n```\n{table(values)}\n```"
    return f"{origin} No scores were found for this run."


def _read(summary: Path) -> dict[str, Any]:
    try:
        return json.loads(summary.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(summary, "this is no summary of an evaluation", str(error), "Run evaluating again") from error


def _write_card(card: Path, figures: str) -> None:
    """Replace what stands between the two marks of a card; a card without them, or none, is left alone."""
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        with atomic_write(card) as part:
            part.write_text(f"{before}{BEGIN}\n{figures}\n{END}{after}", encoding="utf-8")
