"""Dictionary transforms and the strict reader, one idea a file."""

from decathlete.transforms.augment import BatchAugment
from decathlete.transforms.read import CheckPaird, NiftiReader, Volume, check_pair, read_nifti
from decathlete.transforms.restore import RestoreGridd, restore_to_grid

__all__ = [
    "BatchAugment",
    "CheckPaird",
    "NiftiReader",
    "RestoreGridd",
    "Volume",
    "check_pair",
    "read_nifti",
    "restore_to_grid",
]
