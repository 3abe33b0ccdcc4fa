"""The jobs of docs/many_gpus.md: their syntax, and that torchrun and our command take their arguments."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from decathlete.bundle import packaged_root
from decathlete.cli import parse
from decathlete.data import fetch, make_phantoms
from decathlete.data.tasks import TASKS

_path = Path(__file__).parent.parent / "bundles" / "small.py"
_spec = importlib.util.spec_from_file_location("small", _path)
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)
SMALL = {
    "lung": {**small.SLICES["lung"], "drop_mm": 0},
    "nfbs": {"spacing": [5, 5, 5], "head_size": [48, 48, 64], "patch_size": [48, 48, 64], "roi_size": [48, 48, 64],
             "bias_correction": False},
    "sunnybrook": {"crop_size": [96, 96, -1], "roi_size": [96, 96]},
}  # fmt: skip


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "many_gpus.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def check_command(words: list[str]) -> None:
    """Refuse what torchrun or our command would."""
    if words[0] == "torchrun":
        known = get_args_parser().parse_args(words[1:])
        assert known.module
        if known.training_script == "monai.bundle":
            return
        assert known.training_script == "decathlete.cli"
        words = ["decathlete", *known.training_script_args]
    assert words[0] == "decathlete"
    arguments = parse(words[1:])
    assert not arguments.overrides or arguments.verb == "run"


def test_every_command_of_the_page_is_one(page):
    lines = [shlex.split(line, comments=True) for block in blocks(page, "sh") for line in block.splitlines()]
    assert len(lines) >= 7
    for words in lines:
        check_command(words)


def test_slurm_jobs_are_shell_and_their_commands_are_right(page):
    jobs = blocks(page, "bash")
    assert len(jobs) == 2
    for job in jobs:
        assert subprocess.run(["bash", "-n"], input=job, text=True).returncode == 0
        options = re.findall(r"^#SBATCH --([a-z-]+)(?:=\S+)?(?: +#.*)?$", job, flags=re.MULTILINE)
        assert len(options) == job.count("#SBATCH")
        command = job.replace("\\\n", " ").replace('"$SLURM_JOB_NUM_NODES"', "2").strip().splitlines()[-1]
        words = shlex.split(command)
        check_command(words[words.index("torchrun") :] if "torchrun" in words else words)


def test_kubernetes_jobs_are_whole_and_their_commands_are_right(page):
    documents = [d for block in blocks(page, "yaml") for d in yaml.safe_load_all(block)]
    assert [d["kind"] for d in documents] == ["Service", "Job", "Job"]
    for job in documents[1:]:
        spec = job["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in spec["volumes"]}
        assert spec["restartPolicy"] == "OnFailure"
        check_command(container["command"] + container["args"])
    service, training = documents[:2]
    pod = training["spec"]["template"]["spec"]
    (name,) = {service["metadata"]["name"], training["metadata"]["name"], pod["subdomain"]}
    (port,) = service["spec"]["ports"]
    endpoint = f"--rdzv-endpoint={name}-0.{name}:{port['port']}"
    assert endpoint in pod["containers"][0]["args"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    fetch("hippocampus", folder, phantom=8)
    return folder / "Task04_Hippocampus"


def agents(data: Path, output: Path, epochs: int) -> list[subprocess.Popen]:
    """Two torchruns of one process each, as on two machines, that meet on loopback."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    start = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "pair"]
    start += ["--rdzv-endpoint", f"localhost:{port}", "-m", "decathlete.cli"]
    small = ["--batch_size", "1", "--patch_size", "[32,32,32]", "--margin_size", "[36,36,36]", "--roi_size"]
    small += ["[32,32,32]", "--network_def::channels", "[4,8,8,8]", "--train::handlers::0::every_s", "0"]
    run = ["run", "training", "--config", "hippocampus", "--dataset_dir", str(data), "--output_dir", str(output)]
    command = [sys.executable, "-m", "torch.distributed.run", *start, *run, *small, "--max_epochs", str(epochs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spleen", "lung", "nfbs", "sunnybrook"])
def test_bundles_of_each_kind_train_in_two_processes(tmp_path, name):
    """3D patches with deep supervision, slices drawn by foreground, heads, frames of which some have one contour."""
    task = TASKS.get(name)
    made = make_phantoms(task, 5, tmp_path, shape=(48, 40, 24)) if task else fetch(name, tmp_path, phantom=5)
    bundle = packaged_root() / name
    values = {"patch_size": small.patch_of(bundle), "batch_size": 1, **small.slim(bundle), **SMALL.get(name, {})}
    words = [w for key, value in values.items() for w in (f"--{key}", json.dumps(value))]
    command = [sys.executable, "-m", "decathlete.cli", "run", "training", "--config", name, "--gpus", "2"]
    command += ["--max_epochs", "1", "--dataset_dir", str(made), "--output_dir", str(tmp_path / "run"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "validation: epoch 1" in done.stderr
    assert {"model.pt", "model_final.pt", "last.pt"} <= {p.name for p in (tmp_path / "run").iterdir()}


@pytest.mark.slow
def test_two_torchruns_that_meet_train_one_network(data, tmp_path):
    pair = agents(data, tmp_path, 2)
    texts = [agent.communicate(timeout=240)[1] for agent in pair]
    assert [agent.returncode for agent in pair] == [0, 0], texts
    assert "".join(texts).count("holds the weights") == 1
    assert (tmp_path / "model_final.pt").is_file()


@pytest.mark.slow
def test_a_killed_torchrun_ends_the_training_on_the_other_machine(data, tmp_path):
    pair = agents(data, tmp_path, 100000)
    until = time.monotonic() + 240
    while not (tmp_path / "last.pt").is_file() and time.monotonic() < until:
        time.sleep(0.1)
    pair[1].kill()
    texts = [agent.communicate(timeout=120)[1] for agent in pair]
    assert pair[0].returncode != 0
    messages = [line for line in "\n".join(texts).splitlines() if line.startswith("decathlete: process")]
    assert messages, texts
