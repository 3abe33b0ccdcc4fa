from __future__ import annotations

import errno
import pickle

import pytest
import torch

from decathlete.bundle import checkpoints
from decathlete.errors import CheckpointError


def tiny(width: int = 3, depth: int = 2) -> torch.nn.Module:
    return torch.nn.Sequential(*[torch.nn.Linear(width, width) for _ in range(depth)])


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}])
def test_weights_come_back_plain_or_under_model(tmp_path, wrap):
    saved, empty = tiny(), tiny()
    checkpoints.save_checkpoint(wrap(saved.state_dict()), tmp_path / "model.pt")
    checkpoints.load_weights(empty, tmp_path / "model.pt")
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), empty.parameters(), strict=True))


def under(*keys):
    def wrap(state):
        for key in keys:
            state = {key: state, "epoch": 3}
        return state

    return wrap


def before(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (before("module."), "the prefix 'module.'"),  # DistributedDataParallel
        (before("_orig_mod."), "the prefix '_orig_mod.'"),  # torch.compile
        (before("module._orig_mod."), "the prefix 'module.' and the prefix '_orig_mod.'"),
        (under("state_dict"), "the key 'state_dict'"),
        (under("model_state_dict"), "the key 'model_state_dict'"),
        (under("network"), "the key 'network'"),
        (under("net", "state_dict"), "the key 'state_dict' and the key 'net'"),
        (lambda s: under("state_dict")(before("net.")(s)), "the key 'state_dict' and the prefix 'net.'"),  # Lightning
    ],
)
def test_what_trainers_put_around_weights_is_taken_off_and_told(tmp_path, caplog, wrap, told):
    saved, empty = tiny(), tiny()
    torch.save(wrap(saved.state_dict()), tmp_path / "model.pt")
    with caplog.at_level("INFO"):
        checkpoints.load_weights(empty, tmp_path / "model.pt")
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), empty.parameters(), strict=True))
    assert [r.getMessage() for r in caplog.records] == [f"{tmp_path / 'model.pt'}: removed {told} around the weights"]


def test_a_prefix_that_not_every_key_has_is_left_and_refused(tmp_path):
    state = tiny().state_dict()
    torch.save({"module.0.weight": state.pop("0.weight"), **state}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"missing 0\.weight; unexpected module\.0\.weight"):
        checkpoints.load_weights(tiny(), tmp_path / "model.pt")


def test_a_prefix_of_the_networks_own_stays(tmp_path):
    saved, empty = (torch.nn.ModuleDict({"model": tiny()}) for _ in range(2))
    torch.save(saved.state_dict(), tmp_path / "model.pt")
    checkpoints.load_weights(empty, tmp_path / "model.pt")
    assert torch.equal(saved["model"][0].weight, empty["model"][0].weight)


def test_two_state_dicts_in_a_file_are_not_chosen_between(tmp_path):
    torch.save({"state_dict": tiny().state_dict(), "net": tiny().state_dict()}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"one under each of state_dict, net"):
        checkpoints.load_weights(tiny(), tmp_path / "model.pt")


def test_weights_of_another_width_are_refused_behind_a_prefix_too(tmp_path):
    torch.save(before("module.")(tiny(width=4).state_dict()), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"0\.weight is 4x4 in the file and 3x3 in the network"):
        checkpoints.load_weights(tiny(width=3), tmp_path / "model.pt")


def test_weights_of_a_deeper_network_name_the_unexpected_keys(tmp_path):
    checkpoints.save_checkpoint(tiny(depth=3).state_dict(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt \(hippocampus\).*unexpected 2\.weight, 2\.bias"):
        checkpoints.load_weights(tiny(depth=2), tmp_path / "model.pt", "hippocampus")


def test_weights_of_a_shallower_network_name_the_missing_keys(tmp_path):
    checkpoints.save_checkpoint(tiny(depth=1).state_dict(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"missing 1\.weight, 1\.bias"):
        checkpoints.load_weights(tiny(depth=2), tmp_path / "model.pt")


def test_weights_of_another_width_name_both_shapes_and_change_nothing(tmp_path):
    network = tiny(width=3)
    before = network[0].weight.clone()
    checkpoints.save_checkpoint(tiny(width=4).state_dict(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"0\.weight is 4x4 in the file and 3x3 in the network"):
        checkpoints.load_weights(network, tmp_path / "model.pt")
    assert torch.equal(network[0].weight, before)


class Bomb:
    def __reduce__(self):
        return open, ("exploded", "w")


@pytest.mark.parametrize("save", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_a_pickle_that_would_run_code_is_refused_unrun(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    save({"model": Bomb()}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="nothing that runs code"):
        checkpoints.load_weights(tiny(), tmp_path / "model.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04cut short"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        checkpoints.load_weights(tiny(), tmp_path / "model.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.pt.*no such file"):
        checkpoints.load_weights(tiny(), tmp_path / "nothing.pt")


@pytest.mark.parametrize("content", [{"epoch": 3}, {"model": 7}, {}])
def test_a_file_without_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="no state dict"):
        checkpoints.load_weights(tiny(), tmp_path / "model.pt")


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = checkpoints.save_checkpoint({"epoch": 1}, tmp_path / "last.pt")

    def full(content, part):
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        checkpoints.save_checkpoint({"epoch": 2}, path)
    assert checkpoints.read_checkpoint(path) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
