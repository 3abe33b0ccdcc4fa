"""Files of viewers as label maps on the grid of their image."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from decathlete.errors import DataError, GeometryError, UsageError

SimpleITK = pytest.importorskip("SimpleITK")

from decathlete.io.nifti import read_nifti  # noqa: E402
from decathlete.label.classes import Classes  # noqa: E402
from decathlete.label.drawing import read_drawing, viewer_affine  # noqa: E402

CLASSES = Classes({"hippocampus": {"anterior": 1, "posterior": 2}, "heart": {"left atrium": 1}})
AFFINE = np.array([[-1.5, 0, 0, 10.0], [0, 2, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])
FIRST, SECOND = (slice(1, 3), slice(1, 4), slice(1, 5)), (slice(4, 6), slice(1, 4), slice(1, 5))
BOX = (slice(1, 6), slice(1, 4), slice(1, 5))  # of both


def nifti(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


@pytest.fixture
def image(tmp_path):
    return read_nifti(nifti(tmp_path / "image.nii.gz", np.arange(8 * 9 * 10, dtype=np.float32).reshape(8, 9, 10)))


@pytest.fixture
def voxels():
    """Two boxes, values 1 and 2."""
    array = np.zeros((8, 9, 10), np.uint8)
    array[FIRST], array[SECOND] = 1, 2
    return array


def nrrd(path: Path, layers: np.ndarray, segments: list[dict], affine: np.ndarray = AFFINE, extra: str = "") -> Path:
    """A file as 3D Slicer writes it: (X, Y, Z), or (layers, X, Y, Z)."""
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    columns = ["(" + ",".join(map(str, lps[:3, axis])) + ")" for axis in range(3)]
    several = layers.ndim == 4
    lines = ["NRRD0004", "type: unsigned char", f"dimension: {layers.ndim}", "space: left-posterior-superior",
             "sizes: " + " ".join(map(str, layers.shape)), "kinds: " + " ".join(["list"] * several + ["domain"] * 3),
             "space directions: " + " ".join(["none"] * several + columns), "encoding: raw",
             "space origin: (" + ",".join(map(str, lps[:3, 3])) + ")"]  # fmt: skip
    for number, segment in enumerate(segments):
        lines += [f"Segment{number}_{key}:={value}" for key, value in segment.items()]
    content = "\n".join([*lines, *extra.splitlines()]) + "\n\n"
    path.write_bytes(content.encode() + layers.astype(np.uint8).tobytes(order="F"))
    return path


def segment(name: str, value: int, layer: int | None = None) -> dict:
    return {"Name": name, "LabelValue": value} | ({} if layer is None else {"Layer": layer})


def part(drawing, bundle="hippocampus"):
    return drawing.parts(CLASSES, "x")[bundle]


def test_values_get_the_class_of_their_name(tmp_path, image, voxels):
    names = [{"name": "posterior", "idx": 1}, {"name": "anterior", "idx": 2}]
    found = part(read_drawing(nifti(tmp_path / "l.nii.gz", voxels), image, names))
    assert (found[FIRST] == 2).all()
    assert (found[SECOND] == 1).all()
    assert np.count_nonzero(found) == np.count_nonzero(voxels)


def test_segments_of_two_bundles_become_two_label_maps(tmp_path, image, voxels):
    names = [{"name": "left atrium"}, {"name": "posterior"}]
    parts = read_drawing(nifti(tmp_path / "l.nii.gz", voxels), image, names).parts(CLASSES, "x")
    assert (parts["heart"] == (voxels == 1)).all()
    assert (parts["hippocampus"] == 2 * (voxels == 2)).all()


def test_values_without_names_stay_as_they_are(tmp_path, image, voxels):
    assert (part(read_drawing(nifti(tmp_path / "l.nii.gz", voxels), image)) == voxels).all()


def test_values_without_names_that_are_no_classes_are_refused(tmp_path, image, voxels):
    with pytest.raises(UsageError, match=r"no classes of one bundle \(1, 3\)"):
        read_drawing(nifti(tmp_path / "l.nii.gz", voxels + (voxels == 2)), image).parts(CLASSES, "x")


def test_a_background_segment_is_none(tmp_path, image, voxels):
    names = [{"name": "Background"}, {"name": "anterior"}]
    found = part(read_drawing(nifti(tmp_path / "l.nii.gz", voxels), image, names))
    assert (found == (voxels == 2)).all()


def test_names_of_a_seg_nrrd_stand_in_its_header(tmp_path, image, voxels):
    file = nrrd(tmp_path / "l.seg.nrrd", voxels, [segment("posterior", 1), segment("anterior", 2)])
    other_names = [{"name": "anterior"}, {"name": "posterior"}]
    found = part(read_drawing(file, image, other_names))
    assert (found[FIRST] == 2).all()
    assert (found[SECOND] == 1).all()


def test_plain_nrrd_is_named_by_the_viewer(tmp_path, image, voxels):
    found = part(
        read_drawing(nrrd(tmp_path / "l.nrrd", voxels, []), image, [{"name": "anterior"}, {"name": "posterior"}])
    )
    assert (found == voxels).all()


def test_layers_of_a_seg_nrrd_are_put_together(tmp_path, image, voxels):
    layers = np.stack([voxels == 1, voxels == 2])
    file = nrrd(tmp_path / "l.seg.nrrd", layers, [segment("anterior", 1, 0), segment("posterior", 1, 1)])
    assert (part(read_drawing(file, image)) == voxels).all()


def test_overlapping_classes_of_one_bundle_are_refused_and_of_two_bundles_not(tmp_path, image, voxels):
    layers = np.stack([voxels > 0, voxels == 2])
    both = [segment("anterior", 1, 0), segment("posterior", 1, 1)]
    with pytest.raises(DataError, match=r"'posterior' overlaps another class .*24 voxels"):
        read_drawing(nrrd(tmp_path / "l.seg.nrrd", layers, both), image).parts(CLASSES, "x")
    two = [segment("left atrium", 1, 0), segment("posterior", 1, 1)]
    parts = read_drawing(nrrd(tmp_path / "l.seg.nrrd", layers, two), image).parts(CLASSES, "x")
    assert (parts["heart"] == (voxels > 0)).all()
    assert (parts["hippocampus"] == 2 * (voxels == 2)).all()


def test_the_drawn_part_alone_goes_to_its_place(tmp_path, image, voxels):
    moved = AFFINE.copy()
    moved[:3, 3] += AFFINE[:3, :3] @ [1, 1, 1]
    file = nrrd(tmp_path / "l.seg.nrrd", voxels[BOX], [segment("anterior", 1), segment("posterior", 2)], moved)
    assert (part(read_drawing(file, image)) == voxels).all()


def test_a_segmentation_of_another_place_is_refused(tmp_path, image, voxels):
    moved = AFFINE.copy()
    moved[:3, 3] += 0.4
    for name, affine in (("a.nrrd", moved), ("b.nrrd", AFFINE @ np.diag([2, 1, 1, 1]))):
        with pytest.raises(GeometryError, match="does not lie on the grid of its image"):
            read_drawing(nrrd(tmp_path / name, voxels, [], affine), image)


def test_a_larger_segmentation_than_its_image_is_refused_before_it_is_read(tmp_path, image):
    huge = nrrd(tmp_path / "l.nrrd", np.zeros((1, 1, 1)), [])
    huge.write_bytes(huge.read_bytes().replace(b"sizes: 1 1 1", b"sizes: 9000 9000 9000"))
    with pytest.raises(DataError, match=r"more voxels than the file can hold \(9000 9000 9000\)"):
        read_drawing(huge, image)
    larger = nrrd(tmp_path / "m.nrrd", np.zeros((9, 9, 10)), [])
    with pytest.raises(GeometryError, match="label 9 x 9 x 10, image 8 x 9 x 10"):
        read_drawing(larger, image)


def test_voxels_in_another_file_of_the_server_are_refused(tmp_path, image, voxels):
    (tmp_path / "secret").write_bytes(bytes(voxels.size))
    file = nrrd(tmp_path / "l.nrrd", voxels, [], extra=f"data file: {tmp_path / 'secret'}")
    with pytest.raises(DataError, match="the voxels are in another file"):
        read_drawing(file, image)


def test_a_value_of_no_segment_is_refused(tmp_path, image, voxels):
    with pytest.raises(DataError, match=r"belongs to no segment \(2\)"):
        read_drawing(nrrd(tmp_path / "l.seg.nrrd", voxels, [segment("anterior", 1)]), image)


@pytest.mark.parametrize("content", [b"no image", b"NRRD0004\ntype: float\n\n", b""])
def test_what_is_no_nrrd_is_refused(tmp_path, image, content):
    (tmp_path / "l.nrrd").write_bytes(content)
    with pytest.raises(DataError, match=r"l\.nrrd: "):
        read_drawing(tmp_path / "l.nrrd", image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bare_voxels_are_in_the_order_of_the_image(tmp_path, image, voxels, dtype):
    (tmp_path / "label.bin").write_bytes(voxels.astype(dtype).tobytes(order="F"))
    found = part(read_drawing(tmp_path / "label.bin", image, [{"name": "anterior"}, {"name": "posterior"}]))
    assert (found == voxels).all()


def test_bare_voxels_of_another_size_are_refused(tmp_path, image):
    (tmp_path / "label.bin").write_bytes(bytes(7))
    with pytest.raises(GeometryError, match=r"7 bytes, image 8 x 9 x 10"):
        read_drawing(tmp_path / "label.bin", image)


@pytest.mark.parametrize("oddity", ["no codes", "pixdim"])
def test_a_label_lies_on_its_image_as_the_viewer_has_read_it(tmp_path, voxels, oddity):
    """ITK, so 3D Slicer, places an image without codes elsewhere than nibabel, and goes by pixdim, not the sform."""
    odd = nib.Nifti1Image(np.arange(720, dtype=np.float32).reshape(8, 9, 10), AFFINE)
    if oddity == "no codes":
        odd.header["sform_code"] = odd.header["qform_code"] = 0
    else:
        odd.header["qform_code"] = 0
        odd.header["pixdim"][1:4] = 1
    nib.save(nib.Nifti1Image(odd.dataobj, None, odd.header), tmp_path / "odd.nii.gz")
    image = read_nifti(tmp_path / "odd.nii.gz")
    seen = SimpleITK.ReadImage(str(tmp_path / "odd.nii.gz"))
    label = SimpleITK.GetImageFromArray(voxels.transpose(2, 1, 0))
    label.CopyInformation(seen)
    assert np.abs(viewer_affine(image.path) - image.affine).max() > 0.4
    for name in ("label.nii.gz", "label.nrrd"):
        SimpleITK.WriteImage(label, str(tmp_path / name))
        assert (part(read_drawing(tmp_path / name, image)) == voxels).all()
