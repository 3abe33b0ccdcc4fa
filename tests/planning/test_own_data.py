"""docs/own_data.md, followed command by command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own_data.md"


@pytest.mark.slow
def test_the_pages_commands_lead_from_a_folder_of_scans_to_scores_and_label_maps(tmp_path):
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {k: v for k, v in os.environ.items() if k != "DECATHLETE_DATA"} | {"PATH": path, "OMP_NUM_THREADS": "1"}
    for block in blocks:
        done = subprocess.run(
            ["bash", "-ec", block], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    summary = json.loads((tmp_path / "runs/my_brains/fold_0/summary.json").read_text())
    assert summary
    scan = sorted((tmp_path / "data/MyBrains/imagesTr").glob("*.nii.gz"))[0]
    assert nib.load(tmp_path / "predictions" / scan.name).shape == nib.load(scan).shape
