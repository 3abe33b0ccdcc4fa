"""Voxels without a reference."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from decathlete.errors import GeometryError


class LeaveOutd(MapTransform):
    """Make label maps background where the reference holds an ignored value, so that no metric counts those voxels.

    Args:
        keys: label maps, (1, *spatial), such as prediction and reference.
        label_key: the reference; all keys have its grid.
        values: ignored values; none leaves everything as it is.
        allow_missing_keys: skip keys that a case does not have.

    Raises:
        GeometryError: a map of another shape than the reference.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str = "label",
        values: Sequence[int] = (),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_key, self.values = label_key, [int(value) for value in values]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with the maps changed; other keys are passed on."""
        d = dict(data)
        if not self.values:
            return d
        label = d[self.label_key]
        left_out = torch.isin(label, torch.tensor(self.values, dtype=label.dtype, device=label.device))
        for key in self.key_iterator(d):
            if d[key].shape != label.shape:
                raise GeometryError(str(key), f"differs in shape from '{self.label_key}'",
                                    f"shape {tuple(d[key].shape)}, not {tuple(label.shape)}")  # fmt: skip
            d[key] = d[key].masked_fill(left_out.to(d[key].device), 0)
        return d
