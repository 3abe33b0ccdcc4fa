"""Reading and writing of scans, contours and label maps: NumPy, nibabel and pydicom, without torch and MONAI."""
