"""Scores of the predictions of a MONAI evaluator, for ``evaluate.yaml``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from decathlete.bundle.labels import Scored, foreground
from decathlete.errors import DataError, DecathleteError, WorkError
from decathlete.evaluation.report import Row, Summary, score_case, write_report
from decathlete.evaluation.scoring import check_grid
from decathlete.files import files_sha256, strip_nifti_suffix


class MetricsWriter:
    """Handler that writes ``metrics.csv`` and ``summary.json`` as `evaluate` does, at the end of a run.

    The mean Dice and that of each class are then among the engine's metrics.

    Attach it to an evaluator whose postprocessing puts the label map on the scan's own grid under ``pred_key``, shape
    (1, X, Y, Z) or (X, Y, Z). References are read from their files, since those that went through the preprocessing may
    be on another grid. Each item names its reference under ``label_key``: a path, or an image loaded by MONAI, whose
    ``filename_or_obj`` is used.

    Args:
        labels: classes as name to value (or value to name); background may be among them.
        output_dir: folder of the two files.
        pred_key: key of the label map in the engine's output.
        label_key: key of the reference in the engine's output or batch.
        regions: name to the classes of the region, by name or value; scored in place of the classes.
        ignore: values of a reference whose voxels are left out.

    Attributes:
        summary: the scores, after the run.

    Raises:
        WorkError: a case could not be scored; raised at the end, after the files are written, with a line per case.
    """

    def __init__(
        self,
        labels: Mapping[Any, Any],
        output_dir: str | Path,
        pred_key: str = "pred",
        label_key: str = "label",
        regions: Mapping[str, Sequence[Any]] | None = None,
        ignore: Sequence[int] = (),
    ) -> None:
        self.labels, self.scored = foreground(labels), Scored.of(labels, regions, ignore)
        self.output_dir = Path(output_dir)
        self.pred_key, self.label_key = pred_key, label_key
        self.summary: Summary | None = None
        self.logger = logging.getLogger(type(self).__name__)
        self._reset()

    def attach(self, engine: Engine) -> None:
        """Score after each iteration, write when the run is completed."""
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _reset(self, engine: Engine | None = None) -> None:
        self._rows: dict[str, list[Row]] = {}
        self._failed: dict[str, str] = {}
        self._references: dict[str, Path] = {}

    def _score(self, engine: Engine) -> None:
        outputs, batch = items_of(engine.state.output), items_of(engine.state.batch)
        for n, output in enumerate(outputs):
            item = {**(batch[n] if n < len(batch) else {}), **{k: v for k, v in output.items() if v is not None}}
            reference = _path_of(item.get(self.label_key), self.label_key)
            case = str(item.get("case_id") or strip_nifti_suffix(reference.name))
            try:
                self._rows[case] = self._score_item(case, item.get(self.pred_key), reference)
                self._references[case] = reference
            except DecathleteError as error:
                self._failed[case] = str(error)
                self.logger.error("%s", error)

    def _score_item(self, case: str, pred: Any, reference: Path) -> list[Row]:
        from decathlete.io.nifti import read_nifti

        if not isinstance(pred, (torch.Tensor, np.ndarray)):
            found = f"under '{self.pred_key}': {type(pred).__name__}"
            raise DataError(case, "no label map in the evaluator's output", found, "Set pred_key of the handler")
        truth = read_nifti(reference, kind="label", allowed_labels={0, *self.labels, *self.scored.ignore})
        affine = np.asarray(getattr(pred, "affine", truth.affine), dtype=np.float64)  # a plain tensor has none
        values = pred.detach().cpu().numpy() if isinstance(pred, torch.Tensor) else pred
        if values.ndim == truth.array.ndim + 1 and len(values) == 1:
            values = values[0]
        check_grid(case, values.shape, affine, truth.array.shape, truth.affine)
        return score_case(case, values, truth.array, truth.spacing, self.labels, self.scored)

    def _write(self, engine: Engine) -> None:
        rows, failed, references = gathered((self._rows, self._failed, self._references))
        if dist.is_initialized() and dist.get_rank() != 0:
            return
        if rows:
            self.summary = write_report(
                [row for case in sorted(rows) for row in rows[case]],
                self.output_dir,
                failed,
                label_sha256=files_sha256(references.values()),
            )
            engine.state.metrics.update(self.summary.metrics())
            self.logger.info("%s\n%s", self.summary.metrics_csv, self.summary.table())
        refuse_unscored(self.output_dir, failed, len(rows))


def refuse_unscored(output_dir: Path, failed: Mapping[str, str], scored: int) -> None:
    """End a run in which cases could not be scored.

    Raises:
        WorkError: there are such cases, or there is no case at all.
    """
    if failed:
        rule = f"{len(failed)} of {len(failed) + scored} cases could not be scored"
        raise WorkError(output_dir, rule, remedy=" ".join(failed.values()))
    if not scored:
        raise WorkError(output_dir, "no case to score", remedy="Check the data of the evaluator")


def items_of(values: Any) -> list[dict[str, Any]]:
    """An engine's batch or output as a list of items, as after MONAI's decollation."""
    if isinstance(values, Mapping):
        raise DataError("evaluator", "MetricsWriter needs single items", "this is a batch", "Set decollate: true")
    return [dict(v) for v in values] if isinstance(values, (list, tuple)) else []


def _path_of(label: Any, key: str) -> Path:
    """File of a reference: the path itself, or the one in the metadata of an image loaded by MONAI."""
    if isinstance(label, (str, os.PathLike)):
        return Path(label)
    name = getattr(label, "meta", {}).get("filename_or_obj")
    if isinstance(name, (list, tuple)):
        name = name[0] if name else None
    if not name:
        found = f"under '{key}': {type(label).__name__}"
        raise DataError("evaluator", "an item without the file of its reference", found, "Set label_key of the handler")
    return Path(name)


def gathered(found: tuple[dict, dict, dict]) -> tuple[dict, dict, dict]:
    """The results of all processes, each case once: samplers repeat cases so that all processes get equally many."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return found
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, found)
    return tuple({k: v for part in parts for k, v in part[n].items()} for n in range(3))  # type: ignore[return-value]
