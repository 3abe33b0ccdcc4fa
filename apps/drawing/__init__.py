"""Arrays in, pictures and pages out: drawn with NumPy and Pillow, written with templates; no matplotlib."""
