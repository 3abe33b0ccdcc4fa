"""Fixtures that all tests may use."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import resource
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

os.environ.setdefault("OMP_NUM_THREADS", "2")
# read when torch is loaded: where other programs need the cores too, threads that wait by spinning take them all
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# what this user trusts is nothing to the tests
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="decathlete_settings_")
atexit.register(shutil.rmtree, os.environ["XDG_CONFIG_HOME"], ignore_errors=True)
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("DECATHLETE_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}: set DECATHLETE_SHARED to run this test")
    return folder


@pytest.fixture(scope="session")
def hippocampus_data(shared: Path) -> Path:
    """MSD Task04 as far as it is there."""
    return shared / "data" / "Task04_Hippocampus"


@pytest.fixture(scope="session")
def write_slices():
    """Writer of a series: integers (X, Y, Z) on an affine without shear, in files whose names are in no order."""

    def write(folder: Path, array: np.ndarray, affine: np.ndarray, series: str = "1.2.3.4", **tags) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        lengths = np.linalg.norm(lps[:3, :3], axis=0)
        for z in range(array.shape[2]):
            meta = pydicom.dataset.FileMetaDataset()
            meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
            meta.MediaStorageSOPInstanceUID = f"{series}.{z + 1}"
            d = pydicom.Dataset()
            d.file_meta = meta
            d.SOPClassUID, d.SOPInstanceUID = CTImageStorage, f"{series}.{z + 1}"
            d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = "1.2.3", series, "1.2.5"
            d.Modality, d.PatientID, d.PatientName = "CT", "made", "Made^Up"
            d.ImagePositionPatient = [f"{v:.6f}" for v in (lps @ [0, 0, z, 1])[:3]]
            d.ImageOrientationPatient = [f"{v:.8f}" for v in (lps[:3, :2] / lengths[:2]).T.ravel()]
            d.PixelSpacing = [f"{lengths[1]:.6f}", f"{lengths[0]:.6f}"]  # between rows first
            d.Columns, d.Rows = array.shape[:2]
            d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
            d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1
            d.RescaleSlope, d.RescaleIntercept = "1", "0"
            d.PixelData = array[:, :, z].T.astype("<i2").tobytes()
            for name, value in tags.items():
                setattr(d, name, value)
            d.save_as(folder / f"{series}_{(7 * z + 3) % 101}.dcm", enforce_file_format=True)
        return folder

    return write


@pytest.fixture(scope="session")
def said_within():
    """Caller of ``read(path)`` in a process that may take so many MiB more than this one has; what came of it."""

    def said(mebibytes: int, read: Callable[[Path], object], path: Path) -> str:
        def child(to) -> None:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + mebibytes * 2**20,) * 2)
            try:
                to.send(f"read: {read(path)}"[:200])
            except Exception as error:  # MemoryError too
                to.send(f"{type(error).__name__}: {error}")

        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
        process.start()
        theirs.close()
        try:
            return ours.recv()
        finally:
            process.join()

    return said
