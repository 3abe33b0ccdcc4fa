"""What torch, ignite and MONAI have no public name for, in one place: where to look when a new release breaks us."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ["COMPILED", "FakeTensorMode", "compiled", "drop_iterator", "puts_channels_first"]

COMPILED = "_orig_mod"  # attribute of what torch.compile returns, and the prefix of its weights' names


def compiled(network: torch.nn.Module) -> torch.nn.Module | None:
    """The network inside what torch.compile returned; None for any other network."""
    return getattr(network, COMPILED, None)


def drop_iterator(engine: Any) -> None:
    """End the iterator of an engine's data, and its workers; ignite then makes a new one.

    ignite's public ``set_data`` makes the new one first, so that for a while twice as many workers run.
    """
    engine._dataloader_iter = None


def puts_channels_first(load: Any) -> bool:
    """Whether a chain's LoadImaged also moves the channels of what it loads to the first axis."""
    return load._loader.ensure_channel_first
