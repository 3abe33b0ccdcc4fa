from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from decathlete.explore.methods import (
    POSTPROCESSING,
    dice_of,
    iou,
    kmeans_threshold,
    mixture_threshold,
    other_masks,
    postprocessed,
    stretched_otsu,
    threshold_masks,
)


def disc(radius: float, size: int = 64) -> np.ndarray:
    x, y = np.indices((size, size)) - size / 2
    return np.hypot(x, y) < radius


@pytest.fixture
def heart() -> np.ndarray:
    """Blood of 200 in muscle of 70, lung of 20 round it, with noise of 8."""
    image = np.where(disc(14), 200.0, np.where(disc(22), 70.0, 20.0))
    return image + np.random.default_rng(0).normal(0, 8, image.shape)


def test_every_threshold_finds_blood_that_is_far_from_muscle(heart):
    for name, (mask, value) in threshold_masks(heart, disc(22)).items():
        assert iou(mask, disc(14)) > (
            0.55 if name.startswith(("multi-Otsu", "equalized", "triangle", "Yen")) else 0.97
        ), name
        assert 40 < value < 210, name


def test_edges_and_filling_find_it_too(heart):
    found = other_masks(heart, disc(22))
    assert iou(found["Canny edges, filled"], disc(14)) > 0.8
    assert iou(found["flood filling"], disc(14)) > 0.8
    assert all(not (mask & ~disc(22)).any() for mask in found.values())


def test_a_flat_frame_gives_empty_masks_and_no_error():
    flat = np.full((64, 64), 7.0)
    for mask, _ in threshold_masks(flat, disc(22)).values():
        assert not (mask & ~disc(22)).any()
    assert set(other_masks(flat, disc(22))) >= {"Sauvola", "Canny edges, filled"}


def test_clusters_part_in_the_middle():
    assert kmeans_threshold(np.array([0.0, 1, 2, 10, 11, 12])) == pytest.approx(6)


def test_the_mixture_parts_two_gaussians_where_they_are_as_likely():
    q = (np.arange(2000) + 0.5) / 2000
    values = np.concatenate([norm(50, 10).ppf(q), norm(150, 10).ppf(q)])
    assert mixture_threshold(values) == pytest.approx(100, abs=1)
    # a third as many on the right, and as wide: equal where 100 x / s^2 = log 3, about 1.1 to the right of 100
    values = np.concatenate([norm(50, 10).ppf(q), norm(150, 10).ppf(q[::3])])
    assert mixture_threshold(values) == pytest.approx(101.1, abs=1)


def test_stretching_leaves_out_what_is_far_off():
    values = np.concatenate([np.full(100, 10.0), np.full(100, 30.0), [5000.0]])
    assert 10 <= stretched_otsu(values) < 30


def test_postprocessing_gives_back_what_is_dark_inside():
    ring = disc(14) & ~disc(5)
    notch = ring.copy()
    notch[32:, 31:33] = False  # a gap from the hole to the rim: no hole to fill
    far = notch.copy()
    far[1:3, 1:3] = True
    plain, filled, hull, largest = (postprocessed(far)[kind] for kind in POSTPROCESSING)
    assert plain.sum() == filled.sum() == notch.sum() + 4
    assert hull[2, 2]
    assert not largest[2, 2]
    assert iou(largest, disc(14)) > 0.97
    np.testing.assert_array_equal(postprocessed(ring)["holes filled"], disc(14))


def test_overlap_by_hand():
    a, b = np.array([1, 1, 1, 0], dtype=bool), np.array([0, 1, 1, 1], dtype=bool)
    assert iou(a, b) == 0.5
    assert dice_of(0.5) == pytest.approx(2 * 2 / 6)
    assert iou(a & ~a, b & ~b) == 1
