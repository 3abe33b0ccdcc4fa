"""How undecided a network is."""

from __future__ import annotations

import numpy as np
import pytest

from decathlete.errors import DataError
from decathlete.label.entropy import mean_entropy


def shares(*voxels: tuple[float, ...]) -> np.ndarray:
    """Probabilities (C, n, 1, 1) of n voxels."""
    return np.array(voxels, dtype=np.float32).T[:, :, None, None]


def test_certain_voxels_have_no_entropy_and_even_ones_the_largest():
    assert mean_entropy(shares((0, 1, 0))) == 0
    assert mean_entropy(shares((1 / 3, 1 / 3, 1 / 3))) == pytest.approx(1)


def test_background_does_not_count():
    assert mean_entropy(shares((0.5, 0.5), *[(1.0, 0.0)] * 99)) == pytest.approx(1)


def test_value_of_two_classes_by_hand():
    # -(0.9 ln 0.9 + 0.1 ln 0.1) / ln 2
    assert mean_entropy(shares((0.1, 0.9))) == pytest.approx(0.4690, abs=1e-4)


def test_an_image_without_foreground_is_worth_a_look():
    assert mean_entropy(shares((1.0, 0.0))) == 1


def test_one_class_has_no_entropy():
    with pytest.raises(DataError, match="expected background and at least one class"):
        mean_entropy(shares((1.0,)))
