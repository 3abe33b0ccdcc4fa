"""A quick look at an installed decathlete, from outside the checkout: imports, helps, a training, a prediction."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np

import decathlete
from decathlete.cli import _parser

# packages that extras, or MONAI Label's environment, bring
OTHERS = {"monailabel", "fastapi", "pydicom_seg", "dicomweb_client", "highdicom", "SimpleITK", "starlette"}


def main(env: Path) -> int:
    """Exit status: 0 where all went well."""
    faults = []
    warnings.simplefilter("ignore")
    for module in pkgutil.walk_packages(decathlete.__path__, "decathlete."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            if (error.name or "").partition(".")[0] not in OTHERS:
                faults.append(f"import {module.name}: {error}")
        except Exception as error:
            faults.append(f"import {module.name}: {type(error).__name__}: {error}")
    command = env / "bin" / "decathlete"
    work = env / "work"
    data, out = work / "Task04_Hippocampus", work / "predictions"
    scan = data / "imagesTr" / "hippocampus_001.nii.gz"
    calls = [[verb, "--help"] for verb in _parser().verbs]
    calls += [
        ["data", "hippocampus", "--phantom", "6", "--output", work],
        [
            "run",
            "training",
            "--config",
            "hippocampus",
            "--dataset_dir",
            data,
            "--output_dir",
            work / "run",
            "--max_epochs=1",
        ],
        ["predict", "hippocampus", data / "imagesTr", "--output", out, "--report", work / "page.html"],
        ["view", scan, "--output", work / "film.gif"],
        ["evaluate", "hippocampus", "--prediction", out, "--label", data / "labelsTr"],
    ]
    for words in calls:
        done = subprocess.run([command, *words], capture_output=True, text=True)
        if done.returncode:
            faults.append(f"decathlete {' '.join(map(str, words))}: {(done.stderr or done.stdout).strip()[-1000:]}")
    maps = list(out.glob("*.nii.gz"))
    if not maps or not all(np.asarray(nib.load(file).dataobj).any() for file in maps):
        faults.append(f"{len(maps)} label maps, or empty ones")
    print("\n".join([*faults, f"{env.name}: {'not ok' if faults else 'ok'}"]), flush=True)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
