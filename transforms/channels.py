"""Scans of several channels: every modality must be present."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from decathlete.errors import ConfigError, DataError, listed


class CheckChannelsd(MapTransform):
    """Refuse a scan without all its channels: another number of them, or one that holds a single value.

    A modality that was not acquired is often filled with zeros; a network that never saw this predicts nonsense.

    Args:
        keys: images, (C, *spatial).
        names: of the channels, in their order.
        allow_missing_keys: skip keys that a case does not have.

    Raises:
        ConfigError: no names, or one twice, when the transform is made.
        DataError: a channel is missing; the message names it.
    """

    def __init__(self, keys: KeysCollection, names: Sequence[str], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.names = [str(name) for name in names]
        if not self.names or len(set(self.names)) < len(self.names):
            raise ConfigError("CheckChannelsd, names", "channel names must be given and unique", str(self.names))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case unchanged."""
        for key in self.key_iterator(dict(data)):
            self._check(data[key])
        return dict(data)

    def _check(self, image: Tensor) -> None:
        wanted = f"expected {len(self.names)} channels: {', '.join(self.names)}, in this order"
        remedy = "Add the missing scan on the grid of the others, or leave the case out"
        where = str(image.meta.get("filename_or_obj", "image")) if isinstance(image, MetaTensor) else "image"
        if image.shape[0] != len(self.names):
            raise DataError(where, wanted, f"{image.shape[0]} found", remedy)
        plain = image.as_tensor() if isinstance(image, MetaTensor) else image
        empty = [name for name, channel in zip(self.names, plain, strict=True) if channel.min() == channel.max()]
        if empty:
            raise DataError(where, f"the image has channels without content: {listed(empty)}",
                            "each has one value in all its voxels", remedy)  # fmt: skip
