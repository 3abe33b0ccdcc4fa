"""The ``decathlete`` command: one thin function for each verb, which calls a public function of the package."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from decathlete import __version__
from decathlete.bundle.places import names_with_weights
from decathlete.errors import DecathleteError, UsageError
from decathlete.lazy import predict_only
from decathlete.quiet import quiet

OF_BUNDLES = ("check", "run", "predict", "evaluate", "cross-validate", "serve", "view", "promote")
AFTER_INTERRUPT = {
    "run": "; resume a training with --resume",
    "data": "; run the same command again to resume",
    "new": "; run the same command again to resume, the cases read so far are kept",
    "cross-validate": "; run the same command again to resume",
    "predict": "; run the same command again to resume, finished cases are kept",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 0 done, 1 work failed, 2 invalid command line."""
    try:
        arguments = parse(argv)
    except UsageError as error:
        print(f"decathlete: {error}", file=sys.stderr)
        return error.exit_status
    quiet()
    if argv is None and arguments.verb == "predict":  # this process ends with it
        predict_only()
    try:
        if getattr(arguments, "trust", False):
            _trust(arguments)
        return arguments.function(arguments)
    except DecathleteError as error:
        if arguments.debug:
            raise
        print(f"decathlete: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print(f"decathlete: interrupted{AFTER_INTERRUPT.get(arguments.verb, '')}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `decathlete ... | head` closes the pipe early
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if arguments.debug:
            raise
        from decathlete.failures import find_error, in_one_line

        if (ours := find_error(error)) is not None:  # raised where MONAI builds a config's parts
            print(f"decathlete: {ours}", file=sys.stderr)
            return ours.exit_status
        print(f"decathlete: {in_one_line(error)}. Add --debug to see where", file=sys.stderr)
        return 1


def _trust(a: argparse.Namespace) -> None:
    """Trust the bundles that a command line names."""
    from decathlete.bundle import bundle_folder
    from decathlete.bundle.trust import trust

    for word in ("bundle", "config", "target", "batch"):
        value = getattr(a, word, None)
        for bundle in value if isinstance(value, list) else [value] if value else []:
            trust(bundle_folder(bundle))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """A command line's values; ``overrides`` holds each ``--id value`` that is not an option of the verb.

    Options and inputs may come in any order. An unknown word ends the process with one line and status 2.

    Raises:
        UsageError: an override's value has a bracket or quote that is not closed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if not words or words[0] not in parser.verbs:
        return parser.parse_args(words[:1])  # --help, --version, or no verb
    verb = parser.verbs[words[0]]
    known, overrides = verb.in_order(words[1:])
    arguments, rest = verb.parse_known_args(known)
    if rest:
        verb.refuse(rest[0])
    arguments.verb, arguments.parser, arguments.overrides = words[0], verb, overrides
    return arguments


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and which takes options and inputs in any order."""

    verbs: dict[str, _Parser]

    def __init__(self, *args: Any, overrides: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.allow_abbrev = False
        self.takes_overrides = overrides
        self.continues: dict[str, Callable[[str], bool]] = {}  # option to whether a word behind its first belongs to it

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else "."
        self.exit(2, f"{self.prog}: {message}{end} See '{self.prog} --help'.\n")

    def refuse(self, word: str) -> NoReturn:
        """End with the nearest known option for a word that none of the arguments takes."""
        close = self.nearest(word) if word.startswith("-") else None
        hint = ". Overrides must be written as --id value" if self.takes_overrides and not word.startswith("-") else ""
        self.error(f"unknown argument '{word}'" + (f". Did you mean '{close}'?" if close else hint))

    def nearest(self, word: str, ids: Iterable[str] = ()) -> str | None:
        """The option most similar to ``word``; None where there is none, or one of ``ids`` is more similar."""
        known = [*self._option_string_actions, *(f"--{name}" for name in ids)]
        close = get_close_matches(word.partition("=")[0].replace("_", "-"), known, n=1)
        return close[0] if close and close[0] in self._option_string_actions else None

    def in_order(self, words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """Words as argparse can read them, options before inputs; and apart from them the overrides.

        The word behind an unknown ``--id`` is its value; ``--id`` alone, which means true, stands before another option
        or at the end.
        """
        options: list[str] = []
        inputs: list[str] = []
        overrides: dict[str, Any] = {}
        queue = deque(words)
        while queue:
            word = queue.popleft()
            if word == "--":
                inputs += queue
                break
            name, equals, value = word.partition("=")
            option = self._option_string_actions.get(name)
            if not word.startswith("-"):
                inputs.append(word)
            elif option is None:
                if not self.takes_overrides or len(name) < 3 or not name.startswith("--"):
                    self.refuse(word)
                from decathlete.bundle.overrides import value_of  # not for --help: YAML takes its time

                if not equals:
                    value = queue.popleft() if queue and not queue[0].startswith("--") else "true"
                overrides[name[2:]] = value_of(value, name)
            elif equals or option.nargs == 0 or not queue or queue[0].startswith("--"):
                options.append(word)
            elif name in self.continues:
                options += [word, queue.popleft()]
                while queue and self.continues[name](queue[0]):
                    options.append(queue.popleft())
            else:
                options.append(f"{word}={queue.popleft()}")  # a value may start with a minus
        return [*options, "--", *inputs] if inputs else options, overrides


def _data(a: argparse.Namespace) -> int:
    from decathlete.data import fetch

    print(fetch(a.task, output=a.output, phantom=a.phantom, seed=a.seed, verify=a.verify))
    return 0


def _check(a: argparse.Namespace) -> int:
    from decathlete.check import check

    return 0 if check(a.target, dataset_dir=a.dataset_dir).ok else 1


def _run(a: argparse.Namespace) -> int:
    from decathlete.bundle import bundle_folder

    bundle_folder(a.config)  # a wrong name is reported before the slow imports
    from decathlete.workflow import run

    own = {name: getattr(a, name) for name in ("fold", "minutes", "dataset_dir", "output_dir")}
    own["resume"] = a.resume or None
    own["schedule::deadline"] = a.deadline or None
    if a.deadline and a.minutes is None and "minutes" not in a.overrides:
        a.parser.error("--deadline needs --minutes")
    overrides = a.overrides | {name: value for name, value in own.items() if value is not None}
    return run(a.run_id, a.config, overrides, gpus=a.gpus, max_restarts=a.max_restarts)


def _info(a: argparse.Namespace) -> int:
    from decathlete.info import bundle_facts, facts_text, installed_facts

    facts = bundle_facts(a.bundle) if a.bundle else installed_facts()
    if a.json:
        import json

        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        print(facts_text(facts))
    return 0


def _predict(a: argparse.Namespace) -> int:
    for word in a.input:  # --roi_size 64 64 64
        if re.fullmatch(r"[0-9.,]+", word) and not os.path.exists(word):
            a.parser.refuse(word)
    if a.overrides:
        from decathlete.bundle import Bundle
        from decathlete.bundle.overrides import has_id

        config = Bundle(a.bundle).config("inference")
        for name in a.overrides:
            if not has_id(config, name) and a.parser.nearest(f"--{name}", config):  # a slip in an option
                a.parser.refuse(f"--{name}")
    from decathlete.inference import predict

    report = predict(
        a.bundle,
        a.input,
        a.output,
        checkpoints=a.checkpoint,
        tta=a.tta,
        overwrite=a.overwrite,
        save_probabilities=a.save_probabilities,
        statistics=a.statistics,
        device=a.device,
        memory_gib=a.memory,
        bias_correction=a.bias_correction,
        field=a.field,
        dicom_seg=a.dicom_seg,
        report=a.report,
        strict=a.strict,
        overrides=a.overrides,
    )
    return 1 if report.failed else 0


def _evaluate(a: argparse.Namespace) -> int:
    from decathlete.evaluation import evaluate

    summary = evaluate(
        a.bundle,
        prediction=a.prediction,
        label=a.label,
        output=a.output,
        report=a.report,
        image=a.image,
        largest_component=a.largest_component,
    )
    return 1 if summary.failed else 0


def _cross_validate(a: argparse.Namespace) -> int:
    from decathlete.evaluation import cross_validate

    summary = cross_validate(
        a.bundle,
        folds=a.folds,
        overrides=a.overrides,
        output=a.output,
        minutes=a.minutes,
        dataset_dir=a.dataset_dir,
        reference=a.reference,
        largest_component=a.largest_component,
    )
    return 1 if summary.failed else 0


def _explore(a: argparse.Namespace) -> int:
    from decathlete.data import dataset_folder
    from decathlete.explore import explore_sunnybrook

    print(explore_sunnybrook(a.dataset_dir or dataset_folder(a.study), a.output))
    return 0


def _promote(a: argparse.Namespace) -> int:
    from decathlete.training import promote

    print(promote(a.run, a.bundle, checkpoint=a.checkpoint, scans=a.scans))
    return 0


def _new(a: argparse.Namespace) -> int:
    from decathlete.planning import new_bundle

    new_bundle(
        a.name,
        a.data,
        a.output,
        images=a.images or (),
        labels=a.labels,
        channels=a.channels or (),
        classes=a.classes or (),
        modality=a.modality,
        memory_gib=a.memory,
        device=a.device,
        overwrite=a.overwrite,
        accept=a.accept,
        explain=a.explain,
        pretrained=a.pretrained,
    )
    return 0


def _view(a: argparse.Namespace) -> int:
    names = ("label", "prediction", "axis", "fps", "channel", "window", "slices", "size")
    options = {name: getattr(a, name) for name in names if getattr(a, name) is not None}
    if a.batch is not None:
        if a.image:
            a.parser.error(f"expected an IMAGE or --batch BUNDLE, not both ('{a.image[0]}')")
        from decathlete.view import batch_montage

        size = {"size": options.pop("size")} if "size" in options else {}
        overrides = a.overrides | options  # --axis may be an id of the config; other ones are refused as such
        print(batch_montage(a.batch, a.output, overrides, **size))
        return 0
    for name in a.overrides:
        a.parser.refuse(f"--{name}")
    if len(a.image) != 1:
        found = f" ({len(a.image)} given)" if a.image else ", or --batch BUNDLE"
        a.parser.error(f"expected one IMAGE{found}")
    from decathlete.view import film

    print(film(a.image[0], a.output, **options))
    return 0


def _serve(a: argparse.Namespace) -> int:
    from decathlete.label import serve, set_up

    if a.setup:
        print(f"decathlete: MONAI Label is installed in {set_up()}", file=sys.stderr)
        if a.studies is None:
            return 0
    if a.studies is None:
        raise UsageError("--studies", "missing", "", "Name a folder of NIfTI images, or a DICOMweb address")
    serve(a.bundle, a.studies, host=a.host, port=a.port, folder=a.folder)


def _add_bundle(p: argparse.ArgumentParser, more: str = "") -> None:
    p.add_argument("bundle", metavar="BUNDLE", help=f"a bundle's folder or name{more}")


def _add_dataset_dir(p: argparse.ArgumentParser) -> None:
    text = "the data set's folder (default: its usual place, also in $DECATHLETE_DATA)"
    p.add_argument("--dataset_dir", "--dataset-dir", type=Path, metavar="DIR", help=text)


def _add_largest_component(p: argparse.ArgumentParser) -> None:
    text = "also score the largest component of each class alone, and report whether that is better"
    p.add_argument("--largest-component", "--largest_component", action="store_true", help=text)


def _is_weights(word: str) -> bool:
    """Whether a word names weights, or the folder of a run."""
    return word.endswith((".pt", ".pth", ".ckpt", ".ts")) or os.path.isfile(os.path.join(word, "model_final.pt"))


def _positive(text: str) -> float:
    """Number above 0, for argparse, which makes one line of the error."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0 ('{text}')")
    return value


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Reader of whole numbers from ``low`` to ``high``, for argparse."""

    def read(text: str) -> int:
        value = int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else low - 1
        if value < low or (high is not None and value > high):
            limits = f"{low} or more" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"expected a whole number, {limits} ('{text}')")
        return value

    return read


def _fold(text: str) -> int | str:
    """Number of a fold, or ``all``, for argparse."""
    if text != "all" and not re.fullmatch("[0-9]{1,4}", text):
        raise argparse.ArgumentTypeError(f"expected the number of a fold, 0 or more, or 'all' ('{text}')")
    return text if text == "all" else int(text)


def _modality(text: str) -> str:
    """``CT`` or ``MRI``, for argparse."""
    word = {"MR": "MRI"}.get(text.upper(), text.upper())
    if word not in ("CT", "MRI"):
        raise argparse.ArgumentTypeError(f"expected CT or MRI ('{text}')")
    return word


def _names(text: str) -> list[str]:
    """``a,b`` for argparse."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names separated by commas ('{text}')")
    return names


def _two_numbers(text: str) -> list[float]:
    """``low,high`` for argparse."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = float("nan")
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise argparse.ArgumentTypeError(f"expected two numbers, such as -160,240 ('{text}')")
    return [low, high]


def _range(text: str) -> list[int | None]:
    """``from:to`` for argparse; either side may be left out."""
    try:
        first, last = (int(side) if side else None for side in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected two slices, such as 20:60, 20: or :60 ('{text}')") from None
    return [first, last]


def _parser() -> _Parser:
    parser = _Parser(
        prog="decathlete",
        description="Train, check, predict and score MONAI bundles.",
        epilog="Not for clinical use.",
    )
    parser.add_argument("--version", action="version", version=f"decathlete {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    parser.verbs = verbs.choices

    def verb(name: str, function: Callable[..., int], text: str, overrides: bool = False) -> _Parser:
        sub = verbs.add_parser(name, help=text, description=text, overrides=overrides)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name in OF_BUNDLES:
            text = "let a foreign bundle's configs run any code, now and until they change"
            sub.add_argument("--trust", action="store_true", help=text)
        sub.set_defaults(function=function)
        return sub

    p = verb("data", _data, "Download, unpack and check a data set; or make phantoms (artificial cases).")
    p.add_argument("task", help="hippocampus, spleen, ... or Task04_Hippocampus, ...; nfbs; sunnybrook")
    p.add_argument("--output", default="data", metavar="DIR", help="where the data set's folder goes (default: data)")
    p.add_argument("--phantom", type=_whole(1), metavar="N", help="make N artificial cases instead of downloading")
    p.add_argument("--seed", type=_whole(0), default=0, help="seed of the phantoms (default: 0)")
    p.add_argument("--verify", action="store_true", help="only check a downloaded data set, file by file")

    p = verb("info", _info, "Say what is installed, or what a bundle takes, gives and is worth. Runs nothing of it.")
    p.add_argument("bundle", nargs="?", metavar="BUNDLE", help="a bundle's folder or name (default: everything)")
    p.add_argument("--json", action="store_true", help="for programs: one JSON object, as docs/info.md states it")

    p = verb("check", _check, "Check a bundle or a data folder before a long run.")
    p.add_argument("target", metavar="BUNDLE_OR_FOLDER", help="a bundle's folder or name, or a data set's folder")
    _add_dataset_dir(p)

    p = verb("run", _run, "Train, predict or evaluate with a bundle's configs, like MONAI's `run`.", True)
    p.add_argument("run_id", choices=["training", "inferring", "evaluating"], metavar="{training,inferring,evaluating}")
    p.add_argument("--config", required=True, metavar="BUNDLE", help="a bundle's folder or name")
    p.add_argument("--fold", type=_fold, help="validation fold, 0 to 4, or 'all' to train on all cases")
    p.add_argument(
        "--minutes", type=_positive, metavar="M", help="time budget of the training, instead of a number of epochs"
    )
    p.add_argument("--deadline", action="store_true", help="keep to --minutes on a busy machine: fewer iterations")
    p.add_argument("--resume", action="store_true", help="resume from the last checkpoint in output_dir")
    p.add_argument("--gpus", type=_whole(1), metavar="N", help="train in N processes on this machine, one for each GPU")
    p.add_argument(
        "--max-restarts", type=_whole(0), default=0, metavar="N", help="restarts after a process failed (with --gpus)"
    )
    _add_dataset_dir(p)
    p.add_argument("--output_dir", "--output-dir", type=Path, metavar="DIR", help="folder of the run")
    p.epilog = "Any other --id value overrides that id of the config, e.g. --train::trainer::max_epochs 2."

    p = verb("predict", _predict, "Segment scans: write a label map for each, on the scan's own grid.", True)
    _add_bundle(p, f"; these have weights: {', '.join(names_with_weights()) or 'none'}")
    p.add_argument(
        "input",
        nargs="+",
        metavar="INPUT",
        help="NIfTI files, folders of them, or folders of one DICOM series each; for sunnybrook also DICOM frames",
    )
    p.add_argument("--output", required=True, metavar="DIR", help="folder for the label maps")
    p.add_argument(
        "--checkpoint", nargs="+", metavar="P", help="weights, or a run's folder (default: the bundle's weights); "
        "several make an ensemble: after the first, files ending in .pt, .pth, .ckpt or .ts, and folders with a "
        "model_final.pt"
    )  # fmt: skip
    p.continues["--checkpoint"] = _is_weights
    p.add_argument("--tta", action="store_true", help="average over mirrored copies of the scan (slower)")
    p.add_argument("--save-probabilities", action="store_true", help="also write each class's probability as NIfTI")
    p.add_argument("--statistics", metavar="JSON", help="write volume and mean intensity of each label to this file")
    p.add_argument("--overwrite", action="store_true", help="replace existing label maps")
    p.add_argument(
        "--no-bias-correction",
        dest="bias_correction",
        action="store_false",
        help="skip N4 (nfbs)",
    )
    p.add_argument("--field", action="store_true", help="also write the bias field (nfbs)")
    p.add_argument("--report", metavar="FILE.html", help="also write a page with volumes, pictures and warnings")
    p.add_argument("--strict", action="store_true", help="fail on scans that look unlike the training scans")
    p.add_argument("--dicom-seg", action="store_true", help="also write a DICOM SEG for DICOM inputs")
    p.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if available)")
    p.add_argument(
        "--memory",
        type=_positive,
        metavar="GIB",
        help="refuse scans that need more (default: what is free)",
    )
    p.epilog = (
        "Any other --id value overrides that id of inference.yaml, e.g. --overlap 0.25. The word after an --id is its "
        "value; to set one to true before an INPUT, write --id=true."
    )

    p = verb("evaluate", _evaluate, "Compare label maps with references, on each scan's own grid.")
    _add_bundle(p)
    p.add_argument("--prediction", required=True, metavar="DIR", help="folder of the label maps to score")
    p.add_argument("--label", required=True, metavar="DIR", help="folder of the references")
    p.add_argument("--output", metavar="DIR", help="folder for metrics.csv and summary.json (default: PREDICTION)")
    p.add_argument("--report", metavar="FILE.html", help="also write a page with tables, plots and pictures")
    p.add_argument("--image", metavar="DIR", help="scans for the report's pictures (default: imagesTr beside labelsTr)")
    _add_largest_component(p)

    p = verb(
        "cross-validate",
        _cross_validate,
        "Train all folds of a bundle and score them together.",
        True,
    )
    _add_bundle(p)
    p.add_argument("--folds", default="0-4", help="such as 0-4 or 0,2 (default: 0-4)")
    p.add_argument("--minutes", type=_positive, metavar="M", help="time budget of each fold's training")
    _add_dataset_dir(p)
    p.add_argument("--output", metavar="DIR", help="folder of the runs (default: runs/<bundle>)")
    p.add_argument("--reference", metavar="CSV", help="compare with these scores (columns case, label, dice)")
    _add_largest_component(p)
    p.epilog = "Any other --id value overrides that id of the config, as in 'decathlete run training'."

    p = verb("explore", _explore, "Study how well thresholds segment, before a network: a page, tables, pictures.")
    p.add_argument("study", choices=["sunnybrook"], metavar="{sunnybrook}")
    _add_dataset_dir(p)
    p.add_argument("--output", required=True, metavar="DIR", help="folder for the page")

    p = verb("promote", _promote, "Copy a run's weights into a bundle; the old ones are backed up.")
    p.add_argument("run", metavar="RUN", help="folder of a training")
    p.add_argument("bundle", metavar="BUNDLE_FOLDER", help="the bundle's folder")
    p.add_argument("--checkpoint", default="model_final.pt", help="file of the run to copy (default: model_final.pt)")

    p.add_argument(
        "--scans",
        metavar="DIR",
        help="the training scans, for predict to warn of scans that look unlike them "
        "(default: those of the bundle's config, if they are there)",
    )

    p = verb("new", _new, "Make a bundle for your own data: check it, plan the training, write the configs.")
    p.add_argument("name", metavar="NAME", help="name of the bundle")
    p.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="folder with imagesTr and labelsTr (MSD, nnU-Net)",
    )
    p.add_argument(
        "--images",
        nargs="+",
        metavar="GLOB",
        help="image files in DIR, a pattern for each channel; * is the case",
    )
    p.continues["--images"] = lambda word: "*" in word
    p.add_argument("--labels", metavar="GLOB", help="label files in DIR, such as '*/seg.nii.gz'")
    p.add_argument("--output", metavar="DIR", help="the bundle's folder (default: bundles/NAME)")
    p.add_argument("--memory", type=_positive, metavar="GIB", help="memory to plan for (default: the free memory)")
    p.add_argument("--device", help="device to plan for, cpu or cuda (default: cuda if available)")
    p.add_argument("--channels", type=_names, metavar="A,B", help="names of the channels")
    p.add_argument("--classes", type=_names, metavar="A,B", help="names of the classes 1, 2, ...")
    p.add_argument(
        "--modality", type=_modality, help="CT or MRI (default: from dataset.json, else from the intensities)"
    )
    p.add_argument("--accept", action="store_true", help="accept what may be a mistake: few cases, unusual spacings")
    p.add_argument("--overwrite", action="store_true", help="replace the configs of an existing bundle")
    p.add_argument("--explain", action="store_true", help="print the plan and write nothing")
    p.add_argument("--pretrained", metavar="WEIGHTS", help="weights to start from, or a bundle with weights")

    p = verb("serve", _serve, "Start MONAI Label's server, to annotate with bundles in 3D Slicer or OHIF.")
    p.add_argument("bundle", nargs="*", metavar="BUNDLE", help="bundles to serve (default: all packaged bundles)")
    p.add_argument("--studies", metavar="DIR", help="folder of NIfTI images, or a DICOMweb address")
    p.add_argument("--setup", action="store_true", help="install MONAI Label in an environment of its own (once; 3 GB)")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    p.add_argument("--port", type=_whole(1, 65535), default=8000, metavar="N", help="default: 8000")
    p.add_argument("--folder", metavar="DIR", help="for copies of the bundles, weights, runs and logs (default: "
                   "~/.local/share/decathlete/label)")  # fmt: skip

    text = "Make a film or a sheet of slices of a scan with its labels, or show a training batch."
    p = verb("view", _view, text, True)
    p.usage = (
        "decathlete view IMAGE [--label L] [--prediction P] --output FILE [option ...]\n"
        "       decathlete view --batch BUNDLE --output FILE.png [--id value ...]"
    )
    p.add_argument("image", nargs="*", metavar="IMAGE", help="a NIfTI file")
    p.add_argument("--output", required=True, metavar="FILE", help=".gif or .mp4 for a film, .png for a sheet")
    p.add_argument("--label", metavar="L", help="reference label map, drawn as outlines")
    p.add_argument("--prediction", metavar="P", help="predicted label map, drawn as filled areas")
    p.add_argument("--axis", type=lambda t: int(t) if t.isdigit() else t, help="sagittal, coronal or axial (default)")
    p.add_argument("--window", type=_two_numbers, metavar="LOW,HIGH", help="intensities shown as black and as white")
    p.add_argument("--slices", type=_range, metavar="FROM:TO", help="first and last slice, from 1 as in the title")
    p.add_argument("--fps", type=_positive, metavar="N", help="slices per second (default: 10)")
    p.add_argument("--channel", type=_whole(0), metavar="N", help="channel of the image, from 0 (default: 0)")
    p.add_argument(
        "--size", type=_whole(16, 4096), metavar="PX", help="longer side of a picture (default: 512; on a sheet 300)"
    )
    p.add_argument("--batch", metavar="BUNDLE", help="show an augmented training batch; --id value as in 'run'")
    return parser


if __name__ == "__main__":
    sys.exit(main())
