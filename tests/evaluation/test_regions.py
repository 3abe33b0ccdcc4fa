"""Regions in place of classes, and voxels that nobody judged."""

from __future__ import annotations

import numpy as np
import pytest

from decathlete.bundle import Bundle
from decathlete.bundle.labels import Scored
from decathlete.errors import ConfigError
from decathlete.evaluation import evaluate
from decathlete.evaluation.report import score_case

from .conftest import LABELS, SPACING, label_map, save
from .test_handler import run


def state(bundle, text: str) -> None:
    (bundle / "configs" / "train.yaml").write_text(text)


def test_a_region_is_scored_over_all_its_classes():
    pred, label = label_map(), label_map()
    pred[pred == 2] = 1  # the tail is taken for head
    (whole,) = score_case("a", pred, label, SPACING, LABELS, Scored({"whole": (1, 2)}))
    assert (whole["class"], whole["dice"]) == ("whole", 1.0)
    assert score_case("a", pred, label, SPACING, LABELS)[1]["dice"] == 0.0


def test_ignored_voxels_count_on_neither_side():
    pred, label = label_map(), label_map()
    label[:, :, 3:] = 9  # the tail and what lies around it
    pred[7, 7, 6] = 1
    head, tail = score_case("a", pred, label, SPACING, LABELS, Scored(ignore=(9,)))
    assert head["dice"] == 1.0
    assert np.isnan(tail["dice"])


def test_a_bundle_states_them_in_its_train_config(bundle, folders):
    state(bundle, "regions: {all: [head, 2], end: [tail]}\nignore: [3]\n")
    assert Bundle(bundle).scored == Scored({"all": (1, 2), "end": (2,)}, (3,))
    label = label_map()
    label[8] = 3
    save(folders[1] / "case_a.nii.gz", label)
    summary = evaluate(bundle, *folders)
    assert {row["class"] for row in summary.rows} == {"all", "end"}
    assert not summary.failed


def test_without_them_nothing_changes(bundle):
    assert Bundle(bundle).scored == Scored()
    state(bundle, "regions: {}\nignore: []\n")
    assert Bundle(bundle).scored == Scored()


@pytest.mark.parametrize(
    ("text", "words"),
    [("regions: {all: [haed]}", "Known: head, tail"), ("ignore: [2]", "must not be a class"), ("ignore: 3", "a list")],
)
def test_what_cannot_be_is_refused(bundle, text, words):
    state(bundle, text)
    with pytest.raises(ConfigError, match=words):
        _ = Bundle(bundle).scored


def test_the_handler_scores_them_too(folders, tmp_path):
    summary = run(folders, tmp_path / "out", regions={"all": ["head", "tail"]}).summary
    assert [row["class"] for row in summary.rows] == ["all", "all"]
