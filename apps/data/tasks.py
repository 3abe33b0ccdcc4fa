"""Facts about the ten tasks of the Medical Segmentation Decathlon (MSD), in one table.

Sources: the fingerprints and plans of nnU-Net v2 (3d_fullres), read from automl/AutoNNUnet, and MONAI's table of
archives; docs/references.md names the files. Imports nothing heavy: the command line passes here at start.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from decathlete.errors import UsageError, nearest

MSD_URL = "https://msd-for-monai.s3-us-west-2.amazonaws.com"  # monai/apps/datasets.py
MSD_REFERENCE = "Antonelli et al. 2022, doi 10.1038/s41467-022-30695-9; Simpson et al. 2019, arXiv 1902.09063"


@dataclass(frozen=True)
class Window:
    """Intensity window of a CT task in HU, taken over foreground voxels of all training cases."""

    low: float  # 0.5 percentile: values below are clipped
    high: float  # 99.5 percentile: values above are clipped
    mean: float
    std: float


@dataclass(frozen=True)
class Task:
    """One MSD task. Lengths are in mm, axes in the order (X, Y, Z) of an array as nibabel reads it.

    Attributes:
        name: name of the bundle, ``hippocampus``.
        folder: MSD's name of the data set and of its folder, ``Task04_Hippocampus``.
        modality: ``CT`` or ``MRI``.
        channels: name of each input channel; more than one is stored as a 4D file.
        labels: foreground label name to value, in the order of the values; 0 is background everywhere.
        title: what is segmented in what, for a reader: the data set's own names of labels are often too short for it.
        spacing: target spacing, to which nnU-Net resamples.
        median_spacing: median over the training cases.
        median_shape: median shape of the training images as stored, after cropping to nonzero.
        spacing_range: smallest and largest spacing along Z among the training cases.
        patch_size: nnU-Net's training patch.
        batch_size: patches of that size in a batch.
        md5: of the archive.
        num_training: labelled cases in the official training set.
        num_test: cases without public labels.
        prefix: of a case's name, ``hippocampus``.
        window: CT window, or None for MRI.
        batch_dice: whether nnU-Net sums the Dice over the batch: small targets are often absent from a patch.
        nonzero: whether nnU-Net z-scores over the voxels that are not 0, as where the skulls were erased.
        regions: name to the label values that it is made of: parts that overlap, which the data's own challenge scores.
        source: who gave the images.
        licence: of the data.
        reference: publication to cite.
    """

    name: str
    folder: str
    modality: str
    channels: tuple[str, ...]
    labels: Mapping[str, int] = field(hash=False)
    title: str
    spacing: tuple[float, float, float]
    median_spacing: tuple[float, float, float]
    median_shape: tuple[int, int, int]
    spacing_range: tuple[float, float]
    patch_size: tuple[int, int, int]
    batch_size: int
    md5: str
    num_training: int
    num_test: int
    prefix: str
    source: str
    window: Window | None = None
    batch_dice: bool = False
    nonzero: bool = False
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    licence: str = "CC-BY-SA 4.0"
    reference: str = MSD_REFERENCE

    @property
    def archive_url(self) -> str:
        """Address of the archive; the environment variable DECATHLETE_MSD_URL replaces the part before its name."""
        base = os.environ.get("DECATHLETE_MSD_URL") or MSD_URL
        return f"{base.rstrip('/')}/{self.folder}.tar"

    @property
    def number(self) -> int:
        """MSD's number of the task, 1 to 10."""
        return int(self.folder[4:6])

    @property
    def num_classes(self) -> int:
        """Classes with background."""
        return len(self.labels) + 1


def _task(name: str, folder: str, modality: str, channels: tuple[str, ...], labels: tuple[str, ...], **facts) -> Task:
    values = {label: value for value, label in enumerate(labels, start=1)}
    return Task(name, folder, modality, channels, values, **facts)


_MSKCC = "Memorial Sloan Kettering Cancer Center"

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _task(
            "brain_tumour",
            "Task01_BrainTumour",
            "MRI",
            ("FLAIR", "T1w", "T1gd", "T2w"),
            ("edema", "non-enhancing tumour", "enhancing tumour"),
            title="brain tumours in MRI of four sequences",
            spacing=(1.0, 1.0, 1.0),
            median_spacing=(1.0, 1.0, 1.0),
            median_shape=(138, 169, 138),
            spacing_range=(1.0, 1.0),
            patch_size=(128, 128, 128),
            batch_size=2,
            md5="240a19d752f0d9e9101544901065d872",
            num_training=484,
            num_test=266,
            prefix="BRATS",
            nonzero=True,
            regions={"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)},  # BraTS', arXiv 1811.02629
            source="BraTS 2016 and 2017, www.med.upenn.edu/sbia/brats2017.html",
        ),
        _task(
            "heart",
            "Task02_Heart",
            "MRI",
            ("MRI",),
            ("left atrium",),
            title="left atrium in MRI",
            spacing=(1.25, 1.25, 1.37),
            median_spacing=(1.25, 1.25, 1.37),
            median_shape=(232, 320, 115),
            spacing_range=(1.37, 1.37),
            patch_size=(160, 192, 80),
            batch_size=2,
            md5="06ee59366e1e5124267b774dbd654057",
            num_training=20,
            num_test=10,
            prefix="la",
            source="King's College London",
        ),
        _task(
            "liver",
            "Task03_Liver",
            "CT",
            ("CT",),
            ("liver", "cancer"),
            title="liver and liver tumours in CT",
            spacing=(0.768, 0.768, 1.0),
            median_spacing=(0.768, 0.768, 1.0),
            median_shape=(512, 512, 432),
            spacing_range=(0.7, 5.0),
            patch_size=(128, 128, 128),
            batch_size=2,
            md5="a90ec6c4aa7f6a3d087205e23d4e6397",
            num_training=131,
            num_test=70,
            prefix="liver",
            window=Window(-15, 197, 99.480, 37.138),
            batch_dice=True,
            source="LiTS, IRCAD Strasbourg and partners",
        ),
        _task(
            "hippocampus",
            "Task04_Hippocampus",
            "MRI",
            ("MRI",),
            ("anterior", "posterior"),
            title="hippocampus in MRI",
            spacing=(1.0, 1.0, 1.0),
            median_spacing=(1.0, 1.0, 1.0),
            median_shape=(35, 50, 36),
            spacing_range=(1.0, 1.0),
            patch_size=(40, 56, 40),
            batch_size=9,
            md5="9d24dba78a72977dbd1d2e110310f31b",
            num_training=260,
            num_test=130,
            prefix="hippocampus",
            source="Vanderbilt University Medical Center",
        ),
        _task(
            "prostate",
            "Task05_Prostate",
            "MRI",
            ("T2", "ADC"),
            ("PZ", "TZ"),
            title="prostate zones in T2 and ADC",
            spacing=(0.625, 0.625, 3.6),
            median_spacing=(0.625, 0.625, 3.6),
            median_shape=(320, 320, 20),
            spacing_range=(3.0, 4.0),
            patch_size=(256, 320, 20),
            batch_size=2,
            md5="35138f08b1efaef89d7424d2bcc928db",
            num_training=32,
            num_test=16,
            prefix="prostate",
            source="Radboud University Medical Center, Nijmegen",
        ),
        _task(
            "lung",
            "Task06_Lung",
            "CT",
            ("CT",),
            ("cancer",),
            title="lung tumours in CT",
            spacing=(0.785, 0.785, 1.245),
            median_spacing=(0.785, 0.785, 1.245),
            median_shape=(512, 512, 252),
            spacing_range=(0.625, 2.5),
            patch_size=(160, 192, 80),
            batch_size=2,
            md5="8afd997733c7fc0432f71255ba4e52dc",
            num_training=63,
            num_test=32,
            prefix="lung",
            window=Window(-1024, 311, -273.460, 346.950),
            batch_dice=True,
            source="The Cancer Imaging Archive",
        ),
        _task(
            "pancreas",
            "Task07_Pancreas",
            "CT",
            ("CT",),
            ("pancreas", "cancer"),
            title="pancreas and its tumours in CT",
            spacing=(0.803, 0.803, 2.5),
            median_spacing=(0.803, 0.803, 2.5),
            median_shape=(512, 512, 93),
            spacing_range=(0.7, 7.5),
            patch_size=(224, 224, 40),
            batch_size=2,
            md5="4f7080cfca169fa8066d17ce6eb061e4",
            num_training=281,
            num_test=139,
            prefix="pancreas",
            window=Window(-92, 217, 80.365, 72.708),
            batch_dice=True,
            source=_MSKCC,
        ),
        _task(
            "hepatic_vessel",
            "Task08_HepaticVessel",
            "CT",
            ("CT",),
            ("vessel", "tumour"),
            title="hepatic vessels and liver tumours in CT",
            spacing=(0.799, 0.799, 1.5),
            median_spacing=(0.799, 0.799, 5.0),
            median_shape=(512, 512, 49),
            spacing_range=(0.8, 8.0),
            patch_size=(192, 192, 64),
            batch_size=2,
            md5="641d79e80ec66453921d997fbf12a29c",
            num_training=303,
            num_test=140,
            prefix="hepaticvessel",
            window=Window(8, 268, 128.670, 54.577),
            batch_dice=True,
            source=_MSKCC,
        ),
        _task(
            "spleen",
            "Task09_Spleen",
            "CT",
            ("CT",),
            ("spleen",),
            title="spleen in CT",
            spacing=(0.793, 0.793, 1.6),
            median_spacing=(0.793, 0.793, 5.0),
            median_shape=(512, 512, 90),
            spacing_range=(1.5, 8.0),
            patch_size=(160, 192, 64),
            batch_size=2,
            md5="410d4a301da4e5b2f6f86ec3ddba524e",
            num_training=41,
            num_test=20,
            prefix="spleen",
            window=Window(-42, 176, 93.193, 40.784),
            batch_dice=True,
            source=_MSKCC,
        ),
        _task(
            "colon",
            "Task10_Colon",
            "CT",
            ("CT",),
            ("colon cancer primaries",),
            title="colon cancer in CT",
            spacing=(0.781, 0.781, 3.0),
            median_spacing=(0.781, 0.781, 5.0),
            median_shape=(512, 512, 95),
            spacing_range=(1.25, 7.5),
            patch_size=(192, 192, 56),
            batch_size=2,
            md5="bad7a188931dc2f6acf72b08eb6202d0",
            num_training=126,
            num_test=64,
            prefix="colon",
            window=Window(-40, 188, 67.201, 37.132),
            batch_dice=True,
            source=_MSKCC,
        ),
    )
}


def _key(word: str) -> str:
    return re.sub(r"[\s_-]", "", word).lower()


_BY_KEY = {
    _key(word): t for t in TASKS.values() for word in (t.name, t.folder, t.folder[7:], str(t.number), t.folder[4:6])
}
_BY_KEY |= {_key(f"{name}_3d"): TASKS[name] for name in ("heart", "lung")}  # bundles beside those on slices


def get_task(name: str | int) -> Task:
    """Task of a name: ``hippocampus``, ``Task04_Hippocampus``, ``4`` or ``04``, in any case, ``-`` for ``_`` allowed.

    A bundle in 3D beside one on slices has the same task: ``heart_3d`` is ``heart``.

    Raises:
        UsageError: no such task; the nearest known name is given.
    """
    task = _BY_KEY.get(_key(str(name)))
    if task is None:
        near = nearest(str(name).lower(), [*TASKS, "nfbs", "sunnybrook"])  # which have their own modules
        raise UsageError(str(name), "unknown task", "", near)
    return task


def task_of_folder(path: str | os.PathLike[str]) -> Task | None:
    """Task whose MSD folder name ``path`` ends with, in any case; None for any other folder, which need not exist."""
    folder = Path(path)
    name = (folder.name or folder.resolve().name).lower()
    return next((task for task in TASKS.values() if task.folder.lower() == name), None)
