"""UNet and ResUNet: sizes, supervision, export, learning, and what is said when arguments do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from decathlete.errors import ConfigError
from decathlete.networks import ResUNet, UNet

SMALL = {"in_channels": 1, "out_channels": 2, "channels": (4, 6, 8, 8)}
both = pytest.mark.parametrize("cls", [UNet, ResUNet])


@both
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("upsample", ["deconv", "nearest", "linear"])
def test_scores_lie_on_the_grid_of_the_input(cls, dims, upsample):
    net = cls(dims, **SMALL, upsample=upsample)
    assert net.divisor == (8,) * dims
    assert net(torch.rand(2, 1, *(16, 8, 24)[:dims])).shape == (2, 2, *(16, 8, 24)[:dims])


@both
def test_strides_and_kernels_differ_by_level_and_axis(cls):
    net = cls(3, 2, 3, (4, 6, 8), strides=(1, (2, 2, 1), (2, 1, 2)), kernel_sizes=((3, 3, 1), (5, 3, 3), 3))
    assert net.divisor == (4, 2, 2)
    assert net(torch.rand(1, 2, 8, 6, 4)).shape == (1, 3, 8, 6, 4)
    kernels = {tuple(m.kernel_size) for m in net.encoder[0].modules() if isinstance(m, torch.nn.Conv3d)}
    assert kernels - {(1, 1, 1)} == {(3, 3, 1)}


@both
def test_strided_first_level_still_answers_for_each_voxel(cls):
    net = cls(3, **SMALL, strides=((2, 2, 1), 2, 2, 1))
    assert net.divisor == (8, 8, 4)
    assert net.encoder[0](torch.rand(1, 1, 8, 8, 4)).shape[2:] == (4, 4, 4)
    assert net(torch.rand(1, 1, 8, 16, 12)).shape == (1, 2, 8, 16, 12)


@both
@pytest.mark.parametrize(("heads", "sizes"), [(True, [16, 8]), (2, [16, 8, 4]), (1, [16, 8])])
def test_deep_supervision_gives_a_list_in_training_and_a_tensor_in_evaluation(cls, heads, sizes):
    net = cls(3, **SMALL, deep_supervision=heads)
    x = torch.rand(1, 1, 16, 16, 16)
    assert [tuple(y.shape) for y in net(x)] == [(1, 2, n, n, n) for n in sizes]
    assert net.eval()(x).shape == (1, 2, 16, 16, 16)


def test_supervised_weights_load_strictly_and_evaluate_alike_in_either_mode():
    torch.manual_seed(0)
    trained = UNet(2, **SMALL, deep_supervision=True)
    keys = set(trained.train().state_dict())
    assert keys == set(trained.eval().state_dict())
    assert {k for k in keys if k.startswith("heads.")} == {
        f"heads.{i}.conv.{w}" for i in (1, 2) for w in ("weight", "bias")
    }
    again = UNet(2, **SMALL, deep_supervision=True).eval()
    again.load_state_dict(trained.state_dict(), strict=True)
    x = torch.rand(1, 1, 16, 16)
    assert torch.equal(again(x), trained(x))


def test_parameters_of_a_small_network_add_up_by_hand():
    net = UNet(2, 1, 2, (2, 4), convs_per_stage=1, norm="BATCH")
    encoder = (9 * 1 * 2 + 4) + (9 * 2 * 4 + 8)  # 3x3 weights without bias, scale and shift of the norm
    decoder = (4 * 4 * 2 + 2) + (9 * 4 * 2 + 4)  # 2x2 transposed with bias; the skip doubles the 2 features
    head = 2 * 2 + 2
    assert sum(p.numel() for p in net.parameters()) == encoder + decoder + head


@both
@pytest.mark.parametrize("order", ["post", "pre"])
def test_gradient_reaches_every_parameter(cls, order):
    torch.manual_seed(0)
    net = cls(2, **SMALL, deep_supervision=2, num_res_units=(1, 0, 2, 1), residual_order=order)
    sum(y.square().sum() for y in net(torch.randn(2, 1, 16, 16))).backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_number_of_residual_units_and_convolutions_goes_by_level():
    net = ResUNet(2, **SMALL, num_res_units=(1, 2, 3, 1), decoder_convs=(1, 2, 3))
    assert [len(stage) for stage in net.encoder] == [1, 2, 3, 1]
    assert [len(stage) for stage in net.decoder] == [3, 2, 1]  # coarsest first
    assert [len(stage) for stage in UNet(2, **SMALL, convs_per_stage=(1, 2, 3, 4)).encoder] == [1, 2, 3, 4]


@both
@pytest.mark.parametrize("supervised", [False, True])
def test_scripted_network_computes_the_same(cls, supervised):
    net = cls(3, **SMALL, strides=(1, 2, (2, 2, 1), 1), deep_supervision=supervised).eval()
    scripted, x = torch.jit.script(net), torch.rand(1, 1, 8, 8, 4)
    torch.testing.assert_close(scripted(x), net(x))
    assert isinstance(torch.jit.script(net.train())(x), list) == supervised


@both
def test_scripted_network_survives_saving(cls, tmp_path):
    net = cls(2, **SMALL, norm="BATCH").eval()
    torch.jit.script(net).save(str(tmp_path / "net.ts"))
    x = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(torch.jit.load(str(tmp_path / "net.ts"))(x), net(x))


@both
@pytest.mark.parametrize("upsample", ["deconv", "linear"])
def test_onnx_agrees_for_another_size_and_batch_than_the_exported(cls, upsample, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    net = cls(3, **SMALL, deep_supervision=True, upsample=upsample).eval()
    path = str(tmp_path / "net.onnx")
    axes = {i: f"axis_{i}" for i in (0, 2, 3, 4)}
    torch.onnx.export(
        net,
        (torch.rand(1, 1, 16, 16, 16),),
        path,
        input_names=["image"],
        output_names=["pred"],
        dynamic_axes={"image": axes, "pred": axes},
        dynamo=False,
    )
    x = torch.rand(2, 1, 8, 16, 24)
    found = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": x.numpy()})[0]
    np.testing.assert_allclose(found, net(x).detach().numpy(), atol=1e-4)


def test_channels_last_changes_the_memory_and_not_the_result():
    torch.manual_seed(0)
    net = UNet(3, **SMALL, norm="BATCH", channels_last=True).eval()
    plain = UNet(3, **SMALL, norm="BATCH").eval()
    plain.load_state_dict(net.state_dict())
    x = torch.rand(2, 1, 8, 8, 8)
    assert net.encoder[0](x).is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(net(x), plain(x), atol=1e-5, rtol=1e-4)


def test_dropout_varies_the_scores_in_training_only():
    net = UNet(2, **SMALL, norm=("INSTANCE", {"affine": True}), dropout=0.5)
    x = torch.rand(1, 1, 16, 16)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    assert set(net.state_dict()) == set(UNet(2, **SMALL).state_dict())


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ({"spatial_dims": 4}, r"2 or 3.*4"),
        ({"channels": (4,)}, r"2 levels.*1: \[4\]"),
        ({"channels": (4, 0)}, r"at least 1.*0"),
        ({"strides": (2, 2, 2)}, r"4 levels.*3 entries: \[2, 2, 2\]"),
        ({"strides": (1, 2, 2, (2, 2))}, r"strides\[3\].*spatial_dims=3.*2 numbers: \[2, 2\]"),
        ({"kernel_sizes": (3, 3)}, r"4 levels.*2 entries"),
        ({"kernel_sizes": 4}, r"kernel_sizes\[0\].*\[4, 4, 4\]"),
        ({"kernel_sizes": (3, (3, 3, 1), 3, 3)}, r"strides\[1\].*stride \(2, 2, 2\) with kernel \(3, 3, 1\)"),
        ({"deep_supervision": 3}, r"less than the 3 decoder levels .3"),
        ({"dropout": 1.5}, r"below 1.*1\.5"),
        ({"upsample": "deconf"}, r"'deconf'.*Did you mean 'deconv'"),
        ({"num_res_units": (1, 1)}, r"4 numbers.*2 numbers: \[1, 1\]"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_both_values(arguments, numbers):
    with pytest.raises(ConfigError, match=numbers):
        UNet(**{"spatial_dims": 3, **SMALL, **arguments})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 16, 16, 12), r"\(8, 8, 8\).*\(16, 16, 12\)"),
        ((1, 2, 16, 16, 16), r"1 channels.*\(1, 2, 16, 16, 16\)"),
        ((1, 1, 8, 8, 8), r"INSTANCE norm.*more than 1 value.*size \(8, 8, 8\) over strides \(8, 8, 8\)"),
        ((1, 1, 16, 16), r"3 axes.*\(1, 1, 16, 16\)"),
    ],
)
def test_input_that_does_not_fit_is_refused_with_both_sizes(shape, message):
    with pytest.raises(ConfigError, match=message):
        UNet(3, **SMALL)(torch.rand(shape))


@both
def test_network_learns_a_blob_in_a_few_steps(cls):
    torch.manual_seed(0)
    grid = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))
    centres = torch.randint(5, 11, (4, 3, 1, 1, 1))
    label = ((grid[None] - centres).square().sum(1) < 16).long()  # (4, 16, 16, 16): a ball of radius 4 in each
    image = label[:, None] + 0.5 * torch.randn(4, 1, 16, 16, 16)
    net = cls(3, 1, 2, (4, 8, 8))
    optimizer = torch.optim.AdamW(net.parameters(), 0.02)
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(image), label).backward()
        optimizer.step()
    pred = net.eval()(image).argmax(1)
    assert 2 * (pred * label).sum() / (pred.sum() + label.sum()) > 0.9
