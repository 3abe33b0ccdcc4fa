"""The classes of our bundles in DICOM's terms: category, type and region of each segment.

Values are those of DICOM PS3.16, CID 7150 (categories), 7192, 7194 and 6300 (types), 4 (places) and 2 (modifiers).
SNOMED CT has no word for tumour with or without contrast enhancement; DICOM uses those of the NCI Thesaurus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Concept(NamedTuple):
    """A coded word.

    Attributes:
        value: the code.
        scheme: ``SCT`` (SNOMED CT) or ``NCIt`` (NCI Thesaurus).
        meaning: in words.
    """

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class SegmentCodes:
    """Codes of a segment.

    Attributes:
        category: anatomy, tissue or abnormal structure.
        type: what it is.
        region: where it is, if it can be in several places.
        modifier: which part of ``type`` it is.
    """

    category: Concept
    type: Concept
    region: Concept | None = None
    modifier: Concept | None = None


def _sct(value: str, meaning: str) -> Concept:
    return Concept(value, "SCT", meaning)


_ANATOMY = _sct("91723000", "Anatomical Structure")
_ABNORMAL = _sct("49755003", "Morphologically Abnormal Structure")
_TISSUE = _sct("85756007", "Tissue")

_BRAIN = _sct("12738006", "Brain")
_COLON = _sct("71854001", "Colon")
_HIPPOCAMPUS = _sct("5366008", "Hippocampus")
_LIVER = _sct("10200004", "Liver")
_LUNG = _sct("39607008", "Lung")
_PANCREAS = _sct("15776009", "Pancreas")

_NEOPLASM = _sct("108369006", "Neoplasm")
_PRIMARY = _sct("372087000", "Neoplasm, Primary")

_LEFT_ATRIUM = {"left atrium": SegmentCodes(_ANATOMY, _sct("82471001", "Left atrium"))}
_LUNG_CANCER = {"cancer": SegmentCodes(_ABNORMAL, _PRIMARY, _LUNG)}

CODES: dict[str, dict[str, SegmentCodes]] = {
    "brain_tumour": {
        "edema": SegmentCodes(_ABNORMAL, _sct("79654002", "Edema"), _BRAIN),
        "non-enhancing tumour": SegmentCodes(_ABNORMAL, Concept("C81175", "NCIt", "Non-Enhancing Lesion"), _BRAIN),
        "enhancing tumour": SegmentCodes(_ABNORMAL, Concept("C113842", "NCIt", "Enhancing Lesion"), _BRAIN),
    },
    "colon": {"colon cancer primaries": SegmentCodes(_ABNORMAL, _PRIMARY, _COLON)},
    "heart": _LEFT_ATRIUM,
    "heart_3d": _LEFT_ATRIUM,
    "hepatic_vessel": {
        "vessel": SegmentCodes(_TISSUE, _sct("59820001", "Blood Vessel"), _LIVER),  # hepatic and portal veins in one
        "tumour": SegmentCodes(_ABNORMAL, _NEOPLASM, _LIVER),
    },
    "hippocampus": {
        "anterior": SegmentCodes(_ANATOMY, _HIPPOCAMPUS, modifier=_sct("255549009", "Anterior")),
        "posterior": SegmentCodes(_ANATOMY, _HIPPOCAMPUS, modifier=_sct("255551008", "Posterior")),
    },
    "liver": {
        "liver": SegmentCodes(_ANATOMY, _LIVER),
        "cancer": SegmentCodes(_ABNORMAL, _NEOPLASM, _LIVER),  # primary tumours and metastases
    },
    "lung": _LUNG_CANCER,
    "lung_3d": _LUNG_CANCER,
    "nfbs": {"brain": SegmentCodes(_ANATOMY, _BRAIN)},
    "pancreas": {
        "pancreas": SegmentCodes(_ANATOMY, _PANCREAS),
        "cancer": SegmentCodes(_ABNORMAL, _NEOPLASM, _PANCREAS),  # cysts too
    },
    "prostate": {
        "PZ": SegmentCodes(_ANATOMY, _sct("279706003", "Peripheral zone of the prostate")),
        "TZ": SegmentCodes(_ANATOMY, _sct("399384005", "Transition zone of the prostate")),
    },
    "spleen": {"spleen": SegmentCodes(_ANATOMY, _sct("78961009", "Spleen"))},
    "sunnybrook": {
        "cavity": SegmentCodes(_ANATOMY, _sct("87878005", "Left ventricle")),
        "muscle": SegmentCodes(_ANATOMY, _sct("49848007", "Left Ventricle Myocardium")),
    },
}

UNKNOWN = SegmentCodes(_TISSUE, _TISSUE)  # true of any part of the body


def segment_codes(bundle: str, label: str) -> SegmentCodes:
    """Codes of a class of a bundle; ``UNKNOWN``, which only says tissue, if it is not in the table."""
    return CODES.get(bundle, {}).get(label, UNKNOWN)
