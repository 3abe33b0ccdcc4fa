"""The sheet of a training batch: what the training would see, in 3D and 2D, without a trace beside the sheet."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from decathlete.bundle.trust import trust
from decathlete.colours import COLOURS
from decathlete.data import make_phantoms
from decathlete.drawing.canvas import sheet
from decathlete.errors import ConfigError, DataError, UsageError
from decathlete.view import batch_montage
from decathlete.view.montage_maker import _first_batch

# 12 slices whose voxels tell their number, in two channels; the label covers the number of columns that it is
SLICES = (
    "$[{'image': torch.full((2, 16, 24), float(n)), 'label': (torch.arange(24) < n).long().repeat(1, 16, 1), "
    "'case_id': f'case_{n}', 'slice': n} for n in range(12)]"
)
FLAT = {
    "imports": ["$import torch"],
    "fold": 0,
    "seed": 3,
    "labels": {"background": 0, "organ": 1},
    "train": {
        "dataset": {"_target_": "monai.data.Dataset", "data": SLICES},
        "dataloader": {"_target_": "DataLoader", "dataset": "@train::dataset", "batch_size": 6, "shuffle": True},
    },
}
AUGMENTATION = {"_target_": "decathlete.transforms.BatchAugment", "patch_size": [12, 20], "num_classes": 2}


@pytest.fixture
def bundle(tmp_path):
    """Writes a bundle with a training config."""

    def write(config):
        (tmp_path / "flat" / "configs").mkdir(parents=True, exist_ok=True)
        (tmp_path / "flat" / "configs" / "train.yaml").write_text(yaml.safe_dump(config))
        trust(tmp_path / "flat")
        return tmp_path / "flat"

    return write


@pytest.fixture
def tiles(monkeypatch):
    """The tiles that go onto the sheet, which is still drawn."""
    seen = []

    def spy(given, *rest):
        seen.extend(given)
        return sheet(given, *rest)

    monkeypatch.setattr("decathlete.view.montage_maker.sheet", spy)
    return seen


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return make_phantoms("hippocampus", 5, tmp_path_factory.mktemp("data"))


def test_batch_of_volumes_is_drawn_and_nothing_else_is_made(tmp_path, phantoms, tiles, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = batch_montage("hippocampus", "out/batch.png", {"dataset_dir": str(phantoms), "batch_size": 3})
    with Image.open(made) as opened:
        picture = np.asarray(opened.convert("RGB"))
    assert [(picture == colour).all(-1).sum() > 3 * 20 for colour in COLOURS[:2]] == [True, True]
    assert sorted(str(p) for p in tmp_path.rglob("*")) == [str(tmp_path / "out"), str(tmp_path / made)]
    assert len({t.caption for t in tiles}) == 3
    assert all(t.caption.startswith("hippocampus_") and "of 40" in t.second for t in tiles)


def test_slices_are_drawn_with_case_and_number(tmp_path, bundle, tiles):
    batch_montage(bundle(FLAT), tmp_path / "a.png", size=48)
    assert len(tiles) == 6
    for tile in tiles:
        number = int(tile.caption.removeprefix("case_"))
        share = f"{100 * number / 24:.2g}% labelled" if number else "no label"
        assert tile.second == f"slice {number + 1}   {share}"
        assert tile.pixels.shape == (48, 2 * 32 + 2)  # two channels side by side, two pixels between


def test_class_probabilities_after_augmentation_are_outlined(tmp_path, bundle, tiles):
    config = {**FLAT, "train": {**FLAT["train"], "augmentation": AUGMENTATION}}
    made = batch_montage(bundle(config), tmp_path / "a.png", {"train::dataloader::batch_size": 12}, size=40)
    assert len(tiles) == 12
    assert {tile.pixels.shape for tile in tiles} == {(40, 2 * 24 + 2)}  # of the patch, not the slice
    with Image.open(made) as opened:
        assert (np.asarray(opened.convert("RGB")) == COLOURS[0]).all(-1).sum() > 500


def test_batch_is_the_first_of_a_training(bundle):
    from decathlete.bundle.configs import load
    from decathlete.training import Trainer

    config = {**FLAT, "train": {**FLAT["train"], "augmentation": AUGMENTATION}}
    folder = bundle(config)
    seen = []
    parser = load(folder, "train")
    augmentation = parser.get_parsed_content("train::augmentation")
    network = torch.nn.Conv2d(2, 2, 1)
    trainer = Trainer(
        "cpu",
        1,
        parser.get_parsed_content("train::dataloader"),
        network,
        torch.optim.SGD(network.parameters(), lr=1e-3),
        torch.nn.CrossEntropyLoss(),
        seed=3,
        batch_transform=lambda batch: seen.append(augmentation(batch)) or seen[-1],
    )
    trainer.run()
    batch = _first_batch(load(folder, "train"), folder)
    assert torch.equal(batch["image"], seen[0]["image"])
    assert torch.equal(batch["label"], seen[0]["label"])


def test_cases_are_not_prepared_all_at_once(tmp_path, bundle, tiles):
    loaded = "$[{'image': torch.full((1, 16, 24), float(n)), 'label': torch.ones(1, 16, 24)} for n in range(12)]"
    count = {"_target_": "Lambda", "func": f"$lambda item: (open('{tmp_path}/log', 'a').write('x'), item)[1]"}
    dataset = {"_target_": "decathlete.data.CachedDataset", "data": loaded, "transform": [count]}
    config = {**FLAT, "train": {**FLAT["train"], "dataset": dataset}}
    batch_montage(bundle(config), tmp_path / "a.png")
    assert len((tmp_path / "log").read_text()) == 6


def test_bundle_is_left_as_it_was(tmp_path, bundle):
    folder = bundle(FLAT)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    batch_montage(folder, tmp_path / "a.png")
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_what_cannot_be_is_refused(tmp_path, bundle):
    folder = bundle(FLAT)
    with pytest.raises(UsageError, match=r"a\.gif: expected a name that ends in \.png \('\.gif'\)\."):
        batch_montage(folder, tmp_path / "a.gif")
    with pytest.raises(ConfigError, match="'batchsize'"):
        batch_montage(folder, tmp_path / "a.png", {"batchsize": 3})
    with pytest.raises(DataError, match=r"expected batches with image and label \(.*image"):
        batch_montage(folder, tmp_path / "a.png", {"train::dataset::data": "$[{'image': torch.ones(1, 4, 4)}]"})
    with pytest.raises(ConfigError, match="train::dataloader"):
        batch_montage(bundle({**FLAT, "train": {"dataset": FLAT["train"]["dataset"]}}), tmp_path / "a.png")
    shutil.rmtree(folder)
    with pytest.raises(UsageError, match="no such folder"):
        batch_montage(folder, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_missing_data_are_reported_as_by_a_training(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        batch_montage("hippocampus", tmp_path / "a.png", {"dataset_dir": str(tmp_path / "nowhere")})
