"""`decathlete predict` on DICOM series, and the DICOM SEG that it writes for them."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pydicom
import pytest

from decathlete.cli import main
from decathlete.io.dicom import quiet_pydicom
from decathlete.io.series import read_series


@pytest.fixture
def series(tmp_path, scan, write_slices):
    array, affine = scan
    return write_slices(tmp_path / "study" / "ct", array.round(), affine)


def predict(bundle, *words, output):
    return main(["predict", str(bundle), *map(str, words), "--output", str(output)])


def test_a_series_gives_what_the_same_scan_as_nifti_gives(bundle, series, scan, out, tmp_path):
    array, affine = scan
    nib.save(nib.Nifti1Image(array.round(), read_series(series).affine), tmp_path / "same.nii.gz")
    assert predict(bundle, series, tmp_path / "same.nii.gz", output=out) == 0
    first, second = nib.load(out / "ct.nii.gz"), nib.load(out / "same.nii.gz")
    np.testing.assert_allclose(first.affine, affine, atol=1e-4)
    assert first.header["sform_code"] == first.header["qform_code"] == 1
    np.testing.assert_array_equal(np.asarray(first.dataobj), np.asarray(second.dataobj))
    assert np.unique(first.dataobj).tolist() == [0, 1, 2]
    assert set(json.loads((out / "volumes.json").read_text())) == {"ct", "same"}


def test_the_seg_holds_the_voxels_of_the_nifti(bundle, series, out):
    pytest.importorskip("highdicom")
    assert predict(bundle, series, "--dicom-seg", output=out) == 0
    label, seg = np.asarray(nib.load(out / "ct.nii.gz").dataobj), pydicom.dcmread(out / "ct_seg.dcm")
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["anterior", "posterior"]
    found = np.zeros_like(label)
    for frame, about in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        uid = about.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        z = int(uid.rpartition(".")[2]) - 1
        found[:, :, z] += frame.T * about.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    np.testing.assert_array_equal(found, label)


def test_a_series_predicted_before_gets_its_seg(bundle, series, out, capsys):
    pytest.importorskip("highdicom")
    predict(bundle, series, output=out)
    predict(bundle, series, "--dicom-seg", output=out)
    assert (out / "ct_seg.dcm").is_file()
    predict(bundle, series, "--dicom-seg", output=out)
    assert "1 present" in capsys.readouterr().err


def test_a_seg_that_cannot_be_made_leaves_the_label_map(bundle, tmp_path, scan, write_slices, out, capsys):
    pytest.importorskip("highdicom")
    array, affine = scan
    folders = [write_slices(tmp_path / name, array.round(), affine, StudyInstanceUID=study)
               for name, study in (("a", ""), ("b", "1.2.3"))]  # fmt: skip
    assert predict(bundle, *folders, "--dicom-seg", output=out) == 1
    said = capsys.readouterr().err
    assert "no StudyInstanceUID" in said
    assert f"The label map is written: {out / 'a.nii.gz'}" in said
    assert sorted(path.name for path in out.glob("*[mz]")) == ["a.nii.gz", "b.nii.gz", "b_seg.dcm"]
    assert set(json.loads((out / "volumes.json").read_text())) == {"a", "b"}


def test_headers_against_the_rules_of_dicom_get_label_map_and_seg(bundle, tmp_path, scan, write_slices, out):
    pytest.importorskip("highdicom")
    array, affine = scan
    with quiet_pydicom():
        folder = write_slices(tmp_path / "a", array.round(), affine, PatientBirthDate="1950", StudyDate="00000000",
                              StudyTime="10:10:10", SOPClassUID="1.2.3.4.5.6")  # fmt: skip
    assert predict(bundle, folder, "--dicom-seg", output=out) == 0
    assert pydicom.dcmread(out / "a_seg.dcm").PatientBirthDate == ""
    assert (out / "a.nii.gz").is_file()


def test_several_series_are_listed(bundle, series, out, scan, write_slices, capsys):
    array, affine = scan
    write_slices(series, array[:, :, :3], affine, series="1.2.9", SeriesDescription="scout")
    assert predict(bundle, series, output=out) == 1
    said = capsys.readouterr().err
    assert "1.2.3.4 (CT, 24 slices)" in said
    assert "1.2.9 (CT 'scout', 3 slices)" in said
    assert not out.exists()


def test_a_folder_of_series_names_them(bundle, series, out, capsys):
    assert predict(bundle, series.parent, output=out) == 1
    assert "ct: 1.2.3.4 (CT, 24 slices)" in capsys.readouterr().err


def test_a_faulty_series_is_named_and_the_rest_is_predicted(bundle, series, scan_file, out, capsys):
    sorted(series.iterdir())[5].unlink()
    assert predict(bundle, series, scan_file, output=out) == 1
    assert "the distances between slices differ" in capsys.readouterr().err
    assert (out / "case_001.nii.gz").is_file()


@pytest.mark.parametrize("modality", ["MR", "MRI", "T1w"])
def test_a_series_of_another_modality_is_refused(bundle, series, out, capsys, modality):
    image = {"modality": modality}
    (bundle / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": {"inputs": {"image": image}}}))
    assert predict(bundle, series, output=out) == 1
    assert "the bundle 'threshold' expects MR (the series is CT" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "said"), [(["--memory", "0.01"], "more than --memory 0.01")])
def test_work_beyond_the_memory_limit_is_refused(bundle, series, out, capsys, words, said):
    assert predict(bundle, series, *words, output=out) == 1
    assert said in capsys.readouterr().err


def test_nifti_has_no_seg_and_a_series_folder_stays_as_it_is(bundle, series, scan_file, out, capsys):
    assert predict(bundle, series, output=series) == 2
    assert "cannot be written into the folder of the series" in capsys.readouterr().err
    if pytest.importorskip("highdicom"):
        assert predict(bundle, series, scan_file, "--dicom-seg", output=out) == 2
        assert "case_001.nii.gz). Give the folder of the series" in capsys.readouterr().err


def test_the_scan_cut_out_by_its_label_map_comes_of_a_series_too(make_bundle, series, scan, out):
    bundle = make_bundle(outputs=("channels: 1\n", "channels: 1\noutputs: {masked: cut}\n"))
    assert predict(bundle, series, output=out) == 0
    cut, label = (np.asarray(nib.load(out / f"ct{end}.nii.gz").dataobj) for end in ("_cut", ""))
    np.testing.assert_array_equal(cut, np.where(label, scan[0].round(), 0))


def test_frames_have_a_seg_each(make_bundle, write_slices, scan, out):
    pytest.importorskip("highdicom")
    array, affine = scan
    bundle = make_bundle(outputs=("channels: 1\n", "channels: 1\noutputs: {frames: true}\n"))
    folder = write_slices(out.parent / "frames", array.round()[:, :, 10:13], affine)
    frames = sorted(folder.iterdir())
    assert predict(bundle, *frames, "--dicom-seg", output=out) == 0
    for frame in frames:
        seg, label = pydicom.dcmread(out / f"{frame.stem}_seg.dcm"), nib.load(out / f"{frame.stem}.nii.gz")
        named = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        assert [str(item.ReferencedSOPInstanceUID) for item in named] == [pydicom.dcmread(frame).SOPInstanceUID]
        assert seg.pixel_array.sum() == np.count_nonzero(label.dataobj) > 0
