"""Metrics against hand arithmetic, SimpleITK, SciPy, MONAI and surface-distance."""

from __future__ import annotations

import warnings
import weakref

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from decathlete.errors import DataError, GeometryError
from decathlete.evaluation.metrics import (
    dice,
    hd95,
    iou,
    nsd,
    pooled_soft_dice,
    score,
    surface_distances,
    volume_ml,
)

SPACINGS = [(0.7, 1.0, 2.5), (1.0, 1.0, 1.0), (0.5, 0.9, 3.1), (1.2, 0.4, 0.8), (2.0, 1.0, 0.5), (0.31, 1.7, 1.1)]
# surface-distance 0.1 (DeepMind): compute_surface_dice_at_tolerance of the masks of `random_pair`, at 1.0 and 0.6 mm
SURFACE_DISTANCE = [
    (0.9899444033718819, 0.8872511758203966),
    (0.9995099556746189, 0.979854288953561),
    (0.9970319810958519, 0.9607296548851059),
    (0.9995522770530657, 0.9946003202207286),
    (0.9976356068691727, 0.9748666937229685),
    (1.0, 0.9953586088715176),
]


def random_pair(seed: int):
    """Two random masks and their spacing; an odd seed gives masks that differ in a tenth of the voxels."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(5, 14, 3))
    a, b = rng.random(shape) < 0.3, rng.random(shape) < 0.3
    if seed % 2:
        b = a ^ (rng.random(shape) < 0.1)
    return a, b, SPACINGS[seed]


def brute_force(a, b, spacing):
    """Directed distances between SciPy's surfaces, every pair of voxels measured."""
    points = [np.argwhere(m & ~binary_erosion(m)) * spacing for m in (a, b)]
    distances = cdist(*points)
    return distances.min(1), distances.min(0)


def to_sitk(mask, spacing):
    image = sitk.GetImageFromArray(mask.astype(np.uint8).transpose(2, 1, 0))
    image.SetSpacing([float(s) for s in spacing])
    return image


def cube(shape=(6, 6, 6), start=(1, 1, 1)):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(s, s + 2) for s in start)] = True
    return mask


def test_cubes_that_share_half_their_voxels():
    a, b = cube(), cube(start=(2, 1, 1))
    assert dice(a, b) == 0.5  # 2 * 4 / (8 + 8)
    assert iou(a, b) == 4 / 12


def test_volume_counts_cubic_millimetres():
    assert volume_ml(cube(), (0.5, 2.0, 25.0)) == 8 * 25 / 1000


@pytest.mark.parametrize(("axis", "expected"), [(0, 0.7), (1, 1.0), (2, 2.5)])
def test_hd95_of_a_cube_shifted_by_one_voxel_is_that_axis_spacing(axis, expected):
    start = [1, 1, 1]
    start[axis] += 1
    assert hd95(cube(), cube(start=start), (0.7, 1.0, 2.5)) == expected


def test_nsd_counts_the_tolerance_itself_as_agreement():
    a, b = cube(), cube(start=(2, 1, 1))
    assert nsd(a, b, (1.0, 1.0, 1.0), 1.0) == 1.0
    assert nsd(a, b, (1.0, 1.0, 1.0), 0.99) == 0.5  # the four shared voxels of either cube


def test_nsd_forgives_rounding_of_float32_spacing():
    a, b = np.zeros((2, 20), dtype=bool), np.zeros((2, 20), dtype=bool)
    a[0, 2] = b[0, 12] = True
    assert nsd(a, b, (1.0, float(np.float32(0.1))), 1.0) == 1.0  # 1.0000000149 mm apart


def test_hd95_takes_the_worse_direction():
    a, b = np.zeros((1, 1, 30), dtype=bool), np.zeros((1, 1, 30), dtype=bool)
    a[..., 0] = b[..., 0] = b[..., 20] = True
    assert hd95(a, b, (1.0, 1.0, 1.0)) == pytest.approx(0.95 * 20)  # 0 and 20 mm, interpolated; a to b is 0


def test_a_mask_on_the_border_has_its_surface_there():
    full = np.ones((4, 4, 4), dtype=bool)
    there, back = surface_distances(full, cube((4, 4, 4)), (1.0, 1.0, 1.0))
    assert len(there) == 4**3 - 2**3
    assert len(back) == 8


def test_result_does_not_depend_on_the_margin():
    a, b, spacing = random_pair(1)
    padded = [np.pad(m, ((3, 0), (0, 5), (1, 1))) for m in (a, b)]
    assert score(*padded, spacing) == score(a, b, spacing)


def test_equal_masks_score_perfectly():
    a, _, spacing = random_pair(0)
    assert (dice(a, a), iou(a, a), nsd(a, a, spacing), hd95(a, a, spacing)) == (1.0, 1.0, 1.0, 0.0)


def test_two_empty_masks_are_missing():
    empty = np.zeros((3, 3, 3), dtype=bool)
    values = (dice(empty, empty), iou(empty, empty), nsd(empty, empty, (1, 1, 1)), hd95(empty, empty, (1, 1, 1)))
    assert np.isnan([*values, nsd(empty, empty, (1, 1, 1), elements=True)]).all()


@pytest.mark.parametrize("swap", [False, True])
def test_one_empty_mask_scores_nothing(swap):
    pair = [cube(), np.zeros((6, 6, 6), dtype=bool)][:: -1 if swap else 1]
    assert (dice(*pair), iou(*pair), nsd(*pair, (1, 1, 1)), hd95(*pair, (1, 1, 1))) == (0.0, 0.0, 0.0, np.inf)
    assert nsd(*pair, (1, 1, 1), elements=True) == 0.0


@pytest.mark.parametrize("seed", range(6))
def test_overlap_equals_simpleitk(seed):
    a, b, spacing = random_pair(seed)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(to_sitk(b, spacing), to_sitk(a, spacing))
    assert dice(a, b) == pytest.approx(overlap.GetDiceCoefficient(1), abs=1e-6)
    assert iou(a, b) == pytest.approx(overlap.GetJaccardCoefficient(1), abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_surface_distances_equal_brute_force(seed):
    a, b, spacing = random_pair(seed)
    for ours, theirs in zip(surface_distances(a, b, spacing), brute_force(a, b, spacing), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_nsd_and_hd95_equal_brute_force(seed):
    a, b, spacing = random_pair(seed)
    there, back = brute_force(a, b, spacing)
    within = np.concatenate([there, back]) <= 0.95
    assert nsd(a, b, spacing, 0.95) == pytest.approx(within.mean(), abs=1e-6)
    assert hd95(a, b, spacing) == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_largest_surface_distance_equals_simpleitk_hausdorff(seed):
    a, b, spacing = random_pair(seed)
    surfaces = [sitk.LabelContour(to_sitk(np.pad(m, 1), spacing)) for m in (a, b)]
    hausdorff = sitk.HausdorffDistanceImageFilter()
    hausdorff.Execute(*surfaces)
    ours = max(d.max() for d in surface_distances(a, b, spacing))
    assert ours == pytest.approx(hausdorff.GetHausdorffDistance(), abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_surface_distances_equal_simpleitk_distance_map(seed):
    a, b, spacing = random_pair(seed)
    surfaces = [sitk.LabelContour(to_sitk(np.pad(m, 1), spacing)) for m in (a, b)]
    distance = sitk.SignedMaurerDistanceMap(surfaces[1], squaredDistance=False, useImageSpacing=True)
    values = np.abs(sitk.GetArrayFromImage(distance))[sitk.GetArrayFromImage(surfaces[0]) > 0]
    there, _ = surface_distances(a, b, spacing)
    np.testing.assert_allclose(np.sort(there), np.sort(values), atol=5e-6)  # its map is float32


@pytest.mark.parametrize("seed", range(6))
def test_nsd_of_elements_equals_surface_distance(seed):
    a, b, spacing = random_pair(seed)
    ours = [nsd(a, b, spacing, tolerance, elements=True) for tolerance in (1.0, 0.6)]
    assert ours == pytest.approx(SURFACE_DISTANCE[seed], abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_nsd_and_hd95_equal_monai(seed):
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    a, b, spacing = random_pair(seed)
    pair = [torch.from_numpy(m)[None, None] for m in (a, b)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = compute_surface_dice(*pair, [0.95], include_background=True, spacing=spacing)
        far = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing)
    assert nsd(a, b, spacing, 0.95) == pytest.approx(float(theirs), abs=1e-6)
    assert hd95(a, b, spacing) == pytest.approx(float(far), rel=1e-6)


def test_score_equals_the_single_metrics():
    a, b, spacing = random_pair(2)
    assert score(a, b, spacing) == {
        "dice": dice(a, b),
        "iou": iou(a, b),
        "nsd": nsd(a, b, spacing),
        "hd95_mm": hd95(a, b, spacing),
        "volume_ml": volume_ml(a, spacing),
        "reference_volume_ml": volume_ml(b, spacing),
    }


def test_masks_of_two_shapes_are_refused_with_both():
    with pytest.raises(GeometryError, match=r"\(6 x 6 x 6 and 5 x 6 x 6\)"):
        dice(cube(), cube((5, 6, 6)))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, np.nan, 1.0)])
def test_spacing_that_measures_nothing_is_refused(spacing):
    with pytest.raises(GeometryError, match="3 positive numbers in mm"):
        hd95(cube(), cube(), spacing)


def test_pooled_soft_dice_is_one_fraction_over_all_voxels():
    first = np.array([0.5, 1.0, 0.0, 0.25]), np.array([1, 1, 0, 0], bool)
    second = np.array([[0.25, 0.0]]), np.array([[True, True]])
    # 2 * (0.5 + 1 + 0.25) / (1.75 + 0.25 + 2 + 2)
    assert pooled_soft_dice([first, second]) == pytest.approx(3.5 / 6)


def test_pooled_dice_of_masks_is_carried_by_the_large_one():
    large, small = np.ones(98, bool), np.array([True, False])
    missed = small, ~small
    found = large, large
    assert np.mean([dice(*found), dice(*missed)]) == 0.5
    assert pooled_soft_dice([found, missed]) == pytest.approx(2 * 98 / (98 + 98 + 1 + 1))


def test_pooled_soft_dice_keeps_no_case():
    held = []

    def cases():
        for _ in range(4):
            shares = np.ones((4, 4), np.float32)
            held.append(weakref.ref(shares))
            yield shares, np.ones((4, 4), bool)
            del shares
            held[:] = [reference for reference in held if reference() is not None]
            assert len(held) <= 1  # the caller's own, until it takes the next

    assert pooled_soft_dice(cases()) == 1


def test_pooled_soft_dice_of_nothing_is_missing():
    assert np.isnan(pooled_soft_dice([]))
    assert np.isnan(pooled_soft_dice([(np.zeros(3), np.zeros(3, bool))]))


@pytest.mark.parametrize("wrong", [[-2.0, 3.0], [0.5, np.nan]])
def test_logits_and_nan_are_no_probabilities(wrong):
    with pytest.raises(DataError, match="expected probabilities from 0 to 1"):
        pooled_soft_dice([(np.array(wrong), np.ones(2, bool))])
    with pytest.raises(GeometryError, match=r"\(2 and 3\)"):
        pooled_soft_dice([(np.zeros(2), np.ones(3, bool))])
