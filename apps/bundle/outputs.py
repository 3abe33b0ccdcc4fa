"""What a prediction writes: files named after the scan, as the id ``outputs`` of the bundle's inference config says.

Imports nothing heavy: names are looked at before anything costs time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from decathlete.errors import ConfigError, nearest
from decathlete.files import PROBABILITIES, strip_nifti_suffix

DICOM_SEG = "_seg"  # ends the name of the DICOM SEG beside a label map
FIELD = "_field"  # ends the name of the bias field beside a label map
KINDS = {str: "a word", bool: "true or false"}


@dataclass(frozen=True)
class Outputs:
    """Names of a prediction's files.

    Attributes:
        label: word behind the scan's name, ``<name>_<word>.nii.gz``, of the label map; empty: ``<name>.nii.gz``.
        masked: likewise of the scan inside its label map; empty: none is written.
        tell_volume: each case's volumes in ml are printed.
        frames: inputs are DICOM frames too, each a volume of one slice, and folders of them.
        contours: the outlines of each slice's cavity (1) and heart (1 and 2) are written as text beside the label map,
            and of a folder with a complete heartbeat its volumes.
    """

    label: str = ""
    masked: str = ""
    tell_volume: bool = False
    frames: bool = False
    contours: bool = False

    @classmethod
    def of(cls, given: Any, where: str | Path = "outputs") -> Outputs:
        """As the inference config states them under ``outputs``.

        Raises:
            ConfigError: something else than the names above, with values of their kinds.
        """
        kinds = {f.name: type(f.default) for f in fields(cls)}
        if not isinstance(given, Mapping):
            raise ConfigError(where, f"expected a mapping of {', '.join(kinds)}", repr(given))
        for name, value in given.items():
            if name not in kinds:
                raise ConfigError(where, "unknown output", repr(name), nearest(str(name), kinds))
            if not isinstance(value, kinds[name]):
                raise ConfigError(where, f"expected {KINDS[kinds[name]]} for '{name}'", repr(value))
        outputs = cls(**given)
        words = [word for word in (outputs.label, outputs.masked) if word]
        if any("/" in word or "\\" in word for word in words) or len(set(words)) < len(words):
            raise ConfigError(where, "expected different words without slashes for the file names", repr(dict(given)))
        return outputs

    def label_file(self, folder: str | Path, case: str) -> Path:
        """Label map of the scan called ``case``."""
        return Path(folder) / f"{self.label_name(case)}.nii.gz"

    def label_name(self, case: str) -> str:
        """Name of a label map without its suffix."""
        return f"{case}_{self.label}" if self.label else case

    def files(
        self, folder: str | Path, case: str, probabilities: bool = False, field: bool = False, dicom_seg: bool = False
    ) -> dict[str, Path]:
        """All files of a case, the label map last: it is written when all others are."""
        names = {
            **({"probabilities": f"{case}{PROBABILITIES}"} if probabilities else {}),
            **({"field": f"{case}{FIELD}"} if field else {}),
            **({"masked": f"{case}_{self.masked}"} if self.masked else {}),
            "label": self.label_name(case),
        }
        files = {what: Path(folder) / f"{name}.nii.gz" for what, name in names.items()}
        return {**({"dicom_seg": Path(folder) / f"{case}{DICOM_SEG}.dcm"} if dicom_seg else {}), **files}

    def case_of(self, name: str, names: Collection[str]) -> str | None:
        """Case whose label map is called ``name``; None for a file that lies beside one of ``names``.

        Scans and label maps may share a folder, as in NFBS: the scan is then no label map.
        """
        endings = [f"_{word}" for word in (self.label, self.masked) if word] + [PROBABILITIES, FIELD]
        own = f"_{self.label}"
        if self.label and name.endswith(own) and len(name) > len(own):
            return name[: -len(own)]
        if self.label and self.label_name(name) in names:
            return None  # a scan beside its label map
        for ending in endings:
            case = name[: -len(ending)]
            if name.endswith(ending) and case and self.label_name(case) in names:
                return None
        return name

    def scans(self, files: Sequence[Path]) -> list[Path]:
        """Files without those whose names say that they were made from another of them; all where no word is given."""
        words = [f"_{word}" for word in (self.label, self.masked) if word]
        endings = [*words, PROBABILITIES, FIELD] if words else []
        names = {strip_nifti_suffix(file.name) for file in files}
        made = {f"{name}{ending}" for name in names for ending in endings}
        return [file for file in files if strip_nifti_suffix(file.name) not in made]
