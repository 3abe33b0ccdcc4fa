"""The seven bundles made from nnU-Net's plans: their numbers, their chains, and the options of the brain's."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose

from decathlete import Predictor
from decathlete.bundle import packaged_root
from decathlete.bundle.configs import load
from decathlete.data import datalist, make_phantoms
from decathlete.errors import DataError
from decathlete.failures import find_error
from decathlete.workflow import BundleWorkflow

from .small import patch_of, slim

# nnU-Net v2, 3d_fullres (docs/references.md), which writes (z, y, x): patch, spacing, levels, flat kernels
PLANS = {
    "brain_tumour": ((128, 128, 128), (1, 1, 1), 6, 0),
    "liver": ((128, 128, 128), (1.0, 0.768, 0.768), 6, 0),
    "prostate": ((20, 320, 256), (3.6, 0.625, 0.625), 7, 2),
    "pancreas": ((40, 224, 224), (2.5, 0.803, 0.803), 6, 1),
    "hepatic_vessel": ((64, 192, 192), (1.5, 0.799, 0.799), 6, 0),
    "spleen": ((64, 192, 160), (1.6, 0.793, 0.793), 6, 1),
    "colon": ((56, 192, 192), (3.0, 0.781, 0.781), 6, 1),
}
WINDOWS = {  # HU: 0.5 and 99.5 percentile, mean, standard deviation of the foreground
    "liver": (-15, 197, 99.480, 37.138),
    "pancreas": (-92, 217, 80.365, 72.708),
    "hepatic_vessel": (8, 268, 128.670, 54.577),
    "spleen": (-42, 176, 93.193, 40.784),
    "colon": (-40, 188, 67.201, 37.132),
}


def chain(bundle: str, **overrides) -> Compose:
    return Compose(load(bundle, "inference", overrides).get_parsed_content("deterministic_transforms"))


def scan(folder: Path, array: np.ndarray, spacing: tuple[float, float, float]) -> str:
    nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1.0])), folder / "scan.nii.gz")
    return str(folder / "scan.nii.gz")


def fault(call: Callable[[], object]) -> str:
    """Message of the data error that a call ends with, whatever MONAI wrapped it in."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  (MONAI's RuntimeError, or ours)
        call()
    found = find_error(caught.value)
    assert isinstance(found, DataError)
    return str(found)


def shrunk(bundle: str, folder: Path, **more) -> dict:
    """Overrides of a training of one short epoch."""
    root = packaged_root() / bundle
    return {"patch_size": patch_of(root), "batch_size": 2, "max_epochs": 1, "device": "cpu",
            "output_dir": str(folder / "run"), **slim(root), **more}  # fmt: skip


@pytest.mark.parametrize("bundle", PLANS)
def test_patch_spacing_and_network_are_nnunets(bundle):
    patch, spacing, levels, flat = PLANS[bundle]
    config = load(bundle, "train")
    network = config["network_def"]
    assert tuple(config["patch_size"]) == tuple(config["roi_size"]) == patch[::-1]
    assert tuple(config["spacing"]) == spacing[::-1]
    assert config["batch_size"] == 2
    assert len(network["strides"]) == levels
    kernels = network.get("kernel_sizes", [])
    assert sum(kernel == [3, 3, 1] for kernel in kernels) == flat
    assert config["foreground_share"] >= 1 / 3


@pytest.mark.parametrize("bundle", WINDOWS)
def test_hounsfield_units_are_clipped_and_scored_by_the_foreground(bundle, tmp_path):
    low, high, mean, std = WINDOWS[bundle]
    image = np.zeros((6, 6, 6), np.int16)
    image[:2], image[2:4], image[4:] = -1000, round(mean), 3000
    image[:, 1] = image[::-1, 1]  # a plane of one value at the edge would be cut off
    spacing = load(bundle, "inference")["spacing"]
    found = chain(bundle)({"image": scan(tmp_path, image, spacing)})["image"][0, :, 0, 0].tolist()
    wanted = [(low - mean) / std] * 2 + [(round(mean) - mean) / std] * 2 + [(high - mean) / std] * 2
    assert found == pytest.approx(wanted, abs=1e-4)


def test_slices_far_apart_are_not_mixed(tmp_path):
    image = np.zeros((16, 16, 4), np.int16)
    image[..., 2:] = 200
    found = chain("pancreas")({"image": scan(tmp_path, image, (0.803, 0.803, 7.5))})["image"]
    assert found.shape == (1, 16, 16, 12)
    assert len(found.unique()) == 2  # a slice is one of the scan's, not a mean of two
    assert torch.equal(found[..., 5] == found[..., 0], torch.ones(1, 16, 16, dtype=torch.bool))


def test_the_brains_mean_is_taken_where_it_is_not_zero(tmp_path):
    image = np.zeros((24, 24, 24, 4), np.int16)
    image[8:16, 8:16, 8:16] = np.random.default_rng(0).integers(50, 150, (8, 8, 8, 4))
    found = chain("brain_tumour")({"image": scan(tmp_path, image, (1.0, 1.0, 1.0))})["image"]
    assert found.shape == (4, 8, 8, 8)
    assert found.mean((1, 2, 3)).tolist() == pytest.approx([0] * 4, abs=1e-5)
    assert found.std((1, 2, 3)).tolist() == pytest.approx([1] * 4, abs=1e-2)


@pytest.mark.parametrize(
    ("bundle", "channels", "empty", "words"),
    [
        ("brain_tumour", 4, 2, "without content: T1gd"),
        ("brain_tumour", 3, None, "expected 4 channels along the fourth axis (3"),
        ("prostate", 2, 1, "without content: ADC"),
        ("prostate", 1, None, "expected 2 channels along the fourth axis (1"),
    ],
)
def test_a_missing_modality_is_named(tmp_path, bundle, channels, empty, words):
    image = np.random.default_rng(0).integers(1, 100, (8, 8, 8, channels)).astype(np.int16)
    if empty is not None:
        image[..., empty] = 0
    error = fault(lambda: chain(bundle)({"image": scan(tmp_path, image, (1.0, 1.0, 1.0))}))
    assert "scan.nii.gz" in error
    assert words in error


@pytest.mark.slow
def test_regions_and_ignored_voxels_go_from_training_to_scores(tmp_path):
    data = make_phantoms("brain_tumour", 5, tmp_path, shape=(32, 36, 28))
    for case in datalist(data, "all", "all"):  # the rim of each scan was not judged
        image = nib.load(case["label"])
        label = np.asarray(image.dataobj).astype(np.uint8)
        label[:6] = 4
        nib.save(nib.Nifti1Image(label, image.affine), case["label"])
    options = {"regions": {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}, "ignore": [4]}
    values = shrunk("brain_tumour", tmp_path, dataset_dir=str(data), **options)
    for run_id in ("training", "evaluating"):
        flow = BundleWorkflow("brain_tumour", run_id, **values)
        flow.initialize()
        flow.run()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["whole", "core", "enhancing"]


def test_an_ignored_value_is_refused_unless_it_is_stated(tmp_path):
    case = {"image": scan(tmp_path, np.random.default_rng(0).random((8, 8, 8, 4), np.float32), (1.0, 1.0, 1.0))}
    nib.save(nib.Nifti1Image(np.full((8, 8, 8), 4, np.uint8), np.eye(4)), tmp_path / "label.nii.gz")
    case["label"] = str(tmp_path / "label.nii.gz")

    def chain_with(ignore: list[int]) -> Compose:
        parser = load("brain_tumour", "train", {"ignore": ignore})
        return Compose(parser.get_parsed_content("train::deterministic_transforms"))

    assert "label.nii.gz" in fault(lambda: chain_with([])(case))
    assert chain_with([4])(case)["label"].unique().tolist() == [4]


def test_mirrored_copies_are_those_that_training_saw(tmp_path):
    root = packaged_root() / "colon"
    small = slim(root, network_alone=True)
    torch.manual_seed(0)
    network = load("colon", "inference", small).get_parsed_content("network_def")
    torch.save(network.state_dict(), tmp_path / "model.pt")
    predictor = Predictor("colon", tmp_path / "model.pt", tta=True, overrides={**small, "roi_size": patch_of(root)})
    assert predictor.inferer.mirror_axes == (0, 1, 2)
    image = scan(tmp_path, np.random.default_rng(0).integers(-100, 200, (20, 18, 7)).astype(np.int16), (0.9, 0.9, 5.0))
    assert predictor.predict_file(image).label.shape == (20, 18, 7)
