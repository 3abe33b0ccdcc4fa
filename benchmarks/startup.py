"""Start-up times: what the short form's line costs Python, and how fast the package and its command answer.

    python benchmarks/startup.py [--repeat 20] [--output startup.json]

Prints a table and writes it as JSON. Each time is the median over complete processes, files already in memory; the
cases take turns, so that a machine's changing load meets all of them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from decathlete.files import atomic_write

PTH = "decathlete_short_form.pth"


def start_line() -> str:
    """The line that setup.py puts into site-packages."""
    source = (Path(__file__).resolve().parent.parent / "setup.py").read_text()
    scope: dict[str, str] = {}
    exec(source[source.index("PTH_NAME") : source.index("class BuildWithPth")], scope)
    return scope["PTH_LINE"]


def cases(folder: Path) -> dict[str, list[str]]:
    """Command line of each case. Site folders are added by hand to an interpreter that reads no others."""
    (folder / "without").mkdir()
    (folder / "with").mkdir()
    (folder / "with" / PTH).write_text(start_line())
    bare = [sys.executable, "-S", "-c"]
    add = "import site; site.addsitedir({!r})"
    return {
        "python, without the line": [*bare, add.format(str(folder / "without"))],
        "python, with the line": [*bare, add.format(str(folder / "with"))],
        "python, as installed": [sys.executable, "-c", "pass"],
        "import decathlete": [sys.executable, "-c", "import decathlete"],
        "decathlete --help": [sys.executable, "-m", "decathlete.cli", "--help"],
        "short form, translation alone": [
            sys.executable,
            "-c",
            "from decathlete.short_form import translate; translate(['run', 'training', '--config', 'hippocampus'])",
        ],
    }


def measure(commands: dict[str, list[str]], repeat: int) -> dict[str, list[float]]:
    """Seconds of every run of every case."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(repeat + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if turn:  # the first turn brings the files into memory
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Start-up times of the package, its command and its start line.")
    parser.add_argument("--repeat", type=int, default=20, metavar="N", help="runs of each case (default: 20)")
    parser.add_argument("--output", default="startup.json", metavar="JSON", help="file of the table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(cases(Path(folder)), arguments.repeat)
    rows = [
        {"case": name, "median_s": statistics.median(runs), "fastest_s": min(runs), "slowest_s": max(runs)}
        for name, runs in seconds.items()
    ]
    machine = {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()}
    print(f"{'case':<32}{'median':>10}{'fastest':>10}{'slowest':>10}  ms")
    for row in rows:
        times = "".join(f"{1000 * row[key]:>10.1f}" for key in ("median_s", "fastest_s", "slowest_s"))
        print(f"{row['case']:<32}{times}")
    with atomic_write(arguments.output) as part:
        part.write_text(json.dumps({"machine": machine, "repeat": arguments.repeat, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
