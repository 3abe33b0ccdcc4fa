"""Pictures as arrays: where a voxel lands, which colour it gets, and images that have no contrast."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from decathlete.colours import COLOURS
from decathlete.drawing.panels import GAP, overlay_planes
from decathlete.errors import GeometryError
from decathlete.view import overlay_array


def test_right_anterior_voxel_is_shown_top_left():
    image = np.zeros((4, 5, 3))
    image[3, 4, 1] = 1  # in RAS order: far right, far anterior
    picture = overlay_array(image, index=1, min_size=4)
    assert picture.shape == (5, 4, 3)
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert picture[1:].max() == 0


def test_slice_with_most_foreground_is_chosen():
    image, label = np.zeros((4, 4, 6)), np.zeros((4, 4, 6), dtype=np.uint8)
    image[..., 4] = np.eye(4)
    label[0, 0, 4] = 1
    label[0, 0, 4] = label[0, 1, 4] = label[2, 2, 1] = 1
    expected = overlay_array(image, label, index=4)
    assert (overlay_array(image, label) == expected).all()


def test_reference_is_an_outline_in_the_class_colour():
    label = np.zeros((8, 8, 1), dtype=np.uint8)
    label[2:6, 2:6] = 2
    picture = overlay_array(np.zeros((8, 8, 1)), label, min_size=8)
    coloured = (picture == COLOURS[1]).all(-1)
    assert coloured.sum() == 12  # the border of a 4 by 4 square


def test_prediction_is_a_fill_that_shows_the_image():
    prediction = np.zeros((4, 4, 1), dtype=np.uint8)
    prediction[:2] = 1
    picture = overlay_array(np.zeros((4, 4, 1)), prediction=prediction, min_size=4)
    filled = picture[:, 2:]  # low x is shown on the right
    gray = 127.5
    expected = gray + 0.35 * (np.array(COLOURS[0]) - gray)
    assert np.abs(filled - expected).max() <= 2  # steps of the palette


def test_aspect_follows_the_spacing():
    picture = overlay_array(np.zeros((20, 20, 1)), spacing=(1, 3, 1), min_size=20)
    assert picture.shape[:2] == (60, 20)


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan, np.inf])
def test_image_without_contrast_is_drawn(value):
    assert overlay_array(np.full((4, 4, 2), value), min_size=4).shape == (4, 4, 3)


def test_voxels_that_are_no_number_do_not_spoil_the_window():
    image = np.arange(16.0).reshape(4, 4, 1)
    image[0, 0] = np.nan
    image[0, 1] = np.inf
    picture = overlay_array(image, min_size=4)
    assert picture[3, 3].max() == 0  # the nan
    assert len(np.unique(picture)) > 10


def test_tensors_with_channels_are_taken():
    image = torch.rand(2, 5, 6, 7, dtype=torch.bfloat16)
    label = torch.ones(1, 5, 6, 7)
    assert overlay_array(image, label, label, min_size=5).shape == (6, 5, 3)


def test_two_dimensional_image_is_taken():
    assert overlay_array(np.zeros((5, 6)), np.ones((5, 6)), min_size=5).shape == (6, 5, 3)


def test_label_of_another_grid_is_refused_with_both_shapes():
    with pytest.raises(GeometryError, match="image 4 x 4 x 4, label 4 x 4 x 5"):
        overlay_array(np.zeros((4, 4, 4)), np.zeros((4, 4, 5)))


def test_planes_stand_side_by_side_each_through_the_fullest_slice():
    image, label = np.random.default_rng(0).random((4, 5, 6)), np.zeros((4, 5, 6), dtype=np.uint8)
    label[1, 2, 3] = 1
    picture = overlay_planes(image, label, axes=[0, 2], min_size=4)
    sagittal, axial = (overlay_array(image, label, axis=a, index=n, min_size=4) for a, n in ((0, 1), (2, 3)))
    assert picture.shape == (6, 5 + GAP + 4, 3)
    assert (picture[:, :5] == sagittal).all()
    assert (picture[:5, 5 + GAP :] == axial).all()
    assert (overlay_planes(image, label, axes=[2], min_size=4) == axial).all()
