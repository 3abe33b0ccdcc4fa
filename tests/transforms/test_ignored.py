"""Voxels that nobody judged, in label maps."""

from __future__ import annotations

import pytest
import torch

from decathlete.errors import GeometryError
from decathlete.transforms import LeaveOutd


def maps() -> dict[str, torch.Tensor]:
    return {"pred": torch.tensor([[1.0, 2, 0, 1]]), "label": torch.tensor([[1, 4, 4, 0]], dtype=torch.uint8)}


def test_both_maps_are_background_there():
    found = LeaveOutd(["pred", "label"], values=[4])(maps())
    assert found["pred"].tolist() == [[1, 0, 0, 1]]
    assert found["label"].tolist() == [[1, 0, 0, 0]]


def test_without_values_nothing_changes():
    found = LeaveOutd(["pred", "label"])(maps())
    assert found["label"].tolist() == [[1, 4, 4, 0]]


def test_maps_on_two_grids_are_refused():
    with pytest.raises(GeometryError, match="differs in shape from 'label'"):
        LeaveOutd("pred", values=[4])({**maps(), "pred": torch.zeros(1, 3)})
