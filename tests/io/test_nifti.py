"""The strict reader against files whose verdict is known, and the label pairs."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImaged

from decathlete.data.slice_store import _header_voxels
from decathlete.drawing.scan import _channels_of
from decathlete.errors import DataError, GeometryError
from decathlete.io.nifti import read_nifti, read_nifti_header
from decathlete.io.volume import check_pair
from decathlete.io.write import write_on_grid
from decathlete.transforms import NiftiReader
from tests.nifti import write_nifti, write_turned

_SHARED = Path(os.environ.get("DECATHLETE_SHARED", Path(__file__).resolve().parents[3] / "shared"))
_BAD = _SHARED / "data" / "bad_inputs"


def read_pair(image, label, allowed_labels=None):
    pair = read_nifti(image), read_nifti(label, kind="label", allowed_labels=allowed_labels)
    check_pair(*pair)
    return pair


def _cases(kind: str) -> list:
    """Rows of the table of bad inputs; one skipped row where the table is not there."""
    table = _BAD / "cases.json"
    if not table.is_file():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no {table}"))]
    rows = [row for row in json.loads(table.read_text(encoding="utf-8")) if row["kind"] == kind]
    return [pytest.param(row, id=Path(row["path"]).name[:60]) for row in rows]


def _assert_truth(volume, truth: dict) -> None:
    v = volume.array.astype(np.float64)
    assert list(v.shape) == truth["shape"][:3]
    np.testing.assert_allclose(volume.affine, truth["affine"], atol=1e-4)
    i, j, k = np.indices(v.shape)
    assert v.sum() == pytest.approx(truth["sum"], rel=1e-6)
    assert (v * (i + 2 * j + 3 * k)).sum() == pytest.approx(truth["moment"], rel=1e-6)


def _read_or_refused(read) -> tuple:
    """What was read and None, or None and the refusal."""
    try:
        return read(), None
    except DataError as error:
        return None, error


@pytest.mark.parametrize("row", _cases("nifti"))
def test_nifti_file_gets_its_verdict(row):
    path = _BAD / row["path"]
    volume, refusal = _read_or_refused(lambda: read_nifti(path))
    if refusal:
        assert row["verdict"] != "read", refusal
        assert (path.name.split(".")[0] if path.name.startswith("pair_") else path.name) in refusal.where
        assert refusal.rule
        assert "\n" not in str(refusal)
        return
    assert row["verdict"] != "refuse", "was read"
    assert row["verdict"] == "read" or volume.notes, "read in silence"
    assert not (path.name.startswith("valid") and volume.notes), volume.notes
    if row["truth"]:
        _assert_truth(volume, row["truth"])


@pytest.mark.parametrize("row", _cases("nifti-pair"))
def test_label_pair_gets_its_verdict(row):
    folder = _BAD / row["path"]
    pair, refusal = _read_or_refused(
        lambda: read_pair(folder / "image.nii.gz", folder / "label.nii.gz", allowed_labels={0, 1})
    )
    if refusal:
        assert row["verdict"] != "read", refusal
        assert folder.name in refusal.where
        return
    image, label = pair
    assert row["verdict"] != "refuse", "was read"
    assert row["verdict"] == "read" or label.notes, "read in silence"
    assert label.array.dtype == np.uint8
    assert label.array.shape == image.array.shape


def test_pair_verdicts_keep_one_set_of_label_values():
    """0 and 255 stored with slope 1/255, floats, and 0.9999999 all mean the control's label."""
    if not _BAD.is_dir():
        pytest.skip("no bad inputs")
    control = read_nifti(_BAD / "nifti/pairs/valid/label.nii.gz", kind="label").array
    for name in ("label_scl_slope", "label_float_whole", "label_almost_whole", "label_4d_one_volume"):
        read = read_nifti(_BAD / "nifti/pairs" / name / "label.nii.gz", kind="label", allowed_labels={0, 1})
        np.testing.assert_array_equal(read.array, control)


def test_hippocampus_label_of_another_body_is_refused_for_every_image(shared, hippocampus_data):
    odd = shared / "data/bad_inputs/hippocampus_odd/label_281.nii.gz"
    label = read_nifti(odd, kind="label", allowed_labels={0, 1, 2})
    for path in sorted((hippocampus_data / "imagesTr").glob("hippocampus_0*.nii.gz"))[:10]:
        with pytest.raises(GeometryError, match=r"label_281.*label 512 x 512 x 94, image"):
            check_pair(read_nifti(path), label)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_turned(tmp_path / "case_1.nii.gz")


def test_array_and_affine_equal_nibabel(image):
    volume, theirs = read_nifti(image), nib.load(image)
    np.testing.assert_array_equal(volume.array, theirs.get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(volume.affine, theirs.affine)
    assert volume.array.dtype == np.float32
    assert volume.array.flags.writeable


def test_header_writes_a_result_with_the_same_forms_units_and_codes(image, tmp_path):
    loaded = nib.load(image)
    loaded.set_sform(loaded.affine, code=4)
    loaded.set_qform(loaded.affine, code=1)
    loaded.header.set_xyzt_units("mm", "sec")
    nib.save(loaded, image)
    volume = read_nifti(image)
    nib.save(nib.Nifti1Image(volume.array.astype(np.uint8), None, volume.header), tmp_path / "out.nii.gz")
    header = nib.load(tmp_path / "out.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (4, 1)
    assert header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_array_equal(header.get_sform(), loaded.header.get_sform())
    np.testing.assert_allclose(header.get_qform(), loaded.header.get_qform(), atol=1e-6)


def test_channels_are_the_last_axis_and_their_number_is_checked(tmp_path):
    path = write_nifti(tmp_path / "four.nii.gz", np.arange(4 * 60, dtype=np.float32).reshape(3, 4, 5, 4))
    assert read_nifti(path, channels=4).array.shape == (3, 4, 5, 4)
    with pytest.raises(DataError, match=r"expected 2 channels along the fourth axis \(4 in shape"):
        read_nifti(path, channels=2)
    with pytest.raises(DataError, match="expected one volume"):
        read_nifti(path)


def test_shape_beyond_the_limit_is_refused_before_unpacking(image):
    with pytest.raises(DataError, match=r"more than 100 voxels \(shape 9 x 8 x 7"):
        read_nifti(image, max_voxels=100)


def test_zeros_without_end_before_the_voxels_are_refused_before_unpacking(image):
    """A gzip file of 100 kB, of 504 voxels, whose vox_offset of 100 MB would be unpacked first."""
    plain = bytearray(gzip.decompress(image.read_bytes()))
    plain[108:112] = np.float32(100e6).tobytes()
    image.write_bytes(gzip.compress(bytes(plain[:352]) + bytes(100_000_000 - 352) + bytes(plain[352:]), 1))
    with pytest.raises(DataError, match=r"vox_offset is above 67,108,864 bytes \(100,000,000"):
        read_nifti(image)


def test_a_look_at_a_header_unpacks_no_extension(image, said_within, tmp_path):
    """300 MB of zeros as an extension: nibabel's own look takes them all."""
    plain = bytearray(gzip.decompress(image.read_bytes()))
    plain[108:112] = np.float32(352 + 3 * 10**8).tobytes()
    extension = (3 * 10**8).to_bytes(4, "little") + (4).to_bytes(4, "little") + bytes(3 * 10**8 - 8)
    image.write_bytes(gzip.compress(bytes(plain[:348]) + b"\1\0\0\0" + extension + bytes(plain[352:]), 1))
    assert said_within(150, lambda path: nib.load(path).shape, image).startswith("MemoryError")
    for look in (
        lambda path: read_nifti_header(path).get_data_shape(),
        _channels_of,
        lambda path: _header_voxels({"image": str(path)}, ["image"]),
    ):
        assert said_within(150, look, image) in ("read: (9, 8, 7)", "read: 1", "read: 504")
    assert "vox_offset is above" in said_within(150, read_nifti, image)


def test_not_finite_voxels_are_counted_and_the_first_is_named(tmp_path):
    values = np.zeros((3, 4, 5), np.float32)
    values[1, 2, 3] = values[2, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"some voxels are not finite \(2, the first at 1, 2, 3\)"):
        read_nifti(write_nifti(tmp_path / "nan.nii.gz", values))


def test_wrong_label_values_are_counted(tmp_path):
    values = np.zeros((3, 4, 5), np.uint8)
    values[0, 0, :3] = 7
    path = write_nifti(tmp_path / "label.nii.gz", values)
    with pytest.raises(DataError, match=r"only the label values 0, 1 \(also 7 in 3 voxels"):
        read_nifti(path, kind="label", allowed_labels=(0, 1))
    assert read_nifti(path, kind="label").array[0, 0, 0] == 7


def test_gzip_padding_of_zeros_and_many_small_members_are_read(image):
    plain = gzip.decompress(image.read_bytes())
    image.write_bytes(b"".join(gzip.compress(plain[i : i + 100]) for i in range(0, len(plain), 100)) + b"\0" * 7)
    assert read_nifti(image).array.shape == (9, 8, 7)


def test_affines_that_differ_are_told_with_both_values(image, tmp_path):
    label = write_nifti(
        tmp_path / "label.nii.gz", np.ones((9, 8, 7), np.uint8), nib.load(image).affine + np.eye(4, k=3) * 0.5
    )
    with pytest.raises(GeometryError, match=r"by 0.5 mm in x of the origin: label 5.5, image 5;.* case_1"):
        read_pair(image, label)


_SIX = np.array([4, 5, 6])  # voxels an axis of the volumes whose forms differ
_TURNS = [
    np.eye(3)[list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def _two_forms(path: Path, sform: np.ndarray, qform: np.ndarray, stretch: float, codes=(1, 1)) -> Path:
    image = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(_SIX), None)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    image.header["pixdim"][1:4] *= stretch
    nib.save(image, path)
    return path


@pytest.mark.parametrize("stretch", [1.0, 1.02, 3.0])
@pytest.mark.parametrize("turn", _TURNS)
def test_forms_of_other_directions_are_refused_whatever_the_spacing(tmp_path, turn, stretch):
    """All 48 ways to lay the axes, about one centre: a flip is named, and no spacing in pixdim hides it."""
    sform = nib.affines.from_matvec(np.diag([1.5, 2, 3]), [-15, -18, -24])
    centre = (_SIX - 1) / 2
    matrix = turn @ np.diag([1.5, 2, 3])
    qform = nib.affines.from_matvec(matrix, nib.affines.apply_affine(sform, centre) - matrix @ centre)
    path = _two_forms(tmp_path / "a.nii", sform, qform, stretch)
    if np.array_equal(turn, np.eye(3)):
        np.testing.assert_allclose(read_nifti(path).affine, sform, atol=1e-6)
        return
    axes = "".join(nib.aff2axcodes(qform))
    found = f"mirror images .*axes RAS of the sform and {axes} of the qform" if np.linalg.det(turn) < 0 else "mm apart"
    with pytest.raises(GeometryError, match=found):
        read_nifti(path)


def test_a_flip_in_a_pair_of_files_and_in_nifti_2_is_named(tmp_path):
    flipped = np.diag([-1.5, 2, 3, 1])
    for kind, name in ((nib.Nifti1Pair, "a.hdr"), (nib.Nifti2Image, "a.nii")):
        image = kind(np.arange(120, dtype=np.int16).reshape(_SIX), None)
        image.set_sform(np.diag([1.5, 2, 3, 1]), 2)
        image.set_qform(flipped, 1)
        image.header["pixdim"][1:4] *= 1.02
        nib.save(image, tmp_path / name)
        with pytest.raises(GeometryError, match="axes RAS of the sform and LAS of the qform"):
            read_nifti(tmp_path / name)


def test_a_form_of_code_0_is_not_compared(tmp_path):
    right, flipped = np.diag([1.5, 2, 3, 1]), np.diag([-1.5, 2, 3, 1])
    np.testing.assert_allclose(read_nifti(_two_forms(tmp_path / "s.nii", right, flipped, 1.02, (1, 0))).affine, right)
    read = read_nifti(_two_forms(tmp_path / "q.nii", right, flipped, 1.0, (0, 1)))
    np.testing.assert_allclose(read.affine, flipped)


@pytest.mark.parametrize(("qfac", "third"), [(1, 3), (-1, -3), (0, 3), (2, 3), (np.nan, 3)])
def test_qfac_is_the_sign_of_the_third_axis(tmp_path, qfac, third):
    path = _two_forms(tmp_path / "a.nii", np.diag([1.5, 2, 3, 1]), np.diag([1.5, 2, 3, 1]), 1.0, (0, 1))
    path.write_bytes(path.read_bytes()[:76] + np.float32(qfac).tobytes() + path.read_bytes()[80:])
    np.testing.assert_allclose(read_nifti(path).affine, np.diag([1.5, 2, third, 1]))


def test_a_negative_qfac_that_libraries_read_in_two_ways_is_refused(tmp_path):
    path = _two_forms(tmp_path / "a.nii", np.diag([1.5, 2, 3, 1]), np.diag([1.5, 2, 3, 1]), 1.0, (0, 1))
    path.write_bytes(path.read_bytes()[:76] + np.float32(-2).tobytes() + path.read_bytes()[80:])
    with pytest.raises(GeometryError, match=r"neither 1 nor -1 \(pixdim\[0\] -2"):
        read_nifti(path)


def test_a_flipped_label_is_refused_however_large_the_tolerance(image, tmp_path):
    flip = nib.load(image).affine @ np.diag([-1, 1, 1, 1])
    label = write_nifti(tmp_path / "label.nii.gz", np.ones((9, 8, 7), np.uint8), flip)
    with pytest.raises(
        GeometryError, match=r"label and image are mirror images .*axes PLS of the label and ALS of the image"
    ):
        check_pair(read_nifti(image), read_nifti(label, kind="label"), tolerance_mm=10)


def test_axes_longer_than_int16_are_loaded_and_written(tmp_path):
    label = np.zeros((40_000, 3, 2), np.uint8)
    label[39_999, 2, 1] = 1
    nib.save(nib.Nifti2Image(label, np.eye(4)), tmp_path / "long.nii.gz")
    loaded = LoadImaged("label", reader=NiftiReader, kind="label")({"label": tmp_path / "long.nii.gz"})["label"]
    assert loaded.meta["spatial_shape"].tolist() == [40_000, 3, 2]
    volume = read_nifti(tmp_path / "long.nii.gz", kind="label")
    write_on_grid(volume.array, volume, tmp_path / "out.nii.gz", "test")
    written = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), label)


def test_note_is_logged_once_a_file(tmp_path, caplog):
    path = write_nifti(tmp_path / "flat.nii.gz", np.full((3, 4, 5), 3, np.int16))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            read_nifti(path)
    assert [r.getMessage() for r in caplog.records] == [f"{path}: every voxel has the value 3"]


def test_file_without_permission_is_told(image, monkeypatch):
    monkeypatch.setattr(Path, "open", lambda *a, **k: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(DataError, match=r"the file cannot be read \(Permission denied"):
        read_nifti(image)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("cls", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("end", [".nii", ".nii.gz"])
def test_any_changed_bytes_are_read_or_refused_in_one_line(tmp_path, cls, end):
    path = tmp_path / f"x{end}"
    nib.save(cls(np.arange(60, dtype=np.float32).reshape(3, 4, 5), np.diag([1, 2, 3, 1])), path)
    sound = gzip.decompress(path.read_bytes()) if end.endswith("gz") else path.read_bytes()
    rng = np.random.default_rng(len(end))
    for _ in range(300):
        changed = bytearray(sound)
        for place in rng.integers(0, rng.choice([120, 360, len(sound)]), rng.integers(1, 5)):
            changed[place] = rng.choice([0, 1, 127, 128, 255])
        path.write_bytes(gzip.compress(bytes(changed), 1) if end.endswith("gz") else changed)
        volume, refusal = _read_or_refused(lambda: read_nifti(path))
        if refusal is None:
            assert np.isfinite(volume.array).all()
            assert np.isfinite(volume.affine).all()
        else:
            assert "\n" not in str(refusal)
