"""Label maps as DICOM SEG, read back by pydicom and by SimpleITK."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pydicom
import pytest

from decathlete.errors import DataError, GeometryError
from decathlete.io.conformity import leave_out_what_is_not_allowed
from decathlete.io.dicom import quiet_pydicom, read_dicom_header
from decathlete.io.seg import write_dicom_seg
from decathlete.io.series import read_series

pytest.importorskip("highdicom", reason="pip install 'decathlete[dicom-seg]'")

LABELS = {"anterior": 1, "posterior": 2}
AFFINE = np.array([[-0.8, 0, 0, 20], [0, -1.2, 0, 30], [0, 0, 2.5, -40], [0, 0, 0, 1]])


@pytest.fixture
def series(tmp_path, write_slices):
    array = np.random.default_rng(0).integers(-1000, 1000, (16, 12, 6))
    return read_series(write_slices(tmp_path / "series", array, AFFINE, PatientName="Yamada^Tarou=山田^太郎",
                                    SpecificCharacterSet="ISO_IR 192"))  # fmt: skip


def label_of(shape):
    label = np.random.default_rng(1).integers(0, 3, shape).astype(np.uint8)
    label[:, :, 1] = 0  # an empty slice within
    label[:, :, 3] *= label[:, :, 3] == 2  # and one with a class alone
    return label


def read_back(path, series, frames):
    """Label map from the frames of a SEG, placed by what each says of its slice and segment."""
    seg = pydicom.dcmread(path)
    uids = [read_dicom_header(p).SOPInstanceUID for p in series.slices]
    label = np.zeros(series.array.shape, int)
    shared = seg.SharedFunctionalGroupsSequence[0].get("SegmentIdentificationSequence")  # where there is one segment
    for frame, about in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        number = about.get("SegmentIdentificationSequence", shared)[0].ReferencedSegmentNumber
        place = about.PlanePositionSequence[0].ImagePositionPatient
        z = uids.index(about.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)
        lps = (np.diag([-1.0, -1, 1, 1]) @ series.affine @ [0, 0, z, 1])[:3]
        assert np.allclose(place, lps, atol=1e-3)
        assert not label[:, :, z][frame.T > 0].any()
        label[:, :, z][frame.T > 0] = number
    return label


def test_no_voxel_differs_when_pydicom_reads_it(series, tmp_path):
    label = label_of(series.array.shape)
    path = write_dicom_seg(label, series.slices, tmp_path / "a_seg.dcm", "hippocampus", LABELS)
    seg = pydicom.dcmread(path)
    assert seg.NumberOfFrames == 2 * 6 - 3  # without those that are empty
    assert np.count_nonzero(read_back(path, series, seg.pixel_array) != label) == 0
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert [float(v) for v in measures.PixelSpacing] == [1.2, 0.8]
    assert float(measures.SpacingBetweenSlices) == 2.5


def test_no_voxel_differs_when_simpleitk_reads_it(series, tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    label = label_of(series.array.shape)
    path = write_dicom_seg(label, series.slices, tmp_path / "a_seg.dcm", "hippocampus", LABELS)
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))  # it reads whole bytes: 8 voxels at a time
    assert np.count_nonzero(read_back(path, series, frames) != label) == 0


def test_no_voxel_differs_when_dcmqi_reads_it(series, tmp_path, root):
    program = shutil.which("segimage2itkimage", path=f"{os.environ['PATH']}:{root / '.venv-label' / 'bin'}")
    if program is None:
        pytest.skip("no dcmqi: 'make label' installs it")
    label = label_of(series.array.shape)
    path = write_dicom_seg(label, series.slices, tmp_path / "a_seg.dcm", "hippocampus", LABELS)
    words = [
        program,
        "--inputDICOM",
        str(path),
        "--outputDirectory",
        str(tmp_path),
        "--outputType",
        "nii",
        "--mergeSegments",
    ]
    subprocess.run(words, check=True, capture_output=True)
    [found] = tmp_path.glob("*.nii*")
    image = nib.load(found)
    there = np.linalg.inv(image.affine) @ series.affine  # dcmqi leaves empty slices at the ends out
    voxels = np.stack(np.nonzero(label)).T
    moved = voxels @ there[:3, :3].T + there[:3, 3]
    assert np.allclose(moved, moved.round(), atol=1e-3)
    values = np.asarray(image.dataobj)
    assert np.count_nonzero(values) == len(voxels)
    assert np.array_equal(values[tuple(moved.round().astype(int).T)], label[tuple(voxels.T)])


@pytest.mark.parametrize(
    "name", ["series/valid_oblique", "series/valid_sagittal", "series/valid_descending", "series/single_slice",
             "real/ct5_16x16", "real/valid_oblique_anisotropic", "real/valid_oblique_implicit", "real/valid_series_j2k"]
)  # fmt: skip
def test_series_of_scanners_are_segmented_exactly(name, shared, tmp_path):
    series = read_series(shared / "data" / "bad_inputs" / "dicom" / name)
    label = np.random.default_rng(1).integers(0, 2, series.array.shape)
    path = write_dicom_seg(label, series.slices, tmp_path / "a_seg.dcm", "spleen", {"spleen": 1})
    frames = pydicom.dcmread(path).pixel_array.reshape(-1, *series.array.shape[1::-1])
    assert np.count_nonzero(read_back(path, series, frames) != label) == 0


def test_it_refers_to_patient_study_and_series(series, tmp_path):
    path = write_dicom_seg(label_of(series.array.shape), series.slices, tmp_path / "a.dcm", "hippocampus", LABELS)
    seg, source = pydicom.dcmread(path), read_dicom_header(series.slices[0])
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[name].value == source[name].value, name
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert seg.Modality == "SEG"
    assert "not for clinical use" in seg.SeriesDescription


def test_segments_have_names_and_codes(series, tmp_path):
    label = label_of(series.array.shape)
    path = write_dicom_seg(label, series.slices, tmp_path / "a.dcm", "hepatic_vessel", {"tumour": 2, "vessel": 1})
    vessel, tumour = pydicom.dcmread(path).SegmentSequence
    assert [vessel.SegmentLabel, tumour.SegmentLabel] == ["vessel", "tumour"]
    coded = [(s.SegmentedPropertyTypeCodeSequence[0].CodeValue, s.AnatomicRegionSequence[0].CodeMeaning)
             for s in (vessel, tumour)]  # fmt: skip
    assert coded == [("59820001", "Liver"), ("108369006", "Liver")]
    assert vessel.SegmentAlgorithmType == "AUTOMATIC"
    path = write_dicom_seg(label, series.slices, path, "hippocampus", LABELS)
    kinds = [s.SegmentedPropertyTypeCodeSequence[0] for s in pydicom.dcmread(path).SegmentSequence]
    assert [k.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning for k in kinds] == ["Anterior", "Posterior"]


def test_an_empty_label_map_is_written_too(series, tmp_path):
    path = write_dicom_seg(
        np.zeros(series.array.shape, int), series.slices, tmp_path / "a.dcm", "spleen", {"spleen": 1}
    )
    assert not pydicom.dcmread(path).pixel_array.any()


def test_classes_without_a_code_are_tissue_with_a_warning(series, tmp_path, caplog):
    label = (label_of(series.array.shape) == 2) * 5
    path = write_dicom_seg(label, series.slices, tmp_path / "a.dcm", "my_bundle", {"Rückenmark": 5})
    [segment] = pydicom.dcmread(path).SegmentSequence
    assert (segment.SegmentNumber, segment.SegmentLabel) == (1, "Rückenmark")
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert "no DICOM code is known for Rückenmark" in caplog.text


# what old scanners and anonymizers write, and what the SEG's line must say of it
_ODD = {
    "PatientBirthDate": ("1950", "1950"),
    "StudyDate": ("00000000", "00000000"),
    "StudyTime": ("10:10:10", "10:10:10"),
    "PatientSex": ("male", "male"),
    "PatientAge": ("45", "45"),
    "StudyID": ("X" * 17, "X" * 17),
    "PatientID": ("Z" * 65, "Z" * 40 + "..."),
    "AccessionNumber": ("a\nb", r"a\nb"),
    "PatientName": ("a^b^c^d^e^f", "a^b^c^d^e^f"),
    "ReferringPhysicianName": ("a=b=c=d", "a=b=c=d"),
    "StudyDescription": ("\u00e7", r"\xe7"),  # and no SpecificCharacterSet
    "PatientComments": ("a\x07", r"a\x07"),
    "OtherPatientNames": ("a\\b", None),  # may have several values
}


@pytest.mark.parametrize("name", _ODD)
def test_a_value_that_dicom_forbids_is_left_out_and_named(tmp_path, write_slices, caplog, name):
    value, told = _ODD[name]
    with quiet_pydicom():
        folder = write_slices(tmp_path / "a", np.zeros((4, 4, 2)), AFFINE, **{name: value})
    caplog.set_level(logging.WARNING)
    path = write_dicom_seg(
        np.ones((4, 4, 2), int), sorted(folder.iterdir()), tmp_path / "a.dcm", "spleen", {"spleen": 1}
    )
    seg = pydicom.dcmread(path)
    if told is None:
        assert caplog.text == ""
        return
    assert f"leaves out values of the slices that DICOM does not allow: {name}: '{told}'" in caplog.text
    assert len(caplog.records) == 1
    assert not seg.get(name)
    kept = {"PatientName": "Made^Up", "PatientID": "made"}
    assert {word: str(seg[word].value) for word in kept if word != name} == {w: v for w, v in kept.items() if w != name}


@pytest.mark.parametrize("day", ["20240231", "2024", "20240101-20240105", "2024.01.01"])
def test_days_that_are_none_are_left_out(tmp_path, write_slices, caplog, day):
    with quiet_pydicom():
        folder = write_slices(tmp_path / "a", np.zeros((4, 4, 2)), AFFINE, StudyDate=day)
    write_dicom_seg(np.ones((4, 4, 2), int), sorted(folder.iterdir()), tmp_path / "a.dcm", "spleen", {"spleen": 1})
    assert f"StudyDate: '{day}'" in caplog.text


def test_values_in_sequences_are_left_out_too():
    header, item = pydicom.Dataset(), pydicom.Dataset()
    with quiet_pydicom():
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.3", "no uid"
        header.ReferencedStudySequence = [item]
        header.PatientName = "M\u00fcller^J"
        header.SpecificCharacterSet = "ISO_IR 100"
    assert leave_out_what_is_not_allowed(header) == {"ReferencedStudySequence[1].ReferencedSOPInstanceUID": "'no uid'"}
    assert header.ReferencedStudySequence[0].ReferencedSOPClassUID == "1.2.3"
    assert header.PatientName == "M\u00fcller^J"


@pytest.mark.parametrize(("stated", "stays"), [("ISO_IR 192", True), ("ISO-IR 192", True), ("ISO_IR 999", False),
                                               ("ISO_IR 6", False), ("", False)])  # fmt: skip
def test_letters_beyond_ascii_need_a_character_set_that_has_them(stated, stays):
    header = pydicom.Dataset()
    with quiet_pydicom():
        header.SpecificCharacterSet, header.PatientName = stated, "M\u00fcller^J"
        left_out = leave_out_what_is_not_allowed(header)
    assert left_out == ({} if stays else {"PatientName": r"'M\xfcller^J'"})


def test_slices_of_an_unknown_class_are_referred_to_by_it(tmp_path, write_slices):
    folder = write_slices(tmp_path / "a", np.zeros((4, 4, 2)), AFFINE, SOPClassUID="1.2.3.4.5.6")
    path = write_dicom_seg(
        np.ones((4, 4, 2), int), sorted(folder.iterdir()), tmp_path / "a.dcm", "spleen", {"spleen": 1}
    )
    seg = pydicom.dcmread(path)
    sources = [f.DerivationImageSequence[0].SourceImageSequence[0] for f in seg.PerFrameFunctionalGroupsSequence]
    sources += list(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence)
    assert {str(source.ReferencedSOPClassUID) for source in sources} == {"1.2.3.4.5.6"}
    assert seg.PatientName == "Made^Up"


@pytest.mark.parametrize("uid", ["1.02.3", "1.2." + "3" * 61, "a study"])
def test_a_study_of_no_valid_uid_is_referred_to_as_it_is_with_a_warning(tmp_path, write_slices, caplog, uid):
    with quiet_pydicom():
        folder = write_slices(tmp_path / "a", np.zeros((4, 4, 2)), AFFINE, StudyInstanceUID=uid)
    path = write_dicom_seg(
        np.ones((4, 4, 2), int), sorted(folder.iterdir()), tmp_path / "a.dcm", "spleen", {"spleen": 1}
    )
    assert f"StudyInstanceUID of the slices is not a valid UID: '{uid}'. The SEG keeps it" in caplog.text
    with quiet_pydicom():
        assert pydicom.dcmread(path).StudyInstanceUID == uid


def test_what_does_not_fit_is_refused(series, tmp_path, write_slices):
    with pytest.raises(GeometryError, match=r"16 x 12 x 5 and 16 x 12 x 6"):
        write_dicom_seg(np.zeros((16, 12, 5), int), series.slices, tmp_path / "a.dcm", "spleen", {"spleen": 1})
    folder = write_slices(tmp_path / "no_study", np.zeros((4, 4, 2)), AFFINE, StudyInstanceUID="")
    with pytest.raises(DataError, match="no StudyInstanceUID"):
        write_dicom_seg(np.zeros((4, 4, 2), int), sorted(folder.iterdir()), tmp_path / "a.dcm", "spleen", {"spleen": 1})
    assert not (tmp_path / "a.dcm").exists()
