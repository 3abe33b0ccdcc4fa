"""Reading and writing of scans, contours and label maps: NumPy, nibabel and pydicom, without torch and MONAI."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decathlete.lazy import lazy_names

if TYPE_CHECKING:
    from decathlete.io.codes import CODES, SegmentCodes, segment_codes
    from decathlete.io.contours import contour_area, contour_mask, read_contour, write_contour
    from decathlete.io.dicom import DicomFrame, read_dicom_frame, read_dicom_header
    from decathlete.io.frames import read_frame
    from decathlete.io.nifti import read_nifti, read_nifti_header
    from decathlete.io.seg import write_dicom_seg
    from decathlete.io.series import DicomVolume, SeriesVolume, read_dicom_series, read_series, series_in
    from decathlete.io.volume import Volume, check_pair
    from decathlete.io.write import write_on_grid

__all__ = [
    "CODES",
    "DicomFrame",
    "DicomVolume",
    "SegmentCodes",
    "SeriesVolume",
    "Volume",
    "check_pair",
    "contour_area",
    "contour_mask",
    "read_contour",
    "read_dicom_frame",
    "read_dicom_header",
    "read_dicom_series",
    "read_frame",
    "read_nifti",
    "read_nifti_header",
    "read_series",
    "segment_codes",
    "series_in",
    "write_contour",
    "write_dicom_seg",
    "write_on_grid",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CODES": "codes",
        "DicomFrame": "dicom",
        "DicomVolume": "series",
        "SegmentCodes": "codes",
        "SeriesVolume": "series",
        "Volume": "volume",
        "check_pair": "volume",
        "contour_area": "contours",
        "contour_mask": "contours",
        "read_contour": "contours",
        "read_dicom_frame": "dicom",
        "read_dicom_header": "dicom",
        "read_dicom_series": "series",
        "read_frame": "frames",
        "read_nifti": "nifti",
        "read_nifti_header": "nifti",
        "read_series": "series",
        "segment_codes": "codes",
        "series_in": "series",
        "write_contour": "contours",
        "write_dicom_seg": "seg",
        "write_on_grid": "write",
    },
)
