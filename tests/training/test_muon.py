"""The optimizer: what a step does to a matrix and to all else."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from decathlete.bundle.configs import load
from decathlete.errors import ConfigError
from decathlete.networks import UNet
from decathlete.training import Muon, WeightAverage, muon
from decathlete.training.muon import orthogonalize, orthogonalize_together


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (32, 864)])
def test_orthogonalize_brings_all_singular_values_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.25


def test_many_matrices_together_become_what_each_becomes_by_itself():
    torch.manual_seed(0)
    shapes = [(8, 1, 3, 3, 3), (32, 8, 3, 3, 3), (32, 8, 3, 3, 3), (48, 4, 1, 1, 1), (16, 40), (12, 3, 5, 5)]
    updates = [torch.randn(shape) * 1e-3 for shape in shapes]
    updates[2] = updates[2].contiguous(memory_format=torch.channels_last_3d)
    for update, found in zip(updates, orthogonalize_together(updates), strict=True):
        rows, columns = update.flatten(1).shape
        expected = orthogonalize(update.flatten(1)) * max(1, rows / columns) ** 0.5
        assert torch.allclose(found.flatten(1), expected, atol=1e-4)
        assert found.stride() == update.stride()


@pytest.mark.parametrize("name", ["hippocampus", "heart", "heart_3d", "lung", "lung_3d", "sunnybrook", "nfbs"])
def test_a_step_on_a_card_and_its_average_launch_few_kernels(name, monkeypatch):
    monkeypatch.setattr(muon, "orthogonalize", None)  # the way of the CPU
    network = load(name, "train", {"device": "cpu"}).get_parsed_content("network_def")
    optimizer, average = Muon(network.parameters()), WeightAverage(network)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    optimizer.param_groups[-1]["foreach"] = True  # torch's choice on a card
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    with Launches() as launches:
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12.0, foreach=True)
        optimizer.step()
        average.update(5)
    assert len(launches.names) <= 150


class Launches(TorchDispatchMode):
    """Operators that would start kernels on a card: all but views, and AdamW's step counters, which stay on the CPU."""

    NONE = ("_unsafe_view", "empty", "_local_scalar_dense", "_record_function_enter_new", "_record_function_exit")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func._schema.name.split("::")[1] not in self.NONE:
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_orthogonalize_keeps_zeros():
    assert torch.equal(orthogonalize(torch.zeros(4, 9)), torch.zeros(4, 9))


def test_first_step_moves_a_convolution_by_the_orthogonal_gradient():
    conv = nn.Conv3d(4, 16, 3, bias=False)
    before = conv.weight.detach().clone()
    conv.weight.grad = torch.randn_like(conv.weight)
    Muon(conv.parameters(), matrix_lr=0.1, weight_decay=0.0).step()
    moved = (before - conv.weight).detach().flatten(1)
    assert torch.allclose(moved, 0.1 * orthogonalize(conv.weight.grad.flatten(1)), atol=1e-6)


def test_norms_and_biases_take_the_steps_of_adamw():
    ours, theirs = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6))
    muon = Muon([ours], lr=0.01)
    adamw = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.0)
    torch.manual_seed(0)
    for _ in range(5):
        ours.grad = torch.randn(6)
        theirs.grad = ours.grad.clone()
        muon.step()
        adamw.step()
    assert torch.equal(ours, theirs)


def test_weight_decay_shrinks_matrices_alone():
    conv = nn.Conv2d(8, 8, 1)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.bias.fill_(1.0)
    for parameter in conv.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Muon(conv.parameters(), matrix_lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(conv.weight, torch.full_like(conv.weight, 0.95))
    assert torch.equal(conv.bias, torch.ones(8))


def test_head_of_few_classes_is_no_matrix():
    network = UNet(3, 1, 3, channels=(16, 32), norm="BATCH")
    groups = Muon(network.parameters()).param_groups
    assert all(p.ndim >= 2 and p.shape[0] >= 8 for p in groups[0]["params"])
    assert sum(len(g["params"]) for g in groups) == len(list(network.parameters()))


def test_state_dict_resumes_the_same_steps():
    def steps(count, state=None):
        torch.manual_seed(1)
        conv = nn.Conv2d(3, 8, 3)
        muon = Muon(conv.parameters())
        if state is not None:
            conv.load_state_dict(state["conv"])
            muon.load_state_dict(state["muon"])
        for n in count:
            torch.manual_seed(n)
            for parameter in conv.parameters():
                parameter.grad = torch.randn_like(parameter)
            muon.step()
        return {"conv": conv.state_dict(), "muon": muon.state_dict()}

    unbroken = steps(range(6))["conv"]
    resumed = steps(range(3, 6), steps(range(3)))["conv"]
    assert all(torch.equal(unbroken[k], resumed[k]) for k in unbroken)


def test_checkpoint_of_the_time_before_torchs_adamw_resumes_the_same_steps():
    ours, theirs = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6))
    muon, adamw = Muon([ours], lr=0.01), torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.0)
    grad = torch.linspace(-1, 1, 6)
    theirs.grad = grad.clone()
    adamw.step()
    with torch.no_grad():
        ours.copy_(theirs)
    group = {"params": [0], "lr": 0.01, "weight_decay": 0.0, "orthogonal": False}
    group |= {"momentum": 0.95, "betas": (0.9, 0.999), "eps": 1e-8}
    first = {"step": 1, "mean": 0.1 * grad, "square": 0.001 * grad**2}
    muon.load_state_dict({"state": {0: first}, "param_groups": [group]})
    ours.grad = theirs.grad = 2 * grad
    muon.step()
    adamw.step()
    assert torch.allclose(ours, theirs, atol=1e-7)


@pytest.mark.parametrize("again", [lambda muon: muon, copy.deepcopy, lambda muon: pickle.loads(pickle.dumps(muon))])
def test_rate_that_is_set_later_reaches_matrices_and_biases(again):
    conv = nn.Conv2d(3, 8, 3)
    muon = Muon(conv.parameters(), lr=0.01, matrix_lr=0.01)
    muon.load_state_dict(muon.state_dict())
    muon = again(muon)
    parameters = [p for group in muon.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in parameters]
    for rate, moves in ((0.0, False), (0.01, True)):
        for group in muon.param_groups:
            group["lr"] = rate
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        muon.step()
        assert [not torch.equal(b, p) for b, p in zip(before, parameters, strict=True)] == [moves] * 2


def test_rates_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="above 0"):
        Muon([nn.Parameter(torch.ones(1))], lr=0.0)
    with pytest.raises(ConfigError, match="momentum"):
        Muon([nn.Parameter(torch.ones(1))], momentum=1.0)
