"""New weights and old ones."""

from __future__ import annotations

import shutil

import pytest
import torch

from decathlete.bundle import bundle_folder
from decathlete.data import datalist, make_phantoms
from decathlete.errors import CheckpointError
from decathlete.label.adoption import adopt, mean_dice


@pytest.fixture
def bundle(tmp_path):
    """A copy of the hippocampus."""
    return shutil.copytree(bundle_folder("hippocampus"), tmp_path / "hippocampus")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return datalist(make_phantoms("hippocampus", 2, tmp_path_factory.mktemp("phantoms")), part="all")


@pytest.fixture
def worse(bundle, tmp_path):
    """Weights whose head has forgotten all it knew."""
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    head = [name for name in weights if name.startswith("heads.")]
    return save({k: torch.zeros_like(v) if k in head else v for k, v in weights.items()}, tmp_path / "worse.pt")


def save(weights, path):
    torch.save(weights, path)
    return path


def test_worse_weights_do_not_take_the_place_and_are_kept(bundle, pairs, worse):
    before = (bundle / "models" / "model.pt").read_bytes()
    result = adopt(bundle, worse, pairs)
    assert not result["adopted"]
    assert result["dice_after"] < result["dice_before"]
    assert (bundle / "models" / "model.pt").read_bytes() == before
    assert len(list((bundle / "models").glob("worse_*.pt"))) == 1


def test_better_weights_take_the_place_and_the_old_ones_stay_beside(bundle, pairs, worse, tmp_path):
    good = shutil.copy(bundle / "models" / "model.pt", tmp_path / "good.pt")
    shutil.copy(worse, bundle / "models" / "model.pt")
    assert adopt(bundle, good, pairs)["adopted"]
    assert mean_dice(bundle, bundle / "models" / "model.pt", pairs) == mean_dice(bundle, good, pairs)
    [earlier] = (bundle / "models").glob("earlier_*.pt")
    assert earlier.read_bytes() == worse.read_bytes()


def test_first_weights_are_taken_as_they_are(bundle, pairs, worse):
    (bundle / "models" / "model.pt").unlink()
    result = adopt(bundle, worse, pairs)
    assert result["adopted"]
    assert result["dice_before"] is None


def test_damaged_weights_in_use_give_way_and_stay_beside(bundle, pairs, tmp_path):
    good = shutil.copy(bundle / "models" / "model.pt", tmp_path / "good.pt")
    (bundle / "models" / "model.pt").write_bytes(b"cut short")
    assert adopt(bundle, good, pairs)["adopted"]
    assert [file.read_bytes() for file in (bundle / "models").glob("earlier_*.pt")] == [b"cut short"]


def test_another_networks_weights_are_refused(bundle, pairs, tmp_path):
    other = save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="trained for hippocampus"):
        adopt(bundle, other, pairs)


def test_dice_of_labels_that_are_the_prediction_is_one(bundle, pairs, tmp_path):
    from decathlete.inference import predict

    predict(bundle, [case["image"] for case in pairs], tmp_path / "out")
    own = [case | {"label": str(tmp_path / "out" / f"{case['case_id']}.nii.gz")} for case in pairs]
    assert mean_dice(bundle, bundle / "models" / "model.pt", own) == 1
