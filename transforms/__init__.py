"""Dictionary transforms, one idea a file, and the readers of scans for MONAI's chains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decathlete.lazy import lazy_names

if TYPE_CHECKING:
    from decathlete.io.contours import contour_area, contour_mask, read_contour, write_contour
    from decathlete.io.dicom import read_dicom_frame
    from decathlete.io.frames import read_frame
    from decathlete.io.nifti import read_nifti
    from decathlete.io.series import DicomVolume, read_dicom_series
    from decathlete.io.volume import Volume, check_pair
    from decathlete.transforms.augment import BatchAugment
    from decathlete.transforms.bias_field import N4BiasFieldCorrectiond, correct_bias_field
    from decathlete.transforms.channels import CheckChannelsd
    from decathlete.transforms.check_head import CheckHeadd, CheckVolumed
    from decathlete.transforms.crop import CropBlankd, CropMargind, DropLowestd
    from decathlete.transforms.cut import CutAway
    from decathlete.transforms.draw import DrawFromLabels
    from decathlete.transforms.frames import ContourChannelsd, FrameLabeld, OneVentricled
    from decathlete.transforms.head import CropHeadd
    from decathlete.transforms.ignored import LeaveOutd
    from decathlete.transforms.load import CheckPaird, ContourMaskd, DicomReader, FrameReader, NiftiReader
    from decathlete.transforms.masked_scan import SaveImageMaskedd, write_masked_scan
    from decathlete.transforms.masked_scan import SaveMaskedScand as SaveMaskedScand
    from decathlete.transforms.resample import ResampleSpacingd, Spacingd, resample_to_spacing
    from decathlete.transforms.restore import RestoreGridd, restore_to_grid
    from decathlete.transforms.smooth import SmoothForSpacingd

__all__ = [
    "BatchAugment",
    "CheckChannelsd",
    "CheckHeadd",
    "CheckPaird",
    "CheckVolumed",
    "ContourChannelsd",
    "ContourMaskd",
    "CropBlankd",
    "CropHeadd",
    "CropMargind",
    "CutAway",
    "DicomReader",
    "DicomVolume",
    "DrawFromLabels",
    "DropLowestd",
    "FrameLabeld",
    "FrameReader",
    "LeaveOutd",
    "N4BiasFieldCorrectiond",
    "NiftiReader",
    "OneVentricled",
    "ResampleSpacingd",
    "RestoreGridd",
    "SaveImageMaskedd",
    "SmoothForSpacingd",
    "Spacingd",
    "Volume",
    "check_pair",
    "contour_area",
    "contour_mask",
    "correct_bias_field",
    "read_contour",
    "read_dicom_frame",
    "read_dicom_series",
    "read_frame",
    "read_nifti",
    "resample_to_spacing",
    "restore_to_grid",
    "write_contour",
    "write_masked_scan",
]

__getattr__ = lazy_names(
    __name__,
    {
        "BatchAugment": "augment",
        "CheckChannelsd": "channels",
        "CheckHeadd": "check_head",
        "CheckPaird": "load",
        "CheckVolumed": "check_head",
        "ContourChannelsd": "frames",
        "ContourMaskd": "load",
        "CropBlankd": "crop",
        "CropHeadd": "head",
        "CropMargind": "crop",
        "CutAway": "cut",
        "DicomReader": "load",
        "DicomVolume": "decathlete.io.series",
        "DrawFromLabels": "draw",
        "DropLowestd": "crop",
        "FrameLabeld": "frames",
        "FrameReader": "load",
        "LeaveOutd": "ignored",
        "N4BiasFieldCorrectiond": "bias_field",
        "NiftiReader": "load",
        "OneVentricled": "frames",
        "ResampleSpacingd": "resample",
        "RestoreGridd": "restore",
        "SaveImageMaskedd": "masked_scan",
        "SaveMaskedScand": "masked_scan",
        "SmoothForSpacingd": "smooth",
        "Spacingd": "resample",
        "Volume": "decathlete.io.volume",
        "check_pair": "decathlete.io.volume",
        "contour_area": "decathlete.io.contours",
        "contour_mask": "decathlete.io.contours",
        "correct_bias_field": "bias_field",
        "read_contour": "decathlete.io.contours",
        "read_dicom_frame": "decathlete.io.dicom",
        "read_dicom_series": "decathlete.io.series",
        "read_frame": "decathlete.io.frames",
        "read_nifti": "decathlete.io.nifti",
        "resample_to_spacing": "resample",
        "restore_to_grid": "restore",
        "write_contour": "decathlete.io.contours",
        "write_masked_scan": "masked_scan",
    },
)
