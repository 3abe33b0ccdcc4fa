"""Cross-validation of a bundle: all folds trained, predicted, scored on the original grid, and pooled."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decathlete.bundle import bundle_folder, config_file
from decathlete.bundle.checkpoints import FINAL, LAST
from decathlete.bundle.description import Bundle
from decathlete.data.folds import NUM_FOLDS
from decathlete.errors import ConfigError, DataError, TrainingError, UsageError, listed
from decathlete.evaluation.report import Row, Summary, read_rows, write_report
from decathlete.evaluation.scoring import score_pairs
from decathlete.files import atomic_write, check_output_folder, file_sha256, files_sha256, strip_nifti_suffix
from decathlete.names import SPECIAL, inert

if TYPE_CHECKING:
    from decathlete.evaluation.components import Components

Case = dict[str, Any]

STATE = "cross_validation.json"  # of each fold: settings, completed stage, seconds of training
OWN = ("fold", "output_dir", "resume", "minutes", "dataset_dir")  # overrides that this command sets itself
HASHES = ("configs", "data")  # settings whose values mean nothing to a reader
CHANGES_SHOWN = 3


def cross_validate(
    bundle: str | Path,
    folds: str = "0-4",
    overrides: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    minutes: float | None = None,
    dataset_dir: str | Path | None = None,
    reference: str | Path | None = None,
    largest_component: bool = False,
) -> Summary:
    """Train each fold, predict its validation cases with its final weights, score them, and pool the scores.

    The final weights are used, not the best ones, since those were chosen on the cases that are scored here.

    Writes into ``output``: for each fold ``fold_<n>`` with the run's files, ``predictions``, ``metrics.csv`` and
    ``summary.json``; for all folds ``metrics.csv`` with a column ``fold``, and ``summary.json``, in which
    ``training_s`` is the wall time of each fold's training process, including start and validation. Prints a table. An
    interrupted cross-validation resumes with the same command: finished folds are kept, a training that stopped is
    resumed.

    Args:
        bundle: a bundle's folder or name.
        folds: such as ``0-4`` or ``0,2``.
        overrides: id of ``train.yaml`` to value; ids that are in ``inference.yaml`` too also change the prediction.
        output: folder of the runs; default: ``runs/<bundle>``.
        minutes: wall time of each fold's training, in place of the config's epochs.
        dataset_dir: folder of the data; default: as for a training.
        reference: CSV with the columns case, label, dice; a comparison case by case is printed.
        largest_component: also score the folds' label maps with only the largest component of each class, and print
            whether that helps; see `decathlete.evaluation.evaluate`.

    Returns:
        The pooled scores; cases without a score are in ``failed`` and reported on stderr.

    Raises:
        UsageError: unknown bundle, id or fold, or a folder with a run of other settings.
        DataError: no data, or a case in both parts of a fold.
        TrainingError: a training failed.
    """
    numbers = fold_numbers(folds)
    folder = bundle_folder(bundle)
    overrides = dict(overrides or {})
    for name in OWN:
        if name in overrides:
            raise UsageError(name, "cross-validate sets this itself", f"--{name} {overrides[name]}", "Leave it out")
    root = Path(output or Path("runs") / folder.resolve().name)
    check_output_folder(root)
    plans = [_Fold(folder, number, root / f"fold_{number}", overrides, minutes, dataset_dir) for number in numbers]
    for plan in plans:  # check all of them before any work starts
        plan.check()
        if largest_component and not plan.has_label_maps:
            raise UsageError("--largest-component", f"the references of {folder.resolve().name} are not label maps",
                             remedy="Leave it out")  # fmt: skip
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for position, plan in enumerate(plans, 1):
        print(f"decathlete: fold {plan.number} ({position} of {len(plans)}) in {plan.folder}", file=sys.stderr)
        plan.finish()
        rows += [{"fold": plan.number, **row} for row in plan.rows()]
        failed |= plan.failed()
    for message in failed.values():
        print(f"decathlete: {message}", file=sys.stderr)
    found: Components | None = None
    if largest_component:
        from decathlete.evaluation.components import compare_components

        pairs = {case: pair for plan in plans for case, pair in plan.pairs(failed).items()}
        found = compare_components(pairs, Bundle(folder).labels, Bundle(folder).scored)
    summary = write_report(
        rows,
        root,
        failed,
        bundle=folder.resolve().name,
        overrides=overrides,
        budget_minutes=minutes,
        training_s={str(plan.number): plan.state().get("training_s") for plan in plans},
        label_sha256=files_sha256(path for plan in plans for case in plan.validation for path in _references(case)),
        **({"largest_component": found.steps} if found else {}),
    )
    print(summary.table())
    if found:
        print(f"\n{found.table()}")
    if reference is not None:
        from decathlete.evaluation.comparison import compare

        print(f"\ncompared with {reference}\n{compare(summary.metrics_csv, reference, Bundle(folder).labels).table()}")
    print(f"\n{summary.metrics_csv}\n{summary.summary_json}")
    return summary


def fold_numbers(folds: str) -> list[int]:
    """The folds in a text such as ``0-4``, ``2`` or ``0,2-3``, sorted, each once.

    Raises:
        UsageError: any other text, or a fold above 4.
    """
    numbers: set[int] = set()
    for part in str(folds).split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError("folds", "expected numbers such as 0-4 or 0,2", f"'{folds}'")
        numbers |= set(range(int(first), int(last or first) + 1))
    if not numbers or max(numbers) >= NUM_FOLDS:
        raise UsageError("folds", f"expected numbers from 0 to {NUM_FOLDS - 1}", f"'{folds}'")
    return sorted(numbers)


class _Fold:
    """One fold: its data and settings, and the stage it has reached."""

    def __init__(
        self,
        bundle: Path,
        number: int,
        folder: Path,
        overrides: Mapping[str, Any],
        minutes: float | None,
        dataset_dir: str | Path | None,
    ) -> None:
        self.bundle, self.number, self.folder = bundle, number, folder
        self.overrides, self.minutes = dict(overrides), minutes
        self.dataset_dir, self.train, self.validation = _cases(bundle, number, overrides, dataset_dir)
        described = Bundle(bundle)
        self.labels, self.scored, self.outputs = described.labels, described.scored, described.outputs
        self.settings = self._settings()

    def _settings(self) -> dict[str, str]:
        """Everything that the scores depend on; a fold with other settings is never reused for this one."""
        from decathlete.data import data_hash

        configs = sorted(config_file(self.bundle, name) for name in ("train", "inference"))
        return {
            "configs": files_sha256(configs),
            "data": data_hash(self.train + self.validation),
            "validation cases": ", ".join(sorted(case["case_id"] for case in self.validation)),
            "minutes": json.dumps(self.minutes),
            **{f"--{name}": json.dumps(value, default=str) for name, value in sorted(self.overrides.items())},
        }

    def check(self) -> None:
        """Refuse a folder with another run.

        Raises:
            UsageError: other settings, a training that was not started by a cross-validation, or changed weights.
        """
        remedy = "Choose another --output, or move this folder away"
        state, final = self.state(), self.folder / FINAL
        there = state.get("settings")
        if there is None:
            if (self.folder / LAST).exists() or final.exists():
                raise UsageError(self.folder, "this folder has a run of another command", remedy=remedy)
            return
        changed = [
            f"{name} changed"
            if name in HASHES
            else f"{name} was {_short(there.get(name))}, now {_short(self.settings.get(name))}"
            for name in sorted({*there, *self.settings})
            if there.get(name) != self.settings.get(name)
        ]
        if changed:
            found = "; ".join(changed[:CHANGES_SHOWN])
            raise UsageError(self.folder, "this fold was made with other settings", found, remedy)
        if (before := state.get("weights_sha256")) and final.is_file() and (now := file_sha256(final)) != before:
            found = f"SHA-256 was {before[:8]}, now {now[:8]}"
            raise UsageError(final, "these weights have changed since this fold was trained", found, remedy)

    def state(self) -> dict[str, Any]:
        """Content of ``cross_validation.json``; empty if there is none."""
        try:
            content = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def rows(self) -> list[Row]:
        """Scores of the finished fold."""
        return read_rows(self.folder / "metrics.csv")

    def failed(self) -> dict[str, str]:
        """Case to message for the cases of the finished fold without a score."""
        return dict(self.state().get("failed", {}))

    def finish(self) -> None:
        """Do what is still missing: training, prediction, scores."""
        state = self.state()
        if state.get("stage") == "done" and (self.folder / "metrics.csv").is_file() and not state.get("failed"):
            print(f"decathlete: fold {self.number} is already finished", file=sys.stderr)
            return
        trained = state.get("stage") in ("trained", "done") and (self.folder / FINAL).is_file()
        if not trained:
            self._train(float(state.get("training_s") or 0))
        self._score()

    def _train(self, seconds_before: float) -> None:
        self._write_state("training", seconds_before)
        command = self._command("training")
        if self.minutes is not None:
            command += ["--minutes", str(self.minutes)]
        if (self.folder / LAST).is_file():
            command.append("--resume")
        start = time.monotonic()
        try:
            # in a process of its own: its memory is freed, and its crash does not end this process
            status = subprocess.run(command, check=False).returncode
        finally:
            seconds = seconds_before + time.monotonic() - start
            self._write_state("training", seconds)
        if status or not (self.folder / FINAL).is_file():
            found = f"exit status {status}" if status else f"no {FINAL} in {self.folder}"
            remedy = "See its message above; the same command resumes the training"
            raise TrainingError(f"fold {self.number}", "the training failed", found, remedy)
        self._write_state("trained", seconds)

    @property
    def has_label_maps(self) -> bool:
        """Whether the references are label maps."""
        return all("label" in case for case in self.validation)

    def pairs(self, without: Container[str] = ()) -> dict[str, tuple[Path, Path]]:
        """Case to its label map and its reference, except for the cases in ``without``."""
        return {
            case["case_id"]: (
                self.outputs.label_file(self.predictions, strip_nifti_suffix(Path(case["image"]).name)),
                Path(case["label"]),
            )
            for case in self.validation
            if case["case_id"] not in without
        }

    @property
    def predictions(self) -> Path:
        """Folder of the fold's label maps."""
        return self.folder / "predictions"

    def _score(self) -> None:
        if not self.has_label_maps:
            self._score_by_config()
            return
        from decathlete.inference import predict

        seconds = self.state().get("training_s")
        images = {case["case_id"]: Path(case["image"]) for case in self.validation}
        report = predict(
            self.bundle,
            list(images.values()),
            self.predictions,
            [self.folder / FINAL],
            overwrite="others",  # predictions of an earlier training of this fold do not count
            overrides=self._prediction_overrides(),
        )
        failed = {case: report.failed[image] for case, image in images.items() if image in report.failed}
        rows, faults = score_pairs(self.pairs(failed), self.labels, f"evaluate fold {self.number}", self.scored)
        failed |= faults
        if not rows:
            raise DataError(self.predictions, "no case could be scored", remedy=" ".join(failed.values()))
        write_report(rows, self.folder, failed, fold=self.number, training_s=seconds)
        self._write_state("done", seconds, failed=failed)

    def _score_by_config(self) -> None:
        """Score with the bundle's own ``evaluate.yaml``, for references that are not label maps, such as contours."""
        seconds = self.state().get("training_s")
        done = subprocess.run(self._command("evaluating"), check=False).returncode
        if done or not (self.folder / "metrics.csv").is_file():
            found = f"exit status {done}" if done else "no metrics.csv"
            raise DataError(self.folder, "scoring this fold failed", found, "See its message above")
        self._write_state("done", seconds, failed={})

    def _command(self, run_id: str) -> list[str]:
        """Command line of a run of this fold."""
        command = [sys.executable, "-m", "decathlete.cli", "run", run_id, "--config", str(self.bundle)]
        command += [f"--fold={self.number}", f"--output_dir={self.folder}"]
        if self.dataset_dir is not None:
            command += [f"--dataset_dir={self.dataset_dir}"]
        return command + [f"--{name}={_as_word(value)}" for name, value in self.overrides.items()]

    def _prediction_overrides(self) -> dict[str, Any]:
        """Overrides of ids that ``inference.yaml`` has too, such as those of the network."""
        from decathlete.bundle.configs import load
        from decathlete.bundle.overrides import check_overrides

        config, shared = load(self.bundle, "inference"), {}
        for name, value in self.overrides.items():
            with contextlib.suppress(ConfigError):  # an id of the training only
                check_overrides(config.config, {name: value})
                shared[name] = value
        return shared

    def _write_state(self, stage: str, training_s: float | None, **more: Any) -> None:
        if stage != "training":
            more["weights_sha256"] = file_sha256(self.folder / FINAL)
        content = {"stage": stage, "settings": self.settings, "training_s": training_s, **more}
        with atomic_write(self.folder / STATE) as part:
            part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _cases(
    bundle: Path, fold: int, overrides: Mapping[str, Any], dataset_dir: str | Path | None
) -> tuple[Path | None, list[Case], list[Case]]:
    """Data folder, training cases and validation cases, from the same ids that the training uses."""
    from decathlete.bundle.configs import load
    from decathlete.data.folders import data_folder

    file = config_file(bundle, "train")
    parser = load(bundle, "train", overrides, where="cross-validate")
    data = data_folder(parser.get("dataset_dir"), None if dataset_dir is None else Path(dataset_dir), file=file)
    settings: dict[str, Any] = {**overrides, "fold": fold}
    if data is not None:
        settings["dataset_dir"] = data
    parser = load(bundle, "train", settings, where="cross-validate")
    parts = []
    for name in ("train::dataset::data", "validate::dataset::data"):
        if name not in parser:
            raise ConfigError(file, f"no '{name}', which cross-validation needs", remedy="Add it to the config")
        parts.append([dict(case) for case in parser.get_parsed_content(name)])
    train, validation = parts
    for case in validation:
        if not {"case_id", "image"} <= case.keys() or not _references(case):
            rule = "expected cases with case_id, image and label"
            raise ConfigError(f"{file}, validate::dataset::data", rule, f"{case}")
    both = sorted({case["case_id"] for case in train} & {case["case_id"] for case in validation})
    if both:
        rule = f"{len(both)} cases are in both the training and the validation data"
        raise DataError(f"{file}, fold {fold}", rule, listed(both), "Remove them from one of the two")
    return data, train, validation


def _references(case: Case) -> list[Path]:
    """Reference files of a case: a label map, or contours."""
    return [Path(case[key]) for key in ("label", "inner", "outer") if case.get(key)]


def _as_word(value: Any) -> str:
    """The value as text that the command line reads back."""
    value = inert(value, expressions=True)
    return value if isinstance(value, str) and value.startswith(SPECIAL) else json.dumps(value, default=str)


def _short(text: str | None) -> str:
    return "not given" if text is None else text if len(text) <= 60 else f"{text[:57]}..."
