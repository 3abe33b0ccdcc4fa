"""Odd head scans are named in the log, impossible ones refused; nothing is changed."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from decathlete.errors import ConfigError, DataError, GeometryError
from decathlete.transforms import CheckHeadd, CheckVolumed


def scan(shape=(32, 32, 32), spacing=6.0, outside=0.0, inside=100.0, radius=0.45) -> np.ndarray:
    """A ball of noise in the middle; by default 186 mm between the outer voxels' centres, 2.46 l in the ball."""
    grid = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, n) for n in shape], indexing="ij"))
    ball = (grid**2).sum(0) < radius**2
    voxels = np.where(ball, inside + np.random.default_rng(0).normal(0, 5, shape), outside).astype(np.float32)
    affine = torch.diag(torch.tensor([spacing, spacing, spacing, 1.0]))
    return MetaTensor(torch.from_numpy(voxels)[None], affine=affine, meta={"filename_or_obj": "head.nii.gz"})


def said(caplog, image) -> list[str]:
    found = CheckHeadd("image")({"image": image})["image"]
    assert found is image
    return [record.getMessage() for record in caplog.records]


def test_a_head_passes_without_a_word(caplog):
    assert said(caplog, scan()) == []


def test_a_ct_is_named(caplog):
    (line,) = said(caplog, scan(outside=-1000.0, inside=40.0))
    assert line.startswith("head.nii.gz: values like a CT's (")


def test_a_brain_without_its_skull_is_named_with_its_volume(caplog):
    image = scan(radius=0.36)  # 4/3 pi (0.36 x 186 mm)^3 = 1.26 l
    (line,) = said(caplog, image)
    volume = int((image != 0).sum()) * 0.216
    assert f"stripped already: all but {volume:,.0f} ml is 0" in line
    assert 1200 < volume < 1310


@pytest.mark.parametrize(("spacing", "words"), [(2.5, "smaller than a brain"), (20.0, "larger than a head")])
def test_another_field_of_view_is_named(caplog, spacing, words):
    image = scan(spacing=spacing)
    image += 7  # nothing is 0: the skull is there
    image[0, ::2, ::2] += 1
    (line,) = said(caplog, image)
    assert words in line


@pytest.mark.parametrize("shape", [(64, 64, 1), (7, 64, 64), (64, 64)])
def test_slices_are_refused(shape):
    with pytest.raises(
        GeometryError, match=r"head scan with at least 8 voxels on each of three axes.*\(" + str(shape[0])
    ):
        CheckHeadd("image")({"image": torch.rand(1, *shape)})


def test_voxels_that_are_all_alike_are_refused():
    with pytest.raises(DataError, match=r"all voxels have the same value \(3\)"):
        CheckHeadd("image")({"image": torch.full((1, 9, 9, 9), 3.0)})


@pytest.mark.parametrize(
    ("radius", "words"), [(0.0, "no brain found"), (0.25, "a brain of 4[0-9]{2} ml is unlikely"), (0.36, None)]
)
def test_unlikely_volumes_are_named(caplog, radius, words):
    mask = (scan(radius=radius) > 0).float()
    CheckVolumed("pred", (600, 2200))({"pred": mask})
    assert [r.levelname for r in caplog.records] == (["WARNING"] if words else [])
    if words:
        assert re.search(words, caplog.text)


def test_a_range_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="increasing"):
        CheckVolumed("pred", (2200, 600))
