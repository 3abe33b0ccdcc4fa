"""How far the networks of an ensemble and mirrored copies disagree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from decathlete.inference import Predictor, SlidingWindow
from decathlete.inference.inferers import disagreement_bits


def test_bits_are_none_where_all_say_the_same_and_one_where_sure_halves_disagree():
    sure, other, unsure = (torch.tensor([[a], [1 - a]]) for a in (1.0, 0.0, 0.5))
    assert float(disagreement_bits([sure, other], 0)) == pytest.approx(1)
    assert float(disagreement_bits([unsure, unsure], 0)) == pytest.approx(0)
    # means of (1, 0) and (1/2, 1/2): H(3/4, 1/4) - (0 + 1) / 2
    assert float(disagreement_bits([sure, unsure], 0)) == pytest.approx(0.8112781 - 0.5, abs=1e-6)


def test_mirrored_copies_disagree_where_the_network_is_lopsided():
    def network(x):  # says foreground on the low half of the first axis, however the image lies
        low = torch.arange(x.shape[2]) < x.shape[2] // 2
        foreground = torch.where(low, 9.0, -9.0)[:, None, None].expand(x.shape[2:])
        return torch.stack([-foreground, foreground])[None]

    inferer = SlidingWindow((8, 8, 8), mirror_axes=[0], amp=False)
    plain = inferer(torch.zeros(1, 1, 8, 8, 8), network)
    inferer.disagreement = True
    out = inferer(torch.zeros(1, 1, 8, 8, 8), network)
    torch.testing.assert_close(out[:, :2], plain, rtol=0, atol=0)
    torch.testing.assert_close(out[:, 2:], torch.ones(1, 1, 8, 8, 8), atol=1e-3, rtol=0)


def test_labels_stay_as_they_are_when_the_disagreement_is_asked_for(bundle, scan):
    predictor = Predictor(bundle, tta=True)
    plain, told = predictor(*scan), predictor(*scan, disagreement=True)
    np.testing.assert_array_equal(plain.label, told.label)
    assert plain.disagreement_map is None
    assert told.disagreement_map.shape == plain.label.shape
    assert told.disagreement == pytest.approx(0, abs=0.02)  # the network is symmetric


def test_networks_disagree_where_their_borders_differ(make_bundle, threshold_weights, scan, tmp_path):
    bundle = make_bundle()
    files = []
    for n, first in enumerate((0.2, 0.9)):
        files.append(tmp_path / f"{n}.pt")
        torch.save(threshold_weights(first=first), files[-1])
    same = Predictor(bundle, [files[0], files[0]])(*scan, disagreement=True)
    other = Predictor(bundle, files)(*scan, disagreement=True)
    both = Predictor(bundle, files, tta=True)(*scan, disagreement=True)
    labels = [Predictor(bundle, file)(*scan).label for file in files]
    assert same.disagreement < 1e-4
    assert other.disagreement > 0.05
    assert both.disagreement == pytest.approx(other.disagreement, rel=0.1)
    differ = (labels[0] > 0) != (labels[1] > 0)
    assert other.disagreement_map[differ].mean() > 5 * other.disagreement_map[~differ].mean()
    assert 0 <= other.disagreement_map.min() <= other.disagreement_map.max() <= math.log2(3)


def test_a_lone_prediction_has_nothing_to_disagree_with(bundle, scan):
    prediction = Predictor(bundle)(*scan, disagreement=True)
    assert prediction.disagreement is prediction.disagreement_map is None
