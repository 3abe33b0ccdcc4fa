"""What a bundle says of itself, and what may be changed in it: its files, configs, labels, outputs and weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decathlete.lazy import lazy_names

if TYPE_CHECKING:
    from decathlete.bundle.description import Bundle, bundle_labels
    from decathlete.bundle.places import (
        bundle_folder,
        bundle_names,
        config_file,
        config_files,
        dicom_modality,
        is_bundle,
        packaged_root,
    )

__all__ = [
    "Bundle",
    "bundle_folder",
    "bundle_labels",
    "bundle_names",
    "config_file",
    "config_files",
    "dicom_modality",
    "is_bundle",
    "packaged_root",
]

__getattr__ = lazy_names(
    __name__, {**dict.fromkeys(__all__, "places"), **dict.fromkeys(("Bundle", "bundle_labels"), "description")}
)
