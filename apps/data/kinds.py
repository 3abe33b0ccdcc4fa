"""What kind of data set a folder holds, by its content. Imports nothing heavy."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from decathlete.data.nfbs import is_nfbs
from decathlete.errors import DataError
from decathlete.files import NIFTI_SUFFIXES
from decathlete.names import read_text, same_name

Kind = Literal["msd", "nnunet", "nfbs", "sunnybrook", "dicom"]
WORDS: dict[Kind, str] = {
    "msd": "the Decathlon's folders",
    "nnunet": "nnU-Net's raw folders",
    "nfbs": "NFBS",
    "sunnybrook": "the Sunnybrook set",
    "dicom": "DICOM files",
}
OTHER_SUFFIXES = (".nrrd", ".mha")  # read by ITK and converted once; .mhd and .nhdr keep their voxels elsewhere
IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, *OTHER_SUFFIXES)
CHANNEL = re.compile(r"^(?P<case>.+)_(?P<number>\d{4})(?P<suffix>\.nii\.gz|\.nii|\.nrrd|\.mha)$", re.IGNORECASE)
_LOOKED_AT = 20  # files of a folder, to see whether they are DICOM


def kind_of(folder: str | Path, description: Mapping[str, Any] | None = None) -> Kind | None:
    """Kind of a data set, or None for another one; the folder need not exist.

    Folders with ``imagesTr`` or a ``dataset.json`` are the Decathlon's or nnU-Net's, whatever else lies in them.

    Args:
        folder: the data set's folder.
        description: what its ``dataset.json`` says, where that was read already.

    Raises:
        DataError: ``dataset.json`` is not a JSON object.
    """
    folder = Path(folder)
    if is_nfbs(folder):
        return "nfbs"
    if (folder / "imagesTr").is_dir() or (folder / "dataset.json").is_file():
        if description is None:
            description = read_description(folder) or {}
        return "nnunet" if _is_nnunet(folder, description) else "msd"
    if not folder.is_dir():
        return None
    from decathlete.data.sunnybrook import is_sunnybrook, may_be_dicom

    if is_sunnybrook(folder):
        return "sunnybrook"
    files = chain(folder.glob("*"), folder.glob("*/*"), folder.glob("*/*/*"))
    looked_at = islice((path for path in files if path.is_file() and not path.name.startswith(".")), _LOOKED_AT)
    return "dicom" if any(may_be_dicom(path) for path in looked_at) else None


def read_description(folder: str | Path) -> Mapping[str, Any] | None:
    """Contents of ``dataset.json``, or None where there is none.

    Raises:
        DataError: it is not a JSON object.
    """
    path = Path(folder) / "dataset.json"
    if not path.is_file():
        return None
    try:
        description = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # also bytes that are not text, and numbers of thousands of digits
        raise DataError(path, "dataset.json is not valid JSON", f"{error!s:.200}",
                        "Correct the file, or remove it") from error  # fmt: skip
    if not isinstance(description, dict):
        raise DataError(path, "dataset.json must be a JSON object", type(description).__name__, "Correct the file")
    return description


def _is_nnunet(folder: Path, description: Mapping[str, Any]) -> bool:
    """By its own words in ``dataset.json``, or by names that end in the number of a channel where labels' do not."""
    if "training" in description or not (folder / "imagesTr").is_dir():
        return False
    if "channel_names" in description or "file_ending" in description:
        return True
    if not (folder / "labelsTr").is_dir():
        return False
    labels = {same_name(path.name).lower() for path in (folder / "labelsTr").iterdir()}
    matches = filter(None, (CHANNEL.match(same_name(path.name)) for path in (folder / "imagesTr").iterdir()))
    return any(f"{m['case']}{m['suffix']}".lower() in labels for m in matches)
