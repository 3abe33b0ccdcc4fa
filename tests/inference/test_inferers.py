"""Windows cover the volume, mirrored copies are averaged, and the output is float32 where the input was."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer, SlidingWindowInferer
from torch import nn

from decathlete.errors import ConfigError, GeometryError
from decathlete.inference import SliceWise, SlidingWindow


class Windows(nn.Module):
    """Two channels, x and -x, and the shapes that were asked for."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return torch.cat([x, -x], 1)


@pytest.fixture
def volume():
    return torch.randn(1, 1, 11, 9, 7, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Conv3d(1, 3, 3, padding=1).eval()


def test_windows_agree_with_monai_in_float32(volume):
    ours = SlidingWindow((8, 8, 4), amp=False)(volume, network())
    theirs = SlidingWindowInferer((8, 8, 4), sw_batch_size=4, overlap=0.5, mode="gaussian")(volume, network())
    torch.testing.assert_close(ours, theirs)


def test_small_volume_is_padded_to_one_window_and_cropped(volume):
    windows = Windows()
    out = SlidingWindow((12, 12, 12), amp=False)(volume, windows)
    assert windows.shapes == [(1, 1, 12, 12, 12)]
    assert torch.equal(out, torch.cat([volume, -volume], 1))


def test_one_window_agrees_with_monai(volume):
    ours = SlidingWindow((12, 12, 12), amp=False)(volume, network())
    theirs = SlidingWindowInferer((12, 12, 12), mode="gaussian")(volume, network())
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_whole_volume_window_is_padded_to_the_multiple_that_strides_ask_for(volume):
    windows = Windows()
    out = SlidingWindow((-1, -1, -1), divisible=(4, 8, 1), amp=False)(volume, windows)
    assert windows.shapes == [(1, 1, 12, 16, 7)]
    assert torch.equal(out[:, :1], volume)


def test_mirrored_copies_average_logits(volume):
    class Ramp(nn.Module):  # adds the position along the first axis
        def forward(self, x):
            return x + torch.arange(x.shape[2], dtype=torch.float32)[:, None, None]

    out = SlidingWindow((-1, -1, -1), mirror_axes=(0, 2), amp=False)(volume, Ramp())
    torch.testing.assert_close(out, volume + 5)  # the ramps 0..10 and 10..0 average to 5


def test_mirrored_copies_of_a_symmetric_network_change_nothing(volume):
    plain = SlidingWindow((8, 8, 4), amp=False)(volume, Windows())
    mirrored = SlidingWindow((8, 8, 4), amp=False, mirror_axes=(0, 1, 2))(volume, Windows())
    torch.testing.assert_close(plain, mirrored)


def test_mirror_axis_out_of_range_is_refused(volume):
    with pytest.raises(ValueError, match="3 spatial axes"):
        SlidingWindow((8, 8, 8), mirror_axes=(3,))(volume, Windows())


def test_reduced_precision_inside_float32_outside(volume):
    seen = []

    class Spy(nn.Conv3d):
        def forward(self, x):
            seen.append(super().forward(x).dtype)
            return super().forward(x)

    from decathlete.training.precision import amp_dtype

    out = SlidingWindow((12, 12, 12), amp=True)(volume, Spy(1, 2, 1))
    assert seen == [amp_dtype("cpu", True)]
    assert out.dtype == torch.float32


def test_deeply_supervised_output_gives_its_finest(volume):
    class Deep(nn.Module):
        def forward(self, x):
            return [x * 2, x[..., ::2, ::2, ::2]]

    for roi in ((12, 12, 12), (8, 8, 4)):
        torch.testing.assert_close(SlidingWindow(roi, amp=False)(volume, Deep()), volume * 2)


def test_metadata_goes_through(volume):
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    image = MetaTensor(volume[0], affine=affine, meta={"filename_or_obj": "a.nii.gz"})[None]
    for roi in ((12, 12, 12), (8, 8, 4)):
        out = SlidingWindow(roi)(image, network())
        assert isinstance(out, MetaTensor)
        assert out.meta["filename_or_obj"] == "a.nii.gz"
        assert torch.equal(out.affine, affine)


def test_two_dimensional_images():
    image = torch.randn(2, 1, 20, 13)
    out = SlidingWindow((8, 8), amp=False)(image, nn.Identity())
    torch.testing.assert_close(out, image)


@pytest.fixture
def two_channels():
    return torch.randn(2, 2, 11, 9, 7, generator=torch.Generator().manual_seed(1))


def plane_network(channels=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("roi", [(-1, -1), (8, 4), (12, 12)])
def test_slices_agree_with_monai_along_each_axis(two_channels, axis, roi):
    whole = [n for k, n in enumerate(two_channels.shape[2:]) if k != axis]
    ours = SliceWise(roi, sw_batch_size=3, axis=axis, amp=False)(two_channels, plane_network())
    theirs = SliceInferer(axis, [w if r < 0 else r for r, w in zip(roi, whole, strict=True)], 3, 0.5, "gaussian")
    torch.testing.assert_close(ours, theirs(two_channels, plane_network()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("window", "cpu"), [((32, 32, 32), 4), ((48, 48, 48), 2), ((96, 96, 96), 1), ((256, 256), 4)])
def test_large_windows_go_one_by_one_on_a_processor(window, cpu):
    inferer = SlidingWindow(window)
    assert inferer.windows_at_a_time(window, torch.device("cpu")) == cpu
    assert inferer.windows_at_a_time(window, torch.device("cuda")) == 4
    assert SlidingWindow(window, sw_batch_size=7).windows_at_a_time(window, torch.device("cpu")) == 7


def test_windows_that_the_network_sees_at_a_time(volume):
    for roi, most in (((8, 8, 4), 4), ((64, 64, 64), 1)):
        windows = Windows()
        SlidingWindow(roi, amp=False)(volume.repeat(3, 1, 1, 1, 1), windows)
        assert max(shape[0] for shape in windows.shapes) == most


def test_slices_go_in_batches_and_windows_in_the_plane(two_channels):
    windows = Windows()
    SliceWise((-1, -1), sw_batch_size=4, amp=False)(two_channels, windows)
    assert windows.shapes == [(4, 2, 11, 9), (3, 2, 11, 9)] * 2
    windows = Windows()
    SliceWise((16, 6), sw_batch_size=4, axis=1, divisible=(8, 1), amp=False)(two_channels[:1], windows)
    assert {shape[2:] for shape in windows.shapes} == {(16, 6)}


def test_neighbouring_slices_are_channels_and_the_ends_repeat():
    volume = torch.arange(5.0).view(1, 1, 1, 1, 5) + torch.tensor([0, 100.0]).view(1, 2, 1, 1, 1)
    seen = []

    def network(x):
        seen.append(x[:, :, 0, 0])
        return x[:, :1]

    SliceWise((-1, -1), sw_batch_size=2, neighbours=1, amp=False)(volume, network)
    assert torch.cat(seen).tolist() == [
        [0, 100, 0, 100, 1, 101],
        [0, 100, 1, 101, 2, 102],
        [1, 101, 2, 102, 3, 103],
        [2, 102, 3, 103, 4, 104],
        [3, 103, 4, 104, 4, 104],
    ]


def test_output_of_a_slice_is_its_own_place(two_channels):
    for axis in range(3):
        for batch in (1, 4, 100):
            out = SliceWise((-1, -1), batch, axis=axis, neighbours=2, amp=False)(two_channels, lambda x: x[:, 4:6])
            assert torch.equal(out, two_channels)


def test_slices_are_mirrored_in_the_plane(two_channels):
    class Ramp(nn.Module):  # adds the position along the slice's second axis
        def forward(self, x):
            return x + torch.arange(x.shape[3], dtype=torch.float32)

    out = SliceWise((-1, -1), axis=1, mirror_axes=(1,), amp=False)(two_channels, Ramp())
    torch.testing.assert_close(out, two_channels + 3)  # 0..6 and 6..0 average to 3
    with pytest.raises(ValueError, match="2 spatial axes"):
        SliceWise((-1, -1), mirror_axes=(2,))(two_channels, Ramp())


def test_slices_keep_metadata_and_give_float32(two_channels):
    image = MetaTensor(two_channels[0], affine=torch.diag(torch.tensor([2.0, 3, 4, 1])), meta={"a": "b"})[None]
    out = SliceWise((8, 8), amp=True)(image, plane_network())
    assert isinstance(out, MetaTensor)
    assert (out.meta["a"], out.dtype, tuple(out.shape)) == ("b", torch.float32, (1, 3, 11, 9, 7))
    assert torch.equal(out.affine, image.affine)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"roi_size": [8, 8, 8]}, "two numbers"),
        ({"roi_size": 8}, "two numbers"),
        ({"roi_size": [8, 8], "axis": 3}, "0, 1 or 2"),
        ({"roi_size": [8, 8], "neighbours": -1}, "number of slices"),
    ],
)
def test_slicing_that_cannot_be_is_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        SliceWise(**arguments)


def test_slices_of_what_is_no_volume_are_refused():
    with pytest.raises(GeometryError, match="expected volumes"):
        SliceWise((8, 8))(torch.zeros(1, 1, 8, 8), plane_network())
