"""Training: one engine for all bundles, its handlers, and the weights that it leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decathlete.lazy import lazy_names

if TYPE_CHECKING:
    from decathlete.distributed.processes import ValidationSampler, distributed, join_processes, leave_processes
    from decathlete.training.average import WeightAverage
    from decathlete.training.checkpoint import Checkpoint
    from decathlete.training.contour_loss import ContourLoss
    from decathlete.training.handlers import EarlyStop, Progress, StrictCheckpointLoader, TensorBoard, ValidationHandler
    from decathlete.training.losses import DiceCE
    from decathlete.training.muon import Muon
    from decathlete.training.precision import amp_dtype, autocast
    from decathlete.training.promotion import promote
    from decathlete.training.schedule import PolySchedule
    from decathlete.training.trainer import Trainer, seed_everything

__all__ = [
    "Checkpoint",
    "ContourLoss",
    "DiceCE",
    "EarlyStop",
    "Muon",
    "PolySchedule",
    "Progress",
    "StrictCheckpointLoader",
    "TensorBoard",
    "Trainer",
    "ValidationHandler",
    "ValidationSampler",
    "WeightAverage",
    "amp_dtype",
    "autocast",
    "distributed",
    "join_processes",
    "leave_processes",
    "promote",
    "seed_everything",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Checkpoint": "checkpoint",
        "DiceCE": "losses",
        "ContourLoss": "contour_loss",
        "EarlyStop": "handlers",
        "LoadWeights": "handlers",  # in bundles that were made before
        "Muon": "muon",
        "PolySchedule": "schedule",
        "Progress": "handlers",
        "StrictCheckpointLoader": "handlers",
        "TensorBoard": "handlers",
        "Trainer": "trainer",
        "ValidationHandler": "handlers",
        "ValidationSampler": "decathlete.distributed.processes",
        "WeightAverage": "average",
        "amp_dtype": "precision",
        "autocast": "precision",
        "distributed": "decathlete.distributed.processes",
        "join_processes": "decathlete.distributed.processes",
        "leave_processes": "decathlete.distributed.processes",
        "promote": "promotion",
        "seed_everything": "trainer",
    },
)
