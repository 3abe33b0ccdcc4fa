"""What a data set is like, and what is wrong with it."""

from __future__ import annotations

import importlib.util
import json
import logging
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from decathlete.errors import DataError
from decathlete.planning import find_layout, take_fingerprint

_spec = importlib.util.spec_from_file_location("boxes", Path(__file__).with_name("boxes.py"))
boxes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(boxes)
draw, save, write_decathlon, write_nnunet = boxes.draw, boxes.save, boxes.write_decathlon, boxes.write_nnunet


def fingerprint(folder, **options):
    return take_fingerprint(find_layout(folder), progress=False, **options)


def test_numbers_are_those_of_the_files(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    for i in range(5):  # half of the foreground 10, half 30, in a field of zeros
        image, label = np.zeros((16, 20, 12), np.float32), np.zeros((16, 20, 12), np.uint8)
        label[4:8, 5:15, 2:10] = 1
        image[4:8, 5:15, 2:6], image[4:8, 5:15, 6:10] = 10, 30
        image[0, 0, 0] = i + 1
        save(folder / "imagesTr" / f"case_{i}.nii.gz", image)
        save(folder / "labelsTr" / f"case_{i}.nii.gz", label)
    found = fingerprint(folder)
    first = found.cases[0]
    assert (first.shape, first.nonzero_shape, first.spacing) == ((16, 20, 12), (8, 15, 10), (1.0, 1.0, 2.0))
    assert (first.voxels, first.minimum) == ({0: 16 * 20 * 12 - 320, 1: 320}, (0.0,))
    inside = found.intensities[0]
    assert (inside.percentile_00_5, inside.percentile_99_5) == (10, 30)
    assert inside.mean == pytest.approx(20, abs=0.3)  # 50,000 samples
    assert inside.std == pytest.approx(10, abs=0.1)


def test_shape_and_spacing_are_in_the_order_of_ras(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 5.0, -1.0, 2.0, 1.0  # the file's axes run S, L, A
    for i in range(5):
        image, label = draw(i)
        for part, array in (("imagesTr", image[0]), ("labelsTr", label)):
            nib.save(nib.Nifti1Image(array, affine), folder / part / f"case_{i}.nii.gz")
    case = fingerprint(folder).cases[0]
    assert (case.shape, case.spacing) == ((20, 12, 16), (1.0, 2.0, 5.0))


def test_the_same_files_give_the_same_fingerprint(tmp_path, monkeypatch):
    folder = write_nnunet(tmp_path / "data")
    first = fingerprint(folder)
    monkeypatch.setenv("DECATHLETE_CACHE", str(tmp_path / "elsewhere"))
    assert fingerprint(folder) == first
    assert len(first.intensities) == 2


def test_json_holds_what_was_found_and_has_a_line_a_case(tmp_path):
    found = fingerprint(write_decathlon(tmp_path / "data", classes=2))
    text = found.to_json()
    assert [row["case_id"] for row in json.loads(text)["cases"]] == [case.case_id for case in found.cases]
    assert json.loads(text)["intensities"] == [asdict(channel) for channel in found.intensities]
    assert sum('"case_id"' in line for line in text.splitlines()) == 5


def test_a_call_that_was_cut_goes_on_and_reads_changed_files_again(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    broken = folder / "imagesTr" / "case_4.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200])
    with pytest.raises(DataError, match="case_4"):
        fingerprint(folder)
    kept = {p: p.read_bytes() for p in (tmp_path / "cache").glob("*/*.json")}
    assert len(kept) == 4
    times = {p: p.stat().st_ino for p in kept}
    broken.write_bytes(whole)
    assert len(fingerprint(folder).cases) == 5
    assert {p: p.stat().st_ino for p in kept} == times  # not written again
    assert len(list((tmp_path / "cache").glob("*/*.json"))) == 5


def test_ct_is_guessed_from_air_and_said(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    (folder / "dataset.json").unlink()
    assert fingerprint(folder).modality == "MRI"
    for i in range(5):
        image, _ = draw(i)
        image[0, :2] = -1000
        save(folder / "imagesTr" / f"case_{i}.nii.gz", image[0])
    found = fingerprint(folder)
    assert found.modality == "CT"
    assert "assumed CT because of intensities from -1000" in found.notes[0]


def test_classes_without_names_get_the_values_that_are_there(tmp_path):
    folder = write_decathlon(tmp_path / "data", classes=2)
    (folder / "dataset.json").unlink()
    assert fingerprint(folder).classes == {"background": 0, "class_1": 1, "class_2": 2}


# --- bad data


def change_label(folder, case, old, new):
    file = folder / "labelsTr" / f"case_{case}.nii.gz"
    label = np.asarray(nib.load(file).dataobj)
    save(file, np.where(label == old, new, label).astype(np.uint8))


def test_a_label_that_is_not_listed_is_named_with_its_voxels(tmp_path):
    folder = write_decathlon(tmp_path / "data", classes=2)
    change_label(folder, 3, 2, 7)
    with pytest.raises(DataError, match=r"case_3.*label values 0, 1, 2.*7 in 180 voxels"):
        fingerprint(folder)


def test_label_values_with_a_gap_are_refused_with_the_number_that_is_missing(tmp_path):
    folder = write_decathlon(tmp_path / "data", classes=2)
    (folder / "dataset.json").unlink()
    for case in range(5):
        change_label(folder, case, 1, 0)
    with pytest.raises(DataError, match=r"\[0, 2\], without 1.*Renumber them"):
        fingerprint(folder)


def test_a_case_with_fewer_channels_is_named(tmp_path):
    folder = write_decathlon(tmp_path / "data", channels=2)
    save(folder / "imagesTr" / "case_2.nii.gz", draw(2)[0][0])
    with pytest.raises(DataError, match=r"case_2.*expected 2 channels"):
        fingerprint(folder)


def test_channels_in_another_order_are_named_unless_accepted(tmp_path):
    folder = write_nnunet(tmp_path / "data", n=6)
    first, second = (folder / "imagesTr" / f"case_1_000{c}.nii.gz" for c in (0, 1))
    first.rename(folder / "swap.nii.gz")
    second.rename(first)
    (folder / "swap.nii.gz").rename(second)
    with pytest.raises(DataError, match=r"case_1_0000.*M0 and M1 in another order.*--accept"):
        fingerprint(folder)
    assert "another order" in fingerprint(folder, accept=True).notes[0]


def test_channels_of_like_brightness_have_no_order(tmp_path):
    folder = write_nnunet(tmp_path / "data", n=6)
    for i in range(6):
        image, _ = draw(i)
        other, _ = draw(i + 10)
        save(folder / "imagesTr" / f"case_{i}_0001.nii.gz", (other if i % 2 else 1.1 * image)[0])
    assert fingerprint(folder).notes == ()


def test_spacing_in_another_unit_is_named(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    image, label = draw(4)
    for part, array in (("imagesTr", image[0]), ("labelsTr", label)):
        save(folder / part / "case_4.nii.gz", array, (0.1, 0.1, 0.2))
    with pytest.raises(DataError, match=r"case_4.*0\.1 x 0\.1 x 0\.2 mm where the others have 1 x 1 x 2"):
        fingerprint(folder)


def test_thick_slices_are_no_other_unit(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    image, label = draw(4)
    for part, array in (("imagesTr", image[0]), ("labelsTr", label)):
        save(folder / part / "case_4.nii.gz", array, (1.0, 1.0, 20.0))
    assert fingerprint(folder).cases[4].spacing == (1.0, 1.0, 20.0)


def test_three_cases_are_too_few_unless_accepted(tmp_path):
    folder = write_decathlon(tmp_path / "data", n=3)
    with pytest.raises(DataError, match=r"holds 3 cases: too few.*--accept"):
        fingerprint(folder)
    assert len(fingerprint(folder, accept=True).cases) == 3


def test_one_scan_under_two_names_is_named(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    twin = folder / "imagesTr" / "case_2.nii.gz"
    twin.write_bytes((folder / "imagesTr" / "case_0.nii.gz").read_bytes())
    with pytest.raises(DataError, match=r"case_2.*same voxels as case_0\.nii\.gz"):
        fingerprint(folder, accept=True)  # which is for what may be right


def test_a_label_on_another_grid_is_named(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    save(folder / "labelsTr" / "case_1.nii.gz", draw(1)[1], (1.0, 1.0, 2.5))
    with pytest.raises(DataError, match=r"case_1.*affines of label and image differ"):
        fingerprint(folder)


def test_empty_labels_everywhere_are_refused(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    for case in range(5):
        change_label(folder, case, 1, 0)
    with pytest.raises(DataError, match="nothing to learn"):
        fingerprint(folder)


def test_all_faults_are_told_at_once(tmp_path, caplog):
    folder = write_decathlon(tmp_path / "data", classes=2)
    change_label(folder, 1, 2, 9)
    change_label(folder, 3, 2, 9)
    with caplog.at_level(logging.ERROR), pytest.raises(DataError, match="2 faults"):
        fingerprint(folder)
    assert ["case_1" in caplog.text, "case_3" in caplog.text] == [True, True]


def test_names_are_looked_at_before_voxels(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    (folder / "labelsTr" / "case_1.nii.gz").unlink()
    (folder / "imagesTr" / "case_0.nii.gz").write_bytes(b"no image")
    with pytest.raises(DataError, match="case_1 has no label"):
        fingerprint(folder)
    assert not (tmp_path / "cache").exists()
