"""What kind of data set a folder holds, told by what is in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from decathlete.data import make_phantoms, make_sunnybrook_phantoms
from decathlete.data.cases import list_cases
from decathlete.data.kinds import kind_of
from decathlete.errors import DataError
from decathlete.planning import find_layout


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory) -> Path:
    return make_phantoms("hippocampus", 5, tmp_path_factory.mktemp("msd"), shape=(24, 24, 24))


@pytest.fixture
def nnunet(decathlon, tmp_path) -> Path:
    """The same cases in nnU-Net's raw folders."""
    for part, end in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (tmp_path / "Dataset004" / part).mkdir(parents=True)
        for file in (decathlon / part).glob("*.nii.gz"):
            shutil.copy(file, tmp_path / "Dataset004" / part / file.name.replace(".nii.gz", end))
    about = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
    (tmp_path / "Dataset004" / "dataset.json").write_text(json.dumps(about))
    return tmp_path / "Dataset004"


@pytest.fixture(scope="module")
def hearts(tmp_path_factory) -> Path:
    return make_sunnybrook_phantoms(1, tmp_path_factory.mktemp("sb"), size=96, slices=2, phases=2)


def test_folders_are_known_by_their_content(decathlon, nnunet, hearts, tmp_path):
    assert kind_of(decathlon) == "msd"
    assert kind_of(nnunet) == "nnunet"
    (nnunet / "dataset.json").unlink()
    assert kind_of(nnunet) == "nnunet"
    assert kind_of(hearts) == "sunnybrook"
    frames = next(path for path in hearts.rglob("dicoms/*") if path.is_dir())
    assert kind_of(frames) == "dicom"
    shutil.copytree(frames, tmp_path / "study" / "DICOM")
    assert kind_of(tmp_path / "study") == "dicom"
    (tmp_path / "study" / "contours-manual").mkdir()
    assert kind_of(tmp_path / "study") == "sunnybrook"
    head = tmp_path / "heads" / "A00028185" / "sub-A00028185_ses-NFB3_T1w_brainmask.nii.gz"
    head.parent.mkdir(parents=True)
    head.touch()
    assert kind_of(tmp_path / "heads") == "nfbs"
    assert kind_of(tmp_path / "nowhere") is None


def test_one_patients_frames_are_sunnybrooks_by_their_names(hearts, tmp_path):
    (tmp_path / "SC-HF-I-1" / "DICOM").mkdir(parents=True)
    (tmp_path / "SC-HF-I-1" / "DICOM" / "IM-0001-0059.dcm").touch()
    assert kind_of(tmp_path / "SC-HF-I-1") == "sunnybrook"


@pytest.mark.parametrize("beside", ["DICOM", "contours-manual", "final_data"])
def test_the_decathlons_folders_stay_what_they_are(decathlon, tmp_path, beside):
    folder = Path(shutil.copytree(decathlon, tmp_path / "own"))
    (folder / beside).mkdir()
    (folder / beside / "x.dcm").touch()
    assert kind_of(folder) == "msd"


def test_other_kinds_are_named_where_cases_are_wanted(nnunet, hearts):
    with pytest.raises(DataError, match=r"nnU-Net's raw folders\). Make a bundle of it with 'decathlete new'"):
        list_cases(nnunet)
    with pytest.raises(DataError, match="Use the bundle sunnybrook"):
        list_cases(hearts)
    with pytest.raises(DataError, match="Use the bundle sunnybrook"):
        find_layout(hearts)
    frames = next(path for path in hearts.rglob("dicoms/*") if path.is_dir())
    with pytest.raises(DataError, match=r"DICOM files\)\. Convert images and labels"):
        find_layout(frames)
