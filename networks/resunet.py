"""The U-Net with residual blocks in its encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from decathlete.networks.unet import UNet


class ResUNet(UNet):
    """:class:`~decathlete.networks.unet.UNet` with residual encoder blocks and one convolution a level in the decoder.

    The form of nnU-Net's residual encoder presets (Isensee 2024), whose block counts a level are (1, 3, 4, 6, 6, 6).
    Arguments, result and errors are those of ``UNet``, which takes ``kwargs``.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (32, 64, 128, 256),
        *,
        convs_per_stage: int | Sequence[int] = 1,
        num_res_units: int | Sequence[int] = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            channels,
            convs_per_stage=convs_per_stage,
            num_res_units=num_res_units,
            **kwargs,
        )
