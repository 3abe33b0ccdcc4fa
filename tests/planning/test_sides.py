"""Classes that are told apart by left and right are not mirrored, whatever they are called."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from decathlete.check import check
from decathlete.planning import find_layout, new_bundle, plan, take_fingerprint
from decathlete.planning.sides import find_side

TEN = [("LeftHippocampus", "RightHippocampus"), ("lh", "rh"), ("ctx-lh-insula", "ctx-rh-insula"),
       ("Lt_Kidney", "Rt_Kidney"), ("kidneyL", "kidneyR"), ("leftlung", "rightlung"), ("LV", "RV"), ("links", "rechts"),
       ("gauche", "droite"), ("左", "右")]  # fmt: skip


def limb(draw: np.random.Generator, shape=(12, 16, 12)) -> np.ndarray:
    """A leg with a foot that points to the front and to the right, a little another one each time."""
    out = np.zeros(shape, bool)
    y, z = draw.integers(3, 6), draw.integers(0, 2)
    out[2:5, y : y + 3, z : z + 10] = True
    out[2 : 9 + draw.integers(2), y : y + 8, z : z + 3] = True
    return out


def pair_of_limbs(n: int) -> np.ndarray:
    """In RAS: 1 on the left, 2 on the right, each other's mirror image."""
    draw = np.random.default_rng(n)
    left, right = limb(draw), limb(draw)[::-1]
    return np.concatenate([left * np.uint8(1), np.zeros((2, 16, 12), np.uint8), right * np.uint8(2)])


def rotated(about: int, degrees: float) -> np.ndarray:
    """4x4, by an angle about an axis."""
    a, b = (axis for axis in range(3) if axis != about)
    out = np.eye(4)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    out[a, a], out[a, b], out[b, a], out[b, b] = cos, -sin, sin, cos
    return out


def write(folder: Path, labels, names=None, codes="RAS", affine=None, case="case_{}") -> Path:
    """The Decathlon's folders, with ``dataset.json`` only where there are names; labels in RAS are stored in ``codes``.

    Args:
        affine: one of all cases, or one a case.
    """
    affine = np.diag([1.0, 1.0, 1.5, 1.0]) if affine is None else affine
    to = nib.orientations.axcodes2ornt(tuple(codes))
    for i, label in enumerate(labels):
        its = affine[i] if isinstance(affine, list) else affine
        noise = np.random.default_rng(i).normal(100, 10, label.shape)
        for part, array in (("imagesTr", (noise + 50 * label).astype(np.float32)), ("labelsTr", label)):
            image = nib.Nifti1Image(array, its)
            turn = nib.orientations.ornt_transform(nib.io_orientation(its), to)
            image = image.as_reoriented(turn) if codes != "RAS" else image
            image.header.set_xyzt_units("mm")
            (folder / part).mkdir(parents=True, exist_ok=True)
            nib.save(image, folder / part / f"{case.format(i)}.nii.gz")
    if names:
        description = {
            "modality": {"0": "MRI"},
            "labels": {"0": "background", **{str(v): name for v, name in enumerate(names, 1)}},
            "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
                         for name in map(case.format, range(len(labels)))],
        }  # fmt: skip
        (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def planned(folder: Path, device: str = "cpu", cases: int | None = None, **layout):
    found = find_layout(folder, **layout)
    found = replace(found, cases=found.cases[:cases])
    return plan("own", found, take_fingerprint(found, accept=True, progress=False), 16.0, device)


def reason(folder: Path) -> str:
    made = planned(folder)
    assert made.mirror_axes == ()
    return made.reasons["mirror_axes"]


@pytest.mark.parametrize("names", [*TEN, None])
def test_a_pair_is_not_mirrored_under_any_name_and_the_bundle_says_why(tmp_path, names):
    data = write(tmp_path / "data", [pair_of_limbs(n) for n in range(5)], names)
    folder = new_bundle("pair", data, tmp_path / "pair", device="cpu", memory_gib=4.0)
    one, two = names or ("class_1", "class_2")
    why = f"none: '{one}' lies to the left of '{two}' in 5 of 5 cases"
    text = (folder / "configs" / "train.yaml").read_text()
    assert yaml.safe_load(text)["train"]["augmentation"]["mirror_axes"] == []
    assert [line.partition("# ")[2] for line in text.splitlines() if "mirror_axes" in line] == [why]
    text = (folder / "configs" / "inference.yaml").read_text()
    assert yaml.safe_load(text)["tta_axes"] == []
    assert why in text


@pytest.mark.parametrize("names", [("lh", "rh"), None])
def test_a_check_tells_of_a_bundle_that_mirrors_a_pair(tmp_path, names):
    data = write(tmp_path / "data", [pair_of_limbs(n) for n in range(5)], names)
    patterns = {} if names else {"images": ["imagesTr/*.nii.gz"], "labels": "labelsTr/*.nii.gz"}
    folder = new_bundle("pair", data, tmp_path / "pair", device="cpu", memory_gib=4.0, **patterns)
    assert not [line for line in check(folder, data).lines if "mirrors" in line]
    config = folder / "configs" / "train.yaml"
    config.write_text(config.read_text().replace("mirror_axes: []", "mirror_axes: [0]"))
    (note,) = (line for line in check(folder, data).lines if "mirrors" in line)
    assert "training mirrors along axes [0], but '" in note


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "PIR", "SAL"])
def test_left_and_right_are_the_bodys_however_the_voxels_lie(tmp_path, codes):
    labels = [pair_of_limbs(n) for n in range(5)]
    assert "'class_1' lies to the left of 'class_2'" in reason(write(tmp_path, labels, codes=codes))


def test_left_and_right_are_the_bodys_in_an_oblique_scan(tmp_path):
    affine = rotated(2, 25) @ rotated(1, -20) @ np.diag([1.0, 1.0, 1.5, 1.0])
    labels = [pair_of_limbs(n) for n in range(5)]
    assert "'class_1' lies to the left of 'class_2'" in reason(write(tmp_path, labels, affine=affine))


def test_a_pair_whose_headers_confuse_left_and_right_lies_side_by_side(tmp_path):
    affines = [np.diag([1.0 if n % 2 else -1.0, 1, 1, 1]) for n in range(6)]
    labels = [pair_of_limbs(n) for n in range(6)]
    assert "'class_1' and 'class_2' lie side by side in 6 of 6 cases" in reason(write(tmp_path, labels, affine=affines))


def test_a_pair_that_lies_in_any_direction_is_known_by_its_shape(tmp_path):
    draw = np.random.default_rng(3)
    affines = [rotated(2, 90 + draw.normal(0, 10)) @ rotated(0, draw.uniform(0, 360)) for _ in range(6)]
    labels = [pair_of_limbs(n) for n in range(6)]
    assert "are each other's mirror image in 6 of 6 cases" in reason(write(tmp_path, labels, affine=affines))


def test_classes_that_are_never_in_one_case_may_be_two_sides(tmp_path):
    draw = np.random.default_rng(0)
    crops = [limb(draw)[:: 1 - 2 * (n % 2)] * np.uint8(1 + n % 2) for n in range(6)]
    assert "'class_1' and 'class_2' are never together" in reason(write(tmp_path, crops))


def test_one_pair_among_many_classes_is_enough_and_told(tmp_path):
    labels = []
    for n in range(5):
        label = pair_of_limbs(n)
        label[11:15, 1:3, 2:10], label[10:16, 14:16, 2:10] = 3, 4  # in the middle, like a spine
        labels.append(label)
    assert "'class_1' lies to the left of 'class_2'" in reason(write(tmp_path, labels))


def test_few_cases_say_that_chance_is_not_ruled_out(tmp_path):
    why = reason(write(tmp_path, [pair_of_limbs(0)]))
    assert why == "none: 'class_1' lies to the left of 'class_2' in 1 of 1 case; too few to rule out chance"


def test_a_gpu_plan_with_sides_mirrors_no_axis_either(tmp_path):
    assert planned(write(tmp_path / "own", [pair_of_limbs(n) for n in range(5)]), "cuda").mirror_axes == ()
    official = write(
        tmp_path / "Task04_Hippocampus", [pair_of_limbs(0)], ("Anterior", "Posterior"), case="hippocampus_{}01"
    )
    made = planned(official, "cuda")
    assert (made.task, made.mirror_axes) == ("hippocampus", ())


def test_parts_in_front_of_above_and_inside_of_each_other_are_mirrored(tmp_path):
    labels = []
    for n in range(6):
        draw = np.random.default_rng(n)
        label = np.zeros((20, 20, 20), np.uint8)
        label[4:16, 2:10, 4:16] = 1
        label[4:16, 10:18, 4:16] = 2
        x, y, z = draw.integers(5, 12, 3)
        label[x : x + 3, y : y + 3, z : z + 3] = 3  # a lesion, here and there
        label[5:15, 6:12, 17:20] = 4
        labels.append(label)
    made = planned(write(tmp_path, labels))
    assert made.mirror_axes == (0,)
    assert made.reasons["mirror_axes"] == "left and right; no class belongs to one side"


def test_an_organ_on_one_side_is_mirrored_and_the_doubt_is_told(tmp_path):
    labels = [np.where(pair_of_limbs(n) == 1, np.uint8(1), np.uint8(0)) for n in range(5)]
    made = planned(write(tmp_path, labels, ["spleen"]))
    assert made.mirror_axes == (0,)
    assert "'spleen' lies left of the scan's middle in 5 of 5 cases" in made.reasons["mirror_axes"]
    assert planned(write(tmp_path / "named", labels, ["left kidney"])).mirror_axes == ()


def test_places_are_those_of_the_voxels(tmp_path):
    label = np.zeros((10, 8, 6), np.uint8)
    label[1:3, 2:6, 4] = 1
    (case,) = take_fingerprint(find_layout(write(tmp_path, [label], codes="LPS")), True, False).cases
    place = case.places[1]
    # mean index (1.5, 3.5, 4), the scan's middle (4.5, 3.5, 2.5), voxels of 1 x 1 x 1.5 mm
    assert place.centre == (-3.0, 0.0, 2.25)
    # a box of 2 x 4 x 1.5 mm: its edges by the root of 12
    assert place.spread == (0.58, 1.15, 0.43)
    np.testing.assert_allclose(place.skew, 0, atol=1e-6)


def test_the_fingerprints_file_holds_the_places(tmp_path):
    found = take_fingerprint(find_layout(write(tmp_path, [pair_of_limbs(0)])), True, False)
    place = json.loads(found.to_json())["cases"][0]["places"]["1"]
    assert place == {"centre": list(found.cases[0].places[1].centre), "spread": list(found.cases[0].places[1].spread)}


def test_names_of_regions_count(tmp_path):
    assert find_side({"background": 0, "a": 1, "b": 2}, (), ["Lunge links", "Lunge rechts"]) != ""


# --- real data


@pytest.fixture(scope="module")
def hippocampi(hippocampus_data):
    """Ten crops of one hippocampus each, all of one side."""
    found = []
    for file in sorted((hippocampus_data / "labelsTr").glob("*.nii.gz"))[:20]:
        label = np.asarray(nib.load(file).dataobj).astype(np.uint8)
        front, back = (np.argwhere(label == v)[:, 0].mean() for v in (1, 2))
        found.append(label if back < front else label[::-1])  # the tail lies farther from the middle of the head
    return found[:10]


def test_a_real_hippocampus_beside_anothers_mirror_image_is_not_mirrored(tmp_path, hippocampi):
    volumes = []
    for one, other in zip(hippocampi[::2], hippocampi[1::2], strict=True):
        volume = np.zeros((120, 60, 60), np.uint8)
        for value, part, at in ((1, one, 5), (2, other[::-1], 70)):
            x, y, z = part.shape
            volume[at : at + x, :y, :z] = value * (part > 0)
        volumes.append(volume)
    assert "'class_1' lies to the left of 'class_2' in 5 of 5 cases" in reason(write(tmp_path, volumes))


def test_real_crops_of_one_side_each_are_not_mirrored(tmp_path, hippocampi):
    crops = [(c[:: 1 - 2 * (n % 2)] > 0) * np.uint8(1 + n % 2) for n, c in enumerate(hippocampi)]
    assert "'class_1' and 'class_2' are never together" in reason(write(tmp_path, crops))
    parts = [np.where(c > 0, c + 2 * (n % 2), 0)[:: 1 - 2 * (n % 2)].astype(np.uint8) for n, c in enumerate(hippocampi)]
    assert "are never together" in reason(write(tmp_path / "parts", parts))  # anterior and posterior of each side


@pytest.mark.parametrize("task", ["Task01_BrainTumour", "Task02_Heart", "Task03_Liver", "Task04_Hippocampus",
                                  "Task06_Lung", "Task07_Pancreas", "Task08_HepaticVessel",
                                  "Task09_Spleen"])  # fmt: skip
def test_real_classes_without_a_side_are_mirrored(shared, task):
    folder = shared / "data" / task
    cases = {"Task04_Hippocampus": 30}.get(task, 2)
    made = planned(folder, cases=cases)
    assert made.mirror_axes == (0,)
    found = take_fingerprint(replace(layout := find_layout(folder), cases=layout.cases[:cases]), True, False)
    assert find_side({f"class_{v}": v for v in found.classes.values()}, found.cases) == ""  # nor without their names


def test_zones_of_a_real_prostate_are_mirrored(shared, tmp_path):
    label = nib.load(next((shared / "data" / "Task05_Prostate" / "labelsTr_zones_AI").glob("*.nii.gz")))
    folder = write(tmp_path, [np.asarray(label.dataobj).astype(np.uint8)], affine=label.affine)
    assert planned(folder).mirror_axes == (0,)
