"""Times of MONAI Label's server: start, one prediction, twenty at a time with ``/info/`` asked for meanwhile.

    python benchmarks/label_server.py --output label_server.json
    python benchmarks/label_server.py --bundle hippocampus --studies data/Task04_Hippocampus/imagesTr --parallel 20

Needs the environment of ``decathlete serve --setup``. Without ``--studies`` the images are phantoms. The first
prediction loads the network; the median of the next ones is the time that a viewer waits. The server answers on this
machine, so that no network is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from decathlete.data import make_phantoms
from decathlete.files import atomic_write, nifti_files, strip_nifti_suffix

BOUNDS = {
    "server up": 15.0,
    "first prediction": 3.0,
    "/info/ meanwhile, longest": 1.0,
}  # seconds that must not be exceeded


def main() -> int:
    """Start the server, measure, print a table; 1 if a bound is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="hippocampus")
    parser.add_argument("--studies", help="folder of NIfTI images that the bundle predicts")
    parser.add_argument("--parallel", type=int, default=20)
    parser.add_argument("--output", help="JSON")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        studies = Path(folder, "studies")
        studies.mkdir()
        source = Path(a.studies) if a.studies else make_phantoms(a.bundle, 8, folder) / "imagesTr"
        for image in nifti_files(source)[:20]:
            shutil.copy(image, studies)
        seconds_of = measure(a.bundle, studies, Path(folder, "app"), a.parallel)
    for name, seconds in seconds_of.items():
        bound = f"   (at most {BOUNDS[name]:g})" if name in BOUNDS else ""
        print(f"{name:32} {seconds:8.2f} s{bound}")
    content = {"seconds": seconds_of, "bundle": a.bundle, "parallel": a.parallel, "machine": machine()}
    if a.output:
        with atomic_write(a.output) as part:
            part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return int(any(seconds_of[name] > bound for name, bound in BOUNDS.items()))


def measure(bundle: str, studies: Path, folder: Path, parallel: int) -> dict[str, float]:
    """Seconds of each step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "decathlete.cli", "serve", bundle, "--studies", str(studies)]
    start = time.monotonic()
    with (folder.parent / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--folder", str(folder), "--port", str(port)], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        while not _answers(f"{address}/info/"):
            if process.poll() is not None or time.monotonic() - start > 120:
                raise SystemExit((folder.parent / "log").read_text())
            time.sleep(0.05)
        seconds_of = {"server up": time.monotonic() - start}
        images = [strip_nifti_suffix(file.name) for file in nifti_files(studies)]
        place = f"{address}/infer/{bundle}?output=image&image="
        seconds_of["first prediction"] = _seconds(Request(place + images[0], method="POST"))
        alone = [_seconds(Request(place + image, method="POST")) for image in images]
        seconds_of["a prediction, median"] = statistics.median(alone)
        return seconds_of | _at_a_time(place, images, f"{address}/info/", parallel)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _at_a_time(place: str, images: list[str], info: str, parallel: int) -> dict[str, float]:
    waits: list[float] = []
    busy = threading.Event()
    busy.set()

    def ask() -> None:
        while busy.is_set():
            waits.append(_seconds(Request(info)))
            time.sleep(0.02)

    watcher = threading.Thread(target=ask)
    start = time.monotonic()
    with ThreadPoolExecutor(parallel) as pool:
        requests = [Request(place + images[n % len(images)], method="POST") for n in range(parallel)]
        work = [pool.submit(_seconds, request) for request in requests]
        watcher.start()
        longest = max(one.result() for one in work)
        total = time.monotonic() - start
        busy.clear()
    watcher.join()
    return {
        f"{parallel} at a time, all": total,
        f"{parallel} at a time, longest": longest,
        "/info/ meanwhile, median": statistics.median(waits),
        "/info/ meanwhile, longest": max(waits),
    }


def _seconds(request: Request) -> float:
    start = time.monotonic()
    with urlopen(request, timeout=300) as answer:  # status other than 200 is an error
        answer.read()
    return time.monotonic() - start


def _answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except (URLError, ConnectionError, TimeoutError):
        return False


def machine() -> dict[str, Any]:
    """What the times were taken on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    sys.exit(main())
