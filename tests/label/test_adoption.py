"""New weights and old ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from decathlete.bundle import bundle_folder
from decathlete.data import datalist, make_phantoms
from decathlete.errors import CheckpointError
from decathlete.label.adoption import adopt, agreement, mean_dice


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


def test_first_weights_are_taken(bundle, pairs, tmp_path):
    good = shutil.move(bundle / "models" / "model.pt", tmp_path / "good.pt")
    result = adopt(bundle, good, pairs)
    assert result["adopted"]
    assert result["dice_before"] is None
    assert "there were no weights" in result["reason"]


def test_first_weights_that_see_nothing_are_not_taken(bundle, pairs, worse):
    (bundle / "models" / "model.pt").unlink()
    result = adopt(bundle, worse, pairs)
    assert not result["adopted"]
    assert "is no better than without a network" in result["reason"]
    assert not (bundle / "models" / "model.pt").exists()
    assert len(list((bundle / "models").glob("worse_*.pt"))) == 1


def test_equally_worthless_weights_are_not_taken(bundle, pairs, worse, tmp_path):
    """0 is not below 0, but no use either."""
    shutil.copy(worse, bundle / "models" / "model.pt")
    assert not adopt(bundle, worse, pairs)["adopted"]


def test_labels_with_exchanged_classes_change_nothing(bundle, pairs, tmp_path):
    """A network that has learned exchanged labels agrees with them better than the one in use does."""
    swapped = [pair | {"label": str(exchange(Path(pair["label"]), tmp_path))} for pair in pairs]
    new = exchanged_weights(bundle, tmp_path / "new.pt")
    assert mean_dice(bundle, new, swapped) > mean_dice(bundle, bundle / "models" / "model.pt", swapped) + 0.5
    result = adopt(bundle, new, swapped)
    assert not result["adopted"]
    assert result["reason"].startswith("classes look exchanged: the weights in use and the labels")
    assert "'anterior' as 'posterior'" in result["reason"]


def test_a_network_with_exchanged_classes_is_not_taken(bundle, pairs, tmp_path):
    new = exchanged_weights(bundle, tmp_path / "new.pt")
    (bundle / "models" / "model.pt").unlink()
    result = adopt(bundle, new, pairs)
    assert not result["adopted"]
    assert result["reason"].startswith("classes look exchanged: the new weights and the labels")


def test_what_needs_no_network_is_the_dice_of_one_class_everywhere(bundle, pairs):
    """Of a fraction f of the voxels: 2f / (f + 1)."""
    fractions = [np.mean(np.asarray(nib.load(pair["label"]).dataobj) == value) for pair in pairs for value in (1, 2)]
    found = agreement(bundle, bundle / "models" / "model.pt", pairs)
    assert found.trivial == pytest.approx(np.mean([2 * f / (1 + f) for f in fractions]))
    assert found.of_classes.shape == (2, 2)
    assert found.exchange() == ""


def exchange(label: Path, folder: Path) -> Path:
    """The label with its two values exchanged."""
    image = nib.load(label)
    voxels = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.array([0, 2, 1], np.uint8)[voxels.astype(int)], image.affine), folder / label.name)
    return folder / label.name


def exchanged_weights(bundle: Path, path: Path) -> Path:
    """The bundle's weights, which call each class by the other's name."""
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    return save({k: v[[0, 2, 1]] if k.startswith("heads.") else v for k, v in weights.items()}, path)


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
