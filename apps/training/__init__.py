"""Training: one engine for all bundles, its handlers, and the weights that it leaves."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decathlete.training.average import WeightAverage
    from decathlete.training.checkpoint import Checkpoint
    from decathlete.training.handlers import EarlyStop, LoadWeights, Progress, TensorBoard, ValidationHandler
    from decathlete.training.muon import Muon
    from decathlete.training.precision import amp_dtype, autocast
    from decathlete.training.processes import distributed, join_processes, leave_processes
    from decathlete.training.promotion import promote
    from decathlete.training.schedule import PolySchedule
    from decathlete.training.trainer import Trainer, seed_everything

_HOME = {
    "Checkpoint": "checkpoint",
    "EarlyStop": "handlers",
    "LoadWeights": "handlers",
    "Muon": "muon",
    "PolySchedule": "schedule",
    "Progress": "handlers",
    "TensorBoard": "handlers",
    "Trainer": "trainer",
    "ValidationHandler": "handlers",
    "WeightAverage": "average",
    "amp_dtype": "precision",
    "autocast": "precision",
    "distributed": "processes",
    "join_processes": "processes",
    "leave_processes": "processes",
    "promote": "promotion",
    "seed_everything": "trainer",
}
__all__ = [
    "Checkpoint",
    "EarlyStop",
    "LoadWeights",
    "Muon",
    "PolySchedule",
    "Progress",
    "TensorBoard",
    "Trainer",
    "ValidationHandler",
    "WeightAverage",
    "amp_dtype",
    "autocast",
    "distributed",
    "join_processes",
    "leave_processes",
    "promote",
    "seed_everything",
]


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for: `promote` needs no engine, an inferer no handlers."""
    if name not in _HOME:
        raise AttributeError(f"module 'decathlete.training' has no attribute '{name}'")
    return getattr(import_module(f"decathlete.training.{_HOME[name]}"), name)
