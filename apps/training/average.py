"""Weights averaged over the last iterations, which validate better than any single iteration's."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from ignite.engine import Events
from torch.optim.swa_utils import get_ema_multi_avg_fn

from decathlete.bundle.checkpoints import unwrap
from decathlete.compat import foreach_copy_


class WeightAverage:
    """Exponential moving average of a network's weights; ``network`` is the averaged copy, in evaluation mode.

    After iteration i the average keeps ``min(decay, (1 + i) / (10 + i))`` of itself: early on it follows the network
    closely, since the first weights are noise. Running statistics of batch norm are averaged too, counters are copied.

    Torch's AveragedModel copies its counter to a GPU twice an iteration, which waits for it. ignite's EMAHandler would
    let its buffers share memory with the network's; batch norm then has the statistics of other weights than its own.

    Args:
        network: the network in training, on its device.
        decay: fraction kept; 0 makes the copy follow the network exactly.
    """

    def __init__(self, network: torch.nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.source = unwrap(network)
        self.network = copy.deepcopy(self.source).eval().requires_grad_(False)

    def attach(self, engine: Any) -> None:
        """Follow a trainer; handlers that load weights are to be attached before."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self.update(e.state.iteration))

    def _start(self, engine: Any) -> None:
        if engine.state.iteration == 0:  # weights may have been loaded since the copy was made
            self.network.load_state_dict(self.source.state_dict())

    def update(self, iteration: int) -> None:
        """Take in the network's weights after an iteration, the first of which is 1."""
        keep = min(self.decay, (1 + iteration) / (10 + iteration))
        pairs = list(zip(_tensors(self.network), _tensors(self.source), strict=True))
        values = [pair for pair in pairs if pair[0].is_floating_point()]
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        if values:
            get_ema_multi_avg_fn(keep)(*map(list, zip(*values, strict=True)), None)
        if counters:
            foreach_copy_(*map(list, zip(*counters, strict=True)))


def _tensors(network: torch.nn.Module) -> list[torch.Tensor]:
    return [tensor.detach() for tensor in itertools.chain(network.parameters(), network.buffers())]
