"""Names of other packages that are not public: where they may stand, and that they still do what we take them for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.transforms import LoadImaged

from decathlete.compat import COMPILED, compiled, drop_iterator, puts_channels_first

ROOT = Path(__file__).resolve().parent.parent
OTHERS = ("torch", "ignite", "monai")
ATTRIBUTES = {"_cdata", "_dataloader_iter", "_orig_mod"}  # of objects of theirs


def private_names(file: Path) -> list[str]:
    """Private names of torch, ignite and MONAI in a file; methods that a subclass of theirs overrides are none."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [f"torch.{node.attr}" if node.attr in ATTRIBUTES else ast.unparse(node)]
        elif isinstance(node, ast.Constant):
            names = [f"torch.{node.value}"] if str(node.value).rstrip(".") in ATTRIBUTES else []
        else:
            continue
        found += [n for n in names if n.split(".")[0] in OTHERS and any(p[:1] == "_" != p[1:2] for p in n.split("."))]
    return found


@pytest.mark.parametrize("folder", ["apps", "transforms", "networks"])
def test_private_names_of_other_packages_stand_in_one_module(folder):
    found = {str(f.relative_to(ROOT)): private_names(f) for f in sorted((ROOT / folder).rglob("*.py"))}
    found.pop("apps/compat.py", None)
    assert {file: names for file, names in found.items() if names} == {}


def test_compiled_network_gives_the_network_inside():
    network = torch.nn.Linear(2, 1)
    wrapped = torch.compile(network)
    assert compiled(wrapped) is network
    assert all(name.startswith(f"{COMPILED}.") for name in wrapped.state_dict())
    assert compiled(network) is None


def test_dropped_iterator_is_made_anew_in_the_same_run():
    starts = []

    class Data(list):
        def __iter__(self):
            starts.append(engine.state.epoch)
            return super().__iter__()

    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.EPOCH_STARTED, drop_iterator)
    engine.run(Data([1, 2]), max_epochs=3)
    assert starts[-3:] == [1, 2, 3]


@pytest.mark.parametrize("first", [True, False])
def test_loader_tells_whether_it_moves_channels(first):
    assert puts_channels_first(LoadImaged("image", ensure_channel_first=first)) is first
