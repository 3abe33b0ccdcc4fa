"""``make demo``: data, a few minutes of training, scores on cases that were not trained on, and a picture."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from decathlete.errors import DecathleteError, UsageError, WorkError
from decathlete.machine import cores
from decathlete.quiet import quiet

BUNDLE, TASK, DATA_FOLDER = "hippocampus", "hippocampus", "Task04_Hippocampus"
PHANTOMS = 40
MINUTES = 3.0
FOLD = 0


def main() -> int:
    """Run the demo and return the exit status; ``DECATHLETE_DEMO_MINUTES`` sets the time of training."""
    quiet()
    try:
        run_demo(Path("demo"), asked_minutes())
    except DecathleteError as error:
        print(f"decathlete: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("\ndecathlete: interrupted; run 'make demo' again to resume", file=sys.stderr)
        return 130
    return 0


def asked_minutes() -> float:
    """Minutes of training in ``DECATHLETE_DEMO_MINUTES``, or the default.

    Raises:
        UsageError: no positive number.
    """
    text = os.environ.get("DECATHLETE_DEMO_MINUTES", str(MINUTES))
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise UsageError("DECATHLETE_DEMO_MINUTES", "expected a number of minutes above 0", repr(text))
    return minutes


def run_demo(output: Path, minutes: float) -> Path:
    """Train and score a fold of the hippocampus in ``output`` and predict one case; return the overlay's path.

    Finished steps are kept, so running it again is fast; an interrupted training resumes.
    """
    dataset_dir, source = find_data(output)
    say(1, f"data: {source}\n      {dataset_dir}")
    run = output / f"{DATA_FOLDER if 'phantom' not in source else 'phantoms'}_{minutes:g}_minutes"
    weights = train(run, dataset_dir, minutes)

    from decathlete.bundle import bundle_labels
    from decathlete.data import datalist
    from decathlete.evaluation.report import write_report
    from decathlete.evaluation.scoring import score_pairs
    from decathlete.inference import predict
    from decathlete.view import overlay

    cases = datalist(dataset_dir, FOLD, "validation", TASK)
    say(3, f"prediction of {len(cases)} cases that were not trained on, scored on each scan's own grid")
    predictions = run / "predictions"
    report = predict(BUNDLE, [case["image"] for case in cases], predictions, [weights], overwrite="others")
    if report.failed:
        raise WorkError(predictions, "the demo could not predict every case", f"{len(report.failed)} failed")
    labels = bundle_labels(BUNDLE)
    pairs = {c["case_id"]: (predictions / f"{c['case_id']}.nii.gz", Path(c["label"])) for c in cases}
    rows, failed = score_pairs(pairs, labels)
    steps, taken = training_facts(run)
    summary = write_report(rows, run, failed, bundle=BUNDLE, data=source, minutes=round(taken, 2), fold=FOLD)
    first = cases[0]
    picture = overlay(
        first["image"],
        first["label"],
        pairs[first["case_id"]][0],
        run / "overlay.png",
        labels=labels,
        case_id=first["case_id"],
    )
    training = f"{steps} iterations in {taken:.2f} minutes of training on {cores()} cores"
    say(4, f"fold {FOLD}, {len(cases)} cases of {source}, {training}")
    print(summary.table())
    print(f"\nprediction   {pairs[first['case_id']][0]}\noverlay      {picture}\nscores       {summary.metrics_csv}")
    tensorboard = shlex.join([str(Path(sys.executable).parent / "tensorboard"), "--logdir", str(run)])
    print(f"TensorBoard  {tensorboard}")
    return picture


def find_data(output: Path) -> tuple[Path, str]:
    """Folder of the hippocampus data, and what they are: real ones if they can be had, else phantoms."""
    from decathlete.data import dataset_folder, fetch
    from decathlete.data.kinds import read_description

    folder = Path(dataset_folder(DATA_FOLDER))
    if not folder.is_dir():
        try:
            folder = fetch(TASK, output="data")
        except DecathleteError as error:
            print(f"      the download failed: {error}", file=sys.stderr)
            folder = fetch(TASK, output=output / "phantoms", phantom=PHANTOMS)
    if (read_description(folder) or {}).get("phantom"):
        print("      PHANTOMS: drawn by a program, so the scores below say nothing about real scans", flush=True)
        return folder, "phantoms, not real scans"
    return folder, "real scans (Medical Segmentation Decathlon, Task04)"


def train(run: Path, dataset_dir: Path, minutes: float) -> Path:
    """Weights of a training of fold 0, made now, resumed, or kept from an earlier call."""
    final = run / "model_final.pt"
    if final.is_file():
        say(2, f"training: already done ({final})")
        return final
    from decathlete.workflow import run as run_bundle

    resume = (run / "last.pt").is_file()
    say(2, f"training: {minutes:g} minutes after set-up, with fewer iterations on a busy machine"
        f"{'; resumed' if resume else ''}")  # fmt: skip
    overrides = {
        "dataset_dir": dataset_dir,
        "output_dir": run,
        "fold": FOLD,
        "minutes": minutes,
        "schedule::deadline": True,
        "resume": resume,
    }
    run_bundle("training", BUNDLE, overrides)
    return final


def training_facts(run: Path) -> tuple[int, float]:
    """Iterations of the training, and the measured minutes from the first to the last."""
    from decathlete.bundle.checkpoints import LAST, read_checkpoint

    content = read_checkpoint(run / LAST)
    schedule = content["schedule"]
    return content["iteration"], (schedule["trained_s"] + schedule.get("other_s", 0.0)) / 60


def say(step: int, text: str) -> None:
    """Announce a step of the demo on stdout."""
    print(f"\n[{step}/4] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
