"""What every bundle keeps to: MONAI's specification, MONAI Label's needs, and this project's own rules."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
from numbers import Real
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Events
from monai.bundle import ConfigWorkflow, verify_net_in_out
from monai.transforms import Compose

from decathlete.bundle import Bundle, dicom_modality, packaged_root
from decathlete.cli import parse
from decathlete.inference.likeness import TrainingScans

from .small import SLICES, patch_of, read, slim

# a folder of other bundles is held to the same: tests/planning checks what `decathlete new` writes
ROOT = Path(os.environ.get("DECATHLETE_TEST_BUNDLES") or packaged_root())
BUNDLES = sorted(p.parent.parent for p in ROOT.glob("*/configs/train.yaml"))
FIRST = ["imports", "bundle_root", "dataset_dir", "output_dir", "fold", "seed", "max_epochs", "minutes", "resume"]
TRAIN_IDS = [
    "bundle_root", "device", "dataset_dir", "network_def", "network", "val_interval", "run", "initialize", "training",
    "train::dataset", "train::dataset::data", "train::preprocessing", "train::inferer", "train::handlers",
    "train::trainer", "train::trainer::max_epochs", "train::trainer::train_handlers",
    "validate::dataset", "validate::dataset::data", "validate::preprocessing", "validate::inferer",
    "validate::postprocessing", "validate::key_metric", "validate::handlers", "validate::evaluator",
]  # fmt: skip
INFERENCE_IDS = [
    "bundle_root", "device", "dataset_dir", "network_def", "network", "checkpoint", "labels", "dataset",
    "dataset::data", "preprocessing", "inferer", "postprocessing", "handlers", "evaluator", "run", "initialize",
    "inferring",
]  # fmt: skip

pytestmark = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda b: b.name)


def texts(config: Any) -> list[str]:
    """All strings of a config."""
    if isinstance(config, dict):
        return [t for k, v in config.items() for t in [*texts(k), *texts(v)]]
    if isinstance(config, list):
        return [t for v in config for t in texts(v)]
    return [config] if isinstance(config, str) else []


def block(file: Path, name: str) -> str:
    """Text of a block, from its key to the next line that is indented as little or less; comments left out."""
    lines = file.read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.split("#")[0].strip() == f"{name}:")
    depth = len(lines[start]) - len(lines[start].lstrip())
    inside = []
    for line in lines[start + 1 :]:
        if len(line) - len(line.lstrip()) <= depth and not line.strip().startswith("-"):
            break
        inside.append(line[depth:])
    return "\n".join(inside)


@pytest.fixture
def cases(bundle: Path, tmp_path: Path) -> list[dict[str, str]]:
    """Three made-up cases of the bundle's channels and labels, a little larger than the patch."""
    config = read(bundle, "train")
    shape = [int(1.2 * n) for n in patch_of(bundle)]
    shape += [6] * (3 - len(shape))
    spacing = [*config.get("spacing", [1.0, 1.0, 10.0])]  # slices so thick that some are left of lung's lowest
    channels, labels = config["channels"], sorted(config["labels"].values())
    draw = np.random.default_rng(0)
    found = []
    for n in range(3):
        label = np.zeros(shape, np.uint8)
        for value in labels[1:]:
            at = shape[0] * value // (len(labels) + 1)
            label[at : at + 4, shape[1] // 3 : -(shape[1] // 3), shape[2] // 3 :] = value
        image = draw.normal(100, 20, [*shape, channels]).astype(np.float32) + 50 * label[..., None]
        case = {key: str(tmp_path / "data" / f"{key}_{n}.nii.gz") for key in ("image", "label")}
        (tmp_path / "data").mkdir(exist_ok=True)
        affine = np.diag([-spacing[0], *spacing[1:], 1.0])  # a flipped axis, so that orientation matters
        nib.save(nib.Nifti1Image(image[..., 0] if channels == 1 else image, affine), case["image"])
        nib.save(nib.Nifti1Image(label, affine), case["label"])
        found.append({**case, "case_id": f"case_{n}"})
    return found


def overrides(bundle: Path, cases: list[dict], tmp_path: Path) -> dict[str, Any]:
    """A training of one iteration; data are handed over as MONAI Label does, and its device is a string."""
    return {
        "bundle_root": str(bundle), "dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "run"), "device": "cpu",
        "patch_size": patch_of(bundle), "batch_size": 2, "train#trainer#max_epochs": 1,
        "train#dataset#data": cases[:2], "validate#dataset#data": cases[2:],
        **slim(bundle), **SLICES.get(bundle.name, {}),
    }  # fmt: skip


def workflow(bundle: Path, names: list[str], run_id: str, kind: str, values: dict[str, Any]) -> ConfigWorkflow:
    return ConfigWorkflow(
        [str(bundle / "configs" / f"{name}.yaml") for name in names], workflow_type=kind, run_id=run_id,
        meta_file=str(bundle / "configs" / "metadata.json"), logging_file=False, **values,
    )  # fmt: skip


# --- what stands in the files


def test_the_layout_is_the_model_zoos(bundle):
    wanted = ["configs/train.yaml", "configs/inference.yaml", "configs/evaluate.yaml", "configs/multi_gpu_train.yaml",
              "configs/metadata.json", "configs/logging.conf", "docs/README.md", "docs/data_license.txt",
              "LICENSE"]  # fmt: skip
    assert [name for name in wanted if not (bundle / name).is_file()] == []


def test_standard_ids_stand_where_monai_and_monai_label_look(bundle):
    train, inference = read(bundle, "train"), read(bundle, "inference")
    assert [i for i in TRAIN_IDS if i not in train] == []
    assert [i for i in INFERENCE_IDS if i not in inference] == []
    assert all("_target_" in handler for handler in train["train::handlers"])


def test_the_first_block_is_the_same_in_all_bundles(bundle):
    assert list(yaml.safe_load((bundle / "configs" / "train.yaml").read_text()))[: len(FIRST)] == FIRST


def test_the_sections_and_how_a_run_starts_are_written_alike_in_all_bundles(bundle):
    ours, theirs = ((folder / "configs" / "train.yaml").read_text() for folder in (bundle, packaged_root() / "spleen"))
    assert [line for line in ours.splitlines() if line.startswith("# ---")] == [
        line for line in theirs.splitlines() if line.startswith("# ---")
    ]
    assert '\ninitialize:\n- "$monai.utils.set_determinism(seed=@seed)"\n' in ours
    assert ours[ours.index("\ntraining:") :] == theirs[theirs.index("\ntraining:") :]


def test_configs_name_no_machine_and_hide_no_program(bundle):
    for file in (bundle / "configs").glob("*.yaml"):
        config = yaml.safe_load(file.read_text())
        for text in texts(config):
            assert not Path(text).is_absolute(), f"{file.name}: {text}"
            assert not re.search(r"/(home|root|Users|tmp|mnt|work|workspace)/|[A-Z]:\\", text), f"{file.name}: {text}"
            assert "lambda" not in text, f"{file.name}: {text}"
            assert not text.startswith("$") or len(text) <= 120, f"{file.name}: {text}"
            assert ".type" not in text or "@device" not in text, f"{file.name}: {text}"


def test_training_and_inference_have_the_same_network_letter_for_letter(bundle):
    assert block(bundle / "configs" / "train.yaml", "network_def") == block(
        bundle / "configs" / "inference.yaml", "network_def"
    )


def test_inference_has_the_deterministic_chain_with_label_left_out(bundle):
    def without_label(transform: dict) -> dict | None:
        keys = transform["keys"] if isinstance(transform["keys"], list) else [transform["keys"]]
        kept = [n for n, key in enumerate(keys) if key not in ("label", "tissues")]  # which training alone reads
        if not kept or transform["_target_"].endswith("CheckPaird"):  # which compares a label with its image
            return None
        left = {}
        for name, value in transform.items():
            if name == "allow_missing_keys":
                continue
            per_key = isinstance(transform["keys"], list) and isinstance(value, list) and name in ("keys", "mode")
            left[name] = value if not per_key else [value[n] for n in kept] if len(kept) > 1 else value[kept[0]]
        return left

    chain = [without_label(t) for t in read(bundle, "train")["train::deterministic_transforms"]]
    assert [t for t in chain if t] == read(bundle, "inference")["deterministic_transforms"]


def test_training_and_inference_agree_on_what_both_name(bundle):
    train, inference = read(bundle, "train").get(), read(bundle, "inference").get()
    for name in (
        "bundle_root",
        "dataset_dir",
        "roi_size",
        "spacing",
        "channels",
        "labels",
        "device",
        "amp",
        "network",
    ):
        assert train.get(name) == inference.get(name), name


def test_postprocessing_returns_to_the_scans_grid(bundle):
    for config, name in ((read(bundle, "inference"), "postprocessing"),
                         (read(bundle, "train", "evaluate"), "validate::postprocessing")):  # fmt: skip
        first = config[name]["transforms"][0]
        assert first["_target_"] == "decathlete.transforms.RestoreGridd"
        assert first["argmax"] is True  # of logits on the scan's grid, which are never there as a whole


def test_metadata_keeps_the_rules_of_the_schema(bundle):
    meta = json.loads((bundle / "configs" / "metadata.json").read_text())
    for name in ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "name", "task",
                 "description", "authors", "copyright"):  # fmt: skip
        assert isinstance(meta[name], str), name
        assert meta[name], name
    assert re.fullmatch(r"\d+\.\d+\.\d+", meta["version"])
    assert meta["version"] in meta["changelog"]
    assert all(isinstance(v, str) for v in meta["required_packages_version"].values())
    for name in ("data_source", "data_type", "image_classes", "label_classes", "pred_classes", "intended_use"):
        assert isinstance(meta.get(name, ""), str), name
    for name in ("eval_metrics", "supported_apps"):
        assert isinstance(meta.get(name, {}), dict), name
    assert all(isinstance(r, str) for r in meta.get("references", []))
    formats = meta["network_data_format"]
    for tensor in [*formats["inputs"].values(), *formats["outputs"].values()]:
        assert all(isinstance(tensor[k], str) for k in ("type", "format", "dtype"))
        assert isinstance(tensor["num_channels"], int)
        assert all(isinstance(n, int) or re.fullmatch(r"[\dpn*+ ]+", n) for n in tensor["spatial_shape"])
        assert all(isinstance(v, Real) for v in tensor["value_range"])
        assert isinstance(tensor.get("is_patch_data", False), bool)
        assert isinstance(tensor.get("channel_def", {}), dict)


def test_metadata_names_what_monai_label_reads(bundle):
    formats = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]
    config = read(bundle, "train")
    assert next(iter(formats["inputs"])) == "image"
    assert next(iter(formats["outputs"])) == "pred"
    # neighbouring slices are channels too
    seen = config["channels"] * (2 * config.get("neighbours", 0) + 1)
    assert formats["inputs"]["image"]["num_channels"] == len(formats["inputs"]["image"]["channel_def"]) == seen
    named = {name: int(value) for value, name in formats["outputs"]["pred"]["channel_def"].items()}
    assert named == config["labels"]
    modality = formats["inputs"]["image"]["modality"]  # by which series of an archive are found
    assert modality == dicom_modality(modality)
    assert modality != "MRI"


def test_the_card_says_what_it_is_not_for(bundle):
    card = (bundle / "docs" / "README.md").read_text()
    assert "Not for clinical use" in card
    assert "<!-- figures: written by `decathlete promote` -->" in card
    assert "<!-- end of figures -->" in card


def test_the_card_answers_the_same_questions_in_the_same_order(bundle):
    card = (bundle / "docs" / "README.md").read_text()
    sections = ["Model overview", "Performance", "Input and output", "Usage", "Training", "Limitations", "Licences",
                "References"]  # fmt: skip
    assert [s for s in re.findall(r"(?m)^## (.*)$", card) if s in sections] == sections
    overview = card.index("## Model overview")
    assert card[:overview].count("\n") < 6  # what it segments, on the first screen
    assert "<!-- figures:" in card[card.index("## Performance") : card.index("## Input and output")]


def test_the_command_line_knows_the_commands_of_the_card(bundle):
    blocks = re.findall(r"```\n(.*?)```", (bundle / "docs" / "README.md").read_text(), re.DOTALL)
    commands = [line for b in blocks for line in b.splitlines() if line.startswith("decathlete ")]
    assert len(commands) >= 2
    for command in commands:
        assert parse(shlex.split(command, comments=True)[1:]).function, command


# --- what runs


@pytest.mark.parametrize("value", [0, -1000])
def test_a_border_of_one_value_does_not_change_what_the_network_sees(bundle, cases, tmp_path, value):
    if bundle.name == "nfbs":
        pytest.skip("its window is laid on the head, wherever that is")
    chain = Compose(read(bundle, "inference").get_parsed_content("deterministic_transforms"))
    scan = nib.load(cases[0]["image"])
    width = ((8, 0), (2, 9), (2, 6))
    affine = scan.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ [before for before, _ in width]
    padded = np.pad(scan.get_fdata(), [*width, *[(0, 0)] * (scan.ndim - 3)], constant_values=value)
    nib.save(nib.Nifti1Image(padded.astype(np.float32), affine), tmp_path / "padded.nii.gz")
    plain, bordered = (chain({"image": path})["image"] for path in (cases[0]["image"], str(tmp_path / "padded.nii.gz")))
    np.testing.assert_allclose(bordered.as_tensor(), plain.as_tensor(), atol=1e-4)
    np.testing.assert_allclose(bordered.affine, plain.affine, atol=1e-4)


def test_the_network_takes_and_gives_what_the_metadata_says(bundle):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.yaml"),
        device="cpu",
    )


def test_the_network_goes_through_torchscript_and_back(bundle, tmp_path):
    config = read(bundle, "inference")
    config.update(slim(bundle, network_alone=True))
    network = config.get_parsed_content("network_def").eval()
    torch.jit.save(torch.jit.script(network), tmp_path / "model.ts")
    image = torch.randn(1, network.in_channels, *patch_of(bundle))
    with torch.no_grad():
        assert torch.equal(torch.jit.load(tmp_path / "model.ts")(image), network(image))


def test_the_network_takes_dropout(bundle):  # MONAI Label's epistemic scoring sets it
    network = read(bundle, "inference")
    network["network_def::dropout"] = 0.2
    assert network.get_parsed_content("network_def") is not None


def test_monais_properties_are_all_there(bundle, cases, tmp_path):
    train = overrides(bundle, cases, tmp_path)
    inference = {"bundle_root": str(bundle), "device": "cpu", "dataset#data": [{"image": c["image"]} for c in cases]}
    for name, run_id, kind, values in (("train", "training", "train", train),
                                       ("inference", "inferring", "infer", inference)):  # fmt: skip
        flow = workflow(bundle, [name], run_id, kind, values)
        flow.initialize()
        assert flow.check_properties() == []


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_broken_off_and_resumed_or_not(bundle, cases, tmp_path):
    class BrokenOffError(Exception):
        pass

    def break_off(engine):
        raise BrokenOffError

    def training(name: str, **more: Any) -> ConfigWorkflow:
        values = {**overrides(bundle, cases, tmp_path), **more}
        flow = workflow(bundle, ["train"], "training", "train", {**values, "output_dir": str(tmp_path / name)})
        flow.initialize()
        flow.trainer.state.max_epochs = -(
            -20 // flow.trainer.state.epoch_length
        )  # of slices there are more in an epoch
        return flow

    training("whole").trainer.run()
    broken = training("broken").trainer
    broken.add_event_handler(Events.ITERATION_COMPLETED(once=13), break_off)
    with pytest.raises(BrokenOffError):
        broken.run()
    assert not (tmp_path / "broken" / "model_final.pt").exists()
    resumed = training("broken", resume=True).trainer
    resumed.run()
    assert resumed.state.iteration == resumed.state.max_epochs * resumed.state.epoch_length >= 20
    whole, joined = (torch.load(tmp_path / n / "model_final.pt", weights_only=True) for n in ("whole", "broken"))
    assert [name for name in whole if not torch.equal(whole[name], joined[name])] == []


def test_one_iteration_then_scores_and_label_maps_on_the_scans_grid(bundle, cases, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in bundle.rglob("*") if p.is_file()}
    values = overrides(bundle, cases, tmp_path)
    train = workflow(bundle, ["train"], "run", "train", values)
    train.initialize()
    train.run()
    assert train.parser.get_parsed_content("max_epochs") > train.trainer.state.epoch == 1  # the trainer's own was set
    assert train.parser.get_parsed_content("schedule").total == train.trainer.state.epoch_length
    run = tmp_path / "run"
    assert {"last.pt", "model.pt", "model_final.pt"} <= {p.name for p in run.iterdir()}

    score = workflow(bundle, ["train", "evaluate"], "evaluating", "train", values)
    score.initialize()
    score.run()
    with (run / "metrics.csv").open() as file:
        assert {row["case"] for row in csv.DictReader(file)} == {"case_2"}

    values = {
        "bundle_root": str(bundle), "device": "cpu", "roi_size": patch_of(bundle),
        "output_dir": str(tmp_path / "pred"), "checkpoint": str(run / "model.pt"),
        "dataset#data": [{"image": cases[0]["image"]}], **slim(bundle, network_alone=True),
    }  # fmt: skip
    infer = workflow(bundle, ["inference"], "run", "infer", values)
    infer.initialize()
    infer.run()
    pred, scan = nib.load(Bundle(bundle).outputs.label_file(tmp_path / "pred", "image_0")), nib.load(cases[0]["image"])
    assert pred.shape == scan.shape[:3]
    assert np.allclose(pred.affine, scan.affine, atol=1e-6)
    assert pred.get_data_dtype() == np.uint8
    after = {p: p.stat().st_mtime_ns for p in bundle.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert after == {p: t for p, t in before.items() if "__pycache__" not in p.parts}


def test_the_overlay_for_several_processes_changes_ids_that_exist(bundle):
    added = {"train::sampler", "validate::sampler", "train::dataloader::sampler", "train::dataloader::shuffle",
             "validate::dataloader::sampler"}  # fmt: skip
    train = read(bundle, "train")
    overlay = yaml.safe_load((bundle / "configs" / "multi_gpu_train.yaml").read_text())
    assert [i for i in overlay if i not in train and i not in added] == []


def test_the_networks_weights_fit_into_a_bundle(bundle):
    network = read(bundle, "inference").get_parsed_content("network_def")
    assert sum(t.numel() * t.element_size() for t in network.state_dict().values()) < 19.9 * 10**6


def test_shipped_weights_are_plain_small_the_networks_own_and_know_their_training_scans(bundle):
    weights = bundle / "models" / "model.pt"
    if not weights.is_file():
        pytest.skip("no weights yet")
    assert weights.stat().st_size <= 20 * 10**6
    network = read(bundle, "inference").get_parsed_content("network_def")
    network.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    assert TrainingScans.beside(weights) is not None
