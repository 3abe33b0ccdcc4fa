"""Our bundles in MONAI Label's own app for bundles, with the requests of 3D Slicer's module."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from decathlete.bundle import bundle_names, packaged_root
from decathlete.data import make_phantoms
from decathlete.data.nfbs import list_heads
from decathlete.inference.predictor import Predictor
from decathlete.phantoms.heads import make_heads

pytestmark = pytest.mark.label

APP = """
from importlib.metadata import files
for file in files("monailabel"):
    if str(file).endswith("sample-apps/monaibundle/main.py"):
        print(file.locate())
"""
WITH_WEIGHTS = sorted(file.parent.parent.name for file in packaged_root().glob("*/models/model.pt"))


@pytest.fixture(scope="module")
def app(label_environment, tmp_path_factory) -> Path:
    """A copy of the app as it comes with MONAI Label, over all packaged bundles and one without weights."""
    found = subprocess.run([str(label_environment), "-c", APP], capture_output=True, text=True, check=True).stdout
    if not found:
        pytest.skip("MONAI Label's package here lacks its app monaibundle: `monailabel apps` lists what there is")
    copy = shutil.copytree(Path(found.strip()).parent, tmp_path_factory.mktemp("stock") / "monaibundle")
    for name in bundle_names():
        shutil.copytree(packaged_root() / name, copy / "model" / name)
    shutil.copytree(packaged_root() / "hippocampus", copy / "model" / "mine", ignore=shutil.ignore_patterns("models"))
    return copy


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> dict[str, Path]:
    """An image for each bundle with weights."""
    root = tmp_path_factory.mktemp("images")
    hearts = make_phantoms("heart", 1, root / "heart", shape=(64, 64, 16)) / "imagesTr"
    found = {
        "hippocampus": sorted((make_phantoms("hippocampus", 3, root / "hippocampus") / "imagesTr").glob("*.nii.gz"))[0],
        "heart": next(hearts.glob("*.nii.gz")),
        "nfbs": Path(list_heads(make_heads(1, root / "heads"))[0]["image"]),
        "sunnybrook": root / "frame.nii.gz",
    }
    heart = nib.load(found["heart"])
    nib.save(heart.slicer[:, :, 8:9], found["sunnybrook"])
    return found | {"heart_3d": found["heart"]}


@pytest.fixture(scope="module")
def stock(app, images, label_environment, run_server):
    """The app's server over these images, and over three labelled ones of the hippocampus."""
    studies = app.parent / "studies"
    studies.mkdir()
    for name, image in images.items():
        shutil.copy(image, studies / f"{name}.nii.gz")
    hippocampi = images["hippocampus"].parent
    final = studies / "labels" / "final"
    final.mkdir(parents=True)
    for image in hippocampi.glob("*.nii.gz"):
        shutil.copy(image, studies)
        shutil.copy(hippocampi.parent / "labelsTr" / image.name, final)
    # its post-processing imports torchvision, of which bundles need nothing
    stand_in = app.parent / "stand_in" / "torchvision"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").touch()
    (stand_in / "utils.py").write_text("make_grid = save_image = None\n")
    environ = {**os.environ, "PYTHONPATH": str(stand_in.parent), "MONAI_LABEL_AUTO_UPDATE_SCORING": "false"}
    environ["PATH"] = os.pathsep.join([str(label_environment.parent), environ["PATH"]])
    command = [str(label_environment), "-m", "monailabel.main", "start_server", "--app", str(app)]
    command += ["--studies", str(studies), "--host", "127.0.0.1", "--conf", "zoo_source", "ngc"]  # no download
    command += ["--conf", "models", ",".join([*bundle_names(), "mine"])]
    (app.parent / "work").mkdir()
    with run_server(command, studies, app, env=environ, cwd=app.parent / "work") as server:
        yield server


def slicers_body(info: dict, section: str, name: str) -> dict:
    """What 3D Slicer's module sends unless the user changes an option: all of them, each with its first value."""
    return {k: v[0] if isinstance(v, list) else v for k, v in info[section][name]["config"].items()}


def test_all_bundles_are_listed(stock):
    info = stock.get("/info/")
    assert set(info["trainers"]) == {*bundle_names(), "mine"}
    assert set(info["models"]) == set(WITH_WEIGHTS)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_label_maps_are_those_of_predict(stock, app, images, tmp_path, name):
    answer = stock.infer(name, name, result_extension=".nii.gz", **slicers_body(stock.get("/info/"), "models", name))
    assert answer.status == 200, stock.log.read_text()[-2000:]
    (tmp_path / "label.nii.gz").write_bytes(answer.body)
    served = np.asarray(nib.load(tmp_path / "label.nii.gz").dataobj)
    assert np.count_nonzero(served != Predictor(app / "model" / name).predict_file(images[name]).label) == 0
    assert not (app.parent / "work" / "predictions").exists()  # the app writes by itself


def test_training_from_slicers_own_body_ends_with_weights_that_are_served(stock, app):
    models = app / "model" / "hippocampus" / "models"
    before = (models / "model.pt").read_bytes()
    body = slicers_body(stock.get("/info/"), "trainers", "hippocampus")
    assert body["run_id"] == ""
    task = stock.train("hippocampus", **body | {"max_epochs": 1})
    assert task["status"] == "DONE", "\n".join(task["details"])
    assert (models / "model.pt").read_bytes() != before
    assert [file.read_bytes() for file in models.glob("earlier_*.pt")] == [before]
    assert stock.infer("hippocampus", "hippocampus", result_extension=".nii.gz").status == 200


def test_training_of_a_bundle_without_weights_leaves_some(stock, app):
    task = stock.train("mine", max_epochs=1, val_split=0.34)
    assert task["status"] == "DONE", "\n".join(task["details"])
    assert [file.name for file in (app / "model" / "mine" / "models").iterdir()] == ["model.pt"]
