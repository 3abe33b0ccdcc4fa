"""What other packages say that helps nobody, switched off. For programs: the command line, processes that it starts."""

from __future__ import annotations

import logging
import warnings


def quiet() -> None:
    """Leave out messages of MONAI and matplotlib that no user can act on, for the rest of this process."""
    # where pydicom is installed, MONAI 1.6 says at every LoadImage that NVIDIA's decoder is not
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader: nvImageCodec decoder plugin did not register")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # MONAI imports it; it warns of homes it cannot write to
