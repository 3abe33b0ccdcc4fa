"""A bundle kept loaded predicts arrays on their own grid."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

from decathlete.errors import CheckpointError, ConfigError, DataError, DeviceError, UsageError
from decathlete.inference import Predictor


def dice(a, b):
    return 2 * np.sum(a & b) / (a.sum() + b.sum())


def test_label_and_probabilities_on_the_scans_grid(bundle, scan):
    array, affine = scan
    found = Predictor(bundle)(array, affine, probabilities=True)
    assert found.label.shape == array.shape
    assert found.label.dtype == np.uint8
    assert set(np.unique(found.label)) == {0, 1, 2}
    np.testing.assert_array_equal(found.affine, affine)
    assert found.probabilities.shape == (3, *array.shape)
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(found.probabilities.argmax(0), found.label)
    assert found.label[9, 13, 12] == 2  # the ball's centre
    assert found.label[0, 0, 0] == 0


def test_file_and_array_give_the_same(bundle, scan, scan_file):
    predictor = Predictor(bundle)
    from_array = predictor(scan[0], nib.load(scan_file).affine)  # the header holds the affine in float32
    np.testing.assert_array_equal(predictor.predict_file(scan_file).label, from_array.label)


def test_monais_evaluator_saves_the_same_label(bundle, scan_file, tmp_path):
    from monai.bundle import ConfigWorkflow

    # MONAI's own run of the config, with its reader, engine and writer
    workflow = ConfigWorkflow(
        str(bundle / "configs" / "inference.yaml"),
        workflow_type="infer",
        run_id="inferring",
        bundle_root=str(bundle),
        dataset_dir=str(scan_file),
        output_dir=str(tmp_path / "saved"),
    )
    workflow.initialize()
    workflow.run()
    saved = nib.load(tmp_path / "saved" / "case_001.nii.gz")
    np.testing.assert_allclose(saved.affine, nib.load(scan_file).affine, atol=1e-6)
    np.testing.assert_array_equal(saved.get_fdata(), Predictor(bundle).predict_file(scan_file).label)


def test_stock_parts_of_monai_give_the_same_label(make_bundle, bundle, scan):
    stock = make_bundle(
        "stock",
        inferer=("decathlete.inference.SlidingWindow", "SlidingWindowInferer"),
        amp=(', amp: "@amp"}', ", mode: gaussian}"),
        restore=(
            "{_target_: decathlete.transforms.RestoreGridd, keys: pred, orig_keys: image}",
            "{_target_: Invertd, keys: pred, transform: '@preprocessing', orig_keys: image, nearest_interp: false}",
        ),
    )
    ours, theirs = Predictor(bundle)(*scan).label, Predictor(stock)(*scan).label
    assert (ours != theirs).mean() < 0.01  # bfloat16 against float32


def test_ensemble_is_the_mean_of_the_softmax(make_bundle, tmp_path, scan, threshold_weights):
    bundle = make_bundle(spacing=("- {_target_: Spacingd, keys: image, pixdim: [1.0, 1.0, 1.0]}\n", ""))
    paths = []
    for n, first in enumerate((0.2, 0.8)):
        paths.append(tmp_path / f"{n}.pt")
        torch.save(threshold_weights(first=first), paths[-1])
    one, two = (Predictor(bundle, p)(*scan, probabilities=True).probabilities for p in paths)
    both = Predictor(bundle, paths)(*scan, probabilities=True)
    np.testing.assert_allclose(both.probabilities, (one + two) / 2, atol=1e-4)


def test_mirrored_copies_of_a_symmetric_network_change_nothing(bundle, scan):
    plain, mirrored = (Predictor(bundle, tta=tta, overrides={"amp": False})(*scan).label for tta in (False, True))
    assert (plain != mirrored).mean() < 1e-3


def test_axes_that_the_user_names_go_before_those_of_tta(make_bundle):
    bundle = make_bundle(channels=("channels: 1", "channels: 1\ntta_axes: [0, 1, 2]\nmirror_axes: null"),
                         inferer=('amp: "@amp"}', 'amp: "@amp", mirror_axes: "@mirror_axes"}'))  # fmt: skip
    assert Predictor(bundle, tta=True).inferer.mirror_axes == (0, 1, 2)
    assert Predictor(bundle, tta=True, overrides={"mirror_axes": [0]}).inferer.mirror_axes == (0,)
    assert Predictor(bundle, tta=True, overrides={"inferer#mirror_axes": [1]}).inferer.mirror_axes == (1,)


@pytest.mark.parametrize("place", ["device", "cpu", "file"])
def test_the_place_of_the_output_that_the_user_names_stays(bundle, place):
    predictor = Predictor(bundle, overrides={"inferer::output_on": place})
    for on_file in (True, False):
        predictor.keep_output(on_file)
        assert predictor.inferer.output_on == place


def test_a_place_of_the_output_left_to_us_is_a_file_while_memory_is_short(bundle):
    predictor = Predictor(bundle)
    for on_file, place in ((True, "file"), (False, "auto")):
        predictor.keep_output(on_file)
        assert predictor.inferer.output_on == place


def test_the_memory_estimate_goes_by_the_place_that_the_user_names(bundle):
    size = (200, 200, 200), (1.0, 1.0, 1.0)
    auto, file, device = (Predictor(bundle, overrides={"inferer::output_on": place})
                          for place in ("auto", "file", "device"))  # fmt: skip
    assert file.memory_gib(*size) == auto.memory_gib(*size, output_on_file=True) < auto.memory_gib(*size)
    assert device.memory_gib(*size, output_on_file=True) == device.memory_gib(*size)


def test_mirroring_needs_an_inferer_that_can(make_bundle):
    stock = make_bundle(
        inferer=("decathlete.inference.SlidingWindow", "SlidingWindowInferer"), amp=(', amp: "@amp"', "")
    )
    with pytest.raises(ConfigError, match="SlidingWindowInferer"):
        Predictor(stock, tta=True)


def test_mirroring_needs_an_axis_that_training_mirrored(make_bundle):
    bundle = make_bundle(channels=("channels: 1", "channels: 1\ntta_axes: []"))
    with pytest.raises(ConfigError, match=r"tta_axes: no axis to mirror"):
        Predictor(bundle, tta=True)


def test_sides_are_mirrored_only_where_the_config_says_so(make_bundle):
    sided = ("labels: {background: 0, anterior: 1, posterior: 2}", "labels: {background: 0, lh: 1, rh: 2}")
    with pytest.raises(ConfigError, match=r"tta_axes: .* need tta_axes .'lh' and 'rh' are two sides by name"):
        Predictor(make_bundle(channels=sided), tta=True)
    stated = (sided[0], sided[1] + "\ntta_axes: [1]")  # a person may know better
    assert Predictor(make_bundle("stated", channels=stated), tta=True).inferer.mirror_axes == (1,)


def test_several_channels_in_the_last_axis(make_bundle, scan, threshold_weights):
    bundle = make_bundle(weights=threshold_weights(2), channels=("channels: 1", "channels: 2"))
    array, affine = scan
    twice = Predictor(bundle)(np.stack([array, array], -1), affine).label
    once = Predictor(make_bundle("one"))(array, affine).label
    assert (twice != once).mean() < 1e-3


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 8, 2), (8, 8, 8, 1, 1)])
def test_arrays_of_another_layout_are_refused(bundle, shape):
    with pytest.raises(DataError):
        Predictor(bundle)(np.zeros(shape), np.eye(4))


def test_nan_and_broken_affines_are_refused(bundle):
    array = np.zeros((8, 8, 8))
    with pytest.raises(DataError, match="finite 4x4 affine"):
        Predictor(bundle)(array, np.eye(3))
    array[0, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"not finite .1 of them"):
        Predictor(bundle)(array, np.eye(4))


def plane_weights(slices=1, first=0.4, second=1.2):
    """As the 3D bundle's, smoothed in the plane of the middle slice alone."""
    axis = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 1.5**2))
    kernel = torch.from_numpy(np.einsum("i,j->ij", axis, axis) / axis.sum() ** 2).float()
    conv = torch.nn.Conv2d(slices, 3, 7, padding=3)
    with torch.no_grad():
        conv.weight.zero_()
        for n, (slope, bias) in enumerate([(0, 0), (4, -4 * first), (8, -4 * first - 4 * second)]):
            conv.weight[n, slices // 2], conv.bias[n] = slope * kernel, bias
    return conv.state_dict()


@pytest.fixture
def make_slices_bundle(make_bundle):
    def make(neighbours=0, name="slices", inferer="decathlete.inference.SliceWise", options=None, roi="[24, 24]"):
        options = f", neighbours: {neighbours}" if options is None else options
        return make_bundle(
            name,
            weights=plane_weights(2 * neighbours + 1),
            network=("torch.nn.Conv3d", "torch.nn.Conv2d"),
            in_channels=('in_channels: "@channels"', f'in_channels: "$@channels * {2 * neighbours + 1}"'),
            patch=("patch_size: [24, 24, 24]", f"patch_size: {roi}"),
            inferer=("decathlete.inference.SlidingWindow", inferer),
            options=(', amp: "@amp"}', options + "}"),
        )

    return make


def test_two_dimensional_network_predicts_slice_by_slice(make_slices_bundle, scan):
    found = Predictor(make_slices_bundle(options=", amp: false"))(*scan, probabilities=True)
    stock = make_slices_bundle(
        name="stock", inferer="SliceInferer", options=", spatial_dim: 2, mode: gaussian, overlap: 0.5"
    )
    theirs = Predictor(stock)(*scan, probabilities=True)
    assert found.label.shape == scan[0].shape
    assert found.label[9, 13, 12] == 2
    np.testing.assert_allclose(found.probabilities, theirs.probabilities, atol=1e-4)


def test_neighbouring_slices_are_no_channels_of_the_file(make_slices_bundle, scan):
    flat = Predictor(make_slices_bundle(options=", amp: false"))
    deep = Predictor(make_slices_bundle(2, "deep", options=", neighbours: 2, amp: false"))
    assert flat.channels == deep.channels == 1
    np.testing.assert_array_equal(deep(*scan).label, flat(*scan).label)  # its weights look at the middle slice


def test_mirrored_copies_of_slices_are_mirrored_in_the_plane(make_slices_bundle, scan):
    bundle = make_slices_bundle(options=", amp: false")
    mirrored = Predictor(bundle, tta=True)
    assert mirrored.inferer.mirror_axes == (0, 1)
    assert (mirrored(*scan).label != Predictor(bundle)(*scan).label).mean() < 1e-3


def test_memory_of_whole_slices_counts_in_the_estimate(make_slices_bundle):
    gib = []
    for batch in (4, 800):
        bundle = make_slices_bundle(name=f"batch_{batch}", roi="[-1, -1]")
        predictor = Predictor(bundle, overrides={"inferer::sw_batch_size": batch})
        gib.append(predictor.memory_gib((512, 512, 60), (1, 1, 1)))
    # 800 slices of 512x512 with three classes in float32 are 2.3 GiB, of which the chain's own peak hides less than 1
    assert gib[1] - gib[0] > 1.4


def test_missing_weights_say_what_to_do(make_bundle):
    with pytest.raises(CheckpointError, match=r"model\.pt: .*has no weights.*decathlete run training"):
        Predictor(make_bundle(weights=False))


def test_weights_of_another_network_are_named(make_bundle):
    with pytest.raises(CheckpointError, match=r"missing weight, bias; unexpected 0\.weight"):
        Predictor(make_bundle(weights=torch.nn.Sequential(torch.nn.Linear(2, 2)).state_dict()))


def test_run_folder_means_its_final_weights(bundle, scan, tmp_path):
    shutil.copy(bundle / "models" / "model.pt", tmp_path / "model_final.pt")
    (tmp_path / "model.pt").write_bytes(b"the best on the validation cases")
    assert Predictor(bundle, tmp_path)(*scan).label.max() == 2


def test_unknown_device_and_override_are_refused(bundle):
    with pytest.raises(UsageError, match="expected a device"):
        Predictor(bundle, device="gpu")
    with pytest.raises(ConfigError, match="patch_size"):
        Predictor(bundle, overrides={"patchsize": [8, 8, 8]})
    if torch.cuda.device_count() < 8:
        with pytest.raises(DeviceError, match="no cuda:7"):
            Predictor(bundle, device="cuda:7")


def test_estimate_grows_with_the_network_grid_and_with_probabilities(bundle):
    predictor = Predictor(bundle)
    coarse = predictor.memory_gib((256, 256, 128), (1, 1, 1))
    assert predictor.memory_gib((256, 256, 128), (1, 1, 4)) > coarse + 0.3  # 4 times the voxels at 1 mm
    assert predictor.memory_gib((256, 256, 128), (1, 1, 1), probabilities=True) > coarse


def test_cropped_away_parts_become_background(make_bundle, scan):
    crop = make_bundle(
        crop=(
            "- {_target_: NormalizeIntensityd",
            "- {_target_: CenterSpatialCropd, keys: image, roi_size: [16, 16, 16]}\n- {_target_: NormalizeIntensityd",
        )
    )
    array, affine = scan
    label = Predictor(crop)(array, affine).label
    assert label.shape == array.shape
    assert label[:3].max() == 0
    assert label.max() > 0


@pytest.fixture
def hippocampus(hippocampus_data):
    image = nib.load(sorted((hippocampus_data / "imagesTr").glob("hippocampus_*.nii.gz"))[0])
    return image.get_fdata(dtype=np.float32), image.affine


def test_copies_of_a_real_scan_in_other_orders_get_the_same_label(bundle, hippocampus):
    array, affine = hippocampus
    predictor = Predictor(bundle)
    label = predictor(array, affine).label
    assert all((label == n).sum() > 100 for n in (0, 1, 2))
    original = nib.Nifti1Image(label, affine)
    for axes in ("RAS", "LPS", "PIR", "SAL"):
        orientation = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(axes)
        )
        copy = nib.Nifti1Image(array, affine).as_reoriented(orientation)
        found = predictor(copy.get_fdata(dtype=np.float32), copy.affine)
        np.testing.assert_array_equal(found.affine, copy.affine)
        expected = np.asarray(original.as_reoriented(orientation).dataobj)
        assert (found.label != expected).mean() < 1e-3


@pytest.mark.parametrize("kind", ["tilted header", "oblique", "anisotropic"])
def test_resampled_copies_of_a_real_scan_get_the_same_label(make_bundle, hippocampus, kind):
    from scipy.ndimage import affine_transform, gaussian_filter

    array, affine = hippocampus
    array = gaussian_filter(array, 2)  # so that resampling the scan loses little
    array = (array - array.mean()) / array.std()
    # thresholds of the copy's own statistics would be other thresholds
    fixed = ("{_target_: NormalizeIntensityd, keys: image, channel_wise: true}", "{_target_: Identityd, keys: image}")
    predictor = Predictor(make_bundle(normalize=fixed))
    label = predictor(array, affine).label
    if kind == "tilted header":  # the same voxels, elsewhere in space: the network sees the same
        tilt = np.eye(4)
        tilt[:3, :3] = nib.eulerangles.euler2mat(0.2, 0.1, -0.3)
        found = predictor(array, tilt @ affine).label
        assert (found != label).mean() < 1e-3
        return
    step = np.eye(4)  # voxel of the copy to voxel of the original
    shape = array.shape
    if kind == "oblique":
        step[:3, :3] = nib.eulerangles.euler2mat(0.1, 0.15, -0.1)
        centre = (np.array(shape) - 1) / 2
        step[:3, 3] = centre - step[:3, :3] @ centre
    else:
        step[2, 2] = 1.6
        shape = (*shape[:2], int((shape[2] - 1) / 1.6) + 1)
    copy = affine_transform(array, step, output_shape=shape, order=3, mode="nearest")
    found = predictor(copy, affine @ step)
    assert found.label.shape == shape
    masks = [(label == value).astype(np.float32) for value in range(3)]
    expected = np.argmax([affine_transform(m, step, output_shape=shape, order=1, mode="nearest") for m in masks], 0)
    inner = tuple(slice(4, -4) for _ in shape)
    for value in (1, 2):
        here = dice(found.label[inner] == value, expected[inner] == value)
        assert here > 0.95
        for axis in range(3):
            shifted = np.roll(found.label, 1, axis)[inner] == value
            assert dice(shifted, expected[inner] == value) < here - 0.02
