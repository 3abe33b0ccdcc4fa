"""`decathlete predict nfbs`: the bundle's own chain on artificial heads, with a network that is a threshold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from decathlete.bundle import Bundle, packaged_root
from decathlete.cli import main
from decathlete.errors import ConfigError
from decathlete.evaluation import evaluate
from decathlete.inference import Predictor, predict
from decathlete.phantoms.heads import make_heads

CONV = """network_def:
  _target_: torch.nn.Conv3d
  in_channels: 1
  out_channels: 2
  kernel_size: 5
  padding: 2
network:"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """The nfbs bundle on a grid of 4 mm, whose network keeps what is brighter than the mean around it."""
    folder = tmp_path_factory.mktemp("bundles") / "nfbs"
    shutil.copytree(packaged_root() / "nfbs" / "configs", folder / "configs")
    file = folder / "configs" / "inference.yaml"
    text = file.read_text().replace("[96, 128, 160]", "[48, 64, 80]").replace("[2.0, 2.0, 2.0]", "[4.0, 4.0, 4.0]")
    before, after = text.split("network_def:")[0], text.split("\nnetwork:")[1]
    file.write_text(before + CONV + after)
    conv = nn.Conv3d(1, 2, 5, padding=2)
    with torch.no_grad():
        conv.weight[0], conv.bias[0] = 0, 0
        conv.weight[1], conv.bias[1] = 4 / 125, -1
    (folder / "models").mkdir()
    torch.save(conv.state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> Path:
    return make_heads(2, tmp_path_factory.mktemp("heads"), seed=3, shape=(48, 64, 64))


@pytest.fixture
def head(heads, tmp_path) -> Path:
    """One head alone in a folder."""
    source = next(heads.glob("*/*_T1w.nii.gz"))
    target = tmp_path / "scans" / source.name
    target.parent.mkdir()
    return Path(shutil.copy(source, target))


def run(*words) -> int:
    return main(["predict", *map(str, words)])


def stem(path: Path) -> str:
    return path.name.removesuffix(".nii.gz")


def test_mask_and_brain_lie_on_the_scan_and_the_volume_is_printed(bundle, head, out, capsys):
    assert run(bundle, head, "--output", out) == 0
    name = stem(head)
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [f"{name}_brain.nii.gz", f"{name}_brainmask.nii.gz", "predictions.json", "volumes.json"]
    )
    scan, mask, brain = (nib.load(p) for p in (head, out / f"{name}_brainmask.nii.gz", out / f"{name}_brain.nii.gz"))
    inside = np.asarray(mask.dataobj)
    assert mask.get_data_dtype() == np.uint8
    assert set(np.unique(inside)) == {0, 1}
    np.testing.assert_array_equal(np.asarray(brain.dataobj), np.asarray(scan.dataobj) * inside)
    assert brain.get_data_dtype() == scan.get_data_dtype()
    np.testing.assert_array_equal(brain.affine, scan.affine)
    assert brain.header["descrip"] == scan.header["descrip"]
    volume = inside.sum() * np.prod(scan.header.get_zooms()) / 1000
    assert f"{name}: brain {volume:,.1f} ml\n" == capsys.readouterr().out
    assert json.loads((out / "volumes.json").read_text())[name]["brain"] == pytest.approx(volume, rel=1e-5)


def test_the_mask_is_one_piece_without_holes(bundle, head, out):
    predict(bundle, head, out)
    mask = np.asarray(nib.load(out / f"{stem(head)}_brainmask.nii.gz").dataobj) > 0
    assert ndimage.label(mask)[1] == 1
    np.testing.assert_array_equal(ndimage.binary_fill_holes(mask), mask)


def test_the_field_times_the_corrected_scan_is_the_scan(bundle, head, out):
    assert run(bundle, head, "--output", out, "--field") == 0
    field, scan = nib.load(out / f"{stem(head)}_field.nii.gz"), nib.load(head)
    assert field.shape == scan.shape
    assert field.get_data_dtype() == np.float32
    np.testing.assert_array_equal(field.affine, scan.affine)
    from decathlete.transforms import correct_bias_field

    voxels = np.asarray(scan.dataobj, dtype=np.float32)
    corrected = correct_bias_field(voxels, scan.affine)
    np.testing.assert_allclose(np.asarray(field.dataobj) * corrected, voxels, rtol=1e-4, atol=1e-2)
    assert np.ptp(np.asarray(field.dataobj)) > 0.05  # the heads are made with one


def test_a_field_that_is_missing_is_made_and_what_is_there_is_kept(bundle, head, out):
    first = predict(bundle, head, out)
    assert predict(bundle, head, out).skipped == first.done
    assert predict(bundle, head, out, field=True).done == first.done
    assert predict(bundle, head, out, field=True).skipped == first.done
    (out / f"{stem(head)}_brain.nii.gz").unlink()
    assert predict(bundle, head, out).done == first.done


def test_without_bias_correction_the_chain_has_none(bundle, head, out, capsys):
    kinds = [type(t).__name__ for t in Predictor(bundle, overrides={"bias_correction": False})._preprocessing]
    assert "N4BiasFieldCorrectiond" not in kinds
    assert "N4BiasFieldCorrectiond" in [type(t).__name__ for t in Predictor(bundle)._preprocessing]
    assert run(bundle, head, "--output", out, "--no-bias-correction") == 0
    assert run(bundle, head, "--output", out / "2", "--no-bias-correction", "--field") == 2
    assert "no bias field to write (N4BiasFieldCorrectiond" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"), [("--no-bias-correction", "no such switch"), ("--field", "no bias field")]
)
def test_bundles_without_bias_correction_refuse_its_options(head, out, capsys, tmp_path, bundle, option, message):
    other = shutil.copytree(bundle, tmp_path / "other")
    file = other / "configs" / "inference.yaml"
    lines = file.read_text().replace("bias_correction: true", "").splitlines()
    at = next(n for n, line in enumerate(lines) if "N4BiasField" in line)
    file.write_text("\n".join(lines[:at] + lines[at + 2 :]))
    assert run(other, head, "--output", out, option) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_nfbs_and_its_subjects_folders_mean_heads_alone(bundle, heads, out):
    whole = predict(bundle, heads, out)
    assert len(whole.done) == 2
    subject = next(p for p in heads.iterdir() if p.is_dir())
    assert [p.name for p in predict(bundle, subject, out / "one").done] == [
        f"{stem(next(subject.glob('*_T1w.nii.gz')))}_brainmask.nii.gz"
    ]


def test_predictions_beside_their_scans_are_no_inputs_the_next_time(bundle, head):
    first = predict(bundle, head.parent, head.parent, field=True)
    again = predict(bundle, head.parent, head.parent, field=True)
    assert (len(first.done), again.done, again.skipped) == (1, [], first.done)


def test_nfbss_own_masks_are_never_overwritten(bundle, heads, capsys):
    subject = next(p for p in heads.iterdir() if p.is_dir())
    before = {p: p.read_bytes() for p in subject.iterdir()}
    assert run(bundle, *subject.glob("*.nii.gz"), "--output", subject, "--overwrite") == 2
    assert "an output would overwrite an input" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in subject.iterdir()} == before


def test_evaluate_finds_the_masks_beside_brains_and_fields(bundle, heads, out):
    predict(bundle, heads, out, field=True, save_probabilities=True)
    against_layout = evaluate(bundle, out, heads, out / "scores")
    assert not against_layout.failed
    flat = out / "references"
    flat.mkdir()
    for mask in heads.glob("*/*_brainmask.nii.gz"):
        shutil.copy(mask, flat)
    assert evaluate(bundle, out, flat, out / "scores").mean_dice == against_layout.mean_dice
    itself = {p.name: p for p in flat.iterdir()}
    for name, path in itself.items():
        path.rename(path.with_name(name.replace("_brainmask", "")))  # references under the scans' own names
    assert evaluate(bundle, out, flat, out / "scores").mean_dice == against_layout.mean_dice
    assert evaluate(bundle, flat, heads, out / "scores").mean_dice == 1.0


def test_stock_monai_writes_the_same_two_files(bundle, head, out):
    from monai.bundle import ConfigWorkflow

    predict(bundle, head, out / "ours")
    workflow = ConfigWorkflow(
        str(bundle / "configs" / "inference.yaml"), workflow_type="infer", run_id="inferring", logging_file=False,
        bundle_root=str(bundle), image_dir=str(head.parent), output_dir=str(out / "monai"), device="cpu",
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    names = [f"{stem(head)}_{word}.nii.gz" for word in ("brain", "brainmask")]
    assert sorted(p.name for p in (out / "monai").iterdir()) == names
    for name in names:
        ours, theirs = (np.asarray(nib.load(out / who / name).dataobj) for who in ("ours", "monai"))
        np.testing.assert_array_equal(ours, theirs)


# --- odd and bad scans


def test_what_is_no_head_scan_is_refused_with_its_file_and_the_rest_predicted(bundle, head, out, capsys):
    image = nib.load(head)
    array = np.asarray(image.dataobj)
    bad = {
        "empty": np.zeros_like(array),
        "slice": array[:, :, 30:31],
        "series": np.stack([array, array], -1),
        "nan": np.where(array > 300, np.nan, array).astype(np.float32),
    }
    for name, voxels in bad.items():
        nib.save(nib.Nifti1Image(voxels, image.affine), head.with_name(f"{name}.nii.gz"))
    flat = nib.Nifti1Image(array, None)
    flat.header["pixdim"][1:4] = (1, 0, -1)
    nib.save(flat, head.with_name("spacing.nii.gz"))
    assert run(bundle, head.parent, "--output", out) == 1
    error = capsys.readouterr().err
    assert "1 predicted, 0 present, 5 failed" in error
    for name, words in {
        "empty": "the scan is empty: all voxels have the same value (0)",
        "slice": "at least 8 voxels on each of three axes (64 x 64 x 1",
        "series": "expected one volume (2",
        "nan": "voxels are not finite",
        "spacing": "spacing is",
    }.items():
        assert words in next(line for line in error.splitlines() if f"{name}.nii.gz: " in line)
    assert not list(out.glob("empty*"))


def test_one_volume_along_a_fourth_axis_is_a_scan(bundle, head, out):
    image = nib.load(head)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine), head.with_name("one.nii.gz"))
    report = predict(bundle, [head, head.with_name("one.nii.gz")], out)
    masks = [np.asarray(nib.load(p).dataobj) for p in report.done]
    np.testing.assert_array_equal(*masks)
    brain = nib.load(out / "one_brain.nii.gz")
    assert brain.shape == (*image.shape, 1)
    np.testing.assert_array_equal(np.asarray(brain.dataobj)[..., 0], np.asarray(image.dataobj) * masks[0])


def test_an_empty_mask_is_said_aloud(bundle, head, out, caplog, tmp_path):
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    state["bias"][1] = -1000
    torch.save(state, tmp_path / "blind.pt")
    predict(bundle, head, out, tmp_path / "blind.pt")
    assert f"{head}: no brain found, the mask is empty" in caplog.text


# --- the config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("outputs: {lable: mask}", "Did you mean 'label'"),
        ("outputs: {label: 3}", "expected a word for 'label'"),
        ("outputs: {label: ../mask}", "without slashes"),
        ("outputs: {label: brain, masked: brain}", "different words"),
        ("outputs: brainmask", "a mapping of"),
    ],
)
def test_outputs_that_cannot_be_are_refused(tmp_path, text, message):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "inference.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        _ = Bundle(tmp_path).outputs


def test_without_outputs_the_label_map_has_the_scans_name(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "inference.yaml").write_text("labels: {background: 0, brain: 1}")
    outputs = Bundle(tmp_path).outputs
    assert outputs.files("out", "a") == {"label": Path("out/a.nii.gz")}
    assert outputs.scans([Path("a.nii.gz"), Path("a_brain.nii.gz")]) == [Path("a.nii.gz"), Path("a_brain.nii.gz")]


# --- the whole way


@pytest.mark.slow
def test_a_short_training_finds_the_brains_of_artificial_heads(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from decathlete.evaluation import cross_validate

    data = make_heads(5, tmp_path, seed=1, shape=(48, 64, 64))
    window = [48, 64, 80]  # of 4 mm
    overrides = {
        "spacing": [4.0, 4.0, 4.0], "head_size": window, "patch_size": window, "roi_size": window, "max_epochs": 25,
        "warmup": 5, "network_def::channels": [4, 8, 16, 32, 32],
    }  # fmt: skip
    summary = cross_validate("nfbs", "0", overrides, tmp_path / "cv", dataset_dir=data)
    assert summary.mean_dice > 0.9  # of the mask that `predict` wrote, on the scan's grid
    run = tmp_path / "cv" / "fold_0"
    (mask,) = (run / "predictions").glob("*_T1w_brainmask.nii.gz")
    assert mask.with_name(mask.name.replace("brainmask", "brain")).is_file()
    events = EventAccumulator(str(run))
    events.Reload()
    dice, iou = (events.Scalars(f"validation/val_mean_{name}_network_grid")[-1].value for name in ("dice", "iou"))
    assert iou == pytest.approx(dice / (2 - dice), abs=1e-4)  # of one case
    picture = events.Images("validation/sub-A00080001")[0]
    assert picture.width == 4 * (64 + 48 + 48) + 2 * 4  # three planes, 4 pixels a voxel, gaps of 4
