"""The loss against MONAI's and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss

from decathlete.errors import ConfigError
from decathlete.training import DiceCE

LABELS = {"background": 0, "edema": 1, "core": 2, "enhancing": 3}
REGIONS = {"whole": ["edema", "core", "enhancing"], "core": [2, 3], "enhancing": ["enhancing"]}


def pair(ignored: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 4, 5, 6, 7), torch.rand(2, 4 + ignored, 5, 6, 7).softmax(1)


@pytest.mark.parametrize("batch", [True, False])
def test_without_options_it_is_monais(batch):
    scores, shares = pair()
    wanted = DiceCELoss(softmax=True, include_background=False, batch=batch)(scores, shares)
    torch.testing.assert_close(DiceCE(LABELS, batch=batch)(scores, shares), wanted)


def test_regions_are_dice_and_binary_cross_entropy_of_summed_probabilities():
    scores, shares = pair()
    p, parts = scores.softmax(1), [[1, 2, 3], [2, 3], [3]]
    sums = torch.stack([p[:, c].sum(1) for c in parts], 1)
    truth = torch.stack([shares[:, c].sum(1) for c in parts], 1)
    wanted = torch.nn.functional.binary_cross_entropy(sums, truth) + DiceLoss(batch=True)(sums, truth)
    torch.testing.assert_close(DiceCE(LABELS, REGIONS)(scores, shares), wanted)


def test_a_confusion_within_a_region_costs_the_region_nothing():
    truth = torch.zeros(1, 4, 4, 4, 4)
    truth[:, 1] = 1
    wrong = 20.0 * truth.roll(1, 1)  # core in place of edema
    assert DiceCE(LABELS, {"whole": [1, 2, 3]})(wrong, truth) < 1e-3
    assert DiceCE(LABELS)(wrong, truth) > 1


def test_the_loss_as_monai_rounds_as_monais():
    scores, shares = (values.repeat(1, 1, 4, 4, 4) for values in pair())
    wanted = DiceCELoss(softmax=True, include_background=False, batch=True)(scores, shares)
    assert torch.equal(DiceCE(LABELS, as_monai=True)(scores, shares), wanted)


@pytest.mark.parametrize("given", [{"regions": REGIONS}, {"ignore": [4]}])
def test_the_loss_as_monai_still_knows_regions_and_ignored_voxels(given):
    scores, shares = pair("ignore" in given)
    assert torch.equal(DiceCE(LABELS, **given, as_monai=True)(scores, shares), DiceCE(LABELS, **given)(scores, shares))


@pytest.mark.parametrize("regions", [None, REGIONS])
def test_ignored_voxels_count_nothing(regions):
    scores, _ = pair()
    values = torch.randint(0, 4, (2, 5, 6, 7))
    shares = torch.nn.functional.one_hot(values, 5).movedim(-1, 1).float()
    cut = DiceCE(LABELS, regions)(scores[..., :4], shares[:, :4, ..., :4])
    values[..., 4:] = 4
    ignored = torch.nn.functional.one_hot(values, 5).movedim(-1, 1).float()
    torch.testing.assert_close(DiceCE(LABELS, regions, [4])(scores, ignored), cut)


def test_a_batch_without_a_judged_voxel_has_no_gradient_and_no_nan():
    scores, shares = pair(ignored=True)
    shares = torch.zeros_like(shares)
    shares[:, -1] = 1
    scores.requires_grad_()
    loss = DiceCE(LABELS, REGIONS, [4])(scores, shares)
    loss.backward()
    assert math.isfinite(loss.item())
    assert scores.grad.abs().max() == 0


def test_extreme_scores_stay_finite():
    scores, shares = pair()
    scores = (1e4 * scores).requires_grad_()
    loss = DiceCE(LABELS, REGIONS)(scores, shares)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"labels": {"background": 0, "a": 2}}, "without a gap"),
        ({"labels": LABELS, "ignore": [3]}, r"\[4\]"),
        ({"labels": LABELS, "regions": {"whole": ["oedema"]}}, "did you mean 'edema'|Did you mean 'edema'"),
        ({"labels": LABELS, "regions": {"all": [0, 1, 2, 3]}}, "some of the classes"),
        ({"labels": LABELS, "regions": {"none": []}}, "some of the classes"),
    ],
)
def test_options_that_cannot_be_are_named(arguments, words):
    with pytest.raises(ConfigError, match=words):
        DiceCE(**arguments)


def test_channels_that_do_not_fit_are_named():
    scores, shares = pair()
    with pytest.raises(ConfigError, match="4 scores and 5 class fractions"):
        DiceCE(LABELS, ignore=[4])(scores, shares)
