"""Public names for DICOM: a series as a volume, a label map as a DICOM SEG. Their code is in `decathlete.io`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decathlete.lazy import lazy_names

if TYPE_CHECKING:
    from decathlete.io.codes import CODES, SegmentCodes, segment_codes
    from decathlete.io.seg import write_dicom_seg
    from decathlete.io.series import SeriesVolume, read_series, series_in

__all__ = ["CODES", "SegmentCodes", "SeriesVolume", "read_series", "segment_codes", "series_in", "write_dicom_seg"]

__getattr__ = lazy_names(
    __name__,
    {
        "CODES": "decathlete.io.codes",
        "SegmentCodes": "decathlete.io.codes",
        "SeriesVolume": "decathlete.io.series",
        "read_series": "decathlete.io.series",
        "segment_codes": "decathlete.io.codes",
        "series_in": "decathlete.io.series",
        "write_dicom_seg": "decathlete.io.seg",
    },
)
