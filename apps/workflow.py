"""From a bundle's folder to a MONAI workflow: the right config files, checked overrides, errors of one line."""

from __future__ import annotations

import inspect
import json
import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

from decathlete.bundle import bundle_folder, config_file, config_files
from decathlete.errors import ConfigError, DataError, DecathleteError, DeviceError, TrainingError, UsageError
from decathlete.failures import find_error, is_out_of_memory, short_log
from decathlete.names import SPECIAL, inert, read_text
from decathlete.quiet import quiet
from decathlete.short_form import check_tracking, in_torchrun

# arguments of MONAI's own `run`, not ids of a config
RUN_ARGUMENTS = ("init_id", "final_id", "meta_file", "logging_file", "tracking")
# numbers of a config in whose place a word may stand
NUMBERS_OR = {"fold": ("all",)}
COMPONENT_KEYS = ("_target_", "_disabled_", "_requires_", "_desc_", "_mode_")


def load(
    bundle: str | Path,
    config: str = "inference",
    overrides: Mapping[str, Any] | None = None,
    *,
    where: str = "override",
) -> ConfigParser:
    """Config of a bundle as MONAI's parser, with ``bundle_root`` set to the bundle's absolute folder.

    Args:
        bundle: a bundle's folder or name.
        config: ``inference``, ``train``, or ``evaluate`` (laid over ``train``).
        overrides: id to value; ids spelt with ``::`` or ``#``. A text that starts with ``$``, ``@`` or ``%`` means to
            MONAI what it means in a config, a ``Path`` is a path whatever it starts with.
        where: what the message about an unknown id names as the place of the word.

    Raises:
        UsageError: unknown bundle or config.
        ConfigError: a file that is not YAML or JSON, or an override that names no id of the config.
    """
    folder = bundle_folder(bundle).resolve()
    names = ("train", "evaluate") if config == "evaluate" else (config,)
    files = [config_file(folder, name) for name in names]
    parser = _read(files)
    metadata = folder / "configs" / "metadata.json"
    if metadata.is_file():
        parser.read_meta(_read_json(metadata))
    values = check_overrides(parser, overrides or {}, where=where, file=files[-1])
    if "bundle_root" in parser:
        values.setdefault("bundle_root", inert(folder))
    parser.update(values)
    return parser


def check_overrides(
    parser: ConfigParser, overrides: Mapping[str, Any], *, where: str = "override", file: str | Path = "config"
) -> dict[str, Any]:
    """Overrides with ids spelt with ``::``, each of which names an id of the config or an argument of a component.

    Args:
        parser: the config.
        overrides: id to value.
        where: the place of the words, for the message.
        file: the config's file, for the message.

    Raises:
        ConfigError: an unknown id, with the nearest known one; text or a switch where the config has a number.
    """
    checked = {}
    for word, value in overrides.items():
        name = str(word).replace("#", "::")
        if name not in parser and not _is_argument(parser, name):
            raise ConfigError(
                file, "an override must name an id of this config", f"'{name}' ({where})", _suggestion(parser, name)
            )
        if name in parser:
            _check_kind(parser.get(name), value, name, where)
        checked[name] = inert(value, expressions=True)
    return checked


def _check_kind(default: Any, value: Any, name: str, where: str) -> None:
    """Refuse text in place of a number, and anything but true or false in place of one of these.

    Such a value would fail late, or count as true: ``--amp scan.nii.gz``, ``--overlap`` without a number.
    """
    if value is None or (isinstance(value, str) and value.startswith(SPECIAL)):
        return
    switch = isinstance(default, bool)
    numbers = default if isinstance(default, list) else [default]
    if switch and value not in (True, False):
        rule, remedy = "must be true or false", f"Write --{name}=true"
    elif not switch and numbers and all(isinstance(n, (int, float)) for n in numbers):
        if not isinstance(value, (bool, str)) or value in NUMBERS_OR.get(name, ()) or _is_number(value):
            return
        kind = "a number" if numbers is not default else "numbers"
        rule, remedy = f"must be {kind}, such as {default}", ""
    else:
        return
    raise ConfigError(f"{name} ({where})", rule, repr(value) if isinstance(value, str) else str(value).lower(), remedy)


def _is_number(value: bool | str) -> bool:
    try:
        return isinstance(value, str) and float(value) == float(value)
    except ValueError:
        return False


def _read(files: list[Path]) -> ConfigParser:
    parser = ConfigParser()
    try:
        parser.read_config([str(file) for file in files])
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError, ValueError) as error:
        found = " ".join(str(error).split())
        raise ConfigError(", ".join(str(f) for f in files), "must be YAML or JSON", found) from error
    return parser


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(file))
    except (OSError, ValueError) as error:
        raise ConfigError(file, "must be JSON", " ".join(str(error).split())) from error
    if not isinstance(content, dict):
        raise ConfigError(file, "must be a JSON object", type(content).__name__)
    return content


def _ids(config: Any, prefix: str = "") -> Iterator[str]:
    """Every id of a config, parents before children."""
    children = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in children:
        name = f"{prefix}::{key}" if prefix else str(key)
        yield name
        yield from _ids(value, name)


def _arguments(parser: ConfigParser, component: str) -> tuple[set[str], bool]:
    """Argument names that a component's target takes, and whether it takes any other name too."""
    config = parser.get(component)
    if not isinstance(config, dict) or "_target_" not in config:
        return set(), False
    target = config["_target_"]
    if not isinstance(target, str) or target.startswith(SPECIAL):
        return set(), True  # known only when the config runs
    from pydoc import locate

    path = parser.locator.get_component_module_name(target) if "." not in target else target
    path = path[0] if isinstance(path, list) else path
    found: Any = locate(f"{path}.{target}" if "." not in target and path else target)
    # a class that hands **kwargs on takes its base's arguments too
    makers = (
        [vars(c)["__init__"] for c in found.__mro__ if "__init__" in vars(c)] if inspect.isclass(found) else [found]
    )
    names = set(COMPONENT_KEYS)
    for maker in makers:
        try:
            parameters = inspect.signature(maker).parameters.values()
        except (TypeError, ValueError):
            return set(), True
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            return names, False
    return names, True


def _is_argument(parser: ConfigParser, name: str) -> bool:
    component, separator, argument = name.rpartition("::")
    if not separator or component not in parser:
        return False
    names, any_name = _arguments(parser, component)
    return any_name or argument in names


def _suggestion(parser: ConfigParser, name: str) -> str:
    """The nearest id: among the neighbours of the wrong one, else an id that ends alike, else any."""
    from difflib import get_close_matches

    everything = [i for i in _ids(parser.get()) if not i.startswith("_meta_")]
    parent = name.rpartition("::")[0]
    while parent and parent not in parser:
        parent = parent.rpartition("::")[0]
    depth = parent.count("::") + 1 if parent else 0
    siblings = [i for i in everything if i.count("::") == depth and (not parent or i.startswith(parent + "::"))]
    if parent:
        siblings += [f"{parent}::{a}" for a in _arguments(parser, parent)[0] - set(COMPONENT_KEYS)]
    leaf = name.rpartition("::")[2]
    alike = [i for i in everything if i.rpartition("::")[2] == leaf]
    close = get_close_matches(name, siblings, n=1, cutoff=0.75) or get_close_matches(name, everything, n=1) or alike
    hint = f"Did you mean '{close[0]}'? " if close else ""
    known = sorted({i.rpartition("::")[2] for i in siblings})
    return f"{hint}Known {'in ' + parent if parent else 'at the top'}: {', '.join(known)}"


class BundleWorkflow(ConfigWorkflow):
    """MONAI's workflow over a bundle's folder, whose overrides must name ids of the config.

    Args:
        bundle: a bundle's folder or name.
        run_id: ``training``, ``inferring``, ``evaluating`` or ``run``; decides which config files are read.
        distributed: lay ``multi_gpu_train`` over the training config; by default in a process that torchrun started.
        where: what the message about an unknown id names as the place of the word.
        init_id, final_id, meta_file, logging_file, tracking: as in MONAI's ``ConfigWorkflow``.
        override: id to value; ids spelt with ``::`` or ``#``.

    Raises:
        UsageError: unknown bundle or run id.
        ConfigError: a missing config file, or an override that names no id.
        DataError: no data where the config or ``$DECATHLETE_DATA`` says.
    """

    def __init__(
        self,
        bundle: str | Path,
        run_id: str = "training",
        *,
        distributed: bool | None = None,
        where: str = "override",
        init_id: str = "initialize",
        final_id: str = "finalize",
        meta_file: str | list[str] | None = None,
        logging_file: str | bool | None = None,
        tracking: str | dict | None = None,
        **override: Any,
    ) -> None:
        folder = bundle_folder(bundle).resolve()
        files = config_files(folder, run_id, in_torchrun() if distributed is None else distributed)
        values = _prepared(folder, files, override, where, tracking)
        super().__init__(
            config_file=[str(file) for file in files],
            meta_file=meta_file,
            logging_file=logging_file,
            init_id=init_id,
            run_id=run_id,
            final_id=final_id,
            tracking=tracking,
            workflow_type="infer" if run_id == "inferring" else "train",
            **values,
        )
        self.folder = folder


def _prepared(
    folder: Path, files: list[Path], overrides: Mapping[str, Any], where: str, tracking: str | dict | None = None
) -> dict[str, Any]:
    """Checked overrides, with ``bundle_root`` and the data folder filled in."""
    check_tracking(tracking)
    parser = _read(files)
    values = dict(overrides)
    # ids that only exist once tracking has patched the config
    extra = {k: values.pop(k) for k in list(values) if tracking and k in DEFAULT_EXP_MGMT_SETTINGS["mlflow"]["configs"]}
    values = check_overrides(parser, values, where=where, file=files[-1])
    if "bundle_root" in parser:
        values.setdefault("bundle_root", inert(folder))
    data = data_folder(parser.get("dataset_dir"), overrides.get("dataset_dir"), file=files[-1])
    if data is not None:
        values["dataset_dir"] = inert(data)
    _check_device(values.get("device"))
    return values | extra


def _check_device(device: Any) -> None:
    """Refuse a device that does not exist, before data are read for it."""
    if not isinstance(device, str) or device.startswith(SPECIAL):
        return
    import torch

    try:
        torch.device(device)
    except RuntimeError:
        raise UsageError("--device", "must be a device such as cpu, cuda or cuda:1", f"'{device}'") from None
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError("--device", "the device must be there", f"{device}, without a CUDA GPU", "Leave --device out")


def data_folder(default: Any, given: Any = None, *, file: str | Path = "config") -> Path | None:
    """Folder of a run's data: the given one, else the one of its name in ``$DECATHLETE_DATA``, else the config's.

    Args:
        default: ``dataset_dir`` of the config.
        given: ``dataset_dir`` of the user.
        file: the config's file, for the message.

    Returns:
        The folder, or None where the config has none or computes it.

    Raises:
        DataError: the folder is missing or empty.
    """
    chosen = default if given is None else given
    if not isinstance(chosen, os.PathLike) and (not isinstance(chosen, str) or chosen.startswith(SPECIAL)):
        return None
    folder = Path(chosen).expanduser()
    where, root = f"{file}, dataset_dir", os.environ.get("DECATHLETE_DATA")
    if given is None and root:
        folder = Path(root).expanduser() / folder.name
        where = "$DECATHLETE_DATA"
        if not folder.is_dir() and Path(chosen).is_dir():
            folder = Path(chosen)
    elif given is not None:
        where = "--dataset_dir"
    found = "no such folder" if not folder.is_dir() else "" if any(folder.iterdir()) else "an empty folder"
    if found:
        raise DataError(
            folder,
            f"must be a folder with data ({where})",
            found,
            f"Run 'decathlete data {_task_name(folder.name)}' or pass --dataset_dir",
        )
    return folder


def _task_name(folder: str) -> str:
    """What ``decathlete data`` calls the data set of a folder's name: ``hippocampus`` for ``Task04_Hippocampus``."""
    from decathlete.data import nfbs
    from decathlete.data.tasks import task_of_folder

    task = task_of_folder(folder)
    return task.name if task else nfbs.NAME if nfbs.is_name(folder) else "TASK"


def run(
    run_id: str,
    bundle: str | Path,
    overrides: Mapping[str, Any] | None = None,
    gpus: int | None = None,
    max_restarts: int = 0,
) -> int:
    """Train, predict or evaluate with a bundle, as MONAI's ``run`` does.

    Args:
        run_id: ``training``, ``inferring`` or ``evaluating``.
        bundle: a bundle's folder or name.
        overrides: id of the config to value; also MONAI's own ``tracking``, ``meta_file``, ``logging_file``.
        gpus: start this many processes with torchrun, over ``multi_gpu_train.yaml``.
        max_restarts: with ``gpus``, how often processes that failed are started anew, from the last checkpoint.

    Returns:
        0 when done; with ``gpus``, the exit status of the processes.

    Raises:
        UsageError: unknown bundle, run or id.
        DataError: no data.
        DeviceError: memory or GPUs ran out.
        TrainingError: with ``gpus``, a process that was killed.
        DecathleteError: whatever of ours was raised inside MONAI's engines, freed of its wrapping.
    """
    values = dict(overrides or {})
    if str(values.get("fold", "")).isdecimal():
        values["fold"] = int(values["fold"])
    own = {name: values.pop(name) for name in RUN_ARGUMENTS if values.get(name) is not None}
    if gpus is not None and gpus < 1:
        raise UsageError("--gpus", "must be 1 or more", str(gpus), "Leave it out to train in one process")
    if gpus and not in_torchrun():
        return _launch(run_id, bundle, values, own, gpus, max_restarts)
    workflow = None
    logging.getLogger("monai.bundle.workflows").setLevel(logging.WARNING)  # tells the path of the logging file
    with short_log():
        try:
            workflow = BundleWorkflow(bundle, run_id, where="command line", **own, **values)
            workflow.initialize()
            workflow.run()
            workflow.finalize()
        except Exception as error:
            ours = find_error(error)
            if ours is None and is_out_of_memory(error):
                ours = _out_of_memory(error, workflow)
                ours.__cause__ = error
            if in_torchrun() and int(os.environ["WORLD_SIZE"]) > 1:
                from decathlete.training.faults import fail_together

                fail_together(ours or error)
            if ours is None:
                raise
            raise ours from ours.__cause__ if ours is error or is_out_of_memory(error) else None
    return 0


def _launch(run_id: str, bundle: str | Path, values: dict, own: dict, gpus: int, max_restarts: int) -> int:
    """Start ``gpus`` processes of this very run; mistakes are found before, so that they are told once."""
    import torch

    folder = bundle_folder(bundle).resolve()
    if run_id != "training":
        raise UsageError("--gpus", "only training runs in several processes", run_id, "Leave --gpus out")
    if torch.cuda.is_available() and gpus > torch.cuda.device_count():
        raise DeviceError(
            "--gpus",
            "must not exceed the GPUs of this machine",
            f"{gpus}, with {torch.cuda.device_count()} here",
            "Use fewer",
        )
    files = config_files(folder, run_id, True)
    parser = _read(files)
    values = _prepared(folder, files, values, "command line", own.get("tracking"))  # JSON knows no paths
    parser.update(values)
    _check_cases(parser, gpus, files[0])
    job = json.dumps([run_id, str(folder), values | own], default=str)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # frames of a store that has ended
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // gpus)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the line below says it
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=gpus,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "decathlete.workflow", job)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise TrainingError(folder.name, "the training must go on", error.sigval.name, "Go on with --resume") from None
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        if any("extraInfo" in failure.error_file_data["message"] for failure in error.failures.values()):
            return 1  # the process itself told it
        found = first.signal_name() if first.exitcode < 0 else f"exit status {first.exitcode}"
        raise TrainingError(f"{folder.name}, process {rank} of {gpus}", "must run to the end", found,
                            "SIGKILL often means that memory ran out; go on with --resume") from None  # fmt: skip
    return 0


def _check_cases(parser: ConfigParser, processes: int, file: Path) -> None:
    """Look up the cases, whose absence is an error, and refuse fewer of them than processes."""
    for name in ("train::dataset::data", "validate::dataset::data"):
        try:
            cases = parser.get_parsed_content(name) if name in parser else None
        except Exception as error:
            if (ours := find_error(error)) is not None:
                raise ours from None
            raise
        if isinstance(cases, list) and len(cases) < processes and name.startswith("train::"):
            raise DataError(f"{file}, {name}", "each process needs a case", f"{len(cases)} for {processes} processes",
                            f"Pass --gpus {max(1, len(cases))}, or add cases")  # fmt: skip


def _out_of_memory(error: BaseException, workflow: BundleWorkflow | None) -> DeviceError:
    """The device, what was asked of it, and the smaller setting to try."""

    def setting(*names: str) -> tuple[str, Any] | None:
        for name in names:
            value = workflow.parser.get(name) if workflow is not None else None
            if isinstance(value, (int, list)):
                return name, value
        return None

    infer = workflow is not None and workflow.run_id == "inferring"
    batch = setting("sw_batch_size", "inferer::sw_batch_size") if infer else setting("batch_size")
    patch = setting("roi_size", "inferer::roi_size", "patch_size") if infer else setting("patch_size")
    found = ", ".join(f"{name} {value}" for name, value in filter(None, (batch, patch)))
    if batch and isinstance(batch[1], int) and batch[1] > 1:
        remedy = f"Try --{batch[0]} {batch[1] // 2}"
    elif infer and batch is None:  # the inferer's own choice: several on a GPU
        remedy = "Try --inferer::sw_batch_size 1, or --device cpu"
    else:
        remedy = f"Try a smaller {patch[0] if patch else 'patch_size'}, or --device cpu"
    return DeviceError("memory", "the work must fit into the memory of the device", found or str(error), remedy)


def _child(argument: str) -> int:
    """One process of ``--gpus``: the run as JSON, errors of one line."""
    run_id, folder, values = json.loads(argument)
    quiet()
    try:
        return run(run_id, folder, values)
    except DecathleteError as error:  # of one process alone; several tell theirs together
        print(f"decathlete: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1]))
