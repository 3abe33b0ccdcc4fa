"""The way from no weights to a served model: a 2D network, a whole head, four channels."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from decathlete.bundle import bundle_folder
from decathlete.data import make_phantoms
from decathlete.data.nfbs import list_heads
from decathlete.phantoms.heads import make_heads

pytestmark = pytest.mark.label

# sizes of a network that trains in seconds on two cores: values of the bundles' first blocks, and of their networks
SMALL = {
    "heart": {
        "crop_min_size": "[64, 64, 0]",
        "margin_size": "[64, 64, -1]",
        "patch_size": "[48, 48]",
        "roi_size": "[48, 48]",
    },
    "nfbs": {
        "head_size": "[48, 64, 64]",
        "roi_size": "[48, 64, 64]",
        "patch_size": "[48, 64, 64]",
        "spacing": "[4.0, 4.0, 4.0]",
    },
    "brain_tumour": {
        "patch_size": "[32, 32, 32]",
        "margin_size": "[40, 40, 40]",
        "roi_size": "[32, 32, 32]",
        "num_workers": "0",
    },
}
NETWORKS = {
    "brain_tumour": {
        "channels: [32, 64, 96, 96, 96, 96]": "channels: [8, 16, 16]",
        "strides: [1, 2, 2, 2, 2, 2]": "strides: [1, 2, 2]",
    }
}


def small(name: str, folder: Path) -> Path:
    """A copy of a bundle without weights that is quick to train."""
    copy = shutil.copytree(bundle_folder(name), folder / name, ignore=shutil.ignore_patterns("*.pt"))
    for file in [copy / "configs" / "train.yaml", copy / "configs" / "inference.yaml"]:
        text = file.read_text()
        for key, value in SMALL[name].items():
            text = re.sub(rf"^{key}: [^#\n]*", f"{key}: {value}  ", text, flags=re.MULTILINE)
        for old, new in NETWORKS.get(name, {}).items():
            assert old in text
            text = text.replace(old, new)
        file.write_text(text)
    return copy


def studies_of(name: str, folder: Path) -> tuple[Path, dict[str, Path]]:
    """Three artificial cases as studies, and the labels of all of them."""
    if name == "nfbs":
        pairs = [(Path(case["image"]), Path(case["label"])) for case in list_heads(make_heads(3, folder / "data"))]
    else:
        data = make_phantoms(name, 3, folder / "data", shape=(48, 48, 24))
        pairs = [(image, data / "labelsTr" / image.name) for image in sorted((data / "imagesTr").glob("*.nii.gz"))]
    studies, labels = folder / "studies", {}
    studies.mkdir()
    for number, (image, label) in enumerate(pairs):
        shutil.copy(image, studies / f"case_{number}.nii.gz")
        labels[f"case_{number}"] = label
    return studies, labels


@pytest.mark.parametrize("name", ["heart", "nfbs", "brain_tumour"])
def test_labels_become_a_model_that_is_served(name, start_server, on_same_grid, tmp_path):
    studies, labels = studies_of(name, tmp_path)
    first, second, third = sorted(labels)
    with start_server([small(name, tmp_path / "own")], studies, tmp_path / "app") as server:
        info = server.get("/info/")
        assert list(info["trainers"]) == [name]
        assert info["models"] == {}
        assert server.infer(name, third).status == 409
        for case in (first, second):
            assert server.put_label(case, labels[case]).status == 200
        result = server.result(server.train(name, max_epochs=1, val_split=0.5))
        assert (result["cases"], result["held_out"]) == (1, True)
        if not result["adopted"]:  # an epoch is short: whoever wants to see such weights at work uploads them
            assert "is no better than without a network" in result["reason"]
            assert server.get("/info/")["models"] == {}
            weights = server.folder / "runs" / name / result["run"] / "model_final.pt"
            put = server.ask("PUT", f"/model/{name}", files={"file": (weights.name, weights.read_bytes())})
            assert put.status == 200, put.text
        assert list(server.get("/info/")["models"]) == [name]
        answer = server.infer(name, third)
        assert answer.status == 200, answer.text
        (tmp_path / "label.nii.gz").write_bytes(answer.body)
        assert on_same_grid(tmp_path / "label.nii.gz", studies / f"{third}.nii.gz")
        assert nib.load(tmp_path / "label.nii.gz").ndim == 3
        assert server.ask("POST", f"/scoring/{name}_uncertainty?run_sync=true").json["failed"] == {}
        assert server.ask("POST", f"/activelearning/{name}_uncertainty").json["id"] == third
        assert server.ask("POST", f"/batch/infer/{name}?images=unlabeled").status == 200
        assert server.finish("/batch/infer")["status"] == "DONE"
        kept = server.ask("GET", f"/datastore/label?label={third}&tag=original").body
        (tmp_path / "kept.nii.gz").write_bytes(kept)
        files = [np.asarray(nib.load(tmp_path / f"{n}.nii.gz").dataobj) for n in ("kept", "label")]
        assert (files[0] == files[1]).all()


def test_every_bundle_that_came_along_loads_as_a_trainer(start_server, tmp_path):
    from decathlete.bundle import bundle_names, packaged_root

    (tmp_path / "studies").mkdir()
    earlier = tmp_path / "app" / "runs" / "spleen" / "train_stats.json"
    earlier.parent.mkdir(parents=True)
    stopped = {"epoch": 7, "total_epochs": 9, "start_ts": 1796000000, "current_time": "0:01:00", "best_metric": 0.8}
    earlier.write_text(json.dumps(stopped))
    with start_server([], tmp_path / "studies", tmp_path / "app") as server:
        info = server.get("/info/")
        first, stats = next(iter(info["train_stats"].items()))  # all that viewers show
        assert (first, stats["best_metric"], stats["total_time"]) == ("spleen", 0.8, "0:01:00")
        assert all(one["total_time"] and one["total_epochs"] for one in info["train_stats"].values())
        assert set(info["trainers"]) == set(bundle_names())
        with_weights = {f.parent.parent.name for f in packaged_root().glob("*/models/model.pt")}
        assert set(info["models"]) == with_weights
