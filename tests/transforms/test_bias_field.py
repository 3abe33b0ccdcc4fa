"""N4 on fields that are known, beside ITK's own filter and SimpleITK's, and on images that have no field."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from scipy import ndimage

from decathlete.data import CachedDataset
from decathlete.errors import ConfigError, DataError, GeometryError
from decathlete.transforms import N4BiasFieldCorrectiond, correct_bias_field
from decathlete.transforms.bias_field import otsu_threshold

ITK = pytest.param("itk", marks=pytest.mark.slow)  # whose filters take 8 s to load
ENGINES = pytest.mark.parametrize("engine", ["separable", ITK])


@pytest.fixture(scope="module")
def scan() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A ball of two tissues with a field and noise: image, true field, mask of the brighter tissue."""
    shape = (48, 56, 44)
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = x**2 + y**2 + z**2 < 0.8
    bright = inside & (ndimage.gaussian_filter(rng.standard_normal(shape), 2) > 0)
    field = np.exp(0.35 * x + 0.3 * y * z - 0.25 * z**2).astype(np.float32)
    image = np.where(bright, 1.0, 0.6) * inside * field + 0.02 * rng.standard_normal(shape)
    return (300 * np.abs(image)).astype(np.float32), field, bright


def variation(values: np.ndarray) -> float:
    return float(values.std() / values.mean())


def correlation(field: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    return float(np.corrcoef(np.log(field[where]), np.log(truth[where]))[0, 1])


@ENGINES
def test_field_is_recovered_and_tissue_becomes_even(scan, engine):
    image, truth, bright = scan
    corrected, field = correct_bias_field(image, shrink_factor=2, return_field=True, engine=engine)
    assert correlation(field, truth, bright) > 0.97
    assert variation(corrected[bright]) < 0.5 * variation(image[bright])


def test_corrected_times_field_is_the_image(scan):
    image = scan[0]
    corrected, field = correct_bias_field(image, return_field=True)
    assert corrected.dtype == field.dtype == np.float32
    assert (field > 0).all()
    np.testing.assert_allclose(corrected * field, image, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shrink", [2, 3, (1, 4, 3)])
def test_both_engines_find_the_same_field(scan, shrink):
    image = scan[0]
    fields = [
        correct_bias_field(image, shrink_factor=shrink, return_field=True, engine=e)[1] for e in ("separable", "itk")
    ]
    assert np.abs(np.log(fields[0] / fields[1])).max() < 0.005


@pytest.mark.parametrize("threshold", [0.0, 0.001])
def test_simpleitk_finds_the_same_field_on_the_same_voxels(scan, threshold):
    image = scan[0][::2, ::2, ::2]
    mask = (image > 60).astype(np.float32)
    ours = correct_bias_field(image, None, 1, (20, 10, 10, 5), threshold, mask)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([20, 10, 10, 5])
    n4.SetConvergenceThreshold(threshold)
    reference = n4.Execute(sitk.GetImageFromArray(image), sitk.GetImageFromArray(mask.astype(np.uint8)))
    inside = mask > 0
    ratio = ours[inside] / sitk.GetArrayFromImage(reference)[inside]
    assert np.abs(ratio - 1).max() < 0.01


def test_otsus_threshold_is_that_of_itks_filter(scan):
    image = scan[0]
    otsu = sitk.OtsuThreshold(sitk.GetImageFromArray(image), 0, 1, 200)
    differ = sitk.GetArrayFromImage(otsu) != (image > otsu_threshold(image))
    assert differ.mean() < 0.002  # one bin's voxels


@ENGINES
def test_voxels_of_zero_and_less_are_divided_but_not_fitted(scan, engine):
    image = scan[0].copy()
    expected = correct_bias_field(image, mask=image > 60, engine=engine)
    image[image < 60] = 0
    image[:5] = -40
    mask = np.ones_like(image)  # which asks for all of them
    corrected = correct_bias_field(image, mask=mask, engine=engine)
    assert (corrected[image == 0] == 0).all()
    assert (corrected[image < 0] < 0).all()
    fitted = image > 0
    np.testing.assert_allclose(corrected[fitted], expected[fitted], rtol=0.05)


@ENGINES
@pytest.mark.parametrize("image", [np.zeros((9, 9, 9)), np.full((9, 8, 7), 5), np.full((9, 8, 7), -5.0),
                                   -np.arange(343).reshape(7, 7, 7)])  # fmt: skip
def test_image_without_contrast_above_zero_stays_as_it_is(image, engine, caplog):
    with caplog.at_level(logging.WARNING):
        corrected, field = correct_bias_field(image, return_field=True, engine=engine)
    assert (corrected == image).all()
    assert (field == 1).all()
    assert "no bias field" in caplog.text


@ENGINES
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 1), (2, 3, 2), (5, 4, 3)])
def test_volume_of_too_few_voxels_stays_as_it_is(shape, engine):
    image = np.random.default_rng(1).uniform(50, 100, shape)
    np.testing.assert_array_equal(correct_bias_field(image, mask=None, engine=engine), image.astype(np.float32))


@ENGINES
@pytest.mark.parametrize("shape", [(1, 30, 30), (3, 40, 41), (7, 9, 40), (40, 2, 31), (300, 1, 1)])
@pytest.mark.parametrize("mask", ["otsu", None])
def test_volumes_thinner_than_step_and_spline_are_corrected(shape, mask, engine):
    image = np.random.default_rng(1).uniform(50, 100, shape)
    corrected, field = correct_bias_field(image, shrink_factor=2, mask=mask, return_field=True, engine=engine)
    assert corrected.shape == shape
    assert np.isfinite(corrected).all()
    assert (field > 0.5).all()
    assert (field < 2).all()
    assert (field != 1).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.float64, ">i2", ">f4"])
def test_any_real_dtype_gives_the_same_result(scan, dtype):
    whole = np.rint(np.clip(scan[0], 0, 255))
    assert (correct_bias_field(whole.astype(dtype)) == correct_bias_field(whole.astype(np.float32))).all()


def test_image_is_not_changed(scan):
    image = scan[0].copy()
    correct_bias_field(image)
    assert (image == scan[0]).all()


def test_axes_that_are_flipped_or_swapped_change_nothing(scan):
    image = scan[0][:46, :55, :43]  # every third voxel, as far from both ends
    expected = correct_bias_field(image)
    np.testing.assert_allclose(correct_bias_field(image[::-1, :, ::-1])[::-1, :, ::-1], expected, rtol=2e-3)
    np.testing.assert_allclose(correct_bias_field(image.transpose(2, 0, 1)).transpose(1, 2, 0), expected, rtol=2e-3)


def test_thick_slices_are_not_thinned_out_and_an_oblique_affine_is_read_by_its_spacing(scan):
    image = scan[0]
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.9, 0.9, 5.5])
    assert (correct_bias_field(image, affine) == correct_bias_field(image, shrink_factor=(3, 3, 1))).all()
    affine[:3, :3] = turn * 1.2
    assert (correct_bias_field(image, affine) == correct_bias_field(image)).all()


@ENGINES
def test_the_same_call_gives_the_same_voxels(scan, engine):
    first = correct_bias_field(scan[0], threads=2, engine=engine)
    assert (correct_bias_field(scan[0], threads=2, engine=engine) == first).all()


def test_the_number_of_threads_changes_nothing(scan):
    assert (correct_bias_field(scan[0], threads=1) == correct_bias_field(scan[0], threads=3)).all()


@pytest.mark.slow
def test_the_number_of_threads_changes_itks_last_bits_only(scan):
    one, three = (correct_bias_field(scan[0], threads=n, engine="itk") for n in (1, 3))
    np.testing.assert_allclose(one, three, rtol=1e-3)


def test_a_threshold_ends_the_levels_early(scan):
    image = scan[0]
    few = correct_bias_field(image, iterations=(1,), convergence_threshold=0)
    assert (correct_bias_field(image, iterations=(20,), convergence_threshold=10) == few).all()
    assert (correct_bias_field(image, iterations=(20,), convergence_threshold=0) != few).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shrink_factor": 0}, "shrink_factor"),
        ({"shrink_factor": (1, 2)}, "shrink_factor"),
        ({"iterations": ()}, "iterations"),
        ({"iterations": (10, 0)}, "iterations"),
        ({"convergence_threshold": float("nan")}, "convergence_threshold"),
        ({"threads": 0}, "threads"),
        ({"engine": "ants"}, "engine"),
        ({"mask": "brain"}, "mask"),
    ],
)
def test_settings_that_cannot_be_are_named(scan, settings, message):
    with pytest.raises(ConfigError, match=message):
        correct_bias_field(scan[0], **settings)


def test_bad_images_masks_and_affines_are_named(scan):
    with pytest.raises(DataError, match=r"not a number \(1 voxels\)"):
        correct_bias_field(np.where(np.arange(1000) == 3, np.nan, 1.0).reshape(10, 10, 10))
    with pytest.raises(DataError, match="three axes"):
        correct_bias_field(np.ones((5, 5)))
    with pytest.raises(GeometryError, match="mask and image differ in shape"):
        correct_bias_field(scan[0], mask=np.ones((2, 2, 2)))
    with pytest.raises(GeometryError, match="spacing must be above 0"):
        correct_bias_field(scan[0], affine=np.zeros((4, 4)))


def test_transform_corrects_each_channel_and_keeps_meta_data_and_field(scan):
    image = scan[0]
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    two = MetaTensor(torch.from_numpy(np.stack([image, image[::-1]])), affine=affine, meta={"filename_or_obj": "a.nii"})
    case = N4BiasFieldCorrectiond("image", field_postfix="_field")({"image": two, "label": 1})
    assert isinstance(case["image"], MetaTensor)
    assert (case["image"].affine == affine).all()
    assert case["image"].meta["filename_or_obj"] == "a.nii"
    np.testing.assert_array_equal(case["image"][0], correct_bias_field(image))
    np.testing.assert_array_equal(case["image"][1], correct_bias_field(image[::-1]))
    np.testing.assert_allclose(case["image"] * case["image_field"], two, rtol=1e-5)
    assert case["label"] == 1


def test_transform_takes_a_mask_of_the_case(scan):
    image, _, bright = scan
    case = {"image": image[None], "seg": bright[None]}
    found = N4BiasFieldCorrectiond("image", mask="seg")(case)["image"]
    np.testing.assert_array_equal(found[0], correct_bias_field(image, mask=bright))


def test_transform_names_the_file_of_a_bad_image():
    image = MetaTensor(torch.full((1, 4, 4, 4), torch.nan), meta={"filename_or_obj": "bad.nii.gz"})
    with pytest.raises(DataError, match=r"^bad\.nii\.gz: the image has voxels that are infinite"):
        N4BiasFieldCorrectiond("image")({"image": image})


def test_settings_are_checked_when_the_transform_is_made():
    with pytest.raises(ConfigError, match="iterations"):
        N4BiasFieldCorrectiond("image", iterations=[0])


def test_result_is_kept_on_disk_under_its_settings(scan, tmp_path):
    path = tmp_path / "head.nii.gz"
    nib.save(nib.Nifti1Image(scan[0], np.diag([1.0, 1.0, 3.0, 1.0])), path)

    def cached(**settings) -> torch.Tensor:
        chain = [
            LoadImaged("image", reader="decathlete.transforms.NiftiReader"),
            EnsureChannelFirstd("image"),
            N4BiasFieldCorrectiond("image", **settings),
        ]
        return CachedDataset([{"image": str(path)}], Compose(chain), mode="disk", cache_dir=tmp_path / "cache")[0]

    def entries() -> int:
        return len(list((tmp_path / "cache").glob("*/*.json")))

    first = cached()["image"]
    assert entries() == 1
    again = cached()["image"]
    assert entries() == 1
    assert torch.equal(first, again)
    assert (first.affine == again.affine).all()
    cached(shrink_factor=2)
    cached(iterations=(5,))
    assert entries() == 3


@pytest.fixture(scope="module")
def head(shared, tmp_path_factory) -> Path:
    """A raw head of 256 x 256 x 192 voxels whose field is known, as make_nfbs_like.py draws it."""
    folder = tmp_path_factory.mktemp("heads")
    script = shared / "tools" / "make_nfbs_like.py"
    subprocess.run([sys.executable, str(script), str(folder), "--subjects", "1"], check=True, capture_output=True)
    return next(folder.iterdir())


@pytest.mark.slow
def test_whole_head_at_the_defaults(head):
    names = {kind: next(head.glob(f"*_T1w{kind}.nii.gz")) for kind in ("", "_brainmask", "_biasfield")}
    image = nib.load(names[""])
    mask = np.asarray(nib.load(names["_brainmask"]).dataobj) > 0
    voxels = image.get_fdata(dtype=np.float32)
    corrected, field = correct_bias_field(voxels, image.affine, return_field=True)
    nodes = nib.load(names["_biasfield"])
    at = np.linalg.inv(nodes.affine) @ image.affine @ np.vstack([np.argwhere(mask).T, np.ones(mask.sum())])
    truth = ndimage.map_coordinates(nodes.get_fdata(), at[:3], order=1)
    assert np.corrcoef(np.log(field[mask]), np.log(truth))[0, 1] > 0.9
    flat = voxels[mask] / truth
    white = (flat > np.percentile(flat, 60)) & (flat < np.percentile(flat, 95))  # of the head without its field
    assert variation(corrected[mask][white]) < 0.9 * variation(voxels[mask][white])
