"""NFBS: index, folds by subject, checks, and the archive from a real server on this machine."""

from __future__ import annotations

import http.server
import io
import logging
import shutil
import tarfile
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from decathlete.check import check
from decathlete.data import datalist, dataset_folder, fetch, nfbs, split, verify
from decathlete.data import download as downloads
from decathlete.data.download import download_nfbs, unpack
from decathlete.errors import DataError, UsageError
from decathlete.io.nifti import read_nifti

SUBJECTS = [f"A000{number}" for number in (28185, 31544, 28352, 33747, 35072, 28404, 40524)]


def write_heads(folder: Path, subjects: list[str], session: str = "NFB3") -> Path:
    """Tiny heads in NFBS's layout, P, I, R."""
    affine = np.array([[0, 0, 1, -98.0], [-1, 0, 0, 155.0], [0, -1, 0, 99.0], [0, 0, 0, 1.0]])
    rng = np.random.default_rng(len(list(folder.glob("*"))))
    for subject in subjects:
        head = rng.integers(1, 500, (6, 7, 5)).astype(np.int16)
        mask = np.zeros(head.shape, np.uint8)
        mask[2:4, 2:5, 1:4] = 1
        (folder / subject).mkdir(parents=True, exist_ok=True)
        for suffix, voxels in ((nfbs.IMAGE, head), (nfbs.BRAIN, head * mask), (nfbs.MASK, mask)):
            nib.save(nib.Nifti1Image(voxels, affine), folder / subject / f"sub-{subject}_ses-{session}{suffix}")
    return folder


@pytest.fixture
def heads(tmp_path) -> Path:
    return write_heads(tmp_path / "NFBS_Dataset", SUBJECTS)


def test_cases_are_heads_with_their_brain_masks(heads):
    cases = datalist(heads, part="all", task="nfbs")
    assert [case["case_id"] for case in cases] == sorted(f"sub-{s}" for s in SUBJECTS)
    assert set(cases[0]) == {"image", "label", "case_id"}
    assert cases[0]["image"] == str(heads / "A00028185/sub-A00028185_ses-NFB3_T1w.nii.gz")
    assert cases[0]["label"] == str(heads / "A00028185/sub-A00028185_ses-NFB3_T1w_brainmask.nii.gz")
    assert datalist(heads, part="test", task="nfbs") == []


def test_maps_of_tissues_are_used_where_every_head_has_one(heads):
    assert "tissues" not in nfbs.list_heads(heads)[0]
    for mask in heads.glob(f"*/*{nfbs.MASK}"):
        shutil.copy(mask, str(mask).replace(nfbs.MASK, nfbs.TISSUES))
    cases = nfbs.list_heads(heads)
    assert all(case["tissues"] == case["image"].replace(nfbs.IMAGE, nfbs.TISSUES) for case in cases)
    Path(cases[0]["tissues"]).unlink()
    assert not any("tissues" in case for case in nfbs.list_heads(heads))


def test_folds_are_cut_by_nnunets_rule_over_the_sorted_subjects(heads):
    held_out = []
    for fold in range(5):
        train, validation = split([f"sub-{s}" for s in SUBJECTS], fold)
        assert [case["case_id"] for case in datalist(heads, fold, "training", "nfbs")] == train
        assert [case["case_id"] for case in datalist(heads, fold, "validation", "nfbs")] == validation
        held_out += validation
    assert sorted(held_out) == sorted(f"sub-{s}" for s in SUBJECTS)


def test_sessions_of_a_subject_are_never_split(heads):
    write_heads(heads, SUBJECTS[:3], session="NFB4")
    assert len({case["case_id"] for case in datalist(heads, part="all")}) == 10
    for fold in range(5):
        train, validation = (
            {Path(case["image"]).parent.name for case in datalist(heads, fold, part)}
            for part in ("training", "validation")
        )
        assert not train & validation
        assert train | validation == set(SUBJECTS)


def test_heads_in_a_folder_of_any_name_are_found_and_other_layouts_are_not(heads, tmp_path, write_dataset):
    shutil.copytree(heads, tmp_path / "own heads")
    assert len(datalist(tmp_path / "own heads", "all")) == 7
    folder = write_dataset(tmp_path / "own", [f"case_{n}" for n in range(5)])
    assert len(datalist(folder, "all", task="nfbs")) == 5  # MSD's layout, folds by the ids that are there


def test_missing_mask_and_missing_data_are_named(heads, tmp_path):
    (heads / "A00028352/sub-A00028352_ses-NFB3_T1w_brainmask.nii.gz").unlink()
    with pytest.raises(DataError, match=r"sub-A00028352_ses-NFB3_T1w_brainmask\.nii\.gz: no such file"):
        datalist(heads, 0, "training", "nfbs")
    for folder in (tmp_path / "elsewhere" / "NFBS_Dataset", tmp_path / "empty" / "NFBS_Dataset"):
        with pytest.raises(DataError, match="Run 'decathlete data nfbs'"):
            datalist(folder, 0, "training", "nfbs")
        folder.mkdir(parents=True)
        with pytest.raises(DataError, match=r"\(0 cases.*Run 'decathlete data nfbs'"):
            datalist(folder, 0, "training", "nfbs")


def test_folder_is_looked_for_as_other_data_sets_are(heads, monkeypatch):
    monkeypatch.setenv("DECATHLETE_DATA", str(heads.parent))
    assert dataset_folder("NFBS_Dataset") == str(heads)
    assert fetch("NFBS_Dataset", "nowhere", verify=True) == heads


def test_sound_heads_pass_and_check_tells_of_them(heads, capsys):
    assert verify(heads, progress=False) == []
    assert check(heads).ok
    assert "7 cases checked, 1 channel(s), labels [0, 1]" in capsys.readouterr().out


def _edit(path: Path, edit) -> None:
    image = nib.load(path)
    voxels, affine = edit(np.asarray(image.dataobj).copy(), image.affine.copy())
    nib.save(nib.Nifti1Image(voxels, affine), path)


@pytest.mark.parametrize(
    ("suffix", "edit", "message"),
    [
        (nfbs.MASK, lambda v, a: (v * 2, a), "2"),
        (nfbs.MASK, lambda v, a: (v * 0.5, a), "not integers"),
        (nfbs.MASK, lambda v, a: (v[1:], a), "shape"),
        (nfbs.MASK, lambda v, a: (v, a @ np.diag([1.1, 1, 1, 1])), "affines of label and image differ"),
        (nfbs.BRAIN, lambda v, a: (v[:, 1:], a), "shape"),
        (nfbs.BRAIN, lambda v, a: (v, a + np.eye(4, k=3)), "affines of label and image differ"),
        (nfbs.IMAGE, lambda v, a: (np.where(v > 400, np.nan, v), a), "finite"),
    ],
)
def test_files_of_a_subject_that_do_not_fit_are_named(heads, suffix, edit, message):
    path = heads / "A00031544" / f"sub-A00031544_ses-NFB3{suffix}"
    _edit(path, edit)
    faults = verify(heads, progress=False)
    assert [fault for fault in faults if fault.path.parent.name != "A00031544"] == []
    assert message in "\n".join(map(str, faults))


def test_files_that_are_missing_are_named(heads):
    (heads / "A00028185/sub-A00028185_ses-NFB3_T1w.nii.gz").unlink()
    (heads / "A00031544/sub-A00031544_ses-NFB3_T1w_brain.nii.gz").unlink()
    (heads / "A00035072/sub-A00035072_ses-NFB3_T1w_brainmask.nii.gz").unlink()
    faults = sorted(str(fault).split("/")[-1] for fault in verify(heads, progress=False))
    assert len(faults) == 3
    assert faults[0].startswith("sub-A00028185_ses-NFB3_T1w_brainmask.nii.gz: belongs to no case: its head is missing")
    assert faults[1].startswith("sub-A00031544_ses-NFB3_T1w_brain.nii.gz: no such file")
    assert faults[2].startswith("sub-A00035072_ses-NFB3_T1w_brainmask.nii.gz: no such file")


def test_a_real_mask_with_a_few_voxels_between_0_and_1_is_read_with_a_note(shared):
    path = shared / "data" / "nfbs_real" / "sub-A00028185_ses-NFB3_T1w_brainmask.nii.gz"
    mask = read_nifti(path, kind="label", allowed_labels=[0, 1])
    assert mask.array.sum() == 1_319_266  # those that are 1; the others are below one half
    assert mask.notes == ["14 voxels of the mask were between 0 and 1 and were rounded"]


def test_own_heads_need_no_brains(heads):
    for path in heads.glob("*/*_brain.nii.gz"):
        path.unlink()
    assert verify(heads, progress=False) == []


# --- the archive


class _Handler(http.server.BaseHTTPRequestHandler):
    """Gives ``server.content`` from the byte that is asked for; cuts connections after ``server.cuts`` bytes."""

    def do_GET(self):
        content = self.server.content
        self.server.requests.append(self.headers.get("Range"))
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *args):
        """Keep the test's output clean."""


@pytest.fixture
def server(monkeypatch, heads):
    """A server with an archive of seven tiny heads, of the size that is asked for; the heads are gone."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(heads, heads.name)
    shutil.rmtree(heads)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.content, server.requests, server.cuts = packed.getvalue(), [], []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("DECATHLETE_NFBS_URL", f"http://127.0.0.1:{server.server_port}/NFBS_Dataset.tar.gz")
        monkeypatch.setattr(nfbs, "SIZE", len(server.content))
        monkeypatch.setattr(downloads, "_WAIT_S", 0)
        yield server
        server.shutdown()
        thread.join()


def test_archive_is_downloaded_unpacked_and_checked(server, tmp_path):
    folder = fetch("nfbs", tmp_path)
    assert folder == tmp_path / "NFBS_Dataset"
    assert len(datalist(folder, "all", task="nfbs")) == 7
    assert [p.name for p in tmp_path.iterdir()] == ["NFBS_Dataset"]
    server.requests.clear()
    assert fetch("NFBS", tmp_path) == folder
    assert server.requests == []


def test_cut_download_goes_on_where_it_stopped(server, tmp_path):
    server.cuts = [700, 0, 300]
    assert download_nfbs(tmp_path, progress=False).is_dir()
    assert server.requests == [None, "bytes=700-", "bytes=700-", "bytes=1000-"]


def test_archive_of_another_size_is_told_and_removed(server, tmp_path, monkeypatch):
    monkeypatch.setattr(nfbs, "SIZE", 1_751_464_473)
    with pytest.raises(DataError, match=rf"expected an archive of 1,751,464,473 bytes.*\({len(server.content):,}"):
        download_nfbs(tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def _archive(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_member_whose_gzip_checksum_is_wrong_is_named_and_nothing_is_left(heads, tmp_path):
    name = "A00028185/sub-A00028185_ses-NFB3_T1w.nii.gz"
    content = bytearray((heads / name).read_bytes())
    content[-8] ^= 1  # of the checksum
    archive = _archive(tmp_path / "a.tar.gz", {f"NFBS_Dataset/{name}": bytes(content)})
    (tmp_path / "new").mkdir()
    with pytest.raises(DataError, match=rf"an image in the archive is damaged.*\('NFBS_Dataset/{name}': CRC"):
        unpack(archive, tmp_path / "new" / "NFBS_Dataset", progress=False, check_gzip=True)
    assert list((tmp_path / "new").iterdir()) == []


def test_checksum_at_the_end_of_the_archive_counts(heads, tmp_path):
    name = "A00028185/sub-A00028185_ses-NFB3_T1w.nii.gz"
    archive = _archive(tmp_path / "a.tar.gz", {f"NFBS_Dataset/{name}": (heads / name).read_bytes()})
    content = bytearray(archive.read_bytes())
    content[-8] ^= 1
    archive.write_bytes(content)
    (tmp_path / "new").mkdir()
    with pytest.raises(DataError, match=r"the archive is damaged.*CRC"):
        unpack(archive, tmp_path / "new" / "NFBS_Dataset", progress=False)


def test_archive_that_leads_out_or_holds_no_heads_is_refused(tmp_path):
    folder = tmp_path / "new" / "NFBS_Dataset"
    folder.parent.mkdir()
    with pytest.raises(DataError, match="a member of the archive leads out of its folder"):
        unpack(_archive(tmp_path / "a.tar.gz", {"NFBS_Dataset/../../escaped": b"x"}), folder, progress=False)
    with pytest.raises(DataError, match=r"does not hold NFBS_Dataset with heads in their subjects' folders"):
        unpack(_archive(tmp_path / "b.tar.gz", {"NFBS_Dataset/readme": b"x"}), folder, progress=False)
    assert list(folder.parent.iterdir()) == []


def test_verify_names_the_faults(heads, tmp_path, caplog):
    (heads / "A00031544/sub-A00031544_ses-NFB3_T1w_brainmask.nii.gz").unlink()
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match="1 fault, named"):
        fetch("nfbs", tmp_path, verify=True)
    assert "sub-A00031544" in caplog.text


def test_a_name_that_is_nearly_right_is_answered(tmp_path):
    with pytest.raises(UsageError, match="nfbs"):
        fetch("nfsb", tmp_path)
