"""The sunnybrook bundle from DICOM frames and contour files to scores, label maps, contours and volumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from decathlete import Predictor
from decathlete.cli import main
from decathlete.data import make_sunnybrook_phantoms, sunnybrook_datalist
from decathlete.errors import DataError
from decathlete.evaluation import cross_validate
from decathlete.evaluation.contour_metrics import read_contour_rows
from decathlete.inference import predict
from decathlete.io.contours import contour_mask, read_contour
from decathlete.io.dicom import read_dicom_frame
from decathlete.workflow import run

# sizes of a network that also predicts
NETWORK = {"crop_size": [96, 96, -1], "roi_size": [96, 96], "network_def::channels": [16, 32, 48, 48, 48, 48]}
SMALL = {**NETWORK, "patch_size": [96, 96], "batch_size": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two patients, 2 slices x 2 phases of 96 x 96 pixels."""
    return make_sunnybrook_phantoms(2, tmp_path_factory.mktemp("data"), size=96, slices=2, phases=2)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """A short training on the second patient, scored on the first."""
    folder = tmp_path_factory.mktemp("run")
    settings = {**SMALL, "dataset_dir": str(data), "output_dir": str(folder), "fold": 0}
    run("training", "sunnybrook", settings | {"max_epochs": 50, "val_interval": 50, "train::augmentation::prob": 0.0})
    run("evaluating", "sunnybrook", settings)
    return folder


@pytest.fixture
def frames(data, tmp_path) -> Path:
    """Frames of one patient, without the set round them."""
    return Path(shutil.copytree(data / "final_data" / "dicoms" / "PHANTOM01", tmp_path / "frames"))


def small(trained: Path) -> dict:
    return {"checkpoints": trained, "device": "cpu", "overrides": NETWORK}


def test_it_learns_from_frames_of_which_half_have_no_outer_contour(data, trained):
    held_out = {item["case_id"] for item in sunnybrook_datalist(data, 0, "validation")}
    rows = read_contour_rows(trained / "contours.csv")
    assert {row["case"] for row in rows} == held_out
    assert sorted(row["contour"] for row in rows) == ["endocardium"] * 4 + ["epicardium"] * 2
    assert min(row["dice"] for row in rows) > 0.8
    assert max(row["apd_mm"] for row in rows) < 5
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["contours"]["endocardium"]["share_good"] == 1
    assert set(summary["classes"]) == {"endocardium", "epicardium"}


def test_a_folder_of_frames_gives_label_maps_contours_and_volumes(trained, frames, tmp_path, capsys):
    report = predict("sunnybrook", frames, tmp_path / "out", **small(trained))
    assert [path.name for path in report.done] == ["1.nii.gz", "2.nii.gz", "3.nii.gz", "4.nii.gz"]
    image, label = read_dicom_frame(frames / "2.dcm"), nib.load(tmp_path / "out" / "2.nii.gz")
    assert label.shape == (96, 96, 1)
    np.testing.assert_allclose(label.affine, image.affine, atol=1e-4)
    assert label.get_data_dtype() == np.uint8
    found = np.asarray(label.dataobj)[:, :, 0]
    for kind, mask in (("i", found == 1), ("o", found > 0)):
        drawn = contour_mask(read_contour(tmp_path / "out" / f"IM-0001-0002-{kind}contour-auto.txt"), (96, 96))
        assert np.count_nonzero(drawn & mask) / np.count_nonzero(drawn | mask) > 0.97
    figures = json.loads((tmp_path / "out" / "heart_function.json").read_text())
    assert (figures["slices"], figures["phases"]) == (2, 2)
    assert "ejection fraction" in capsys.readouterr().out
    volumes = json.loads((tmp_path / "out" / "volumes.json").read_text())
    area = image.spacing[0] * image.spacing[1]
    thickness = float(image.header.SliceThickness)
    assert volumes["2"]["cavity"] == pytest.approx(np.count_nonzero(found == 1) * area * thickness / 1000, rel=1e-4)


def test_volumes_stand_beside_those_of_the_drawn_contours(trained, data, tmp_path, capsys):
    predict("sunnybrook", data / "final_data" / "dicoms" / "PHANTOM01", tmp_path, **small(trained))
    figures = json.loads((tmp_path / "heart_function.json").read_text())
    assert figures["edv_ml"] == pytest.approx(figures["drawn"]["edv_ml"], rel=0.3)
    assert "drawn contours: end-diastole" in capsys.readouterr().out


def test_a_part_of_a_heartbeat_is_compared_with_the_same_part_of_the_drawn_one(trained, tmp_path):
    data = make_sunnybrook_phantoms(1, tmp_path, size=96, slices=2, phases=4)
    place = data / "final_data" / "dicoms" / "PHANTOM01"
    part = [place / f"{n}.dcm" for n in (2, 4, 6, 8)]  # the second and fourth phase of both slices
    predict("sunnybrook", part, tmp_path / "out", **small(trained))
    figures = json.loads((tmp_path / "out" / "heart_function.json").read_text())
    assert figures["phases"] == figures["drawn"]["phases"] == 2
    assert (figures["drawn"]["end_systole_phase"], figures["drawn"]["end_diastole_phase"]) == (1, 2)


def test_one_frame_without_a_suffix_is_predicted(trained, frames, tmp_path):
    path = frames / "frame_a"
    (frames / "2.dcm").rename(path)
    report = predict("sunnybrook", path, tmp_path / "out", **small(trained))
    assert [p.name for p in report.done] == ["frame_a.nii.gz"]
    assert (tmp_path / "out" / "frame_a-icontour-auto.txt").is_file()
    assert not (tmp_path / "out" / "heart_function.json").exists()


def test_a_stack_in_nifti_is_predicted_slice_by_slice(trained, frames, tmp_path):
    one = [read_dicom_frame(frames / f"{n}.dcm") for n in (2, 4)]
    stack = np.stack([frame.array for frame in one], axis=2)
    nib.save(nib.Nifti1Image(stack, one[0].affine), tmp_path / "stack.nii.gz")
    report = predict("sunnybrook", tmp_path / "stack.nii.gz", tmp_path / "out", **small(trained))
    label = np.asarray(nib.load(report.done[0]).dataobj)
    predictor = Predictor("sunnybrook", trained, "cpu", overrides=NETWORK)
    single = predictor.predict_file(frames / "2.dcm").label[:, :, 0]
    # the stack is normalized as a whole
    assert np.count_nonzero((label[:, :, 0] > 0) & (single > 0)) / np.count_nonzero(single) > 0.9
    assert (tmp_path / "out" / "stack-slice-002-ocontour-auto.txt").is_file()


def test_a_bad_frame_is_named_and_the_others_are_predicted(trained, frames, tmp_path, capsys):
    (frames / "3.dcm").write_bytes(b"no picture")
    report = predict("sunnybrook", frames, tmp_path / "out", **small(trained))
    assert [path.name for path in report.failed] == ["3.dcm"]
    assert "3.dcm: not a DICOM file" in capsys.readouterr().err
    assert len(report.done) == 3
    assert not (tmp_path / "out" / "heart_function.json").exists()  # a slice lacks a phase


def test_what_is_there_is_skipped(trained, frames, tmp_path):
    predict("sunnybrook", frames, tmp_path / "out", **small(trained))
    report = predict("sunnybrook", frames, tmp_path / "out", **small(trained))
    assert (len(report.done), len(report.skipped)) == (0, 4)


def test_the_whole_set_is_refused_with_a_patients_folder_to_give(data, trained, tmp_path):
    with pytest.raises(DataError, match=r"Give one patient's folder, such as .*PHANTOM01"):
        predict("sunnybrook", data, tmp_path, **small(trained))


def test_monais_run_predicts_the_first_patient(data, trained, tmp_path):
    places = {"dataset_dir": str(data), "output_dir": str(tmp_path), "checkpoint": str(trained / "model_final.pt")}
    run("inferring", "sunnybrook", {**NETWORK, **places, "device": "cpu"})
    assert sorted(p.name for p in tmp_path.glob("*.nii.gz")) == [f"{n}.nii.gz" for n in (1, 2, 3, 4)]


def test_check_looks_over_bundle_and_data(data, capsys):
    main(["check", "sunnybrook", "--dataset_dir", str(data)])
    said = capsys.readouterr().out
    assert "3 training cases, 3 validation cases" in said or "4 training cases, 4 validation cases" in said
    assert "FAULT" not in said


@pytest.mark.slow
def test_cross_validation_scores_contours_and_goes_on_where_it_was(data, tmp_path, capsys):
    overrides = {**SMALL, "max_epochs": 2, "val_interval": 2}
    summary = cross_validate("sunnybrook", "0-1", overrides, tmp_path, dataset_dir=data)
    assert {row["fold"] for row in summary.rows} == {0, 1}
    assert {row["class"] for row in summary.rows} == {"endocardium", "epicardium"}
    capsys.readouterr()
    again = cross_validate("sunnybrook", "0-1", overrides, tmp_path, dataset_dir=data)
    assert "fold 1 is already finished" in capsys.readouterr().err
    assert again.mean_dice == pytest.approx(summary.mean_dice)
