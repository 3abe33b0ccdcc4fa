"""U-Nets in 2D and 3D."""

from decathlete.networks.resunet import ResUNet
from decathlete.networks.unet import UNet

__all__ = ["ResUNet", "UNet"]
