"""Cases kept in memory or on disk give what their transforms give."""

from __future__ import annotations

import gzip
import logging
import os
import time

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Invertd,
    Lambdad,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandFlipd,
    Spacingd,
)

from decathlete.data import CachedDataset, cache, datalist
from decathlete.data.cache import describe_case, load_entry, prune, save_entry
from decathlete.errors import DataError
from decathlete.files import lock

KEYS = ["image", "label"]


def _chain(*more, spacing=(1.5, 1.5, 1.5)) -> Compose:
    return Compose(
        [
            LoadImaged(KEYS, reader="decathlete.transforms.NiftiReader"),
            EnsureChannelFirstd(KEYS),
            Orientationd(KEYS, axcodes="LPS", labels=None),
            Spacingd(KEYS, pixdim=spacing, mode=("bilinear", "nearest")),
            NormalizeIntensityd("image"),
            *more,
        ]
    )


@pytest.fixture
def cases(tmp_path, write_dataset):
    return datalist(write_dataset(tmp_path / "set", ["a", "b", "c"]), part="all")


def _entries(folder) -> list:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_disk_gives_voxels_affine_and_meta_that_memory_gives(cases, tmp_path):
    disk = CachedDataset(cases, _chain(), mode="disk", cache_dir=tmp_path / "cache")
    for _ in range(2):  # made, then read
        for ours, theirs in zip(disk, CacheDataset(cases, _chain(), progress=False), strict=True):
            for key in KEYS:
                assert isinstance(ours[key], MetaTensor)
                assert torch.equal(ours[key].as_tensor(), theirs[key].as_tensor())
                assert torch.equal(ours[key].affine, theirs[key].affine)
                assert ours[key].affine.dtype == theirs[key].affine.dtype
                assert set(ours[key].meta) == set(theirs[key].meta)
                for name in ("original_affine", "spatial_shape", "filename_or_obj"):
                    np.testing.assert_array_equal(ours[key].meta[name], theirs[key].meta[name])
            assert ours["case_id"] == theirs["case_id"]
    assert len(_entries(tmp_path / "cache")) == 3 * 3  # JSON, image, label


def test_case_from_disk_can_be_inverted(cases, tmp_path):
    for _ in range(2):
        chain = _chain()
        item = CachedDataset(cases, chain, mode="disk", cache_dir=tmp_path / "cache")[1]
        item["pred"] = MetaTensor(item["label"].clone(), meta=item["label"].meta)
        back = Invertd("pred", transform=chain, orig_keys="label", nearest_interp=True)(item)["pred"]
        assert back.shape == (1, 5, 6, 7)


def test_random_transforms_are_drawn_anew(cases, tmp_path):
    chain = _chain(RandFlipd(KEYS, prob=0.5, spatial_axis=0)).set_random_state(seed=0)
    for mode in ("disk", "ram"):
        dataset = CachedDataset(cases, chain, mode=mode, cache_dir=tmp_path, progress=False)
        assert len({float(dataset[0]["image"][0, 0, 0, 0]) for _ in range(20)}) == 2


def test_auto_takes_the_disk_where_memory_is_short(cases, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    assert CachedDataset(cases, _chain(), cache_dir=tmp_path / "cache", progress=False).mode == "ram"
    assert "kept in memory" in caplog.text
    monkeypatch.setattr(cache, "free_memory_bytes", lambda: 10_000)
    dataset = CachedDataset(cases, _chain(), cache_dir=tmp_path / "cache", progress=False)
    assert dataset.mode == "disk"
    assert f"kept in {tmp_path / 'cache'}" in caplog.text
    assert len(list(DataLoader(dataset, batch_size=1, num_workers=2))) == 3


@pytest.mark.parametrize(("free", "moved"), [(1e12, True), (1e3, False)])
def test_cases_go_to_the_device_where_they_fit(cases, monkeypatch, caplog, free, moved):
    """Seen by the tensors that NumPy arrays turn into: a device of its own is rare."""
    monkeypatch.setattr(cache, "free_device_bytes", lambda device: free)
    weighted = [case | {"weights": np.ones(3), "places": [np.arange(3)]} for case in cases]
    with caplog.at_level(logging.INFO):
        dataset = CachedDataset(weighted, _chain(RandFlipd("image", prob=1.0)), mode="ram", device="cpu")
    assert isinstance(dataset[0]["weights"], torch.Tensor if moved else np.ndarray)
    assert isinstance(dataset[0]["places"][0], np.ndarray)  # a crop reads single numbers of them
    assert isinstance(dataset[0]["image"], MetaTensor)
    assert isinstance(dataset[0]["case_id"], str)
    assert ("more than half of what is free on cpu" in caplog.text) != moved


def test_each_case_is_transformed_once(cases, tmp_path):
    calls = []
    chain = _chain(Lambdad("image", func=lambda x: calls.append(1) or x))
    for mode, expected in (("ram", 3), ("disk", 3), ("none", 6)):
        calls.clear()
        dataset = CachedDataset(cases, chain, mode=mode, cache_dir=tmp_path, progress=False)
        for _ in range(2):
            assert len(list(dataset)) == 3
        assert len(calls) == expected


def test_other_settings_and_changed_files_are_other_entries(cases, tmp_path):
    def count(**settings) -> int:
        list(CachedDataset(cases[:1], _chain(**settings), mode="disk", cache_dir=tmp_path / "cache"))
        return len(list((tmp_path / "cache").rglob("*.json")))

    assert count() == 1
    assert count() == 1
    assert count(spacing=(2, 2, 2)) == 2
    os.utime(cases[0]["image"], ns=(time.time_ns(), time.time_ns() + 1))
    assert count() == 3


def test_a_corrected_file_with_the_times_and_size_of_the_one_before_is_another_entry(tmp_path):
    path = tmp_path / "label.nii.gz"
    described = []
    for content in (b"\0\1\1\0", b"\0\2\2\0"):
        path.write_bytes(gzip.compress(content, compresslevel=0, mtime=0))
        os.utime(path, ns=(0, 0))
        described.append(describe_case({"label": str(path)}))
    assert described[0] != described[1]
    assert described[0]["label"][:3] == described[1]["label"][:3]


def test_transforms_that_were_used_find_the_same_entries(cases, tmp_path):
    chain = _chain()
    for _ in range(2):
        list(CachedDataset(cases[:1], chain, mode="disk", cache_dir=tmp_path / "cache"))
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1


@pytest.mark.parametrize("damage", ["cut json", "cut npy", "flipped bit", "lost npy", "other json"])
def test_damaged_entry_is_made_again(cases, tmp_path, damage):
    dataset = CachedDataset(cases[:1], _chain(), mode="disk", cache_dir=tmp_path / "cache")
    good = dataset[0]["image"].clone()
    entry = next((tmp_path / "cache").rglob("*.json"))
    voxels = next((tmp_path / "cache").rglob("*.npy"))
    content = bytearray(voxels.read_bytes())
    content[-5] ^= 1
    {
        "cut json": lambda: entry.write_text(entry.read_text()[:50]),
        "cut npy": lambda: voxels.write_bytes(content[: len(content) // 2]),
        "flipped bit": lambda: voxels.write_bytes(content),
        "lost npy": voxels.unlink,
        "other json": lambda: entry.write_text("[]"),
    }[damage]()
    assert load_entry(entry) is None
    assert torch.equal(dataset[0]["image"], good)
    assert load_entry(entry) is not None


def test_values_of_many_kinds_come_back_as_they_were(tmp_path):
    item = {
        "bf16": torch.arange(900, dtype=torch.bfloat16),
        "small": torch.tensor([1.5, float("nan")]),
        "array": np.arange(2000, dtype=np.uint16).reshape(40, 50),
        "scalar": torch.tensor(3),
        "empty": np.zeros((0, 3), np.float32),
        "nested": [{"a": (1, None, True)}, "text", 2.5],
        7: "number as key",
    }
    save_entry(tmp_path / "x.json", item)
    back = load_entry(tmp_path / "x.json")
    assert list(back) == list(item)
    assert back["bf16"].dtype == torch.bfloat16
    assert torch.equal(back["bf16"], item["bf16"])
    for name in ("small", "array", "scalar", "empty"):
        assert type(back[name]) is type(item[name])
        assert back[name].dtype == item[name].dtype
        np.testing.assert_array_equal(back[name], item[name])
    assert back["nested"] == item["nested"]


def test_what_cannot_be_kept_is_said_and_still_used(cases, tmp_path, caplog):
    chain = _chain(Lambdad("case_id", func=lambda x: object()))
    dataset = CachedDataset(cases[:1], chain, mode="disk", cache_dir=tmp_path / "cache")
    assert dataset[0]["image"].shape[0] == 1
    assert "not cached on disk: a value of type object" in caplog.text


@pytest.mark.parametrize("mode", ["auto", "ram", "disk", "none"])
def test_unreadable_case_is_told_by_the_reader(cases, tmp_path, mode):
    cases[0]["image"] = str(tmp_path / "lost.nii.gz")
    with pytest.raises(DataError, match=r"lost\.nii\.gz: no such file"):
        list(CachedDataset(cases, _chain(), mode=mode, cache_dir=tmp_path, progress=False))


def test_folder_that_cannot_be_written_is_told(cases, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="DECATHLETE_CACHE"):
        CachedDataset(cases, _chain(), mode="disk", cache_dir=tmp_path / "file")[0]


def test_other_data_can_be_set(cases, tmp_path):
    dataset = CachedDataset(cases[:1], _chain(), cache_dir=tmp_path, progress=False)
    dataset.set_data(cases)
    assert [item["case_id"] for item in dataset] == ["a", "b", "c"]
    assert dataset.data == cases
    assert isinstance(dataset.transform, Compose)


def test_entries_that_nobody_read_for_long_are_deleted(cases, tmp_path):
    folder = tmp_path / "cache"
    list(CachedDataset(cases[:2], _chain(), mode="disk", cache_dir=folder))
    old, read_again = folder.rglob("*.json")
    for entry in (old, read_again):
        os.utime(entry, (0, 0))
    assert load_entry(read_again) is not None
    CachedDataset(cases, _chain(), mode="disk", cache_dir=folder)
    assert {path.name[:64] for path in _entries(folder)} == {read_again.stem}


def test_arrays_that_a_killed_process_left_go_unless_somebody_writes_their_entry(tmp_path):
    path = tmp_path / "ab" / "ab12.json"
    save_entry(path, {"voxels": np.zeros(1000)})
    path.unlink()  # as one that was killed before it came to write it
    with lock(path):
        prune(tmp_path, 60)
        assert [p.name for p in path.parent.glob("*.npy")] == ["ab12-0.npy"]
    prune(tmp_path, 60)
    assert list(path.parent.iterdir()) == []


def test_old_entry_that_is_written_again_is_not_deleted_under_the_writer(tmp_path):
    path = tmp_path / "ab" / "ab12.json"
    save_entry(path, {"voxels": np.zeros(1000)})
    os.utime(path, (0, 0))
    with lock(path):  # what whoever writes it holds
        prune(tmp_path, 60)
        assert len(list(path.parent.glob("ab12*"))) == 2
    assert load_entry(path) is not None
