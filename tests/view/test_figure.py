"""The PNG: true proportions, orientation, title, and inputs that cannot be shown."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from decathlete.errors import DataError, GeometryError
from decathlete.view import overlay
from decathlete.view.figure import _draw, _edges

TURNED = np.array([[0, 0, 3.0, 4], [-0.5, 0, 0, 3], [0, -0.5, 0, 1], [0, 0, 0, 1.0]])  # axes P, I, R; 0.5, 0.5, 3 mm


@pytest.fixture
def drawn(monkeypatch):
    """What `overlay` hands to the drawing, which still draws."""
    seen = {}

    def spy(image, maps, spacing, slices, names, title):
        seen.update(image=image, maps=maps, spacing=spacing, slices=slices, names=names, title=title)
        return _draw(image, maps, spacing, slices, names, title)

    monkeypatch.setattr("decathlete.view.figure._draw", spy)
    return seen


def block(shape=(10, 12, 6)):
    label = np.zeros(shape, dtype=np.uint8)
    label[2:6, 3:9, 1:4] = 1
    return label


def test_picture_of_files_is_written(tmp_path):
    for name, array in (("image", np.arange(720.0).reshape(10, 12, 6)), ("label", block())):
        nib.save(nib.Nifti1Image(array.astype(np.float32), TURNED), tmp_path / f"{name}.nii.gz")
    made = overlay(tmp_path / "image.nii.gz", tmp_path / "label.nii.gz", path=tmp_path / "out" / "a.png")
    picture = imread(made)
    assert picture.shape[1] == 1500
    orange = np.abs(picture[..., :3] - np.array([230, 159, 0]) / 255).max(-1) < 0.01
    assert orange.sum() > 100


def test_volume_is_turned_to_ras_with_its_spacing(tmp_path, drawn):
    image = np.zeros((10, 12, 6))
    image[0, 11, 5] = 1  # axes run P, I, R: this voxel is far anterior, inferior, right
    overlay(image, block(), path=tmp_path / "a.png", affine=TURNED)
    assert drawn["image"].shape == (6, 10, 12)
    assert drawn["image"][5, 9, 0] == 1
    assert drawn["spacing"].tolist() == [3.0, 0.5, 0.5]


def test_each_plane_shows_its_fullest_slice(tmp_path, drawn):
    label = block()
    label[4, 5, :] = label[:, 7, 2] = label[4, :, 2] = 1
    overlay(np.zeros(label.shape), label, path=tmp_path / "a.png")
    assert drawn["slices"] == {2: 2, 1: 7, 0: 4}


def test_title_tells_case_and_dice(tmp_path, drawn):
    prediction = np.roll(block(), 2, axis=0)
    overlay(block(), block(), prediction, tmp_path / "a.png", case_id="case_7", labels={"background": 0, "organ": 1})
    assert drawn["title"] == "case_7   Dice organ 0.500"


def test_one_chosen_plane_is_shown(tmp_path, drawn):
    overlay(block(), path=tmp_path / "a.png", axis=1, index=3)
    assert drawn["slices"] == {1: 3}


def test_two_dimensional_image_has_one_plane(tmp_path, drawn):
    overlay(np.random.default_rng(0).random((20, 30)), path=tmp_path / "a.png")
    assert drawn["slices"] == {2: 0}


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_image_without_contrast_is_drawn(tmp_path, value):
    assert overlay(np.full((6, 6, 6), value), path=tmp_path / "a.png").is_file()


def test_outline_follows_the_edges_of_the_voxels():
    lines = _edges(np.ones((1, 2), dtype=bool))  # one row, two columns
    assert len(lines) == 6
    assert lines.min(axis=(0, 1)).tolist() == [0, 0]
    assert lines.max(axis=(0, 1)).tolist() == [2, 1]


def test_label_of_another_grid_leaves_the_old_picture(tmp_path):
    (tmp_path / "a.png").write_text("earlier")
    with pytest.raises(GeometryError, match=r"\(10, 12, 6\), label \(10, 12, 5\)"):
        overlay(block(), block()[..., :5], path=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "earlier"


@pytest.mark.parametrize("wrong", [{"axis": 3}, {"axis": 2, "index": 6}, {"index": 2}, {"channel": 1}])
def test_what_is_not_there_is_refused(tmp_path, wrong):
    with pytest.raises(DataError):
        overlay(block()[None], path=tmp_path / "a.png", **wrong)
