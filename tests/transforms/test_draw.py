"""Images drawn from label maps."""

import pytest
import torch

from decathlete.errors import ConfigError
from decathlete.transforms import BatchAugment, DrawFromLabels

QUIET = {"prob": 0.0, "translation": 0.0, "intensity_scale": 0.0, "intensity_shift": 0.0, "noise_prob": 0.0,
         "gamma_prob": 0.0}  # fmt: skip


def maps(samples=2, size=20):
    """Label 0 outside, 1 in a box, 2 in a box in that box."""
    labels = torch.zeros(samples, 1, size, size, size, dtype=torch.int16)
    labels[:, :, 4:16, 4:16, 4:16] = 1
    labels[:, :, 7:13, 7:13, 7:13] = 2
    return labels


def test_every_label_is_drawn_with_a_brightness_of_its_own_and_another_each_time():
    torch.manual_seed(0)
    labels = maps(6)
    image = DrawFromLabels(prob=1.0, deviation=(0.0, 0.0))(torch.zeros(6, 1, 20, 20, 20), labels)
    contrasts = set()
    for sample, where in zip(image, labels, strict=True):
        values = [sample[where == label] for label in (0, 1, 2)]
        assert all(float(v.std()) < 1e-5 for v in values)
        means = [float(v.mean()) for v in values]
        assert len(set(means)) == 3
        contrasts.add(tuple(means))
    assert len(contrasts) == 6


def test_drawn_images_have_mean_0_and_deviation_1_over_the_whole_scan():
    torch.manual_seed(0)
    labels = maps(40)
    image = DrawFromLabels(prob=1.0, deviation=(0.05, 0.1))(torch.zeros(40, 1, 20, 20, 20), labels)
    assert abs(float(image.mean((1, 2, 3, 4)).mean())) < 0.05
    assert float(image.std((1, 2, 3, 4)).mean()) == pytest.approx(1.0, abs=0.05)
    part = labels[..., 7:13, 7:13, 7:13]  # label 2 alone: its brightness is told against the whole
    cut = DrawFromLabels(prob=1.0, deviation=(0.0, 0.0))(torch.zeros(40, 1, 6, 6, 6), part, labels)
    assert float(cut.mean((1, 2, 3, 4)).abs().min()) > 0.01


def test_only_a_share_of_the_samples_that_have_a_map_is_drawn():
    torch.manual_seed(0)
    image = torch.full((200, 1, 4, 4), 7.0)
    labels = torch.arange(16).view(1, 1, 4, 4).repeat(200, 1, 1, 1)
    labels[100:] = 0
    drawn = (DrawFromLabels(prob=0.5)(image, labels) != 7).flatten(1).any(1)
    assert 30 < int(drawn[:100].sum()) < 70
    assert not bool(drawn[100:].any())


def test_a_map_moves_with_its_image_and_its_mask():
    torch.manual_seed(0)
    labels = maps(3)
    batch = {"image": labels.float(), "label": (labels > 0).float(), "tissues": labels}
    draw = DrawFromLabels(prob=1.0, deviation=(0.0, 0.0), dark_background=1.0)
    moved = BatchAugment([16, 16, 16], 2, label_mode="shares", draw=draw, **(QUIET | {"prob": 1.0, "translation": 3.0}))
    out = moved(batch)
    whole_inside = out["label"][:, 1:] > 0.999
    whole_outside = out["label"][:, 1:] < 0.001
    for sample, inside, outside in zip(out["image"], whole_inside, whole_outside, strict=True):
        assert not set(sample[inside].unique().tolist()) & set(sample[outside].unique().tolist())
    different = (out["tissues"] > 0) != (out["label"][:, 1:] > 0.5)
    assert float(different.float().mean()) < 0.05


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DrawFromLabels(mean=(1.0, 0.0)), "smallest and a largest"),
        (lambda: DrawFromLabels(deviation=(-1.0, 0.0)), "smallest and a largest"),
        (lambda: DrawFromLabels(smoothness=0.5), "1 voxel"),
    ],
)
def test_arguments_that_cannot_be_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
