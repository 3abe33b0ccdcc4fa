"""The Neurofeedback Skull-stripped repository (NFBS): 125 T1-weighted heads with brain masks, in its own layout.

Each subject has a folder ``A000...`` with the head ``sub-A000..._ses-NFB3_T1w.nii.gz``, the extracted brain
``..._T1w_brain.nii.gz``, and the mask ``..._T1w_brainmask.nii.gz``. Imports nothing heavy.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from decathlete.files import is_file_or_broken_link, nifti_files

NAME, FOLDER = "nfbs", "NFBS_Dataset"
IMAGE, BRAIN, MASK = "_T1w.nii.gz", "_T1w_brain.nii.gz", "_T1w_brainmask.nii.gz"
TISSUES = "_T1w_tissues.nii.gz"  # not NFBS's own: a map of all parts of the head, from which training draws images anew
CHANNELS, LABELS = ("T1w",), {"brain": 1}
URL = "https://fcp-indi.s3.amazonaws.com/data/Projects/RocklandSample/NFBS_Dataset.tar.gz"
SIZE = 1_751_464_473  # bytes of the archive, of which no checksum is published


def is_nfbs(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder has NFBS's name, or holds masks in its layout; it need not exist."""
    folder = Path(folder)
    if (folder.name or folder.resolve().name).lower() == FOLDER.lower():
        return True
    return next(folder.glob(f"*/sub-*{MASK}"), None) is not None


def list_heads(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Heads with their masks, ``{"image": path, "label": path, "case_id": "sub-A000..."}``, sorted by id.

    The index is by the heads' files: so a missing mask is noticed. Where a subject has several
    sessions, the session is part of the ids. Where every head has a map of tissues, ``..._T1w_tissues.nii.gz``, cases
    also hold ``"tissues"``.
    """
    stems = [str(path)[: -len(IMAGE)] for path in sorted(Path(folder).glob(f"*/sub-*{IMAGE}"))]
    sessions = Counter(patient_of(os.path.basename(stem)) for stem in stems)
    cases = []
    for stem in stems:
        name = os.path.basename(stem)
        case_id = patient_of(name) if sessions[patient_of(name)] == 1 else name
        cases.append({"image": stem + IMAGE, "label": stem + MASK, "case_id": case_id})
    if all(is_file_or_broken_link(stem + TISSUES) for stem in stems):
        cases = [case | {"tissues": stem + TISSUES} for case, stem in zip(cases, stems, strict=True)]
    return sorted(cases, key=lambda case: case["case_id"])


def head_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Heads of a folder: of all subjects in NFBS's layout, else the NIfTI files directly in it; sorted."""
    return [Path(case["image"]) for case in list_heads(folder)] or nifti_files(Path(folder))


def patient_of(case_id: str) -> str:
    """Subject of a case's id: ``sub-A00028185`` of ``sub-A00028185_ses-NFB3``."""
    return case_id.partition("_")[0]


def brain_of(mask: str) -> str:
    """File of the extracted brain, beside a mask."""
    return mask[: -len(MASK)] + BRAIN


def has_brains(folder: str | os.PathLike[str]) -> bool:
    """Whether brains come with the heads, as in NFBS; heads of one's own need none."""
    return next(Path(folder).glob(f"*/sub-*{BRAIN}"), None) is not None


def masks_without_head(folder: str | os.PathLike[str]) -> list[Path]:
    """Masks in NFBS's layout whose head is missing, sorted."""
    masks = sorted(Path(folder).glob(f"*/sub-*{MASK}"))
    return [mask for mask in masks if not is_file_or_broken_link(str(mask)[: -len(MASK)] + IMAGE)]


def is_name(task: object) -> bool:
    """Whether a word names this data set: ``nfbs`` or ``NFBS_Dataset``, in any case."""
    return str(task).strip().lower() in (NAME, FOLDER.lower())


def archive_url() -> str:
    """Address of the archive, or what the environment variable DECATHLETE_NFBS_URL says."""
    return os.environ.get("DECATHLETE_NFBS_URL") or URL
