"""Films and sheets: frames, proportions, colours, what is said in them, and what is refused."""

from __future__ import annotations

import json
import sys

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageSequence

from decathlete.colours import COLOURS
from decathlete.drawing.scan import load_scan
from decathlete.errors import DataError, GeometryError, UsageError, WorkError
from decathlete.view import film
from decathlete.view.film_maker import CT_LUNG, CT_SOFT, _Drawer, _spread, default_window

SPACING = (1.0, 1.0, 3.0)


def block(shape=(10, 12, 6)):
    label = np.zeros(shape, dtype=np.uint8)
    label[2:6, 3:9, 1:4] = 1
    return label


@pytest.fixture
def files(tmp_path):
    """Image and label in a data set's layout, with a dataset.json."""
    folder = tmp_path / "data"
    paths = {}
    for name, array in (("imagesTr", np.arange(720.0).reshape(10, 12, 6)), ("labelsTr", block())):
        (folder / name).mkdir(parents=True)
        paths[name] = folder / name / "case_7.nii.gz"
        nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([*SPACING, 1])), paths[name])
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "left atrium"}}))
    return paths["imagesTr"], paths["labelsTr"]


def frames(path):
    with Image.open(path) as opened:
        return [np.asarray(f.convert("RGB")).astype(int) for f in ImageSequence.Iterator(opened)]


def count(picture, colour):
    return int((picture == colour).all(-1).sum())


def test_gif_has_a_frame_a_slice_and_loops(tmp_path, files):
    made = film(files[0], tmp_path / "out" / "a.gif", files[1], fps=5)
    with Image.open(made) as opened:
        assert (opened.n_frames, opened.info["duration"], opened.info["loop"]) == (6, 200, 0)


def test_outline_is_in_the_frames_of_labelled_slices_alone(tmp_path):
    plain, outlined = (
        frames(film(np.zeros((10, 12, 6)), tmp_path / "a.gif", label, size=120)) for label in (None, block())
    )
    swatch = count(outlined[0], COLOURS[0])  # of the legend
    assert count(plain[2], COLOURS[0]) == 0
    # 4 x 6 voxels of 10 x 10 pixels, outlined one pixel wide inside
    assert [count(f, COLOURS[0]) - swatch for f in outlined] == [0, 196, 196, 196, 0, 0]


@pytest.mark.parametrize(("axis", "width", "height"), [("axial", 10, 12), ("coronal", 10, 18), ("sagittal", 12, 18)])
def test_every_plane_has_its_physical_aspect(tmp_path, axis, width, height):
    image = np.ones((10, 12, 6))
    image[0, 0, 0] = 0
    picture = frames(film(image, tmp_path / "a.gif", axis=axis, affine=np.diag([*SPACING, 1]), size=height * 10))[-1]
    rows, columns = np.nonzero((picture > 240).all(-1))  # text is darker
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (width * 10, height * 10)


def test_patients_right_is_on_the_left(tmp_path):
    image = np.zeros((10, 12, 6))
    image[8:, :, :] = 1  # far right
    columns = np.nonzero((frames(film(image, tmp_path / "a.gif", size=120))[0] > 240).all(-1))[1]
    assert columns.max() < 220  # the frame's middle


def test_chosen_slices_are_shown(tmp_path):
    assert len(frames(film(block(), tmp_path / "a.gif", slices=(2, 4)))) == 3
    assert len(frames(film(block(), tmp_path / "a.gif", slices=(None, 2)))) == 2


def test_title_shows_side_and_millimetres():
    drawer = _Drawer(load_scan(block(), affine=np.diag([1.0, 1, 3, 1]) - 4 * np.eye(4, k=3)), 0, None, None, "", 64)
    assert [drawer.place(n) for n in (0, 4, 9)] == ["L 4.0 mm", "R 0.0 mm", "R 5.0 mm"]


def test_classes_have_the_names_of_the_data_set_and_their_dice(tmp_path, files, monkeypatch):
    seen = []
    monkeypatch.setattr("decathlete.view.film_maker.legend", lambda names, *rest: seen.append(names) or [])
    prediction = tmp_path / "pred.nii.gz"
    nib.save(nib.Nifti1Image(np.roll(block(), 2, axis=0), np.diag([*SPACING, 1])), prediction)
    film(files[0], tmp_path / "a.png", files[1], prediction)
    assert seen == [{1: "left atrium (Dice 0.500)"}]


def test_sheet_favours_labelled_slices():
    label = np.zeros((4, 4, 100), dtype=np.uint8)
    label[1, 1, 40:51] = 1
    scan = load_scan(np.zeros(label.shape), label)
    assert _spread(range(100), scan, 2, 5) == [39, 42, 45, 48, 51]
    assert _spread(range(100), load_scan(np.zeros(label.shape)), 2, 4) == [0, 33, 66, 99]
    assert _spread(range(100), scan, 2, 1)[0] in range(40, 51)


def test_sheet_is_written(tmp_path, files):
    with Image.open(film(files[0], tmp_path / "a.png", files[1])) as opened:
        picture = np.asarray(opened.convert("RGB"))
    assert count(picture, COLOURS[0]) > 3 * 100  # in three of five slices


def test_mp4_can_be_decoded(tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    image = np.ones((10, 12, 6))
    image[..., 3] = np.arange(10)[:, None]
    made = film(image, tmp_path / "a.mp4", block(), size=121, fps=4)
    reader = ffmpeg.read_frames(str(made))
    meta = next(reader)
    assert (meta["fps"], meta["codec"], len(list(reader))) == (4, "h264", 6)
    assert [side % 2 for side in meta["size"]] == [0, 0]


def without_ffmpeg(monkeypatch, path=""):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PATH", str(path))


def test_mp4_without_ffmpeg_says_what_to_do(tmp_path, monkeypatch):
    without_ffmpeg(monkeypatch)
    with pytest.raises(WorkError, match=r"\.gif.*pip install imageio-ffmpeg"):
        film(tmp_path / "never_read.nii", tmp_path / "a.mp4")


def test_ffmpegs_own_error_is_reported_and_the_old_film_kept(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ffmpeg"
    program.write_text("#!/bin/sh\necho 'Unknown encoder' >&2\nexit 1\n")
    program.chmod(0o755)
    (tmp_path / "a.mp4").write_text("earlier")
    without_ffmpeg(monkeypatch, tmp_path / "bin")
    with pytest.raises(WorkError, match="Unknown encoder"):
        film(np.random.default_rng(0).random((40, 40, 30)), tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_text() == "earlier"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "bin"]


def test_empty_label_is_said_and_drawn(tmp_path, files, caplog):
    empty = tmp_path / "empty.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((10, 12, 6), np.uint8), np.diag([*SPACING, 1])), empty)
    assert len(frames(film(files[0], tmp_path / "a.gif", empty))) == 6
    assert "the label is empty" in caplog.text


def test_ct_gets_the_window_of_what_is_labelled():
    rng = np.random.default_rng(0)
    chest = rng.normal(40, 10, (40, 40, 20))
    chest[:20] = rng.normal(-800, 20, (20, 40, 20))  # lung on one side
    tumour, liver = np.zeros((2, *chest.shape), dtype=np.uint8)
    tumour[8:12, 18:22, 8:12] = 1
    liver[33:37, 18:22, 8:12] = 1
    assert default_window(load_scan(chest, tumour))[0] == CT_LUNG
    assert default_window(load_scan(chest, liver))[0] == CT_SOFT
    assert default_window(load_scan(chest))[0] == CT_LUNG
    assert default_window(load_scan(chest + 1000))[0][0] > 100  # no CT


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_image_without_contrast_is_drawn(tmp_path, value):
    assert film(np.full((6, 6, 4), value), tmp_path / "a.gif").is_file()


def test_two_dimensional_image_is_one_frame(tmp_path):
    assert len(frames(film(np.random.default_rng(0).random((20, 30)), tmp_path / "a.gif"))) == 1


@pytest.mark.parametrize(
    ("output", "wrong", "text"),
    [
        ("a.avi", {}, r"\.gif, \.mp4, \.png.*\('\.avi'"),
        ("a", {}, r"ends in \.gif, \.mp4, \.png \(no suffix\)"),
        ("a.gif", {"axis": 3}, r"\(3\)"),
        ("a.gif", {"axis": "axail"}, "Did you mean 'axial'"),
        ("a.gif", {"slices": (0, 3)}, r"within 1:6, the axial slices \(0:3\)"),
        ("a.gif", {"slices": (5, 7)}, r"\(5:7\)"),
        ("a.gif", {"window": (240, -160)}, r"\(240,-160\)"),
        ("a.gif", {"fps": 0}, "above 0"),
        ("a.gif", {"size": 0}, "size"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, output, wrong, text):
    with pytest.raises(UsageError, match=text):
        film(block(), tmp_path / output, **wrong)
    assert not list(tmp_path.iterdir())


def test_label_of_another_grid_leaves_the_old_film(tmp_path, files):
    (tmp_path / "a.gif").write_text("earlier")
    with pytest.raises(GeometryError):
        film(files[0], tmp_path / "a.gif", block()[..., :5])
    with pytest.raises(DataError, match="nowhere"):
        film(files[0], tmp_path / "a.gif", tmp_path / "nowhere.nii.gz")
    assert (tmp_path / "a.gif").read_text() == "earlier"


def test_place_that_cannot_be_written_to_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="a file is in the way"):
        film(tmp_path / "never_read.nii", tmp_path / "file" / "a.gif")


def test_real_scan_is_outlined_where_it_is_labelled(tmp_path, shared):
    folder = shared / "data" / "Task02_Heart"
    name = "la2018_001.nii.gz"
    made = frames(film(folder / "imagesTr" / name, tmp_path / "a.gif", folder / "labelsTr" / name, size=128))
    counts = [count(frame, COLOURS[0]) for frame in made]
    assert len(made) == 88
    # provenance.csv: the label's box is 19 to 79 along the last axis
    assert [n for n, c in enumerate(counts) if c > counts[0]] == list(range(19, 79))
