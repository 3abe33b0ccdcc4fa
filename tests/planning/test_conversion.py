"""NRRD and MetaImage written byte by byte, by their formats' own words."""

from __future__ import annotations

import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest

from decathlete.errors import DataError, UsageError
from decathlete.planning import find_layout
from decathlete.planning.conversion import convert, needs_conversion, read_other

pytestmark = pytest.mark.slow  # ITK takes seconds to load

VOXELS = np.arange(24, dtype="<i2").reshape(2, 3, 4)  # (X, Y, Z)


def write_mha(path, voxels=VOXELS, spacing="1 2 3", offset="10 20 30"):
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        f"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = {offset}\nElementSpacing = {spacing}\n"
        f"DimSize = {' '.join(map(str, voxels.shape))}\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.encode() + voxels.tobytes(order="F"))  # x runs fastest


def write_nrrd(path, voxels=VOXELS):
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\n"
        f"sizes: {' '.join(map(str, voxels.shape))}\nspace directions: (1,0,0) (0,2,0) (0,0,3)\n"
        "kinds: domain domain domain\nendian: little\nencoding: raw\nspace origin: (10,20,30)\n\n"
    )
    path.write_bytes(header.encode() + voxels.tobytes(order="F"))


@pytest.mark.parametrize(("name", "write"), [("a.mha", write_mha), ("a.nrrd", write_nrrd)])
def test_lps_millimetres_become_ras(tmp_path, name, write):
    write(tmp_path / name)
    array, affine = read_other(tmp_path / name)
    assert (array == VOXELS).all()
    assert np.allclose(affine, [[-1, 0, 0, -10], [0, -2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])


def test_cases_become_decathlon_folders_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for case in range(2):
        for name in ("t1", "t2"):
            write_mha(tmp_path / "raw" / f"case{case}" / f"{name}.mha", VOXELS + case)
        write_mha(tmp_path / "raw" / f"case{case}" / "seg.mha", (VOXELS > 11).astype("<i2"))
    layout = find_layout("raw", ["*/t1.mha", "*/t2.mha"], "*/seg.mha", ["T1", "T2"], ["box"])
    assert needs_conversion(layout)
    folder = convert(layout, "data/own", progress=False)
    image = nib.load(folder / "imagesTr" / "case1.nii.gz")
    assert image.shape == (2, 3, 4, 2)
    assert (np.asarray(image.dataobj)[..., 0] == VOXELS + 1).all()
    made = json.loads((folder / "dataset.json").read_text())
    assert (made["modality"], made["labels"]) == ({"0": "T1", "1": "T2"}, {"0": "background", "1": "box"})
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.nii.gz")}
    convert(layout, "data/own", progress=False)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.nii.gz")} == before
    assert [case["case_id"] for case in find_layout(folder).cases] == ["case0", "case1"]


def test_other_data_are_not_written_over(tmp_path):
    write_mha(tmp_path / "raw" / "a" / "t1.mha")
    write_mha(tmp_path / "raw" / "a" / "seg.mha")
    layout = find_layout(tmp_path / "raw", ["*/t1.mha"], "*/seg.mha")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="already holds other data"):
        convert(layout, tmp_path / "own", progress=False)


def test_a_file_that_itk_cannot_read_is_named(tmp_path):
    (tmp_path / "a.nrrd").write_text("no image")
    with pytest.raises(DataError, match=r"a\.nrrd: ITK cannot read the file"):
        read_other(tmp_path / "a.nrrd")


def test_a_label_that_was_corrected_is_converted_anew(tmp_path):
    for case in range(2):
        write_mha(tmp_path / "raw" / f"{case}" / "t1.mha", VOXELS + case)
        write_mha(tmp_path / "raw" / f"{case}" / "seg.mha", (VOXELS > 11).astype("<i2"))
    layout = find_layout(tmp_path / "raw", ["*/t1.mha"], "*/seg.mha")
    folder = convert(layout, tmp_path / "own", progress=False)
    other = (folder / "labelsTr" / "1.nii.gz").stat().st_mtime_ns
    source = tmp_path / "raw" / "0" / "seg.mha"
    times = source.stat()
    write_mha(source, (VOXELS > 17).astype("<i2"))
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))  # as copies and archives leave it
    convert(layout, tmp_path / "own", progress=False)
    assert np.asarray(nib.load(folder / "labelsTr" / "0.nii.gz").dataobj).sum() == 6
    assert (folder / "labelsTr" / "1.nii.gz").stat().st_mtime_ns == other


def test_a_conversion_without_digests_is_made_anew(tmp_path):
    write_mha(tmp_path / "raw" / "a" / "t1.mha")
    write_mha(tmp_path / "raw" / "a" / "seg.mha")
    layout = find_layout(tmp_path / "raw", ["*/t1.mha"], "*/seg.mha")
    folder = convert(layout, tmp_path / "own", progress=False)
    (folder / "converted.json").write_text(json.dumps({"from": str((tmp_path / "raw").resolve())}))
    (folder / "labelsTr" / "a.nii.gz").write_bytes(b"of another time")
    convert(layout, folder, progress=False)
    assert (np.asarray(nib.load(folder / "labelsTr" / "a.nii.gz").dataobj) == VOXELS).all()


def test_a_converted_case_whose_source_is_gone_goes(tmp_path):
    for case in "ab":
        write_mha(tmp_path / "raw" / case / "t1.mha")
        write_mha(tmp_path / "raw" / case / "seg.mha")
    convert(find_layout(tmp_path / "raw", ["*/t1.mha"], "*/seg.mha"), tmp_path / "own", progress=False)
    shutil.rmtree(tmp_path / "raw" / "a")
    folder = convert(find_layout(tmp_path / "raw", ["*/t1.mha"], "*/seg.mha"), tmp_path / "own", progress=False)
    assert [path.name for path in sorted(folder.rglob("*.nii.gz"))] == ["b.nii.gz", "b.nii.gz"]
    assert find_layout(folder).faults == ()


def test_layers_of_overlapping_segments_are_named(tmp_path):
    header = (
        "NRRD0004\ntype: unsigned char\ndimension: 4\nspace: left-posterior-superior\nsizes: 2 2 3 4\n"
        "space directions: none (1,0,0) (0,1,0) (0,0,1)\nkinds: list domain domain domain\nencoding: raw\n"
        "space origin: (0,0,0)\nSegment0_Layer:=0\nSegment0_Name:=Anterior\nSegment1_Layer:=1\n"
        "Segment1_Name:=Posterior\n\n"
    )
    path = tmp_path / "a.seg.nrrd"
    path.write_bytes(header.encode() + bytes(48))
    with pytest.raises(DataError, match=r"2 layers of overlapping segments: Anterior, Posterior\)\. In 3D Slicer"):
        read_other(path)
    path.write_bytes(header.partition("Segment0")[0].encode() + b"\n" + bytes(48))
    with pytest.raises(DataError, match=r"4 axes of 2 2 3 4\)\. Give one file per channel"):
        read_other(path)


def test_a_header_that_claims_too_many_voxels_is_refused_before_memory_is_taken(tmp_path):
    write_nrrd(tmp_path / "a.nrrd")
    content = (tmp_path / "a.nrrd").read_bytes()
    (tmp_path / "a.nrrd").write_bytes(content.replace(b"sizes: 2 3 4", b"sizes: 2048 2048 2048"))
    with pytest.raises(DataError, match=r"more than 1,073,741,824 voxels \(2048 x 2048 x 2048"):
        read_other(tmp_path / "a.nrrd")


def test_an_axis_that_is_too_long_for_the_first_nifti_is_converted(tmp_path):
    folder = tmp_path / "data"
    voxels = np.zeros((33_000, 1, 1), "<i2")
    for name in ("image", "label"):
        write_mha(folder / name / "a.mha", voxels)
    target = convert(find_layout(folder, ["image/*.mha"], "label/*.mha"), tmp_path / "out", progress=False)
    assert nib.load(target / "imagesTr" / "a.nii.gz").shape == (33_000, 1, 1)
