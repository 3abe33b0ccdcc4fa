"""Speed on the machines that people have: beside other programs, and from the start of the process.

    python benchmarks/people.py busy --dataset_dir data/Task04_Hippocampus [--busy 0 2 4] [--before OTHER_CHECKOUT]
    python benchmarks/people.py start --dataset_dir data/Task04_Hippocampus --before OTHER_CHECKOUT

`busy`: wall time of 20 training iterations and one prediction of the hippocampus, beside processes that compute without
end, over that of an idle machine. `start`: CPU time of a process `decathlete predict` of one scan, over that of another
checkout. Both print the flags of the CPU that decide the speed. Cases and checkouts take turns; the fastest run counts.
Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
WARM, ITERATIONS = 5, 20
LIMITS = {2: 2.6, 4: 4.5}  # busy processes beside two cores: wall time over that of an idle machine
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["busy", "start", "worker"])
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--before", type=Path, help="another checkout, with its own .venv, to compare with")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2, 4])
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    if options.what == "worker":
        print(json.dumps(work(options.dataset_dir)))
        return
    print(f"CPU: {', '.join(cpu_flags())}; {len(os.sched_getaffinity(0))} cores; load {os.getloadavg()[0]:.1f}")
    checkouts = {"now": ROOT} | ({"before": options.before.resolve()} if options.before else {})
    (busy if options.what == "busy" else start)(options, checkouts)


def cpu_flags() -> list[str]:
    """The flags of `FLAGS` that this CPU has."""
    text = Path("/proc/cpuinfo").read_text(encoding="ascii")
    return [flag for flag in FLAGS if re.search(rf"\b{flag}\b", text)]


def busy(options: argparse.Namespace, checkouts: dict[str, Path]) -> None:
    """Print seconds beside each number of busy processes, and what they are over the idle ones."""
    fastest: dict[tuple[str, int], float] = {}
    for _ in range(options.repeat):
        for number in options.busy:
            for name, checkout in checkouts.items():
                others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
                try:
                    seconds = sum(run_worker(checkout, options.dataset_dir))
                finally:
                    for other in others:
                        other.kill()
                        other.wait()
                fastest[name, number] = min(seconds, fastest.get((name, number), float("inf")))
    for (name, number), seconds in sorted(fastest.items()):
        idle = fastest.get((name, 0))
        ratio = f"{seconds / idle:5.2f} of idle" if idle else ""
        limit = f", at most {LIMITS[number]}" if number in LIMITS and name == "now" else ""
        print(f"{name:<7} beside {number} busy processes: {seconds:7.2f} s {ratio}{limit}")
    if ("before", 0) in fastest:
        print(f"idle, now over before: {fastest['now', 0] / fastest['before', 0]:.3f}, at most 1.03")


def run_worker(checkout: Path, data: Path) -> list[float]:
    """Seconds of training and of prediction in a process of a checkout, which decides itself how threads wait."""
    command = [str(checkout / ".venv/bin/python"), __file__, "worker", "--dataset_dir", str(data.resolve())]
    environ = {name: value for name, value in os.environ.items() if name not in WAITING}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=checkout, env=environ)
    return json.loads(done.stdout.splitlines()[-1])


def work(data: Path) -> list[float]:
    """Seconds of `ITERATIONS` training iterations, and of a prediction, both after the first ones."""
    import decathlete  # before torch, as the command does  # isort: skip
    import nibabel
    from ignite.engine import Events

    from decathlete.workflow import BundleWorkflow

    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        workflow = BundleWorkflow(
            "hippocampus", dataset_dir=data, output_dir=folder, max_epochs=1,
            **{"train::trainer::epoch_length": WARM + ITERATIONS, "train::handlers": []},
        )  # fmt: skip
        workflow.initialize()
        trainer = workflow.parser.get_parsed_content("train::trainer")
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: marks.append(time.perf_counter()))
        trainer.run()
    scan = nibabel.load(sorted((data / "imagesTr").glob("hippocampus_*.nii.gz"))[0])
    predictor = decathlete.Predictor("hippocampus")
    array = scan.get_fdata(dtype="float32")
    predictor(array, scan.affine)
    begun = time.perf_counter()
    predictor(array, scan.affine)
    return [marks[-1] - marks[WARM - 1], time.perf_counter() - begun]


def start(options: argparse.Namespace, checkouts: dict[str, Path]) -> None:
    """Print the CPU time of one prediction in a process of its own, for each checkout."""
    scan = sorted((options.dataset_dir.resolve() / "imagesTr").glob("hippocampus_*.nii.gz"))[0]
    fastest: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repeat):
            for name, checkout in checkouts.items():
                command = [str(checkout / ".venv/bin/decathlete"), "predict", "hippocampus", str(scan), "--overwrite"]
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                subprocess.run([*command, "--output", folder], check=True, stderr=subprocess.DEVNULL)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                fastest[name] = min(seconds, fastest.get(name, float("inf")))
    for name, seconds in fastest.items():
        print(f"{name:<7} one hippocampus, CPU time of the process: {seconds:.2f} s")
    if "before" in fastest:
        print(f"now over before: {fastest['now'] / fastest['before']:.2f}, at most 0.5")


if __name__ == "__main__":
    main()
