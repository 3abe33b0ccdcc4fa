from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from decathlete.data.tasks import TASKS, get_task
from decathlete.errors import DataError, UsageError
from decathlete.phantoms.anatomy import SCENES
from decathlete.phantoms.cases import make_phantoms

SMALL = (64, 52, 32)
EVERY_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
CT_TASKS = [task for task in TASKS.values() if task.modality == "CT"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> dict[str, Path]:
    """Two small cases of every task: task name -> data set's folder."""
    folder = tmp_path_factory.mktemp("phantoms")
    return {name: make_phantoms(name, 2, folder, seed=3, shape=SMALL) for name in TASKS}


def pairs(folder: Path) -> list[tuple[nib.Nifti1Image, nib.Nifti1Image]]:
    dataset = json.loads((folder / "dataset.json").read_text())
    return [(nib.load(folder / case["image"]), nib.load(folder / case["label"])) for case in dataset["training"]]


@EVERY_TASK
def test_layout_is_that_of_the_decathlon(task, phantoms):
    folder = phantoms[task.name]
    dataset = json.loads((folder / "dataset.json").read_text())
    assert folder.name == task.folder
    assert sorted(p.name for p in folder.iterdir()) == ["dataset.json", "imagesTr", "imagesTs", "labelsTr"]
    assert dataset["numTraining"] == len(dataset["training"]) == len(list((folder / "imagesTr").iterdir())) == 2
    assert dataset["numTest"] == len(dataset["test"]) == len(list((folder / "imagesTs").iterdir())) == 1
    assert dataset["training"][0]["image"] == f"./imagesTr/{task.prefix}_001.nii.gz"
    assert dataset["labels"] == {"0": "background"} | {str(v): k for k, v in task.labels.items()}
    assert list(dataset["modality"].values()) == list(task.channels)
    assert "PHANTOM" in dataset["description"]


@EVERY_TASK
def test_image_and_label_lie_on_one_grid(task, phantoms):
    for image, label in pairs(phantoms[task.name]):
        assert image.shape == (SMALL if len(task.channels) == 1 else (*SMALL, len(task.channels)))
        assert label.shape == SMALL
        np.testing.assert_array_equal(image.affine, label.affine)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
        assert image.header.get_xyzt_units()[0] == "mm"


@EVERY_TASK
def test_labels_are_the_tasks_and_none_is_missing(task, phantoms):
    for _, label in pairs(phantoms[task.name]):
        assert set(np.unique(label.dataobj)) == {0, *task.labels.values()}
        assert label.get_data_dtype() == np.uint8


@EVERY_TASK
def test_spacing_lies_in_the_tasks_range(task, phantoms):
    low, high = task.spacing_range
    for image, _ in pairs(phantoms[task.name]):
        x, y, z = image.header.get_zooms()[:3]
        assert low - 1e-3 <= z <= high + 1e-3
        assert x == pytest.approx(y, abs=1e-4)
        assert 0.6 * task.spacing[0] <= x <= 1.3 * task.spacing[0]


@pytest.mark.parametrize("task", CT_TASKS, ids=lambda task: task.name)
def test_ct_is_in_hounsfield_units(task, phantoms):
    for image, _ in pairs(phantoms[task.name]):
        hu = np.asarray(image.dataobj)
        assert hu.dtype == np.int16
        assert hu.min() >= -1024
        assert hu.max() <= 3071
        corner = hu[[0, -1]][:, [0, -1]]
        assert np.median(corner) == pytest.approx(-1000, abs=30)  # air round the body
        for low, high in ((-200, -50), (20, 80), (300, 1500)):  # fat, soft tissue, bone
            assert np.mean((hu > low) & (hu < high)) > 0.004


def test_liver_spleen_and_tumour_have_their_hounsfield_units(phantoms):
    image, label = pairs(phantoms["liver"])[0]
    hu, mask = np.asarray(image.dataobj), np.asarray(label.dataobj)
    assert 80 < np.median(hu[mask == 1]) < 125
    assert 30 < np.median(hu[mask == 2]) < 95
    image, label = pairs(phantoms["spleen"])[0]
    assert 80 < np.median(np.asarray(image.dataobj)[np.asarray(label.dataobj) == 1]) < 140


@pytest.mark.parametrize(("name", "share"), [("lung", 0.01), ("colon", 0.01), ("pancreas", 0.01), ("liver", 0.04)])
def test_lesions_are_small(name, share, phantoms):
    value = list(get_task(name).labels.values())[-1]
    for _, label in pairs(phantoms[name]):
        assert 0 < np.mean(np.asarray(label.dataobj) == value) < share


def test_lung_tumours_are_on_few_slices(tmp_path):
    folder = make_phantoms("lung", 4, tmp_path, shape=(96, 80, 64))
    slices = [(np.asarray(label.dataobj) == 1).any((0, 1)).mean() for _, label in pairs(folder)]
    assert np.mean(slices) < 0.35


def test_lung_tumours_of_a_long_volume_are_on_one_slice_in_a_hundred(tmp_path):
    folder = make_phantoms("lung", 3, tmp_path, shape=(64, 64, 200))
    for image, label in pairs(folder):
        mask, hu = np.asarray(label.dataobj) == 1, np.asarray(image.dataobj)
        with_tumour = np.flatnonzero(mask.any((0, 1)))
        assert with_tumour[1] - with_tumour[0] == 1
        assert len(with_tumour) == 2
        blobs, count = ndimage.label(mask)
        assert 1 <= count <= 3
        for box in ndimage.find_objects(blobs):
            assert min(part.stop - part.start for part in box[:2]) >= 3
        ring = ndimage.binary_dilation(mask, iterations=3) & ~ndimage.binary_dilation(mask, iterations=2)
        assert np.median(hu[ring]) < -600  # air round it
        assert np.median(hu[mask]) > -400


def test_liver_lies_on_the_right_and_spleen_on_the_left(phantoms):
    for name, side in (("liver", 1), ("spleen", -1)):
        for _, label in pairs(phantoms[name]):
            voxels = np.argwhere(np.asarray(label.dataobj) == 1).mean(0)
            middle = (np.array(label.shape) - 1) / 2
            assert side * (nib.affines.apply_affine(label.affine, [voxels, middle]) @ [1, 0, 0] @ [1, -1]) > 0


def test_anterior_hippocampus_lies_in_front(phantoms):
    for _, label in pairs(phantoms["hippocampus"]):
        world = [nib.affines.apply_affine(label.affine, np.argwhere(np.asarray(label.dataobj) == v)) for v in (1, 2)]
        assert world[0][:, 1].mean() > world[1][:, 1].mean() + 5


def test_channels_of_a_brain_show_different_things(phantoms):
    image, label = pairs(phantoms["brain_tumour"])[0]
    voxels, mask = np.asarray(image.dataobj), np.asarray(label.dataobj)
    flair, t1, t1gd, _ = (voxels[..., i] for i in range(4))
    brain = (mask == 0) & (flair > 0)
    assert flair[mask == 1].mean() > 1.3 * flair[brain].mean()  # oedema is bright in FLAIR
    assert (
        t1gd[mask == 3].mean() / t1gd[brain].mean() > 1.3 * t1[mask == 3].mean() / t1[brain].mean()
    )  # the rim enhances
    assert flair[0, 0, 0] == 0  # skull and surroundings are stripped


def test_prostate_zones_differ_in_both_channels(phantoms):
    image, label = pairs(phantoms["prostate"])[0]
    voxels, mask = np.asarray(image.dataobj), np.asarray(label.dataobj)
    assert all(voxels[mask == 1][:, i].mean() > 1.15 * voxels[mask == 2][:, i].mean() for i in range(2))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.nii.gz")}


def test_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    a, b, other = (make_phantoms("heart", 1, tmp_path / str(i), seed=s, shape=SMALL) for i, s in enumerate((5, 5, 6)))
    assert contents(a) == contents(b)
    assert contents(a)["imagesTr/la_001.nii.gz"] != contents(other)["imagesTr/la_001.nii.gz"]


def test_a_case_does_not_change_with_the_number_of_cases(tmp_path):
    few = contents(make_phantoms("hippocampus", 2, tmp_path / "a"))
    many = contents(make_phantoms("hippocampus", 9, tmp_path / "b"))
    assert few.items() <= many.items()


def test_orientations_are_mixed_but_mostly_ras(tmp_path):
    found = [image.affine for image, _ in pairs(make_phantoms("hippocampus", 40, tmp_path))]
    codes = ["".join(nib.aff2axcodes(affine)) for affine in found]
    assert {"RAS", "LAS", "LPS"} == set(codes)
    assert codes.count("RAS") > 20
    assert any(np.count_nonzero(affine[:3, :3]) > 3 for affine in found)  # oblique


def test_hippocampus_has_the_size_of_the_real_cut_out(tmp_path):
    for image, label in pairs(make_phantoms("hippocampus", 3, tmp_path)):
        assert all(abs(a - b) <= 3 for a, b in zip(image.shape, (35, 50, 36), strict=True))
        assert 0.02 < np.mean(np.asarray(label.dataobj) > 0) < 0.09  # 0.05 in the real ones


def test_same_phantoms_are_kept(tmp_path):
    folder = make_phantoms("hippocampus", 1, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert make_phantoms("hippocampus", 1, folder) == folder  # the data set's own folder means the same
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_other_phantoms_are_not_written_over(tmp_path):
    before = contents(make_phantoms("hippocampus", 1, tmp_path))
    with pytest.raises(DataError, match=r"other phantoms.*seed 0.*asked for.*seed 1.*another --output"):
        make_phantoms("hippocampus", 1, tmp_path, seed=1)
    assert contents(tmp_path / "Task04_Hippocampus") == before


def test_real_data_are_not_written_over(tmp_path):
    (tmp_path / "Task04_Hippocampus").mkdir()
    (tmp_path / "Task04_Hippocampus" / "dataset.json").write_text('{"name": "Hippocampus"}')
    with pytest.raises(DataError, match="already holds other data"):
        make_phantoms("hippocampus", 1, tmp_path)


def test_a_phantom_set_with_a_file_missing_is_named(tmp_path):
    folder = make_phantoms("hippocampus", 1, tmp_path)
    (folder / "labelsTr" / "hippocampus_001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"is missing \(\./labelsTr/hippocampus_001.nii.gz"):
        make_phantoms("hippocampus", 1, tmp_path)


def test_an_interrupted_call_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("decathlete.phantoms.cases.save_phantom", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_phantoms("hippocampus", 1, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 901}, {"seed": -1}, {"shape": (8, 64, 64)}, {"shape": (64, 64)}])
def test_numbers_out_of_range_are_refused(wrong, tmp_path):
    with pytest.raises(UsageError, match="must be"):
        make_phantoms("hippocampus", **({"n": 1, "folder": tmp_path} | wrong))
    assert list(tmp_path.iterdir()) == []


@EVERY_TASK
def test_the_smallest_shape_still_holds_every_label(task, tmp_path):
    for _, label in pairs(make_phantoms(task, 2, tmp_path, shape=(24, 24, 12))):
        assert set(np.unique(label.dataobj)) == {0, *task.labels.values()}


def test_every_task_has_a_scene():
    assert list(SCENES) == list(TASKS)
