"""The U-Net with residual blocks in its encoder."""

from __future__ import annotations

from collections.abc import Sequence

from decathlete.networks.blocks import LayerName
from decathlete.networks.unet import UNet


class ResUNet(UNet):
    """:class:`~decathlete.networks.unet.UNet` with residual encoder blocks and one convolution a level in the decoder.

    The form of nnU-Net's residual encoder presets (Isensee 2024), whose block counts a level are (1, 3, 4, 6, 6, 6).
    Arguments, result and errors are those of ``UNet``.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (32, 64, 128, 256),
        strides: Sequence[int | Sequence[int]] | None = None,
        kernel_sizes: int | Sequence[int | Sequence[int]] = 3,
        convs_per_stage: int | Sequence[int] = 1,
        decoder_convs: int | Sequence[int] | None = None,
        num_res_units: int | Sequence[int] = 1,
        residual_order: str = "post",
        norm: LayerName | Sequence | None = ("INSTANCE", {"affine": True}),
        act: LayerName | Sequence | None = "LEAKYRELU",
        dropout: float = 0.0,
        deep_supervision: bool | int = False,
        upsample: str = "deconv",
        channels_last: bool = False,
    ) -> None:
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            channels,
            strides,
            kernel_sizes,
            convs_per_stage,
            decoder_convs,
            num_res_units,
            residual_order,
            norm,
            act,
            dropout,
            deep_supervision,
            upsample,
            channels_last,
        )
