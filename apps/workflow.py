"""A bundle's folder as a MONAI workflow: the right config files, checked overrides, errors of one line."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

from decathlete.bundle import bundle_folder, config_files
from decathlete.bundle.configs import read_configs
from decathlete.bundle.overrides import check_overrides
from decathlete.bundle.tracking import check_tracking
from decathlete.data.folders import data_folder
from decathlete.distributed.torchrun import in_torchrun
from decathlete.errors import DataError, DecathleteError, DeviceError, TrainingError, UsageError
from decathlete.failures import find_error, is_out_of_memory, short_log
from decathlete.machine import let_segments_grow
from decathlete.names import SPECIAL, inert
from decathlete.quiet import quiet
from decathlete.threads import share_threads

# arguments of MONAI's own `run`, not ids of a config
RUN_ARGUMENTS = ("init_id", "final_id", "meta_file", "logging_file", "tracking")


class BundleWorkflow(ConfigWorkflow):
    """MONAI's workflow over a bundle's folder, whose overrides must name ids of the config.

    Args:
        bundle: a bundle's folder or name.
        run_id: ``training``, ``inferring``, ``evaluating`` or ``run``; decides which config files are read.
        distributed: lay ``multi_gpu_train`` over the training config; by default in a process that torchrun started.
        where: where the overrides stand, for the message about an unknown id.
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
    parser = read_configs(files)
    values = dict(overrides)
    # ids that only exist once tracking has patched the config
    extra = {k: values.pop(k) for k in list(values) if tracking and k in DEFAULT_EXP_MGMT_SETTINGS["mlflow"]["configs"]}
    values = check_overrides(parser.config, values, where=where, file=files[-1])
    if "bundle_root" in parser:
        values.setdefault("bundle_root", inert(folder))
    data = data_folder(parser.get("dataset_dir"), overrides.get("dataset_dir"), file=files[-1])
    if data is not None:
        values["dataset_dir"] = inert(data)
    _check_device(values.get("device"))
    return values | extra


def _check_device(device: Any) -> None:
    """Refuse a device that does not exist before the data are read."""
    if not isinstance(device, str) or device.startswith(SPECIAL):
        return
    import torch

    try:
        torch.device(device)
    except RuntimeError:
        raise UsageError("--device", "expected a device such as cpu, cuda or cuda:1", f"'{device}'") from None
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError("--device", "this machine has no CUDA GPU", device, "Leave --device out")


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
        max_restarts: with ``gpus``, how often failed processes are restarted from the last checkpoint.

    Returns:
        0 when done; with ``gpus``, the exit status of the processes.

    Raises:
        UsageError: unknown bundle, run or id.
        DataError: no data.
        DeviceError: memory or GPUs ran out.
        TrainingError: with ``gpus``, a process that was killed.
        DecathleteError: an error of ours that was raised inside MONAI's engines, unwrapped.
    """
    values = dict(overrides or {})
    own = {name: values.pop(name) for name in RUN_ARGUMENTS if values.get(name) is not None}
    if gpus is not None and gpus < 1:
        raise UsageError("--gpus", "expected 1 or more", str(gpus), "Leave it out to train in one process")
    if gpus and not in_torchrun():
        return _launch(run_id, bundle, values, own, gpus, max_restarts)
    let_segments_grow()
    workflow = None
    logging.getLogger("monai.bundle.workflows").setLevel(logging.WARNING)  # logs the path of the logging file
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
                from decathlete.distributed.faults import fail_together

                fail_together(ours or error)
            if ours is None:
                raise
            raise ours from ours.__cause__ if ours is error or is_out_of_memory(error) else None
    return 0


def _launch(run_id: str, bundle: str | Path, values: dict, own: dict, gpus: int, max_restarts: int) -> int:
    """Start ``gpus`` processes of this very run; mistakes are found before, so that they are reported once."""
    import torch

    folder = bundle_folder(bundle).resolve()
    if run_id != "training":
        raise UsageError(
            "--gpus", "only a training can run in several processes", f"this run is {run_id}", "Leave --gpus out"
        )
    if torch.cuda.is_available() and gpus > torch.cuda.device_count():
        raise DeviceError(
            "--gpus",
            f"this machine has {torch.cuda.device_count()} GPUs",
            f"{gpus} requested",
            "Use fewer",
        )
    files = config_files(folder, run_id, True)
    parser = read_configs(files)
    values = _prepared(folder, files, values, "command line", own.get("tracking"))  # JSON knows no paths
    parser.update(values)
    _check_cases(parser, gpus, files[0])
    job = json.dumps([run_id, str(folder), values | own], default=str)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # frames of a store that has ended
    share_threads(gpus)
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
        raise TrainingError(
            folder.name, "the training was interrupted", error.sigval.name, "Resume it with --resume"
        ) from None
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        if any("extraInfo" in failure.error_file_data["message"] for failure in error.failures.values()):
            return 1  # the process itself reported it
        found = first.signal_name() if first.exitcode < 0 else f"exit status {first.exitcode}"
        raise TrainingError(f"{folder.name}, process {rank} of {gpus}", "the process failed", found,
                            "SIGKILL often means that memory ran out. Resume with --resume") from None  # fmt: skip
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
            raise DataError(f"{file}, {name}", "fewer cases than processes", f"{len(cases)} for {processes} processes",
                            f"Pass --gpus {max(1, len(cases))}, or add cases")  # fmt: skip


def _out_of_memory(error: BaseException, workflow: BundleWorkflow | None) -> DeviceError:
    """The settings that need the memory, and a smaller one to try."""

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
    return DeviceError("memory", "out of memory on the device", found or str(error), remedy)


def _child(argument: str) -> int:
    """One process of ``--gpus``: the run as JSON, errors of one line."""
    run_id, folder, values = json.loads(argument)
    quiet()
    try:
        return run(run_id, folder, values)
    except DecathleteError as error:  # of one process alone; several report theirs together
        print(f"decathlete: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1]))
