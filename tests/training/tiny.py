"""A training of seconds: blobs of 8x8x8 voxels, a network of two convolutions."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.losses import DiceCELoss
from monai.transforms import AsDiscreted, Compose, RandFlipd, RandGaussianNoised

from decathlete.training import Checkpoint, PolySchedule, Trainer, ValidationHandler, WeightAverage, seed_everything


def blobs(number: int = 8) -> list[dict]:
    grid = torch.stack(torch.meshgrid(*[torch.arange(8.0)] * 3, indexing="ij"))
    cases = []
    for n in range(number):
        centre = torch.tensor([2 + n % 4, 3 + n % 2, 4.0]).reshape(3, 1, 1, 1)
        label = ((grid - centre).square().sum(0, keepdim=True) < 6).float()
        cases.append({"image": label + 0.1 * torch.sin(7 * grid[:1]), "label": label, "case_id": f"blob_{n}"})
    return cases


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.BatchNorm3d(8), torch.nn.Dropout(0.1), torch.nn.ReLU(),
        torch.nn.Conv3d(8, 2, 3, padding=1),
    )  # fmt: skip


def build(output_dir: Path, max_epochs: int = 5, resume: bool = False, workers: int = 0, **kwargs) -> Trainer:
    """A trainer with all parts: 4 iterations an epoch, random transforms, dropout, average, schedule, validation."""
    torch.set_num_threads(1)
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=kwargs.pop("lr", 0.01))
    average = WeightAverage(net, decay=0.9)
    schedule = PolySchedule(optimizer, warmup=3, minutes=kwargs.pop("minutes", None))
    dice = MeanDice(False, num_classes=2, output_transform=from_engine(["pred", "label"]))
    validator = SupervisedEvaluator(
        torch.device("cpu"), DataLoader(Dataset(blobs(2)), batch_size=1), average.network,
        postprocessing=Compose([AsDiscreted("pred", argmax=True)]),
        key_val_metric={"val_mean_dice": dice},
    )  # fmt: skip
    random = Compose([RandFlipd(["image", "label"], prob=0.5), RandGaussianNoised("image", prob=0.5)])
    loader = DataLoader(
        Dataset(kwargs.pop("data", None) or blobs(), random), batch_size=2, shuffle=True, num_workers=workers
    )
    handlers = [
        Checkpoint(output_dir, validator, resume=resume, every_s=0),
        ValidationHandler(kwargs.pop("val_interval", 2), validator),
        *kwargs.pop("handlers", []),
    ]
    loss = kwargs.pop("loss_function", DiceCELoss(to_onehot_y=True, softmax=True))
    return Trainer(
        "cpu",
        max_epochs,
        loader,
        net,
        optimizer,
        loss,
        amp=True,
        train_handlers=handlers,
        schedule=schedule,
        average=average,
        **kwargs,
    )


if __name__ == "__main__":  # a process of its own, so that a test can kill it
    seed_everything(int(sys.argv[4]) if len(sys.argv) > 4 else 99)
    # long enough to be killed before its end on a busy machine
    build(Path(sys.argv[1]), max_epochs=20, resume=sys.argv[2] == "resume", workers=int(sys.argv[3])).run()
