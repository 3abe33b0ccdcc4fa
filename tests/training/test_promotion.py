from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from decathlete.errors import CheckpointError
from decathlete.training import promote

INFERENCE = """
bundle_root: x
device: cpu
network_def: {_target_: torch.nn.Linear, in_features: 2, out_features: 2}
"""
CARD = "# Card\n<!-- figures: written by `decathlete promote` -->\nnone\n<!-- end of figures -->\nrest\n"


@pytest.fixture
def bundle(tmp_path) -> Path:
    folder = tmp_path / "toy"
    for name, text in {"configs/inference.yaml": INFERENCE, "docs/README.md": CARD}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "runs" / "toy" / "fold_0"
    folder.mkdir(parents=True)
    torch.save({"weight": torch.eye(2), "bias": torch.zeros(2)}, folder / "model_final.pt")
    return folder


def test_weights_and_origin_reach_the_bundle(bundle, run):
    path = promote(run, bundle)
    assert path == bundle / "models" / "model.pt"
    assert torch.equal(torch.load(path, weights_only=True)["weight"], torch.eye(2))
    card = (bundle / "docs" / "README.md").read_text()
    assert "`model_final.pt` of `fold_0`" in card
    assert card.startswith("# Card\n")
    assert card.endswith("\nrest\n")


def test_each_promotion_keeps_what_was_there(bundle, run):
    for factor in (1.0, 2.0, 3.0):
        torch.save({"weight": factor * torch.eye(2), "bias": torch.zeros(2)}, run / "model_final.pt")
        promote(run, bundle)
    kept = [torch.load(bundle / "models" / f"model.pt.bak-{n}", weights_only=True)["weight"][0, 0] for n in (1, 2)]
    assert kept == [1.0, 2.0]


def test_weights_of_another_network_change_nothing(bundle, run):
    promote(run, bundle)
    torch.save({"weight": torch.ones(2, 2), "offset": torch.zeros(2)}, run / "model_final.pt")
    with pytest.raises(CheckpointError, match=r"missing bias; unexpected offset"):
        promote(run, bundle)
    assert torch.equal(torch.load(bundle / "models" / "model.pt", weights_only=True)["weight"], torch.eye(2))
    assert len(list((bundle / "models").iterdir())) == 1


def test_weights_above_20_mb_are_refused(bundle, run):
    config = bundle / "configs" / "inference.yaml"
    config.write_text(
        config.read_text().replace("in_features: 2, out_features: 2", "in_features: 3000, out_features: 2000")
    )
    torch.save({"weight": torch.zeros(2000, 3000), "bias": torch.zeros(2000)}, run / "model_final.pt")
    with pytest.raises(CheckpointError, match=r"at most 20 MB.*24\.0 MB"):
        promote(run, bundle)


def test_the_card_quotes_the_runs_scores_or_the_cross_validations(bundle, run, tmp_path):
    from decathlete.evaluation.report import score_case, write_report

    cube = torch.zeros(6, 6, 6, dtype=torch.uint8).numpy()
    cube[2:4, 2:4, 2:4] = 1
    write_report(score_case("case_1", cube, cube, (1.0, 1.0, 1.0), {1: "blob"}), run)
    promote(run, bundle)
    assert "Scores of this run's validation cases (1 cases)" in (bundle / "docs" / "README.md").read_text()
    shutil.move(run / "summary.json", run.parent / "summary.json")
    promote(run, bundle)
    text = (bundle / "docs" / "README.md").read_text()
    assert "Scores of the cross-validation" in text
    assert json.loads((run.parent / "summary.json").read_text())["cases"] == 1
    assert "blob" in text
