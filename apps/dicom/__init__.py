"""DICOM in and out: a series as a volume, a label map as a DICOM SEG that refers to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decathlete.lazy import lazy_names

if TYPE_CHECKING:
    from decathlete.dicom.codes import CODES, SegmentCodes, segment_codes
    from decathlete.dicom.segmentation import write_dicom_seg
    from decathlete.dicom.series import SeriesVolume, read_series, series_in

__all__ = ["CODES", "SegmentCodes", "SeriesVolume", "read_series", "segment_codes", "series_in", "write_dicom_seg"]

__getattr__ = lazy_names(
    __name__,
    {
        "CODES": "codes",
        "SegmentCodes": "codes",
        "SeriesVolume": "series",
        "read_series": "series",
        "segment_codes": "codes",
        "series_in": "series",
        "write_dicom_seg": "segmentation",
    },
)
