from __future__ import annotations

import math

import pytest
import torch

from decathlete.training import ContourLoss


def shares(*labels: list[int]) -> torch.Tensor:
    """(B, 5, pixels) of label values."""
    return torch.nn.functional.one_hot(torch.tensor(labels), 5).movedim(-1, 1).float()


def scores(*labels: list[int], size: float = 20.0) -> torch.Tensor:
    return size * torch.nn.functional.one_hot(torch.tensor(labels), 3).movedim(-1, 1).float()


def test_the_truth_costs_nothing_whichever_contours_were_drawn():
    pred = scores([0, 2, 1, 1, 2, 0])
    for drawn in ([0, 2, 1, 1, 2, 0], [3, 3, 1, 1, 3, 3], [0, 4, 4, 4, 4, 0]):
        assert ContourLoss()(pred, shares(drawn)) < 1e-4


def test_what_nobody_drew_has_no_part():
    drawn = shares([3, 3, 1, 1, 3, 3])
    assert ContourLoss()(scores([0, 2, 1, 1, 2, 0]), drawn) == pytest.approx(
        ContourLoss()(scores([2, 2, 1, 1, 0, 0]), drawn).item(), abs=1e-6
    )
    grows = scores([0, 2, 1, 1, 2, 0]).requires_grad_()
    ContourLoss()(grows * 0.1, shares([0, 4, 4, 4, 4, 0])).backward()
    assert grows.grad is not None
    inside = grows.grad[0, :, 2]
    assert inside[0] > 0  # less background
    assert inside[1] / inside[2] > 0  # cavity and muscle alike, by what each has


def test_the_inside_of_the_inner_contour_is_inside_the_outer_one_too():
    right, wrong = ([2, 1, 1, 2], [2, 0, 0, 2])
    drawn = shares([3, 1, 1, 3])
    assert ContourLoss()(scores(wrong), drawn) > ContourLoss()(scores(right), drawn) + 1


def test_value_by_hand():
    # all classes alike: inside the inner 1/3, inside the outer 2/3; two pixels, one cavity, one background
    found = ContourLoss(smooth=0.0)(torch.zeros(1, 3, 2), shares([1, 0]))
    entropy = -(math.log(1 / 3) + math.log(2 / 3) + math.log(2 / 3) + math.log(1 / 3)) / 4
    dice = (1 - (2 / 3) / (2 / 3 + 1) + 1 - (4 / 3) / (4 / 3 + 1)) / 2
    assert found.item() == pytest.approx(entropy + dice, rel=1e-5)


def test_a_small_frame_counts_as_much_as_a_large_one():
    drawn = shares([1, 0, 0, 0], [1, 1, 1, 1])
    missed_small = ContourLoss(0.0)(scores([0, 0, 0, 0], [1, 1, 1, 1], size=3), drawn)
    missed_large = ContourLoss(0.0)(scores([1, 0, 0, 0], [0, 0, 0, 0], size=3), drawn)
    assert missed_small > 0.45
    assert missed_large > missed_small  # by the entropy of more pixels; the Dice of both is the same


def test_gradients_are_finite_far_off():
    pred = scores([0, 0, 0, 0], size=500).requires_grad_()
    ContourLoss()(pred, shares([1, 1, 2, 3])).backward()
    assert torch.isfinite(pred.grad).all()
