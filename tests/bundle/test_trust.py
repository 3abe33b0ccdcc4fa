"""What a foreign bundle's configs may do without being asked about, and that nothing of them is run to find out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from decathlete.bundle.configs import load
from decathlete.bundle.trust import findings, trust
from decathlete.cli import main
from decathlete.errors import TrustError

ROOT = Path(__file__).resolve().parents[2]
CHAIN = [{"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
         {"_target_": "EnsureChannelFirstd", "keys": "image"},
         {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}]  # fmt: skip
# What the model zoo's bundles do, one of each kind.
ZOO = {
    "spleen CT": {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "output_dtype": "$numpy.float32",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": CHAIN},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]"},
        "checkpointloader": {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'"},
        "initialize": ["$monai.utils.set_determinism(seed=123)", "$@checkpointloader(@evaluator)"],
        "run": ["$@evaluator.run()"],
    },
    "whole body CT": {
        "displayable_configs": {"highres": True, "sw_overlap": 0.25},
        "imports": ["$import numpy", "$from pathlib import Path"],
        "pixdim": "$[1.5, 1.5, 1.5] if @displayable_configs#highres else [3.0, 3.0, 3.0]",
        "modelname": "$'model.pt' if @displayable_configs#highres else 'model_lowres.pt'",
        "name": "$str(Path(@bundle_root) / 'eval').replace('//', '/')",
        "inferer": {"_target_": "SlidingWindowInferer", "overlap": "@displayable_configs#sw_overlap"},
        "initialize": ["$setattr(torch.backends.cudnn, 'benchmark', True)"],
    },
    "prostate MRI": {
        "imports": ["$import pandas as pd", "$import os"],
        "datalist": "$[os.path.join(@dataset_dir, name) for name in pd.read_csv(@dataset_dir + 'test.csv')['t2']]",
        "map_location": {"_target_": "torch.device", "device": "cpu"},
    },
    "BraTS": {
        "test_datalist": "$monai.data.load_decathlon_datalist(@list, data_list_key='testing', base_dir=@dataset_dir)",
        "postprocessing": {
            "_target_": "Lambdad",
            "keys": "pred",
            "func": "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))",
        },
        "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
        "preprocessing": "$@train#preprocessing_transforms + @train#random_transforms",
        "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()"},
        "schedule": {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "optimizer": "@optimizer"},
        "iou": "%train#key_metric",
    },
    "pancreas DiNTS": {
        "arch_ckpt": "$torch.load(@arch_ckpt_path, map_location=torch.device('cuda'))",
        "dints_space": {
            "_target_": "monai.networks.nets.TopologyInstance",
            "arch_code": ["$@arch_ckpt['arch_code_a']", "$@arch_ckpt['arch_code_c']"],
        },
        "network_def": {"_target_": "monai.networks.nets.DiNTS", "node_a": "$@arch_ckpt['node_a']"},
    },
}

EXPRESSIONS = [
    "__import__('os').system('touch ran')",
    "(lambda: __import__('os'))().system('touch ran')",
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen'][0]('touch ran')",
    "eval('1')",
    "exec('import os')",
    "compile('1', '', 'eval')",
    "open('ran', 'w')",
    "getattr(torch, 'hub')",
    "globals()['__builtins__']",
    "vars(torch)['hub']",
    "torch.hub.load('a/b', 'c')",
    "torch.ops.load_library('ran.so')",
    "torch.classes.load_library('ran.so')",
    "torch.utils.cpp_extension.load('x', ['x.cpp'])",
    "torch.serialization.os.system('touch ran')",
    "torch.serialization.pickle.loads(b'')",
    "torch.utils.data.dataloader.os.system('touch ran')",
    "torch.load('x.pt', weights_only=False)",
    "torch.load('x.pt', None, @pickle)",
    "torch.load('x.pt', **@options)",
    "torch.load('x.pt', **{'weights_' + 'only': False})",
    "torch.load('x.pt', **{'weights_only': False})",
    "list(map(lambda f: f('x', weights_only=False), [torch.load]))",
    "torch.multiprocessing.spawn(print)",
    "torch.jit.load('x.ts')",
    "torch.package.PackageImporter('x')",
    "torch.sys.modules['os'].system('touch ran')",
    "torch._utils.sys.modules",
    "monai.bundle.run(config_file='x')",
    "monai.bundle.ConfigParser('x')",
    "monai.utils.optional_import('os')[0].system('touch ran')",
    "monai.utils.module.import_module('os')",
    "monai.utils.misc.os.system('touch ran')",
    "monai.utils.run_cmd(['touch', 'ran'])",
    "monai.data.utils.os.system('touch ran')",
    "monai.data.utils.pickle.loads(b'')",
    "monai.apps.utils.download_url('http://x', 'ran')",
    "monai.apps.auto3dseg.AutoRunner()",
    "monai.transforms.io.array.sys.modules['os']",
    "monai.transforms.NumpyReader(allow_pickle=True)",
    "np.load('x.npy', allow_pickle=True)",
    "np.lib.npyio.os.system('touch ran')",
    "np.ctypeslib.load_library('x', '.')",
    "np.save('ran', [1])",
    "np.array([1]).tofile('ran')",
    "(x for x in [1]).gi_frame.f_builtins['eval']('1')",
    "(lambda: 0).__globals__",
    "@network.forward.__globals__['__builtins__']",
    "@network.__class__.__init__.__globals__['os'].system('touch ran')",
    "'{0.__class__}'.format(@network)",
    "f'{().__class__}'",
    "(y := __import__('os'))",
    "[torch for torch in [@os]][0].system('touch ran')",
    "(lambda len: len('touch ran'))(@f)",
    "type('X', (), {})",
    "setattr(torch, 'load', print)",
    "setattr(torch.backends.cudnn, '__class__', print)",
    "delattr(torch, 'load')",
    "breakpoint()",
    "input()",
    "list(map(@path.unlink, [True]))",
    "@path.replace('ran')",
    "@path.write_text('x')",
    "help()",
    "__builtins__",
    "1 if",
    "decathlete.cli.main(['predict'])",
    "monai.transforms.LoadImage('os.system', command='touch ran')",
    "list(map(monai.transforms.LoadImaged, ['image'], ['os.system']))",
    "monai.inferers.PatchInferer(merger_cls='os.system')",
    "monai.data.register_writer('x', 'os.system')",
]  # fmt: skip
IMPORTS = [
    "$import subprocess",
    "$import os; subprocess",
    "$import os, subprocess",
    "$from os import system",
    "$from os import system as len",
    "$import builtins",
    "$import importlib",
    "$import sys",
    "$import scripts",
    "$from scripts.net import Net",
    "$from . import x",
    "$import torch.hub",
    "$from torch import hub",
    "$from torch.serialization import os",
    "$from monai.data.utils import os",
    "$from monai.utils import optional_import",
    "$from monai import bundle",
    "$import pickle",
    "$import shutil",
    "$from pathlib import os",
    "$import ctypes",
    "$from decathlete import cli",
    "$from decathlete.data import make_phantoms",
]
COMPONENTS: list[dict[str, Any]] = [
    {"_target_": "builtins.eval", "source": "1"},
    {"_target_": "eval"},
    {"_target_": "os.system", "command": "touch ran"},
    {"_target_": "subprocess.run", "args": ["touch", "ran"]},
    {"_target_": "posix.system"},
    {"_target_": "monai.data.utils.os.system"},
    {"_target_": "monai.utils.misc.run_cmd"},
    {"_target_": "run_cmd"},
    {"_target_": "antigravity"},
    {"_target_": "torch.hub.load"},
    {"_target_": "torch.load", "f": "x", "weights_only": False},
    {"_target_": "torch.load", "f": "x", "pickle_module": "@m"},
    {"_target_": "torch.load", "f": "x", "weights_only": "@no"},
    {"_target_": "NumpyReader", "allow_pickle": True},
    {"_target_": "$__import__('os').system"},
    {"_target_": "$'os.' + 'system'"},
    {"_target_": "$str('os.system')"},
    {"_target_": "@name"},
    {"_target_": "%name"},
    {"_target_": "$@path.name"},
    {"_target_": ["os.system"]},
    {"_target_": "scripts.net.Net"},
    {"_target_": "UNet", "_mode_": "debug"},
    {"_target_": "UNet", "_mode_": "$'de' + 'bug'"},
    {"_target_": "UNet", "_debug_": True},
    {"_target_": "monai.networks"},
    {"_target_": "functools.partial", "func": "$__import__('os').system"},
    {"_target_": "decathlete.cli.main"},
    {"_target_": "decathlete.data.make_phantoms"},
    {"_target_": "LoadImaged", "keys": "image", "reader": "os.system", "command": "touch ran"},
    {"_target_": "LoadImaged", "keys": "image", "reader": "eval"},
    {"_target_": "LoadImaged", "keys": "image", "reader": ["NibabelReader", "os.system"]},
    {"_target_": "LoadImaged", "keys": "image", "reader": "@name"},
    {"_target_": "LoadImaged", "keys": "image", "reader": "$'os.' + 'system'"},
    {"_target_": "SaveImaged", "keys": "image", "writer": "os.system"},
    {"_target_": "PatchInferer", "merger_cls": "os.system"},
    {"_target_": "decathlete.transforms.SaveMaskedScand", "writer": "os.system"},
    {"other": "%/tmp/other.yaml::x"},
    {"other": "%other.json"},
]


@pytest.mark.parametrize("name", ZOO)
def test_what_the_model_zoo_does_is_harmless(name: str) -> None:
    assert findings(ZOO[name]) == []


def test_our_own_configs_are_harmless() -> None:
    for file in sorted(ROOT.glob("bundles/*/configs/*.yaml")):
        assert findings(yaml.safe_load(file.read_text())) == [], file


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_hostile_expressions_are_found_and_not_run(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"imports": ["$import os", "$import decathlete", "$from pathlib import Path"], "a": {"b": ["$" + text]}}
    (found,) = findings(config)
    assert (found.id, found.text) == ("a::b::0", "$" + text)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", IMPORTS)
def test_hostile_imports_are_found(text: str) -> None:
    assert [f.id for f in findings({"imports": [text], "x": 1})] == ["imports::0"]


@pytest.mark.parametrize("component", COMPONENTS, ids=str)
def test_hostile_components_are_found(component: dict[str, Any]) -> None:
    assert findings({"name": "os.system", "imports": ["$import functools"], "x": component})


@pytest.mark.parametrize(
    "config", [{"_target_": "NoSuchClass"}, {"_target_": "torch.optim.Adamm"}, {"a": "$tourch.ones(1)"}]
)
def test_a_name_that_does_not_exist_is_left_to_other_checks(config: dict[str, Any]) -> None:
    assert findings(config) == []


def test_one_name_cannot_stand_for_two_things() -> None:
    found = findings({"imports": ["$import math as m", "$import os as m"]})
    assert [f.id for f in found] == ["imports::1"]


def test_metadata_is_judged_like_a_config() -> None:
    assert [f.id for f in findings({"_meta_": {"version": "$__import__('os')"}})] == ["_meta_::version"]


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a bundle that came from elsewhere and would write a file as soon as its config is evaluated."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    folder = tmp_path / "foreign"
    shutil.copytree(ROOT / "bundles" / "hippocampus", folder)
    file = folder / "configs" / "inference.yaml"
    file.write_text(file.read_text() + f"\nbad: \"$open('{tmp_path}/ran', 'w')\"\n")
    return folder


def test_a_foreign_bundle_is_refused_before_anything_of_it_runs(foreign: Path) -> None:
    with pytest.raises(TrustError, match=r"bad: \$open\('.*'w'\): open is not on the list\). Read them"):
        load(foreign)
    assert not (foreign.parent / "ran").exists()


def test_trust_lasts_until_a_config_changes(foreign: Path) -> None:
    trust(foreign)
    assert "bad" in load(foreign)
    (foreign / "configs" / "train.yaml").open("a").write("\nother: 1\n")
    with pytest.raises(TrustError):
        load(foreign)


def test_a_harmless_copy_of_a_bundle_needs_no_trust(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "bundles" / "hippocampus", tmp_path / "copy")
    assert load(tmp_path / "copy").get("spacing")


def test_the_command_line_refuses_and_trusts(foreign: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scan = foreign.parent / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), scan)
    words = ["predict", str(foreign), str(scan), "--output", str(foreign.parent / "out")]
    assert main(words) == 2
    assert "not known to be harmless" in capfd.readouterr().err
    main([*words, "--trust"])
    assert "not known to be harmless" not in capfd.readouterr().err


def test_what_metadata_would_run_is_refused_too(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "bundles" / "hippocampus", tmp_path / "copy")
    file = tmp_path / "copy" / "configs" / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": "$open('ran', 'w')"}))
    with pytest.raises(TrustError, match="_meta_::version"):
        load(tmp_path / "copy")
