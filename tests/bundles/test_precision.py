"""Convolutions in bfloat16 compute the gradients that float32 computes, on the grids that each bundle trains with."""

import copy

import pytest
import torch

from decathlete.bundle import bundle_names
from decathlete.bundle.configs import load
from decathlete.training.precision import amp_dtype

CONVOLUTIONS = (torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)
FINE = 8  # voxels an axis: finer grids are cut to it, since the faults lie where grids are as small as kernels
# elsewhere bfloat16 is emulated: slow, and no training uses it
pytestmark = pytest.mark.skipif(
    amp_dtype("cpu") != torch.bfloat16, reason="this CPU has no instructions for bfloat16, so training uses float32"
)


def convolutions(network: torch.nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[torch.nn.Module, tuple]]:
    """One convolution of each kind by its name, with the shape of its input; shapes alone are computed."""
    found: dict[str, tuple[torch.nn.Module, tuple]] = {}
    kinds = set()

    def note(name, layer, given):
        kind = (str(layer), tuple(given.shape))
        if kind not in kinds:
            kinds.add(kind)
            found[name] = (layer, tuple(given.shape))

    shadow = copy.deepcopy(network).to("meta")
    for name, layer in shadow.named_modules():
        if isinstance(layer, CONVOLUTIONS):
            layer.register_forward_pre_hook(lambda layer, given, name=name: note(name, layer, given[0]))
    shadow(torch.empty(shape, device="meta"))
    return {name: (network.get_submodule(name), given) for name, (_, given) in found.items()}


def likeness(layer: torch.nn.Module, shape: tuple[int, ...]) -> float:
    """Cosine of the angle between the gradients of the weights in float32 and in bfloat16."""
    image = torch.randn(shape)
    back, grads = None, []
    for enabled in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = layer(image).float()
        back = torch.randn_like(out) if back is None else back
        out.backward(back)
        grads.append(layer.weight.grad.flatten().clone())
    return torch.cosine_similarity(*grads, 0).item()


@pytest.mark.parametrize("bundle", bundle_names())
def test_gradients_in_bfloat16_point_where_those_in_float32_do(bundle):
    # oneDNN 3.12 returned weight gradients of unset memory for 3x3x3 convolutions on grids of 2 voxels an axis
    parser = load(bundle, "train")
    network = parser.get_parsed_content("network_def").train()
    shape = (2, network.in_channels, *parser.get_parsed_content("patch_size"))
    layers = convolutions(network, shape)
    assert len(layers) > 5
    torch.manual_seed(0)
    for name, (layer, (batch, channels, *grid)) in layers.items():
        found = likeness(layer, (batch, channels, *(min(n, FINE) for n in grid)))
        assert found > 0.99, f"{name} on {grid}: {found:.3f}"  # rounding leaves 0.9999, unset memory 0 to 0.6 or NaN
