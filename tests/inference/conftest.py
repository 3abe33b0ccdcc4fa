"""A bundle whose network is a smoothed threshold: its right answers are known, and it is loaded in a moment."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

CONFIG = """
bundle_root: bundles/threshold
dataset_dir: data/Task04_Hippocampus
output_dir: predictions/threshold
checkpoint: "$@bundle_root + '/models/model.pt'"
patch_size: [24, 24, 24]
device: "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')"
amp: true
channels: 1
labels: {background: 0, anterior: 1, posterior: 2}

network_def:
  _target_: torch.nn.Conv3d
  in_channels: "@channels"
  out_channels: "$len(@labels)"
  kernel_size: 7
  padding: 3
network: "$@network_def.to(@device)"

deterministic_transforms:
- {_target_: LoadImaged, keys: image}
- {_target_: EnsureChannelFirstd, keys: image}
- {_target_: Orientationd, keys: image, axcodes: RAS, labels: null}
- {_target_: Spacingd, keys: image, pixdim: [1.0, 1.0, 1.0]}
- {_target_: NormalizeIntensityd, keys: image, channel_wise: true}
preprocessing:
  _target_: Compose
  transforms: "@deterministic_transforms"
dataset: {_target_: Dataset, data: "$[{'image': @dataset_dir}]", transform: "@preprocessing"}
dataloader: {_target_: DataLoader, dataset: "@dataset", batch_size: 1, num_workers: 0}
inferer: {_target_: decathlete.inference.SlidingWindow, roi_size: "@patch_size", sw_batch_size: 4, amp: "@amp"}
postprocessing:
  _target_: Compose
  transforms:
  - {_target_: decathlete.transforms.RestoreGridd, keys: pred, orig_keys: image}
  - {_target_: AsDiscreted, keys: pred, argmax: true}
  - {_target_: SaveImaged, keys: pred, output_dir: "@output_dir", output_postfix: "", separate_folder: false}
handlers:
- {_target_: CheckpointLoader, load_path: "@checkpoint", load_dict: {model: "@network"}, map_location: "@device"}
evaluator:
  _target_: SupervisedEvaluator
  device: "@device"
  val_data_loader: "@dataloader"
  network: "@network"
  inferer: "@inferer"
  postprocessing: "@postprocessing"
  val_handlers: "@handlers"
inferring:
- "$@evaluator.run()"
"""


def weights_of(channels=1, first=0.4, second=1.2):
    """Background below ``first`` standard deviations of the smoothed image, class 2 above ``second``, 1 between."""
    axis = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 1.5**2))
    kernel = torch.from_numpy(np.einsum("i,j,k->ijk", axis, axis, axis) / axis.sum() ** 3).float()
    conv = nn.Conv3d(channels, 3, 7, padding=3)
    with torch.no_grad():
        for n, (slope, bias) in enumerate([(0, 0), (4, -4 * first), (8, -4 * first - 4 * second)]):
            conv.weight[n], conv.bias[n] = slope * kernel / channels, bias
    return conv.state_dict()


@pytest.fixture
def threshold_weights():
    return weights_of


@pytest.fixture
def make_bundle(tmp_path):
    def make(name="threshold", config=CONFIG, weights=None, **replaced):
        folder = tmp_path / "bundles" / name
        for part in ("configs", "models"):
            (folder / part).mkdir(parents=True)
        for old, new in replaced.values():
            assert old in config
            config = config.replace(old, new)
        (folder / "configs" / "inference.yaml").write_text(config)
        (folder / "configs" / "metadata.json").write_text(json.dumps({"version": "0.0.1"}))
        if weights is not False:
            torch.save(weights_of() if weights is None else weights, folder / "models" / "model.pt")
        return folder

    return make


@pytest.fixture
def bundle(make_bundle):
    return make_bundle()


@pytest.fixture
def scan():
    """A bright ball inside a brighter one's shell, 20x28x24 voxels of 1.5x1x1.2 mm, and its oblique LPS affine."""
    rotation = nib.eulerangles.euler2mat(0.1, 0.2, -0.15)
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-1.5, -1.0, 1.2])
    affine[:3, 3] = (40, 30, -20)
    x, y, z = np.indices((20, 28, 24))
    distance = np.sqrt(((x - 9) * 1.5) ** 2 + (y - 13) ** 2 + ((z - 12) * 1.2) ** 2)
    noise = np.random.default_rng(0).normal(0, 5, distance.shape)
    return (200 / (1 + np.exp(distance - 9)) + 150 / (1 + np.exp(distance - 5)) + noise).astype(np.float32), affine


@pytest.fixture
def scan_file(tmp_path, scan):
    """The scan as a file, with header fields that a careless writer loses."""
    array, affine = scan
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=2)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"name of a patient"
    image.header["cal_max"] = 300
    path = tmp_path / "images" / "case_001.nii.gz"
    path.parent.mkdir()
    nib.save(image, path)
    return path


@pytest.fixture
def out(tmp_path):
    """A folder for predictions, not there yet."""
    return tmp_path / "out"
