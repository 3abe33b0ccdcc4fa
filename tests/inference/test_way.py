"""The way of one scan through the files of the package, followed from the command line to the label map."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from decathlete.cli import main
from tests.test_layers import modules, place

HOLD_THE_SCAN = ("Volume", "Prediction", "Inputs", "Case")
PROPERTIES = ("label", "spacing")  # of these: no steps


def is_scan(value: Any, scan: Path, deep: int = 2) -> bool:
    """Whether a value is the scan in any form: its path, an array, what holds it, or a collection of these."""
    kind = type(value).__name__
    if isinstance(value, (str, Path)):
        return str(value) == str(scan)
    if kind in ("ndarray", "Tensor", "MetaTensor"):
        return value.ndim >= 3 and "meta" not in str(getattr(value, "device", ""))
    if deep and isinstance(value, dict):
        return any(is_scan(item, scan, deep - 1) for item in [*value][:3] + [*value.values()][:6])
    if deep and isinstance(value, (list, tuple)):
        return any(is_scan(item, scan, deep - 1) for item in value[:4])
    return kind in HOLD_THE_SCAN


class Way:
    """Steps from one file into another by a call whose arguments hold the scan; all networks are one file."""

    def __init__(self, scan: Path) -> None:
        self.scan, self.stack, self.steps, self.resumed = scan, [], [], set()
        self.files = {str(file): module for module, file in modules().items()}

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code, module = frame.f_code, self.files.get(frame.f_code.co_filename)
        if module is None or event not in ("call", "return") or code.co_name in ("<module>", *PROPERTIES):
            return
        if event == "return":
            if any(frame is other for _, other in self.stack):
                while self.stack.pop()[1] is not frame:
                    pass
            return
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4)]
        values = [frame.f_locals.get(name) for name in names]
        weights = any(isinstance(v, dict) and "weight" in " ".join(map(str, v)) for v in values)
        if not weights and any(is_scan(value, self.scan) for value in values):
            module = "decathlete.networks" if module.startswith("decathlete.networks") else module
            before = self.stack[-1][0] if self.stack else None
            if before != module and frame not in self.resumed:
                self.steps.append((before, module))
            if code.co_flags & inspect.CO_GENERATOR:  # the rest of a `with` block's function is no second entry
                self.resumed.add(frame)
            self.stack.append((module, frame))


@pytest.mark.slow
def test_a_scan_enters_no_file_often_and_seldom_climbs(shared, tmp_path):
    scan = sorted((shared / "data" / "Task04_Hippocampus" / "imagesTr").glob("*.nii.gz"))[0]
    words = ["predict", "hippocampus", str(scan), "--output", str(tmp_path / "out")]
    way = Way(scan)
    sys.setprofile(way)
    try:
        status = main(words)
    finally:
        sys.setprofile(None)
    assert status == 0
    climbs = [step for step in way.steps if step[0] and place(step[1])[0] > place(step[0])[0]]
    assert len(climbs) <= 8, climbs
    entered = Counter(module for _, module in way.steps)
    assert max(entered.values()) <= 4, entered
    assert {"decathlete.inference.way", "decathlete.transforms.restore", "decathlete.io.write"} <= {*entered}
