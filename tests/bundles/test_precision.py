"""Training in bfloat16 computes the gradients that float32 computes, at the size that each bundle trains with."""

import pytest
import torch

from decathlete.bundle import bundle_names
from decathlete.workflow import load


def features(bundle: str) -> list[int]:
    return list(load(bundle, "train")["network_def"]["channels"])


def is_for_gpu(bundle: str) -> bool:
    """Whether patch and network are of a size that a CPU takes minutes for."""
    return len(features(bundle)) > 5


@pytest.mark.parametrize(
    "bundle", [pytest.param(b, marks=pytest.mark.slow) if is_for_gpu(b) else b for b in bundle_names()]
)
def test_gradients_in_bfloat16_point_where_those_in_float32_do(bundle):
    # oneDNN 3.12 returned weight gradients of unset memory for 3x3x3 convolutions on grids of 2 voxels an axis
    parser = load(bundle, "train")
    if is_for_gpu(bundle):  # thin where the grid is fine, which takes the time, and as it is below
        parser["network_def"]["channels"] = [4, 8, *features(bundle)[2:]]
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # bfloat16 draws other voxels than float32
    patch = parser.get_parsed_content("patch_size")
    torch.manual_seed(0)
    batch = 1 if is_for_gpu(bundle) else min(2, parser.get_parsed_content("batch_size"))
    image = torch.randn(batch, network.in_channels, *patch)

    def gradients(dtype):
        network.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
            out = network(image)
        finest = out[0] if isinstance(out, list) else out
        finest.float().log_softmax(1)[:, 1].square().mean().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None and p.ndim > 1}

    exact, rounded = gradients(torch.float32), gradients(torch.bfloat16)
    for name, grad in exact.items():
        likeness = torch.cosine_similarity(grad.flatten(), rounded[name].flatten(), 0)
        assert likeness > 0.7, f"{name}: {likeness:.3f}"  # unset memory has 0; six levels of rounding 0.8
