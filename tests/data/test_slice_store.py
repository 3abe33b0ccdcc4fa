"""Slices from the store are the slices of the transformed volumes, whatever befalls the files."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import pickle
import resource
import shutil
import time
from collections import namedtuple

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Lambdad,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandFlipd,
    SpatialCropd,
)

from decathlete.data import SliceDataset, slice_store
from decathlete.errors import ConfigError, DataError, GeometryError
from decathlete.files import lock
from decathlete.transforms import BatchAugment

KEYS = ["image", "label"]
SHAPES = {"a": (6, 7, 5), "b": (6, 7, 4), "c": (30, 40, 20)}


def _chain(*more) -> Compose:
    return Compose(
        [
            LoadImaged(KEYS, reader="decathlete.transforms.NiftiReader"),
            EnsureChannelFirstd(KEYS),
            Orientationd(KEYS, axcodes="RAS", labels=None),
            NormalizeIntensityd("image"),
            *more,
        ]
    )


@pytest.fixture
def cases(tmp_path) -> list[dict]:
    """Three volumes, the second stored with two axes flipped; label 1 on slices 1 and 2, label 2 on slice 2."""
    rng = np.random.default_rng(0)
    made = []
    for name, shape in SHAPES.items():
        label = np.zeros(shape, np.uint8)
        label[1:4, 2, 1:3] = 1
        label[0, 0:5, 2] = 2
        affine = np.diag([-1, -1, 3, 1] if name == "b" else [1, 2, 3, 1])
        case = {"case_id": name}
        for key, values in (("image", rng.integers(0, 99, shape).astype(np.int16)), ("label", label)):
            case[key] = str(tmp_path / f"{name}_{key}.nii.gz")
            nib.save(nib.Nifti1Image(values, affine), case[key])
        made.append(case)
    return made


@pytest.fixture
def store(tmp_path):
    """Function (cases, *further transforms, **settings) that opens a store of its own for this test."""

    def make(cases, *more, chain=None, **settings) -> SliceDataset:
        settings = {"cache_dir": tmp_path / "cache", "progress": False} | settings
        return SliceDataset(cases, chain or _chain(*more), **settings)

    make.folder = tmp_path / "cache"
    return make


def _files(folder) -> list:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _in_process(function) -> multiprocessing.Process:
    """Run a function in a process of its own, with all that this one has."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    return process


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_those_of_the_transformed_volumes(cases, store, axis):
    dataset = store(cases, axis=axis)
    volumes = [_chain()(dict(case)) for case in cases]
    assert len(dataset) == sum(shape[axis] for shape in SHAPES.values())
    for number, item in enumerate(dataset):
        volume = volumes[dataset.cases[number]]
        assert item["case_id"] == volume["case_id"]
        assert item["slice"] == dataset.slices[number]
        for key in KEYS:
            assert item[key].dtype == torch.float32
            assert torch.equal(item[key], volume[key].as_tensor().select(axis + 1, item["slice"]))


def test_neighbours_are_channels_from_the_lowest_and_the_last_slice_is_repeated(cases, store):
    dataset = store(cases[:1], neighbours=2)
    volume = _chain()(dict(cases[0]))["image"].as_tensor()[0]
    for z, expected in ((0, [0, 0, 0, 1, 2]), (2, [0, 1, 2, 3, 4]), (4, [2, 3, 4, 4, 4])):
        assert torch.equal(dataset[z]["image"], volume[..., expected].movedim(-1, 0))
        assert dataset[z]["label"].shape == (1, 6, 7)


def test_neighbours_of_several_channels_come_slice_by_slice(cases, store):
    dataset = store(cases[:1], Lambdad("image", func=lambda x: torch.cat([x, -x])), neighbours=1)
    below, at = dataset[1]["image"][:2], dataset[1]["image"][2:4]
    assert torch.equal(dataset[0]["image"][2:4], below)
    assert torch.equal(at[0], -at[1])


def test_voxels_of_each_class_are_counted(cases, store):
    dataset = store(cases[:2])
    assert dataset.counts.tolist()[:5] == [[42, 0, 0], [39, 3, 0], [34, 3, 5], [42, 0, 0], [42, 0, 0]]
    assert dataset.cases.tolist() == [0] * 5 + [1] * 4
    assert dataset.slices.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert store(cases[:1], num_classes=4).counts.shape == (5, 4)
    assert store(cases[:1], keys="image", num_classes=2).counts.tolist() == [[0, 0]] * 5


def test_label_of_large_values_keeps_values_and_type(cases, store):
    dataset = store(cases[:1], Lambdad("label", func=lambda x: x.to(torch.int32) * 300))
    assert dataset[2]["label"].dtype == torch.int32
    assert dataset[2]["label"].unique().tolist() == [0, 300, 600]
    assert dataset.counts[2, [300, 600]].tolist() == [3, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int16])
def test_image_of_any_type_is_read_as_float32(cases, store, dtype):
    dataset = store(cases[:1], Lambdad("image", func=lambda x: (x * 10).to(dtype)))
    expected = (_chain()(dict(cases[0]))["image"].as_tensor() * 10).to(dtype).float()
    assert dataset[3]["image"].dtype == torch.float32
    assert torch.equal(dataset[3]["image"], expected[..., 3])


def test_random_transforms_are_drawn_anew_for_each_slice(cases, store):
    flip = RandFlipd(KEYS, prob=0.5, spatial_axis=0)
    dataset = store(cases[:1], flip)
    dataset.transform.set_random_state(seed=0)
    assert len({float(dataset[2]["image"][0, 0, 0]) for _ in range(20)}) == 2


def test_workers_and_a_pickled_copy_give_the_same_slices(cases, store):
    dataset = store(cases[:2])
    expected = torch.stack([item["image"] for item in dataset])
    loader = DataLoader(pickle.loads(pickle.dumps(dataset)), batch_size=4, num_workers=2)
    batches = list(loader)
    assert torch.equal(torch.cat([batch["image"] for batch in batches]), expected)
    assert [name for batch in batches for name in batch["case_id"]] == ["a"] * 5 + ["b"] * 4


def test_image_and_mask_of_a_batch_are_moved_alike(cases, store):
    torch.manual_seed(0)
    blob = Lambdad("label", func=lambda x: torch.nn.functional.pad(torch.ones(1, 12, 16, 20), (0, 0, 12, 12, 9, 9)))
    dataset = store(cases[2:], blob, Lambdad("image", func=lambda x: x * 0), num_classes=2)
    batch = next(iter(DataLoader(dataset, batch_size=20)))
    batch["image"] = batch["label"].clone()
    augment = BatchAugment(
        [24, 32], 2, prob=1.0, scale=0.1, rotation=math.pi / 4, translation=4, elastic=1.5, mirror_axes=[0, 1],
        intensity_scale=0, intensity_shift=0, noise_prob=0, gamma_prob=0)  # fmt: skip
    moved = augment(batch)
    assert torch.allclose(moved["image"][:, 0], moved["label"][:, 1], atol=1e-5)
    assert len({round(float(image.sum()), 3) for image in moved["image"]}) == 20


def test_each_volume_is_transformed_once(cases, store, tmp_path):
    def mark(image):
        with (tmp_path / "marks").open("a") as file:
            file.write("x")
        return image

    for given, expected in ((cases[:2], 2), (cases, 3), (cases[::-1], 3), (cases + cases, 3)):
        dataset = store(given, Lambdad("image", func=mark))
        assert len((tmp_path / "marks").read_text()) == expected
    assert len(dataset) == 2 * (5 + 4 + 20)


def test_other_settings_and_changed_files_are_other_entries(cases, store):
    def count(**settings) -> int:
        store(cases[:1], **settings)
        return len(list(store.folder.rglob("index.json")))

    assert count() == 1
    assert count(neighbours=3, num_classes=5) == 1
    assert count(axis=0) == 2
    assert count(keys=["image"]) == 3
    os.utime(cases[0]["image"], ns=(time.time_ns(), time.time_ns() + 1))
    assert count() == 4


@pytest.mark.parametrize(
    "damage", ["flipped bit", "cut npy", "lost npy", "cut index", "other json", "foreign index", "foreign npy"]
)
def test_damaged_entry_is_made_again(cases, store, damage, caplog):
    expected = [item["image"] for item in store(cases[:2])]
    first, second = (path.parent for path in sorted(store.folder.rglob("index.json")))
    index, voxels = first / "index.json", first / "image.npy"
    content = bytearray(voxels.read_bytes())
    content[-5] ^= 1
    {
        "flipped bit": lambda: voxels.write_bytes(content),
        "cut npy": lambda: voxels.write_bytes(content[: len(content) // 2]),
        "lost npy": voxels.unlink,
        "cut index": lambda: index.write_text(index.read_text()[:50]),
        "other json": lambda: index.write_text("[]"),
        "foreign index": lambda: shutil.copy(second / "index.json", index),
        "foreign npy": lambda: shutil.copy(second / "image.npy", voxels),
    }[damage]()
    for found, right in zip(store(cases[:2]), expected, strict=True):
        assert torch.equal(found["image"], right)
    assert caplog.text.count("damaged, made again") == 1
    caplog.clear()
    store(cases[:2])
    assert "damaged" not in caplog.text


def test_a_file_that_goes_while_it_is_read_is_told(cases, store):
    dataset = store(cases[:1])
    next(store.folder.rglob("image.npy")).write_bytes(b"short")
    with pytest.raises(DataError, match=r"image\.npy.*Start again"):
        dataset[3]


def test_a_killed_builder_leaves_what_it_finished_and_no_lock(cases, store, tmp_path):
    marks = tmp_path / "marks"

    def mark(image):
        with marks.open("a") as file:
            file.write(f"{image.shape[-1]} ")
        if image.shape[-1] == 4 and marks.read_text().count("4 ") == 1:
            os._exit(1)  # at once, as a kill does
        return image

    killed = _in_process(lambda: store(cases, Lambdad("image", func=mark), num_workers=1))
    killed.join(60)
    assert killed.exitcode == 1
    assert len(store(cases, Lambdad("image", func=mark))) == 29
    assert sorted(marks.read_text().split()) == ["20", "4", "4", "5"]
    assert not list(store.folder.rglob("*lock*"))


def test_what_a_killed_builder_left_goes_when_others_are_built(cases, store):
    def stop(image):
        folder = next(store.folder.glob("slices/??")) / "ab12"  # a volume that nobody asks for again
        folder.mkdir()
        (folder / "image.npy").write_bytes(b"half")
        os._exit(1)

    killed = _in_process(lambda: store(cases[:1], Lambdad("image", func=stop)))
    killed.join(60)
    assert killed.exitcode == 1
    assert len(_files(store.folder)) == 2  # the half volume, and the lock of its builder
    with lock(next(store.folder.glob("slices/??/ab12"))):
        store(cases[1:2])
        assert "image.npy" in [p.name for p in store.folder.glob("slices/??/ab12/*")]
    store(cases[1:2])
    assert [path.name for path in _files(store.folder)] == ["image.npy", "index.json", "label.npy"]
    assert len(list(store.folder.glob("slices/??/*"))) == 1


def test_volume_that_is_built_anew_is_not_deleted_under_its_builder(cases, store):
    store(cases[:1])
    index = next(store.folder.rglob("index.json"))
    os.utime(index, (0, 0))
    with lock(index.parent):
        store(cases[1:2])
        assert index.is_file()
    store(cases[1:2])
    assert not index.parent.exists()


def test_two_processes_at_once_build_each_volume_once(cases, store, tmp_path):
    marks = tmp_path / "marks"

    def slow(image):
        with marks.open("a") as file:
            file.write(f"{image.shape[-1]} {os.getpid()}\n")
        time.sleep(0.3)
        return image

    def build() -> None:
        os._exit(0 if len(store(cases, Lambdad("image", func=slow), num_workers=1)) == 29 else 1)

    processes = [_in_process(build) for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    lines = [line.split() for line in marks.read_text().splitlines()]
    assert sorted(shape for shape, _ in lines) == ["20", "4", "5"]
    assert len({process for _, process in lines}) == 2


def test_full_disk_is_told_and_finished_volumes_are_kept(cases, store):
    def build() -> None:
        # no file may grow beyond this: the third volume's image does, as on a full disk, when its label is written
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            store(cases, keys=["label", "image"], num_workers=1)
        except DataError as error:
            text = str(error)
            os._exit(0 if "the slices cannot be written" in text and "DECATHLETE_CACHE" in text else 2)
        os._exit(1)

    process = _in_process(build)
    process.join(60)
    assert process.exitcode == 0
    assert [path.name for path in _files(store.folder)] == ["image.npy", "index.json", "label.npy"] * 2
    assert len(store(cases, keys=["label", "image"])) == 29


def test_size_is_told_and_a_disk_without_room_refused_before_the_rest_is_built(cases, store, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 10**5, 10**5))
    with pytest.raises(DataError, match=r"about 0\.00 GiB needed.*set DECATHLETE_CACHE"):
        store(cases)  # the third volume takes 120,000 bytes
    assert "slices take about 0.00 GiB" in caplog.text
    assert len(list(store.folder.rglob("index.json"))) == 1
    assert len(store(cases[:2])) == 9


def test_volumes_at_once_are_limited_by_memory(cases, store, monkeypatch):
    dataset = store(cases[:1])
    monkeypatch.setattr(slice_store, "cores", lambda: 8)
    monkeypatch.setattr(slice_store, "free_memory_bytes", lambda: 64 * 2**30)
    monkeypatch.setattr(slice_store, "_header_voxels", lambda case, keys: case["voxels"])
    assert dataset._workers([{"voxels": 512 * 512 * 250}, {"voxels": 10}]) == 1
    assert dataset._workers([{"voxels": 10}]) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert dataset._workers([{"voxels": 10}]) == 2


def test_folder_that_cannot_be_written_is_told(cases, store, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="DECATHLETE_CACHE"):
        store(cases, cache_dir=tmp_path / "file")


def test_mask_of_another_shape_is_refused_by_its_name(cases, store):
    cases[0]["label"] = cases[1]["label"]
    with pytest.raises(GeometryError, match=r"b_label\.nii\.gz.*image \(5, 6, 7\), label \(4, 6, 7\)"):
        store(cases)
    assert _files(store.folder) == []


def test_volume_without_a_slice_left_is_refused_by_its_name(cases, store):
    with pytest.raises(DataError, match=r"a_label\.nii\.gz: no slice is left"):
        store(cases, Lambdad(KEYS, func=lambda x: x[..., 30:]))
    assert len(store(cases[2:], SpatialCropd(KEYS, roi_slices=[slice(None), slice(None), slice(15, None)]))) == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda x: x / 2, r"whole numbers from 0.*\(0.5"), (lambda x: x - 1, r"\(-1"), (lambda x: x / 0, "whole")],
)
def test_label_that_holds_no_classes_is_refused_by_its_name(cases, store, change, words):
    with pytest.raises(DataError, match=rf"a_label\.nii\.gz: label values.*{words}"):
        store(cases, Lambdad("label", func=change))


def test_class_beyond_their_number_is_refused_by_the_case(cases, store):
    with pytest.raises(DataError, match=r"a_label\.nii\.gz: label values must be from 0 to 1.*value 2 in 5 voxels"):
        store(cases, num_classes=2)


def test_no_cases_and_unreadable_cases_are_told(cases, store, tmp_path):
    with pytest.raises(DataError, match="no cases given"):
        store([])
    cases[1]["image"] = str(tmp_path / "lost.nii.gz")
    with pytest.raises(DataError, match=r"lost\.nii\.gz: no such file"):
        store(cases)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"axis": 3}, "axis: must be 0, 1 or 2"),
        ({"neighbours": -1}, "neighbours.*-1"),
        ({"keys": []}, "keys"),
        ({"keys": ["image", "mask"]}, "'mask' before the first random transform"),
        ({"chain": _chain(Lambdad("image", func=lambda x: x[0]))}, r"\(C, X, Y, Z\)"),
        ({"chain": _chain(Lambdad("label", func=lambda x: torch.cat([x, x])))}, r"\(1, X, Y, Z\)"),
    ],
)
def test_arguments_that_cannot_be_are_refused(cases, store, settings, words):
    with pytest.raises(ConfigError, match=words):
        store(cases, **settings)


def test_other_data_can_be_set(cases, store):
    dataset = store(cases[:1])
    dataset.set_data(cases[1:])
    assert dataset.data == cases[1:]
    assert {item["case_id"] for item in dataset} == {"b", "c"}
    assert len(dataset.counts) == 24


def test_cases_without_an_id_are_called_after_their_image(cases, store):
    del cases[0]["case_id"]
    assert store(cases)[0]["case_id"] == "a_image"


def test_index_holds_affine_axis_and_sizes(cases, store):
    store(cases[1:2])
    index = json.loads(next(store.folder.rglob("index.json")).read_text())
    assert np.array(index["affine"]).diagonal().tolist() == [1, 1, 3, 1]  # in RAS
    assert (index["axis"], index["case_id"], index["label_values"]) == (2, "b", [0, 1, 2])
    assert index["files"]["image"]["shape"] == [4, 1, 6, 7]
    stored = np.load(next(store.folder.rglob("label.npy")))
    assert stored.dtype == np.uint8
    assert stored.shape == (4, 1, 6, 7)


def test_entries_that_nobody_read_for_long_are_deleted(cases, store):
    store(cases[:2])
    for entry in store.folder.rglob("index.json"):
        os.utime(entry, (0, 0))
    store(cases[1:])
    kept = [json.loads(entry.read_text())["case_id"] for entry in store.folder.rglob("index.json")]
    assert sorted(kept) == ["b", "c"]
