"""Studies of a DICOM archive: Debian's Orthanc with its DICOMweb plugin, on this machine alone."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

pytestmark = pytest.mark.label
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass
class Orthanc:
    """A running archive."""

    address: str

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        with urlopen(Request(self.address + path, data=body, method=method), timeout=30) as answer:
            return answer.read()


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory) -> Iterator[Orthanc]:
    """An empty archive."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None or not PLUGIN.is_file():
        pytest.skip("no Orthanc here: apt-get install orthanc orthanc-dicomweb")
    folder = tmp_path_factory.mktemp("orthanc")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"HttpPort": port, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
                "DicomServerEnabled": False, "StorageDirectory": str(folder), "IndexDirectory": str(folder),
                "Plugins": [str(PLUGIN)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}}  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT)
    archive = Orthanc(f"http://127.0.0.1:{port}")
    try:
        for _ in range(300):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                archive.ask("GET", "/dicom-web/studies")
                break
            except (URLError, ConnectionError):
                time.sleep(0.1)
        yield archive
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def dicom_series(image: Path) -> tuple[str, list[bytes]]:
    """A NIfTI image in RAS order as axial MR slices: UID of the series, and the files."""
    scan = nib.as_closest_canonical(nib.load(image))
    voxels = np.asarray(scan.dataobj, np.float64)
    voxels = np.round((voxels - voxels.min()) / np.ptp(voxels) * 4000).astype(np.uint16)
    to_lps = np.diag([-1.0, -1, 1, 1]) @ scan.affine
    spacing = np.linalg.norm(to_lps[:3, :3], axis=0)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    files = []
    for z in range(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.PatientName, one.PatientID, one.Modality, one.StudyID = "Phantom^One", "p1", "MR", "1"
        one.StudyDate = one.SeriesDate = one.ContentDate = "20260101"
        one.StudyTime = one.SeriesTime = one.ContentTime = "120000"
        one.AccessionNumber = one.PatientBirthDate = one.PatientSex = one.ReferringPhysicianName = ""
        one.SeriesNumber, one.InstanceNumber, one.ImageType = 1, z + 1, ["ORIGINAL", "PRIMARY"]
        one.ImagePositionPatient = [f"{v:.6f}" for v in (to_lps @ [0, 0, z, 1])[:3]]
        one.ImageOrientationPatient = [
            f"{v:.6f}" for v in [*(to_lps[:3, 0] / spacing[0]), *(to_lps[:3, 1] / spacing[1])]
        ]
        one.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        one.SliceThickness = one.SpacingBetweenSlices = float(spacing[2])
        one.Rows, one.Columns = voxels.shape[1], voxels.shape[0]
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, "MONOCHROME2", 0
        one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
        one.PixelData = np.ascontiguousarray(voxels[:, :, z].T).tobytes()
        buffer = io.BytesIO()
        one.save_as(buffer, enforce_file_format=True)
        files.append(buffer.getvalue())
    return series, files


@pytest.fixture(scope="module")
def series(orthanc, phantoms) -> list[str]:
    """Two series in the archive."""
    uids = []
    for image in sorted((phantoms / "imagesTr").glob("*.nii.gz"))[:2]:
        uid, files = dicom_series(image)
        for file in files:
            orthanc.ask("POST", "/instances", file)
        uids.append(uid)
    return uids


@pytest.fixture(scope="module")
def archive(orthanc, series, start_server, tmp_path_factory):
    """The hippocampus over the archive."""
    folder = tmp_path_factory.mktemp("archive") / "app"
    with start_server(["hippocampus"], f"{orthanc.address}/dicom-web", folder) as server:
        yield server


@pytest.fixture(scope="module")
def submitted(archive, series, tmp_path_factory) -> dict[str, Path]:
    """Label maps that were submitted, by series; the second has no anterior part."""
    files = {}
    for number, uid in enumerate(series):
        files[uid] = tmp_path_factory.mktemp("submitted") / "label.nii.gz"
        files[uid].write_bytes(archive.infer("hippocampus", uid).body)
        if number:
            label = nib.load(files[uid])
            voxels = np.asarray(label.dataobj)
            nib.save(nib.Nifti1Image(np.where(voxels == 1, 0, voxels), None, label.header), files[uid])
        info = json.dumps({"label_info": [{"name": "anterior"}, {"name": "posterior"}]})
        upload = {"label": ("label.nii.gz", files[uid].read_bytes())}
        answer = archive.ask("PUT", f"/datastore/label?image={uid}", fields={"params": info}, files=upload)
        assert answer.status == 200, answer.text
    return files


def test_series_are_the_images(archive, series):
    assert archive.get("/datastore/")["total"] == 2
    assert archive.ask("POST", "/activelearning/random").json["id"] in series
    assert archive.ask("POST", "/infer/hippocampus?image=1.2.3").status == 404


def test_label_map_lies_on_the_series(archive, series, tmp_path):
    answer = archive.infer("hippocampus", series[0])
    assert answer.status == 200, answer.text
    (tmp_path / "label.nii.gz").write_bytes(answer.body)
    label = nib.load(tmp_path / "label.nii.gz")
    [fetched] = archive.folder.glob(f"dicom/*/{series[0]}.nii.gz")
    assert label.shape == nib.load(fetched).shape
    assert np.allclose(label.affine, nib.load(fetched).affine, atol=1e-5)
    assert np.asarray(label.dataobj).max() > 0


def test_result_as_dicom_seg_refers_to_the_series_and_names_its_segments(archive, series):
    answer = archive.ask("POST", f"/infer/hippocampus?image={series[0]}&output=dicom_seg")
    assert answer.status == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom"
    seg = pydicom.dcmread(io.BytesIO(answer.body))
    assert seg.Modality == "SEG"
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == series[0]
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["anterior", "posterior"]


def test_submitted_labels_go_to_the_archive_and_are_trained_on(archive, series, submitted, orthanc):
    found = json.loads(orthanc.ask("GET", "/dicom-web/series?Modality=SEG"))
    assert len(found) == 2
    time.sleep(6)  # the server's list of labelled series is that old at most
    result = archive.result(archive.train("hippocampus", max_epochs=1, val_split=0.5))
    assert result["cases"] == 1
    assert archive.get("/datastore/")["completed"] == 2


def test_labels_that_only_the_archive_has_are_trained_on(series, submitted, start_server, orthanc, tmp_path):
    """A server with an empty cache fetches the SEGs; their segments go by name, and every slice has its place."""
    with start_server(["hippocampus"], f"{orthanc.address}/dicom-web", tmp_path / "app") as server:
        assert server.result(server.train("hippocampus", max_epochs=1, val_split=0.5))["held_out"]
    for uid, label in submitted.items():
        [fetched] = (tmp_path / "app" / "dicom").glob(f"*/labels/{uid}.nii.gz")
        assert np.allclose(nib.load(fetched).affine, nib.load(label).affine, atol=1e-3)
        assert (np.asarray(nib.load(fetched).dataobj) == np.asarray(nib.load(label).dataobj)).all()


def test_segments_reach_the_archive_by_their_names(archive, series, orthanc, label_environment, tmp_path):
    """Numbered by their place, from Slicer, and as a DICOM SEG of another program: 'posterior' was drawn first."""
    label = nib.Nifti1Image.from_bytes(gzip.decompress(archive.infer("hippocampus", series[0]).body))
    true = np.asarray(label.dataobj)
    nib.save(nib.Nifti1Image(np.array([0, 2, 1], np.uint8)[true], label.affine), tmp_path / "label.nii.gz")
    info = {"label_info": [{"name": "posterior", "idx": 1}, {"name": "anterior", "idx": 2}]}
    seg = archive.ask("POST", f"/infer/hippocampus?image={series[0]}&output=dicom_seg").body
    for name, content in {"label.nii.gz": (tmp_path / "label.nii.gz").read_bytes(), "label.dcm": seg}.items():
        before = set(json.loads(orthanc.ask("GET", "/instances")))
        answer = archive.ask("PUT", f"/datastore/label?image={series[0]}", fields={"params": json.dumps(info)},
                             files={"label": (name, content)})  # fmt: skip
        assert answer.status == 200, answer.text
        [new] = set(json.loads(orthanc.ask("GET", "/instances"))) - before
        (tmp_path / "seg.dcm").write_bytes(orthanc.ask("GET", f"/instances/{new}/file"))
        [image] = archive.folder.glob(f"dicom/*/{series[0]}.nii.gz")
        code = (
            "import sys; from pathlib import Path; from decathlete.label.studies import label_map\n"
            "label_map(Path(sys.argv[1]), sys.argv[2], {'anterior': 1, 'posterior': 2}, Path(sys.argv[3]))"
        )
        words = [label_environment, "-c", code, tmp_path / "seg.dcm", image, tmp_path / "read.nii.gz"]
        subprocess.run([str(word) for word in words], check=True, capture_output=True)
        assert (np.asarray(nib.load(tmp_path / "read.nii.gz").dataobj) == true).all()
        orthanc.ask("DELETE", f"/instances/{new}")


def test_each_bundle_of_an_archive_has_its_own_labels(series, submitted, start_server, orthanc, tmp_path):
    """Two bundles, one drawing with classes of both: two SEGs, and each trainer finds its own."""
    with start_server(["nfbs", "hippocampus"], f"{orthanc.address}/dicom-web", tmp_path / "app") as server:
        assert server.get("/info/")["labels"] == ["brain", "anterior", "posterior"]
        assert list(server.ask("POST", "/train/", data={}).json) == ["hippocampus"]  # what was submitted before
        server.ask("DELETE", "/train/")
        info = json.dumps({"label_info": [{"name": "posterior"}, {"name": "brain"}]})
        upload = {"label": ("label.nii.gz", submitted[series[0]].read_bytes())}
        answer = server.ask("PUT", f"/datastore/label?image={series[0]}", fields={"params": info}, files=upload)
        assert (answer.status, sorted(answer.json["bundles"])) == (200, ["hippocampus", "nfbs"])
        assert sorted(server.ask("POST", "/train/", data={}).json) == ["hippocampus", "nfbs"]
        for _ in range(2):
            server.ask("DELETE", "/train/")


def test_segments_of_other_names_are_told(archive, series, label_environment, tmp_path):
    seg = tmp_path / "seg.dcm"
    seg.write_bytes(archive.ask("POST", f"/infer/hippocampus?image={series[0]}&output=dicom_seg").body)
    [image] = archive.folder.glob(f"dicom/*/{series[0]}.nii.gz")
    code = (
        "import sys; from pathlib import Path; from decathlete.label.studies import label_map\n"
        "label_map(Path(sys.argv[1]), sys.argv[2], {'liver': 1}, Path(sys.argv[3]))"
    )
    words = [label_environment, "-c", code, seg, image, tmp_path / "label.nii.gz"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert "a segment has a name that is no class ('anterior'). Known: liver" in done.stderr
    assert not (tmp_path / "label.nii.gz").exists()


def test_names_go_to_the_values_that_occur(label_environment, tmp_path):
    """A view of an image that is gone shows whatever is written there next: here the allocator overwrites it."""
    voxels = np.zeros((32, 51, 33), np.uint8)
    voxels[10:20, 10:20, 10:20] = 2
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "label.nii.gz")
    code = (
        "import sys; from decathlete.label.routes import segments_there\n"
        "names = [{'name': 'anterior'}, {'name': 'posterior'}]\n"
        "assert segments_there(sys.argv[1], names) == names[1:]"
    )
    words = [str(word) for word in (label_environment, "-c", code, tmp_path / "label.nii.gz")]
    environment = os.environ | {"MALLOC_PERTURB_": "254"}  # freed bytes become 1
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_ohif_and_its_way_to_the_archive(archive, series):
    assert "<title>OHIF Viewer</title>" in archive.ask("GET", "/ohif/").text
    found = archive.get("/proxy/dicom/qido/series?Modality=MR")
    assert {one["0020000E"]["Value"][0] for one in found} == set(series)
    assert archive.ask("GET", "/proxy/dicom/../instances").status == 400
    assert archive.ask("GET", "/proxy/dicom/%2e%2e/instances").status == 400


def test_ohif_opens_in_a_browser(archive, series, tmp_path):
    """The list of studies shows the patient; nothing is asked of other servers that the page would need."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no browser here: apt-get install chromium")
    picture = tmp_path / "ohif.png"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,800", "--virtual-time-budget=20000",
               "--dump-dom", f"--screenshot={picture}", f"http://127.0.0.1:{archive.port}/ohif/"]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=180, env=dict(os.environ) | {"HOME": str(tmp_path)}
    )
    assert "Phantom" in done.stdout, done.stdout[-2000:]


class Browser:
    """A page of headless Chromium, asked by its own protocol over a WebSocket."""

    def __init__(self, program: str, address: str, profile: Path) -> None:
        words = ["headless", "no-sandbox", "use-gl=angle", "use-angle=swiftshader", "enable-unsafe-swiftshader",
                 "no-first-run", "disable-background-networking", "disable-component-update", "window-size=1280,900",
                 f"user-data-dir={profile}", "remote-debugging-port=0"]  # fmt: skip
        command = [program, *(f"--{word}" for word in words), address]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=dict(os.environ, HOME=str(profile)))
        port_file = profile / "DevToolsActivePort"
        assert waited(lambda: port_file.is_file() and len(port_file.read_text().splitlines()) == 2, 60)
        port = int(port_file.read_text().splitlines()[0])
        with urlopen(f"http://127.0.0.1:{port}/json", timeout=30) as answer:
            [page] = [one for one in json.load(answer) if one["type"] == "page"]
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        path = page["webSocketDebuggerUrl"].partition(str(port))[2]
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.answers = self.socket.makefile("rb")
        while self.answers.readline().strip():
            pass
        self.calls = 0

    def call(self, method: str, **params) -> dict:
        self.calls += 1
        data = json.dumps({"id": self.calls, "method": method, "params": params}).encode()
        size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
        self.socket.sendall(b"\x81" + size + bytes(4) + data)  # masked with zeros
        while (answer := json.loads(self._message())).get("id") != self.calls:
            pass
        return answer["result"]

    def _message(self) -> bytes:
        message, last = b"", 0
        while not last:
            head, size = self.answers.read(2)
            last = head & 0x80
            size = int.from_bytes(self.answers.read({126: 2, 127: 8}[size]), "big") if size > 125 else size
            message += self.answers.read(size)
        return message

    def run(self, script: str):
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def click(self, x: float, y: float, times: int = 1) -> None:
        for count in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=count)

    def click_text(self, start: str, times: int = 1) -> None:
        """Click the middle of the last thing whose text begins so, once it is there."""
        is_it = f"e => !e.children.length && e.innerText?.startsWith('{start}')"
        found = f"[...document.querySelectorAll('*')].filter({is_it}).at(-1)"
        assert waited(lambda: self.run(f"!!{found}"), 90), self.run("document.body.innerText")
        time.sleep(3)  # the page still moves while it loads
        x, y = self.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({found}.getBoundingClientRect())")
        self.click(x, y, times)

    def picture(self) -> np.ndarray:
        png = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def waited(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.5)
    return bool(found)


def test_ohif_shows_our_dicom_seg(archive, orthanc, series, tmp_path):
    """The SEG that `decathlete predict --dicom-seg` writes, opened by hand: its segments by name, in their colours."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no browser here: apt-get install chromium")
    pytest.importorskip("highdicom")
    from decathlete.io.seg import write_dicom_seg
    from decathlete.io.series import read_series

    (tmp_path / "series").mkdir()
    for name in json.loads(orthanc.ask("GET", "/instances")):
        content = orthanc.ask("GET", f"/instances/{name}/file")
        header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
        if header.SeriesInstanceUID == series[0]:
            (tmp_path / "series" / f"{name}.dcm").write_bytes(content)
    volume = read_series(tmp_path / "series")
    label = np.zeros(volume.array.shape, np.uint8)
    middle = [n // 2 for n in label.shape]
    label[middle[0] - 8 : middle[0] + 8, middle[1] - 8 : middle[1]] = 1  # on every slice
    label[middle[0] - 8 : middle[0] + 8, middle[1] : middle[1] + 8] = 2
    labels = {"anterior": 1, "posterior": 2}
    seg = write_dicom_seg(label, volume.slices, tmp_path / "a_seg.dcm", "hippocampus", labels)
    orthanc.ask("POST", "/instances", seg.read_bytes())
    study = pydicom.dcmread(seg).StudyInstanceUID
    address = f"http://127.0.0.1:{archive.port}/ohif/viewer?StudyInstanceUIDs={study}"
    browser = Browser(chromium, address, tmp_path / "profile")
    try:
        browser.click_text("decathlete hippocampus", times=2)
        browser.click_text("Yes")
        assert waited(lambda: not browser.run("document.body.innerText.includes('Do you want')"), 60)
        browser.click(1261, 101)  # the panel of segmentations
        assert waited(lambda: browser.run("/anterior\\s+.*posterior/s.test(document.body.innerText)"), 60)

        def coloured() -> bool:
            view = browser.picture()[70:600, 290:990]
            orange = view[..., 0] - view[..., 2] > 60
            blue = view[..., 2] - view[..., 0] > 60
            return min(orange.sum(), blue.sum()) > 3000

        assert waited(coloured, 60)
    finally:
        browser.process.terminate()
        browser.process.wait(30)
