"""`decathlete predict` on DICOM frames, good and bad, and what it writes for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from decathlete.bundle import Bundle
from decathlete.bundle.configs import load
from decathlete.cli import main
from decathlete.inference.frame_outputs import heartbeats, write_contours
from decathlete.io.contours import contour_mask, read_contour

# file of the collection: what the line about it says, or None where it is read
CASES = {
    "made/valid_reference.dcm": None,
    "made/valid_rle.dcm": None,
    "made/valid_no_extension": None,
    "made/valid name with spaces ü.dcm": None,
    "real/MR_small_jp2klossless.dcm": None,
    "made/zero_length.dcm": "the file is empty",
    "made/text.dcm": "not a DICOM file",
    "made/truncated_pixels.dcm": "bytes for 32 x 32 pixels",
    "made/unknown_transfer_syntax.dcm": "transfer syntax",
    "made/rgb.dcm": "not a gray image",
    "made/rescale_slope_0.dcm": "RescaleSlope is 0",
    "made/pixel_spacing_missing.dcm": "no PixelSpacing",
    "made/orientation_not_orthogonal.dcm": "right angles",
    "made/multiframe_without_positions.dcm": "one slice",
    "real/test-SR.dcm": "(Modality SR",
}


def test_the_command_predicts_good_frames_and_names_bad_ones(shared, tmp_path, capsys):
    torch.manual_seed(0)
    torch.save(load("sunnybrook").get_parsed_content("network_def").state_dict(), tmp_path / "model.pt")
    folder = shared / "data" / "bad_inputs" / "dicom"
    files = [str(folder / name) for name in CASES]
    weights = str(tmp_path / "model.pt")
    assert main(["predict", "sunnybrook", *files, "--output", str(tmp_path / "out"), "--checkpoint", weights]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for name, rule in CASES.items():
        path = folder / name
        stem = path.stem if path.suffix else path.name
        assert (tmp_path / "out" / f"{stem}.nii.gz").is_file() == (rule is None), name
        lines = [line for line in said.splitlines() if line.startswith(f"decathlete: {path}: ")]
        assert len(lines) == (rule is not None), name
        assert rule is None or rule in lines[0], lines


def test_a_bundle_of_volumes_takes_no_frames(shared):
    assert Bundle("sunnybrook").outputs.frames
    assert not Bundle("hippocampus").outputs.frames


def test_contours_go_round_their_masks(tmp_path):
    x, y = np.indices((40, 40)) - 20
    label = np.where(np.hypot(x, y) < 8, 1, np.where(np.hypot(x, y) < 14, 2, 0))[:, :, None]
    written = write_contours(label, tmp_path, "59")
    assert [path.name for path in written] == ["IM-0001-0059-icontour-auto.txt", "IM-0001-0059-ocontour-auto.txt"]
    for path, mask in zip(written, (label == 1, label > 0), strict=True):
        drawn = contour_mask(read_contour(path), (40, 40))
        assert np.count_nonzero(drawn ^ mask[:, :, 0]) <= 0.03 * np.count_nonzero(mask)


@pytest.mark.parametrize(
    ("case", "name"),
    [("IM-0001-0007", "IM-0001-0007"), ("7", "IM-0001-0007"), ("anna", "anna"), ("IM-0002-0007", "IM-0002-0007")],
)
def test_contour_files_are_named_as_the_challenges(tmp_path, case, name):
    label = np.zeros((8, 8, 1), int)
    label[2:6, 2:6] = 2
    assert [p.name for p in write_contours(label, tmp_path, case)] == [f"{name}-ocontour-auto.txt"]


def test_contours_of_an_earlier_prediction_go_where_nothing_is_found_now(tmp_path):
    label = np.zeros((8, 8, 2), int)
    label[2:6, 2:6, 1] = 1
    assert [p.name for p in write_contours(label, tmp_path, "a")] == [
        "a-slice-002-icontour-auto.txt", "a-slice-002-ocontour-auto.txt"]  # fmt: skip
    assert write_contours(np.zeros_like(label), tmp_path, "a") == []
    assert list(tmp_path.iterdir()) == []


def test_volumes_need_frames(tmp_path):
    assert heartbeats({tmp_path / f"{n}.nii.gz": Path("x") for n in range(9)}, tmp_path) == {}
