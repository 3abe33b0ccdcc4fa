"""Plans against nnU-Net's own for the ten tasks, against hand-made bundles, and under limits."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from decathlete.data import TASKS, get_task
from decathlete.errors import DeviceError
from decathlete.planning import Fingerprint, Layout, find_layout, plan, plan_of_task, take_fingerprint
from decathlete.planning.fingerprints import CaseFacts, Intensities
from decathlete.planning.footprint import make_network
from decathlete.planning.rules import topology

# nnU-Net v2, 3d_fullres, conv encoder: stages, and levels whose kernel leaves out the thick axis (docs/references.md)
STAGES = {"brain_tumour": 6, "heart": 6, "liver": 6, "hippocampus": 4, "prostate": 7, "lung": 6, "pancreas": 6,
          "hepatic_vessel": 6, "spleen": 6, "colon": 6}  # fmt: skip
FLAT = {"prostate": 2, "pancreas": 1, "spleen": 1, "colon": 1}


def facts(shapes, spacings, *, classes=("organ",), share=0.05, modality="MRI", **changes) -> Fingerprint:
    """A fingerprint of made-up cases; each class takes ``share`` of the voxels."""
    cases = [
        CaseFacts(f"case_{n}", tuple(shape), tuple(shape), tuple(spacing), (0.0,),
                  {0: 1, **{v: int(share * math.prod(shape)) for v in range(1, len(classes) + 1)}})
        for n, (shape, spacing) in enumerate(zip(shapes, spacings, strict=True))
    ]  # fmt: skip
    named = {"background": 0, **{name: v for v, name in enumerate(classes, 1)}}
    inside = (Intensities(60.0, 40.0, 60.0, -42.03, 176.04),)
    return Fingerprint(modality, ("image",), named, inside, tuple(cases), **changes)


def planned(fingerprint: Fingerprint, memory_gib: float = 16.0, device: str = "cpu"):
    return plan("own", Layout(Path("data/Own"), "msd"), fingerprint, memory_gib, device)


@pytest.mark.parametrize("name", TASKS)
def test_networks_have_the_stages_and_flat_kernels_of_nnunet(name):
    network = topology(TASKS[name].patch_size, TASKS[name].spacing, gpu=True)
    assert len(network.strides) == STAGES[name]
    flat = sum(kernel == (3, 3, 1) for kernel in network.kernel_sizes)
    assert flat == FLAT.get(name, 0)
    assert set(network.kernel_sizes[flat:]) == {(3, 3, 3)}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", TASKS)
def test_patches_of_the_tasks_fit_their_networks(name, device):
    made = plan_of_task(TASKS[name], device=device)
    network = make_network(made.network, len(made.channels), len(made.classes))
    assert [n % d for n, d in zip(made.patch_size, network.divisor, strict=True)] == [0, 0, 0]
    assert sum(t.numel() * t.element_size() for t in network.state_dict().values()) < 20e6  # what a bundle can carry
    # in bfloat16 on a CPU, oneDNN 3.12 is wrong on grids of 2 voxels an axis
    assert min(n // d for n, d in zip(made.patch_size, network.divisor, strict=True)) >= 3


def test_the_coarsest_map_keeps_four_voxels_an_edge():
    network = topology((64, 64, 12), (1.0, 1.0, 1.0), gpu=False)
    assert network.divisor == (16, 16, 2)  # 4, 4 and 6


def test_spacing_is_the_median_of_each_axis():
    made = planned(facts([(60, 60, 60)] * 3, [(1, 1, 1), (1.2, 1, 1), (1.4, 1.1, 1)], share=0.01))
    assert made.spacing == (1.2, 1.0, 1.0)


def test_slices_far_apart_take_their_tenth_percentile():
    spacings = [(0.8, 0.8, z) for z in (1.6, 2.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0)]
    made = planned(facts([(512, 512, 90)] * 11, spacings), device="cuda")
    assert made.spacing == pytest.approx((0.8, 0.8, 2.0))  # the second smallest of eleven
    assert "10th percentile" in made.reasons["spacing"]


def test_a_thick_axis_is_neither_turned_nor_looked_across():
    made = planned(facts([(320, 320, 20)] * 5, [(0.625, 0.625, 3.6)] * 5), device="cuda")
    assert made.rotation == (0.0, 0.0, 0.5)
    assert made.network.kernel_sizes[:3] == ((3, 3, 1), (3, 3, 1), (3, 3, 3))


def test_a_patch_keeps_all_of_few_slices_and_is_cut_within_them():
    made = planned(facts([(384, 384, 19)] * 5, [(0.5, 0.5, 3.0)] * 5, share=0.0001))
    assert made.patch_size[2] == 20
    assert math.prod(made.patch_size) <= 2**19
    assert made.patch_size[0] < 384


def test_on_a_cpu_large_structures_are_planned_on_a_coarser_grid():
    shapes, spacings = [(192, 144, 88)] * 16, [(0.625,) * 3] * 16
    made = planned(facts(shapes, spacings, share=0.06))
    factor = made.spacing[0] / 0.625
    assert 1.5 < factor <= 2
    assert "of the cases" in made.reasons["spacing"]
    assert planned(facts(shapes, spacings), device="cuda").spacing == (0.625,) * 3


def test_small_structures_keep_the_scans_own_grid():
    made = planned(facts([(192, 144, 88)] * 16, [(0.625,) * 3] * 16, share=0.001))
    assert made.spacing == (0.625,) * 3


def test_less_memory_means_smaller_patches_and_the_estimate_keeps_to_it():
    scans = facts([(256, 256, 200)] * 20, [(1.0,) * 3] * 20, share=0.0001)
    plans = [planned(scans, gib, "cuda") for gib in (4.0, 8.0, 16.0)]
    sizes = [math.prod(p.patch_size) * p.batch_size for p in plans]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    assert [p.estimate_gib <= p.memory_gib for p in plans] == [True] * 3
    assert [p.estimate_gib >= p.memory_gib / 3 for p in plans] == [True] * 3


def test_too_little_memory_is_told_with_the_amount_that_would_do():
    with pytest.raises(DeviceError, match=r"--memory: .*Pass --memory \d"):
        planned(facts([(64, 64, 64)] * 5, [(1.0,) * 3] * 5), 0.6)


def test_cases_go_to_the_disk_where_memory_does_not_hold_them():
    scans = facts([(200, 200, 200)] * 100, [(1.0,) * 3] * 100, share=0.0001)  # 6 GiB as float32 with labels
    assert planned(scans, 8.0).cache == "disk"
    assert planned(scans, 30.0).cache == "auto"


def test_ct_is_clipped_to_the_foregrounds_percentiles():
    made = planned(facts([(64, 64, 64)] * 5, [(1.0,) * 3] * 5, modality="CT"))
    assert (made.window.low, made.window.high, made.window.mean, made.window.std) == (-42.0, 176.0, 60.0, 40.0)
    assert made.padding == "min"


def test_a_field_of_zeros_is_cropped_and_left_out_of_the_mean():
    scans = facts([(100, 100, 100)] * 5, [(1.0,) * 3] * 5)
    cases = tuple(replace(case, nonzero_shape=(70, 70, 70)) for case in scans.cases)
    made = planned(replace(scans, cases=cases))
    assert made.nonzero
    assert made.patch_size == (80, 80, 80)  # 70 in steps of 16; 100 would be 112


def test_a_narrow_border_of_zeros_is_cropped_and_not_planned_for():
    scans = facts([(70, 70, 70)] * 5, [(1.0,) * 3] * 5)
    cases = tuple(replace(case, nonzero_shape=(64, 64, 64)) for case in scans.cases)
    made = planned(replace(scans, cases=cases))
    assert not made.nonzero  # 76% of the voxels are left: the mean is taken over all of them
    assert made.patch_size == (64, 64, 64)  # in steps of 16, 70 would be 80


@pytest.mark.parametrize(
    ("name", "axes"), [("left atrium", (0,)), ("kidney_R", ()), ("cortex", (0,)), ("upright", (0,))]
)
def test_classes_with_a_side_are_not_mirrored(name, axes):
    made = planned(facts([(48, 48, 48)] * 5, [(1.0,) * 3] * 5, classes=(name,)))
    assert made.mirror_axes == axes


def test_every_number_has_a_reason():
    made = planned(facts([(64, 64, 64)] * 5, [(1.0,) * 3] * 5))
    wanted = {"spacing", "patch_size", "margin_size", "roi_size", "batch_size", "max_epochs", "network", "mirror_axes"}
    assert wanted <= set(made.reasons)


def test_the_real_hippocampus_is_planned_as_by_hand(hippocampus_data, shared):
    shapes = [get_task("hippocampus").median_shape] * 200
    made = planned(facts(shapes, [(1.0,) * 3] * 200, classes=("anterior", "posterior")))
    assert made.patch_size == (40, 56, 40)
    assert made.network.channels == (8, 32, 64, 128)
    assert (made.batch_size, made.whole, made.max_epochs) == (4, True, 150)


@pytest.mark.slow
def test_real_hearts_are_planned_so_that_one_patch_holds_most_of_a_scan(shared):
    folder = shared / "data" / "Task02_Heart"
    made = plan("hearts", find_layout(folder), take_fingerprint(find_layout(folder), progress=False), 16.0)
    assert 1.0 < made.spacing[0] < 1.25
    covered = np.array(made.patch_size) * made.spacing
    assert (covered >= 0.95 * np.array([119, 89, 55])).all()  # mm, the median scan
    assert made.mirror_axes == (0,)
