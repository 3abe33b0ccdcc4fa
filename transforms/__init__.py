"""Dictionary transforms and the strict reader, one idea a file."""

from decathlete.transforms.augment import BatchAugment
from decathlete.transforms.bias_field import N4BiasFieldCorrectiond, correct_bias_field
from decathlete.transforms.channels import CheckChannelsd
from decathlete.transforms.check_head import CheckHeadd, CheckVolumed
from decathlete.transforms.contours import ContourMaskd, contour_area, contour_mask, read_contour, write_contour
from decathlete.transforms.crop import CropBlankd, CropMargind, DropLowestd
from decathlete.transforms.cut import CutAway
from decathlete.transforms.dicom import DicomReader, read_dicom_frame
from decathlete.transforms.dicom_series import DicomVolume, read_dicom_series
from decathlete.transforms.draw import DrawFromLabels
from decathlete.transforms.frames import ContourChannelsd, FrameLabeld, FrameReader, OneVentricled, read_frame
from decathlete.transforms.head import CropHeadd
from decathlete.transforms.ignored import LeaveOutd
from decathlete.transforms.masked_scan import SaveImageMaskedd, write_masked_scan
from decathlete.transforms.masked_scan import SaveMaskedScand as SaveMaskedScand
from decathlete.transforms.read import CheckPaird, NiftiReader, Volume, check_pair, read_nifti
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
