"""The short form ``python -m monai.bundle run training --config bundles/hippocampus``.

MONAI's ``run`` knows ``--config_file`` and takes any other flag for an override. A line in site-packages
(``decathlete_short_form.pth``) imports this module at the start of Python, and only when a word of the command line
contains ``monai.bundle``. Then the command line is translated and MONAI runs as ever: nothing of it is replaced.
Imports nothing heavy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from decathlete.names import SPECIAL, inert

MODULES = ("monai.bundle", "monai.bundle.__main__")
# flags of the interpreter that take a value, in the same word or in the next
VALUED = "WX"
# arguments of MONAI's `run`; any other flag is an override of the config
RUN_ARGUMENTS = {"run_id", "init_id", "final_id", "meta_file", "logging_file", "tracking", "args_file"}


def module_run(words: Sequence[str]) -> str | None:
    """Name of the module that a Python command line runs with ``-m``, or None for a script, ``-c`` and no program.

    Args:
        words: ``sys.orig_argv``, the interpreter first. Spellings such as ``-um NAME``, ``-W x -m NAME`` and ``-mNAME``
            are read as the interpreter reads them.
    """
    queue = list(words[1:])
    while queue:
        word = queue.pop(0)
        if word == "--check-hash-based-pycs":
            queue = queue[1:]
        elif word.startswith("--") and len(word) > 2:
            continue
        elif not word.startswith("-") or word in ("-", "--"):
            return None
        for place, letter in enumerate(word[1:] if not word.startswith("--") else "", start=2):
            value = word[place:] or (queue[0] if queue else "")
            if letter == "m":
                return value or None
            if letter == "c":
                return None
            if letter in VALUED:
                queue = queue if word[place:] else queue[1:]
                break
    return None


def translate(
    words: Sequence[str], environ: Mapping[str, str] | None = None, log: TextIO | None = None
) -> list[str] | None:
    """Words of ``monai.bundle`` with ``--config BUNDLE`` spelt out, or None where there is nothing to translate.

    ``--config`` becomes ``--config_file`` with the run's files and ``--bundle_root`` with the bundle's absolute folder,
    so that it works from any working directory. A command with ``--config_file`` gets ``--bundle_root`` where the
    config names a folder that is not there: inside the bundle's folder, say. One whose ``--args_file`` names the config
    stays as it is: there ``--config`` is an override like any other.

    Args:
        words: what follows ``python -m monai.bundle``: ``run``, the run id, flags.
        environ: in place of ``os.environ``; torchrun's variables lay ``multi_gpu_train`` over a training, and
            ``DECATHLETE_DATA`` holds the data sets' folders.
        log: gets the line that says which bundle is meant; ``sys.stderr`` by default.

    Raises:
        UsageError: no such bundle, or no such run in it.
        ConfigError: an override that names no id of the config.
    """
    environ = os.environ if environ is None else environ
    if not words or words[0] != "run":
        return None
    # fire reads its own flags behind a lone `--`
    end = words.index("--") if "--" in words else len(words)
    own, rest = list(words[1:end]), list(words[end:])
    bundles = _take(own, "config")
    if _names_config(_value(own, "args_file")):
        return None
    if (file := _value(own, "config_file")) is not None:
        root = None if _value(own, "bundle_root") is not None else _missing_root(file)
        return None if root is None else ["run", *words[1:end], "--bundle_root", inert(root), *rest]
    if not bundles:
        return None

    from decathlete.bundle import bundle_folder, config_files, is_bundle
    from decathlete.distributed.torchrun import in_torchrun
    from decathlete.errors import UsageError

    if len(bundles) > 1 or not bundles[0]:
        raise UsageError("--config", "expected one bundle", " ".join(bundles) or "none", "Give a folder or a name")
    folder = bundle_folder(bundles[0]).resolve()
    kind = "folder" if is_bundle(Path(bundles[0])) else "packaged bundle"
    if environ.get("LOCAL_RANK", "0") == "0":
        print(f"decathlete: --config {bundles[0]} is the {kind} {folder}", file=log or sys.stderr)

    run_id = _positional(own) or _value(own, "run_id") or "run"
    files = config_files(folder, run_id, in_torchrun(environ))

    from decathlete.bundle.description import read_mapping  # with YAML: a wrong name is reported without it
    from decathlete.bundle.overrides import laid_over
    from decathlete.bundle.tracking import check_tracking
    from decathlete.data.folders import dataset_folder, stated_folder

    config = laid_over(read_mapping(file) for file in files)
    _refuse_unknown_ids(own, config, files[-1])
    own = _literal_words(own)
    check_tracking(_value(own, "tracking"))
    added = ["--config_file", str(files[0]) if len(files) == 1 else repr([str(file) for file in files])]
    if _value(own, "bundle_root") is None:
        added += ["--bundle_root", inert(folder)]
    stated = stated_folder(config)
    if stated and environ.get("DECATHLETE_DATA") and _value(own, "dataset_dir") is None:
        data = Path(dataset_folder(Path(stated).name, stated, environ))
        added += ["--dataset_dir", inert(data)] if data.is_dir() else []
    return ["run", *own, *added, *rest]


def _missing_root(given: str) -> Path | None:
    """Folder of the bundle whose config is run, where the ``bundle_root`` that the config names is not there.

    Args:
        given: value of ``--config_file``: a file, or a list of files in brackets.
    """
    import re

    from decathlete.bundle.description import read_mapping
    from decathlete.errors import ConfigError

    file = Path(re.split(r"""['"]""", given)[1] if re.match(r"""[\[(]\s*['"]""", given) else given)
    if not file.is_file() or file.resolve().parent.name != "configs":
        return None
    try:
        root = read_mapping(file).get("bundle_root")
    except ConfigError:  # MONAI reports what is wrong with the file
        return None
    ours = "decathlete." in file.read_text(encoding="utf-8", errors="replace")
    if not ours or not isinstance(root, str) or root.startswith(SPECIAL) or Path(root).is_dir():
        return None
    return file.resolve().parent.parent


def _literal_words(words: Sequence[str]) -> list[str]:
    """Words whose overrides keep a ``#``; what fire reads as a list, a dict or a quoted text stays as it is."""
    made, own = [], False
    for word in words:
        name, equals, value = word.partition("=")
        if _flag(word) is not None:
            own = _flag(word) in RUN_ARGUMENTS
        else:
            name, equals, value = "", "", word
        kept = own or value.startswith(("[", "{", "(", "'", '"'))
        made.append(name + equals + (value if kept else inert(value, expressions=True)))
    return made


def _refuse_unknown_ids(words: Sequence[str], config: Mapping[str, Any], file: Path) -> None:
    """Refuse an override that names no id of the config: MONAI would add it, and nothing would read it.

    Raises:
        ConfigError: with the nearest known id; or a value of another kind than the config's.
    """
    from decathlete.bundle.overrides import check_overrides, value_of

    names = [name for word in words if (name := _flag(word)) and name[0].isidentifier()]
    if "tracking" in names:  # brings ids of its own
        return
    own = [name for name in names if name not in RUN_ARGUMENTS and not name.startswith("_meta_")]
    values = {name: value_of(_value(list(words), name) or "true", f"--{name}") for name in own}
    check_overrides(config, values, where="command line", file=file)


def _positional(words: Sequence[str]) -> str | None:
    """First word that is neither a flag nor the value of the flag before it."""
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if _flag(word) is None:
            return word
        if "=" not in word and queue and _flag(queue[0]) is None:
            queue.pop(0)
    return None


def _flag(word: str) -> str | None:
    """Name of a flag as fire reads it: ``config`` for ``--config``, ``-config`` and ``--config=x``."""
    if not (word.startswith("--") or word[1:2].isalpha()) or not word.startswith("-") or word == "--":  # -1 is a value
        return None
    return word.lstrip("-").partition("=")[0].replace("-", "_")


def _take(words: list[str], name: str) -> list[str]:
    """Remove a flag and its value from ``words`` and return its values, one for each time it was there."""
    values = []
    while (place := next((i for i, word in enumerate(words) if _flag(word) == name), None)) is not None:
        _, equals, value = words.pop(place).partition("=")
        if not equals:
            has_value = place < len(words) and _flag(words[place]) is None
            value = words.pop(place) if has_value else ""
        values.append(value)
    return values


def _value(words: list[str], name: str) -> str | None:
    """Value of a flag, or None without it."""
    values = _take(list(words), name)
    return values[-1] if values else None


def _names_config(args_file: str | None) -> bool:
    """Whether MONAI's ``--args_file`` brings a config of its own."""
    if args_file is None:
        return False
    try:
        return "config_file" in Path(args_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return True  # MONAI reports what is wrong with the file


def install() -> None:
    """Translate this process's command line if it is a short form, as soon as MONAI is imported.

    Called by the line in site-packages, at Python's start: other folders of packages, with YAML in one of them, may not
    be on the path yet.
    """
    if module_run(sys.orig_argv) in MODULES:
        sys.meta_path.insert(0, _AtImport("monai", _translate_arguments))


class _AtImport:
    """Finds no module, and calls a function when one is looked for the first time."""

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        self.name, self.call = name, call

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self.name and self in sys.meta_path:
            sys.meta_path.remove(self)
            self.call()


def _translate_arguments() -> None:
    """Translate the command line; a mistake ends the process with one line and exit status 2."""
    from decathlete.errors import DecathleteError

    try:
        words = translate(sys.argv[1:])
    except DecathleteError as error:
        print(f"decathlete: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_status)
    if words is not None:
        sys.argv[1:] = words
    _short_errors(words is not None)


def _short_errors(ours_alone: bool) -> None:
    """Let an error of ours end MONAI's command as one line, whatever MONAI and ignite wrapped around it.

    Args:
        ours_alone: the command is known to run a bundle of ours, so that an interrupt gets our message too.
    """
    from decathlete.failures import find_error, shorten_log
    from decathlete.quiet import quiet

    quiet()
    shorten_log()
    default = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt) and ours_alone:
            print("decathlete: interrupted; resume a training with --resume True", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(130)  # as after the signal itself
        ours = find_error(error)
        if ours is None:
            default(kind, error, traceback)
            return
        sys.stdout.flush()  # MONAI's output comes first
        print(f"decathlete: {ours}", file=sys.stderr, flush=True)
        if ours.exit_status != 1:  # Python's own after an error
            os._exit(ours.exit_status)

    sys.excepthook = hook
