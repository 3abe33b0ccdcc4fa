"""What torch, ignite and MONAI have no public name for, in one place: where to look when a new release breaks us."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.conv import _ConvNd as ConvBase
from torch.nn.modules.dropout import _DropoutNd as DropoutBase

__all__ = ["COMPILED", "ConvBase", "DropoutBase", "NormBase", "compiled", "drop_iterator", "fake_tensors",
           "foreach_copy_", "foreach_lerp", "foreach_lerp_", "foreach_mul_", "foreach_sub_",
           "puts_channels_first"]  # fmt: skip

# one call for the tensors of a list, as torch's own optimizers make it
foreach_copy_ = torch._foreach_copy_
foreach_lerp, foreach_lerp_ = torch._foreach_lerp, torch._foreach_lerp_
foreach_mul_, foreach_sub_ = torch._foreach_mul_, torch._foreach_sub_

COMPILED = "_orig_mod"  # attribute of what torch.compile returns, and the prefix of its weights' names


def compiled(network: torch.nn.Module) -> torch.nn.Module | None:
    """The network inside what torch.compile returned; None for any other network."""
    return getattr(network, COMPILED, None)


def fake_tensors() -> Any:
    """A context in which tensors have shapes and no memory; its import loads torch's compiler."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def drop_iterator(engine: Any) -> None:
    """End the iterator of an engine's data, and its workers; ignite then makes a new one.

    ignite's public ``set_data`` makes the new one first, so that for a while twice as many workers run.
    """
    engine._dataloader_iter = None


def puts_channels_first(load: Any) -> bool:
    """Whether a chain's LoadImaged also moves the channels of what it loads to the first axis."""
    return load._loader.ensure_channel_first
