"""Three planes: true proportions, orientation, title, colours of values, and inputs that cannot be shown."""

from __future__ import annotations

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from decathlete.colours import COLOURS
from decathlete.drawing.planes import RAMP, TITLE, overlay_picture, value_picture
from decathlete.errors import DataError, GeometryError
from decathlete.view import overlay

TURNED = np.array([[0, 0, 3.0, 4], [-0.5, 0, 0, 3], [0, -0.5, 0, 1], [0, 0, 0, 1.0]])  # axes P, I, R; 0.5, 0.5, 3 mm


@pytest.fixture
def drawn(monkeypatch):
    """What `overlay` hands to the drawing, which still draws."""
    seen = {}

    def spy(scan, names, title, slices):
        seen.update(scan=scan, slices=slices, names=names, title=title)
        return overlay_picture(scan, names, title, slices)

    monkeypatch.setattr("decathlete.drawing.planes.overlay_picture", spy)
    return seen


def block(shape=(10, 12, 6)):
    label = np.zeros(shape, dtype=np.uint8)
    label[2:6, 3:9, 1:4] = 1
    return label


def pixels(picture):
    return np.asarray(picture.convert("RGB")).astype(int)


def test_picture_of_files_is_written(tmp_path):
    for name, array in (("image", np.arange(720.0).reshape(10, 12, 6)), ("label", block())):
        nib.save(nib.Nifti1Image(array.astype(np.float32), TURNED), tmp_path / f"{name}.nii.gz")
    made = overlay(tmp_path / "image.nii.gz", tmp_path / "label.nii.gz", path=tmp_path / "out" / "a.png")
    with Image.open(made) as opened:
        assert opened.width <= 1200
        assert (pixels(opened) == COLOURS[0]).all(-1).sum() > 100


def test_volume_is_turned_to_ras_with_its_spacing(tmp_path, drawn):
    image = np.zeros((10, 12, 6))
    image[0, 11, 5] = 1  # axes run P, I, R: this voxel is far anterior, inferior, right
    overlay(image, block(), path=tmp_path / "a.png", affine=TURNED)
    assert drawn["scan"].image.shape == (6, 10, 12)
    assert drawn["scan"].image[5, 9, 0] == 1
    assert drawn["scan"].spacing.tolist() == [3.0, 0.5, 0.5]


def test_each_plane_shows_its_fullest_slice(tmp_path, drawn):
    label = block()
    label[4, 5, :] = label[:, 7, 2] = label[4, :, 2] = 1
    overlay(np.zeros(label.shape), label, path=tmp_path / "a.png")
    assert drawn["slices"] == {2: 2, 1: 7, 0: 4}


def test_title_names_case_and_dice(tmp_path, drawn):
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


def test_planes_stand_side_by_side_to_one_scale(tmp_path):
    image = np.ones((10, 12, 6))
    image[0, 0, 0] = 0
    made = overlay(image, path=tmp_path / "a.png", affine=np.diag([1.0, 1, 3, 1]))
    with Image.open(made) as opened:
        white = (pixels(opened)[TITLE:] > 240).all(-1)
    columns = np.flatnonzero(white.sum(axis=0) > 100)  # text is not as high
    widths = [len(run) for run in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)]
    assert np.array(widths) / sum(widths) == pytest.approx(np.array([10, 10, 12]) / 32, abs=0.01)  # in mm


@pytest.mark.parametrize(("value", "colour"), [(0.0, (0, 0, 0)), (2.0, RAMP[-1]), (9.0, RAMP[-1])])
def test_values_are_coloured_from_transparent_to_the_highest(value, colour):
    image = np.zeros((20, 20, 20))
    image[0, 0, 0] = 1  # shown black but for one voxel
    values = np.zeros(image.shape)
    values[8:12, 8:12, 8:12] = value
    picture = pixels(value_picture(image, values, np.eye(4), highest=2.0))
    height = round((1200 - 24 - 60 - 16) / 3)
    middle = picture[TITLE + 22 + height // 2, 12 + height // 2]
    assert middle.tolist() == pytest.approx(colour, abs=1)


def test_label_of_another_grid_leaves_the_old_picture(tmp_path):
    (tmp_path / "a.png").write_text("earlier")
    with pytest.raises(GeometryError, match="image 10 x 12 x 6, label 10 x 12 x 5"):
        overlay(block(), block()[..., :5], path=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "earlier"


@pytest.mark.parametrize("wrong", [{"axis": 3}, {"axis": 2, "index": 6}, {"index": 2}, {"channel": 1}])
def test_what_is_not_there_is_refused(tmp_path, wrong):
    with pytest.raises(DataError):
        overlay(block()[None], path=tmp_path / "a.png", **wrong)


def test_pictures_need_neither_matplotlib_nor_torch(tmp_path):
    code = (
        "import sys; import numpy as np; from decathlete.view import film, overlay\n"
        f"film(np.eye(4)[..., None], r'{tmp_path}/a.png'); overlay(np.eye(4), path=r'{tmp_path}/b.png')\n"
        "print([m for m in ('matplotlib', 'torch', 'monai') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
