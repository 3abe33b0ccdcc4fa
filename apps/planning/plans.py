"""What a bundle is written from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from decathlete.data.tasks import Window

Triple = tuple[int, ...]  # one number an axis


@dataclass(frozen=True)
class Topology:
    """The network: levels from the finest on, as `decathlete.networks.UNet` takes them."""

    channels: tuple[int, ...]
    strides: tuple[Triple, ...]
    kernel_sizes: tuple[Triple, ...]
    convs_per_stage: tuple[int, ...]
    decoder_convs: int
    norm: str  # BATCH or INSTANCE
    channels_last: bool
    deep_supervision: bool

    @property
    def divisor(self) -> Triple:
        """What each axis of a patch is a multiple of."""
        return tuple(math.prod(stride[axis] for stride in self.strides) for axis in range(3))


@dataclass(frozen=True)
class Plan:
    """All that the templates of a bundle ask for. Axes are (X, Y, Z) of RAS, lengths in mm.

    A plan comes from a fingerprint (`decathlete.planning.plan`) or from a row of the table of tasks
    (`decathlete.planning.plan_of_task`); ``dataclasses.replace`` changes what a hand knows better.

    Attributes:
        name: of the bundle and of its folder.
        dataset: name of the data set's folder, which `decathlete.data.dataset_folder` looks for.
        task: MSD task whose official ids the folds go by, or "".
        images, labels_pattern: patterns of the files (`matched_cases`), or () and "" for the Decathlon's layout.
        modality: ``CT`` or a word for anything else.
        channels: name of each.
        classes: name to value, background at 0.
        window: HU to clip to, with mean and standard deviation; None: each scan and channel by its own.
        nonzero: take mean and deviation over the voxels that are not 0.
        spacing: to which the scans are resampled.
        patch_size, margin_size, roi_size: of training, of what patches are turned inside of, and of inference.
        whole: every case fits completely into ``margin_size``; else patches are drawn.
        foreground_share: of the patches that are centred on the foreground, where they are drawn.
        batch_size: patches in a batch.
        network: see `Topology`.
        recipe: ``muon`` (minutes on a CPU) or ``sgd`` (nnU-Net's, hours on a GPU).
        max_epochs, val_interval: in epochs, each of which takes every case once.
        average_decay: of the averaged weights.
        mirror_axes, rotation, scale, translation: how far the augmentation moves a patch.
        move_prob: how often each of these moves is applied.
        augmentation: further arguments of `decathlete.transforms.BatchAugment`, by name.
        padding: beyond the scan: ``zeros`` or ``min``.
        resampling: of the images: ``cubic`` with the thick axis apart, as nnU-Net; ``linear`` or ``spline`` (cubic) by
            MONAI's Spacingd.
        batch_dice: sum up the Dice over the batch, as nnU-Net where a patch is small beside a scan.
        loss_as_monai: whether the loss rounds as MONAI's DiceCELoss (`decathlete.training.DiceCE`).
        largest: classes of which prediction keeps the largest connected component; none as a rule.
        regions: name to the classes that it is made of, trained and scored in place of the classes; none as a rule.
        ignore: the label value of voxels that are neither trained on nor scored, in a tuple; none as a rule.
        cache: ``auto``, or ``disk`` where the cases would not fit beside the training.
        pretrained: whether training starts from ``models/pretrained.pt``.
        fold: the first to train.
        memory_gib: planned for.
        estimate_gib: the expected peak.
        train_cases: of the first fold.
        folds: fewer than five where the cases are fewer.
        reasons: id of the first block of train.yaml to the reason for its value.
        notes: what a person should know; they go into the card.
        title: one line on what is segmented in what.
        data_source, licence, references: for the card and the metadata.
    """

    name: str
    dataset: str
    modality: str
    channels: tuple[str, ...]
    classes: Mapping[str, int]
    spacing: tuple[float, ...]
    patch_size: Triple
    margin_size: Triple
    roi_size: Triple
    batch_size: int
    network: Topology
    task: str = ""
    images: tuple[str, ...] = ()
    labels_pattern: str = ""
    window: Window | None = None
    nonzero: bool = False
    whole: bool = False
    foreground_share: float = 0.5
    recipe: str = "muon"
    max_epochs: int = 200
    val_interval: int = 10
    average_decay: float = 0.99
    mirror_axes: tuple[int, ...] = ()
    rotation: tuple[float, ...] = (0.4, 0.4, 0.4)
    scale: float = 0.15
    translation: Triple = (6, 6, 6)
    move_prob: float = 0.8
    augmentation: Mapping[str, float] = field(default_factory=dict)
    padding: str = "zeros"
    resampling: str = "linear"
    batch_dice: bool = True
    loss_as_monai: bool = False
    largest: tuple[int, ...] = ()
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ignore: tuple[int, ...] = ()
    cache: str = "auto"
    pretrained: bool = False
    fold: int | str = 0
    memory_gib: float = 0.0
    estimate_gib: float = 0.0
    train_cases: int = 0
    folds: int = 5
    reasons: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    title: str = ""
    data_source: str = ""
    licence: str = ""
    references: tuple[str, ...] = ()
