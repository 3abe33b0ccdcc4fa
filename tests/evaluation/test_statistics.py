"""Volume and intensity of each class by hand arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from decathlete.errors import GeometryError
from decathlete.evaluation import label_statistics


def test_volume_mean_and_deviation():
    label = np.array([1, 1, 0, 2]).reshape(4, 1, 1)
    image = np.array([10.0, 20.0, 99.0, 5.0]).reshape(4, 1, 1)
    found = label_statistics(label, image, (0.5, 2.0, 3.0), {"background": 0, "head": 1, "tail": 2})
    assert found["head"] == {
        "label": 1,
        "voxels": 2,
        "volume_ml": pytest.approx(0.006),
        "mean_intensity": 15.0,
        "std_intensity": 5.0,
    }
    assert found["tail"]["mean_intensity"] == 5.0
    assert list(found) == ["head", "tail"]


def test_each_channel_has_its_mean():
    label, image = np.ones((1, 1, 2), dtype=int), np.array([[1.0, 10.0], [3.0, 30.0]]).reshape(1, 1, 2, 2)
    assert label_statistics(label, image, (1, 1, 1), {1: "head"})["head"]["mean_intensity"] == [2.0, 20.0]


def test_class_without_a_voxel_has_no_intensity():
    zeros = np.zeros((2, 2, 2))
    found = label_statistics(zeros.astype(int), zeros, (1, 1, 1), {"head": 1})["head"]
    assert (found["voxels"], found["volume_ml"], found["mean_intensity"]) == (0, 0.0, None)


def test_another_grid_is_refused():
    with pytest.raises(GeometryError, match="2 x 2 x 2 and 2 x 2 x 3"):
        label_statistics(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)), (1, 1, 1), {"head": 1})
