"""Dictionary transforms and the strict reader, one idea a file."""

from decathlete.transforms.read import NiftiReader, Volume, check_pair, read_nifti, read_pair

__all__ = ["NiftiReader", "Volume", "check_pair", "read_nifti", "read_pair"]
