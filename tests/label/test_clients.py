"""Every button of 3D Slicer's module and OHIF's extension, as they send it: for one bundle, three, and no weights."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from decathlete.bundle import bundle_folder

pytestmark = pytest.mark.label
CLIENTS = Path(__file__).with_name("clients")
MODEL = "hippocampus"
SERVED = {"one": [MODEL], "three": ["heart", MODEL, "nfbs"], "without_weights": [MODEL]}


@pytest.fixture(scope="session")
def viewer() -> ModuleType:
    """The module of the annotator at a viewer."""
    spec = importlib.util.spec_from_file_location("label_viewer", Path(__file__).with_name("viewer.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["label_viewer"] = module  # dataclasses look for it
    spec.loader.exec_module(module)
    return module


@dataclass
class Replay:
    """A viewer's requests, sent to a server."""

    server: Any
    buttons: dict[str, list[dict]]
    weights: bool
    known: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def press(self, button: str) -> list[Any]:
        """Send what a button sends; the answers, whose statuses are those that the data say."""
        return [self.send(request) for request in self.buttons[button]]

    def send(self, request: dict) -> Any:
        method, path = self.filled(request["send"]).split(" ", 1)
        options = self.options(request.get("options_of", ""))
        sent: dict[str, Any] = {}
        if "json" in request:
            sent["data"] = options | self.filled(request["json"])
        if "form" in request:
            fields = {name: self.filled(value) for name, value in request["form"].items()}
            sent["fields"] = {n: json.dumps(options | v) if isinstance(v, dict) else v for n, v in fields.items()}
        if "upload" in request:
            files = {name: self.files[what] for name, what in request["upload"].items()}
            sent["files"] = {name: (str(file), file.read_bytes()) for name, file in files.items()}
        answer = self.server.ask(method, path, **sent)
        wanted = (
            request.get("status", 200) if self.weights else request.get("without_weights", request.get("status", 200))
        )
        assert answer.status in (wanted if isinstance(wanted, list) else [wanted]), (
            f"{method} {path}: {answer.text[:500]}"
        )
        keep = request.get("keep", {})
        if answer.status == 200 and keep:
            self.known |= {keep: answer.json} if isinstance(keep, str) else {n: answer.json[k] for n, k in keep.items()}
        return answer

    def options(self, place: str) -> dict[str, Any]:
        if not place:
            return {}
        section, name = self.filled(place).split("/")
        config = self.known["info"][section].get(name, {}).get("config", {})
        return {key: value[0] if isinstance(value, list) else value for key, value in config.items()}

    def filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self.filled(one) for name, one in value.items()}
        if not isinstance(value, str):
            return value
        if match := re.fullmatch(r"\{(\w+)\}", value):
            return self.known[match[1]]
        return re.sub(r"\{(\w+)\}", lambda found: str(self.known[found[1]]), value)


@pytest.fixture(scope="module", params=SERVED)
def served(request, start_server, make_studies, phantoms, tmp_path_factory):
    """A server, and which kind it is."""
    root = tmp_path_factory.mktemp(request.param)
    bundles: list = list(SERVED[request.param])
    if request.param == "without_weights":
        bundles = [shutil.copytree(bundle_folder(MODEL), root / MODEL, ignore=shutil.ignore_patterns("*.pt"))]
    with start_server(bundles, make_studies(phantoms, root / "studies"), root / "app") as server:
        yield request.param, server


@pytest.fixture
def replay(served, phantoms, viewer, tmp_path):
    """Starts a viewer: its replay, and its segments once an image is open."""
    kind, server = served

    def start(client: str) -> Replay:
        buttons = yaml.safe_load((CLIENTS / f"{client}.yaml").read_text())["buttons"]
        mine = Replay(server, buttons, kind != "without_weights")
        mine.known |= {"client_id": "anna", "strategy": "first", "model": MODEL, "own_name": f"own_{client}"}
        mine.known["train_options"] = {MODEL: {"max_epochs": 1, "val_split": 0}}
        mine.files["volume"] = phantoms / "imagesTr" / "hippocampus_008.nii.gz"
        return mine

    yield start
    server.ask("DELETE", "/train/")
    for image in server.get("/datastore/?output=all")["objects"]:
        for tag in server.get("/datastore/")["label_tags"]:
            server.ask("DELETE", f"/datastore/label?id={image}&tag={tag}")


def segments_of(replay: Replay, viewer: ModuleType, label: Path, order: list[str]) -> Any:
    """What the annotator has after opening the image and drawing its true label, with the classes in another order."""
    image = replay.server.studies / f"{replay.known['image']}.nii.gz"
    mine = viewer.Viewer(image)
    for name in replay.known["info"]["labels"]:
        mine.add(name)
    true = np.asarray(nib.load(label).dataobj)
    mine.segments = [one for one in mine.segments if one[0] not in order]
    for name in order:  # deleted and added again
        mine.segments.append([name, true == {"anterior": 1, "posterior": 2}[name]])
    replay.known["label_info"] = mine.info()
    return mine


def stored(server: Any, image: str, folder: Path) -> np.ndarray:
    """Voxels of an image's final label."""
    answer = server.ask("GET", f"/datastore/label?label={image}&tag=final")
    assert answer.status == 200, answer.text
    (folder / "stored.nii.gz").write_bytes(answer.body)
    return np.asarray(nib.load(folder / "stored.nii.gz").dataobj)


def test_segments_fit_the_served_bundles(served):
    """With and without weights: an annotator has to start somewhere."""
    kind, server = served
    info = server.get("/info/")
    hippocampus = ["anterior", "posterior"]
    assert info["labels"] == (["left atrium", *hippocampus, "brain"] if kind == "three" else hippocampus)
    assert info["trainers"][MODEL]["labels"] == {"anterior": 1, "posterior": 2}
    assert (MODEL in info["models"]) == (kind != "without_weights")


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".seg.nrrd"])
def test_slicer_submits_what_was_drawn(replay, viewer, label_of, tmp_path, ending):
    slicer = replay("slicer")
    slicer.press("Refresh")
    slicer.press("Next Sample")
    image = slicer.known["image"]
    mine = segments_of(slicer, viewer, label_of(image), ["posterior", "anterior"])
    slicer.files["label"] = mine.export(tmp_path / f"label{ending}")
    slicer.press("Submit Label")
    assert slicer.known["saved"]["image"] == image
    assert (stored(slicer.server, image, tmp_path) == np.asarray(nib.load(label_of(image)).dataobj)).all()
    [final] = (slicer.server.studies / "labels" / "final").glob("*.json")
    about = json.loads(final.read_text())
    assert (final.stem, about["bundle"], about["by"]) == (image, MODEL, "anna")
    assert about["labels"] == {"anterior": 1, "posterior": 2}
    info = slicer.server.get(f"/datastore/label/info?label={image}&tag=final")
    assert [(one["name"], one["idx"]) for one in info["label_info"]] == [("anterior", 1), ("posterior", 2)]


def test_slicers_other_buttons_are_answered(replay, viewer, label_of, phantoms, tmp_path):
    slicer = replay("slicer")
    slicer.press("Refresh")
    slicer.press("Next Sample")
    image = slicer.known["image"]
    slicer.press("Run (Auto Segmentation)")
    mine = segments_of(slicer, viewer, label_of(image), ["posterior", "anterior"])
    slicer.files["label"] = mine.export(tmp_path / "label.nii.gz")
    for button in ("Update (SmartEdit / Deepgrow)", "Update (Scribbles)"):
        [answer] = slicer.press(button)
        assert "No bundle is interactive" in answer.json["detail"]
    slicer.press("Submit Label")
    slicer.press("Train")
    slicer.press("training bar, every five seconds")
    assert slicer.known["task"]["status"] in ("SUBMITTED", "RUNNING")
    slicer.press("Stop Training")
    slicer.press("Run on an image of one's own")
    slicer.press("Upload Volume")
    assert "own_slicer" in slicer.server.get("/datastore/?output=all")["objects"]
    slicer.server.ask("DELETE", "/datastore/image?id=own_slicer")


def test_slicer_may_send_images_as_nrrd(replay, tmp_path):
    simple = pytest.importorskip("SimpleITK")
    slicer = replay("slicer")
    slicer.press("Refresh")
    volume = simple.ReadImage(str(slicer.files["volume"]))
    for ending in (".nrrd", ".seg.nrrd"):
        slicer.files["volume"] = tmp_path / f"volume{ending}"
        simple.WriteImage(volume, str(slicer.files["volume"]))
        slicer.press("Run on an image of one's own")
        slicer.press("Upload Volume")
        kept = simple.ReadImage(str(slicer.server.studies / "own_slicer.nii.gz"))
        assert kept.GetSize() == volume.GetSize()
        assert np.allclose(kept.GetOrigin(), volume.GetOrigin(), atol=1e-4)
        assert (simple.GetArrayFromImage(kept) == simple.GetArrayFromImage(volume)).all()
        slicer.server.ask("DELETE", "/datastore/image?id=own_slicer")


def test_ohifs_buttons_are_answered(replay, viewer, label_of, tmp_path):
    ohif = replay("ohif")
    for button in ("the panel opens", "Connect", "Next Sample", "Run (Auto-Segmentation)", "Run (Class Prompts)"):
        ohif.press(button)
    [answer] = ohif.press("Run (Point Prompts)")
    assert "No bundle is interactive" in answer.json["detail"]
    image = ohif.known["image"]
    mine = segments_of(ohif, viewer, label_of(image), ["posterior", "anterior"])
    voxels = np.zeros(mine.shape, np.uint8)
    for place, (_, mask) in enumerate(mine.segments, 1):
        voxels[mask] = place
    (tmp_path / "label.bin").write_bytes(voxels.tobytes(order="F"))
    ohif.files["bare_voxels"] = tmp_path / "label.bin"
    ohif.press("Submit Label (OHIF v2)")
    assert (stored(ohif.server, image, tmp_path) == np.asarray(nib.load(label_of(image)).dataobj)).all()


def test_update_model_trains_the_bundles_with_labels(served, replay, viewer, label_of, tmp_path):
    """Without a model's name; the other two of three bundles have no labels."""
    kind, server = served
    ohif = replay("ohif")
    ohif.press("Connect")
    assert ohif.server.ask("POST", "/train/", data={}).status == 422
    ohif.press("Next Sample")
    image = ohif.known["image"]
    assert server.put_label(image, label_of(image)).status == 200
    [answer] = ohif.press("Update Model, with options")
    assert list(answer.json) == [MODEL]
    request = answer.json[MODEL]["result"]["request"]
    assert (request["model"], request["max_epochs"]) == (MODEL, 1)
    result = server.result(server.finish("/train/"))
    assert result["cases"] == 1
    if kind != "without_weights":
        assert result["dice_before"] > 0.5
    [answer] = ohif.press("Update Model")
    assert answer.json[MODEL]["result"]["request"]["max_epochs"] == 50
    ohif.press("Stop Training")


def test_a_drawn_name_that_is_no_class_is_refused(served, replay, viewer, label_of, tmp_path):
    server = served[1]
    slicer = replay("slicer")
    slicer.press("Refresh")
    slicer.press("Next Sample")
    mine = segments_of(slicer, viewer, label_of(slicer.known["image"]), ["posterior", "anterior"])
    mine.segments[-1][0] = "front"
    file = mine.export(tmp_path / "label.nii.gz")
    params, image = json.dumps({"label_info": mine.info()}), slicer.known["image"]
    upload = {"label": (file.name, file.read_bytes())}
    answer = server.ask("PUT", f"/datastore/label?image={image}", fields={"params": params}, files=upload)
    assert answer.status == 422
    assert "a drawn segment has a name that is no class ('front')" in answer.json["detail"]
    assert "anterior, posterior" in answer.json["detail"]
    assert server.get("/datastore/")["label_tags"] == {}


def test_values_alone_are_checked_against_the_classes(served, replay, label_of, tmp_path):
    kind, server = served
    replay("slicer")
    image = "hippocampus_001"
    label = nib.load(label_of(image))
    assert server.put_label(image, label_of(image)).status == 200  # 1 and 2: only the hippocampus has both
    assert (stored(server, image, tmp_path) == np.asarray(label.dataobj)).all()
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj).astype(np.uint8) * 3, label.affine), tmp_path / "three.nii.gz")
    answer = server.put_label(image, tmp_path / "three.nii.gz")
    assert (answer.status, "no classes of one bundle (3, 6)" in answer.text) == (422, True)
    if kind == "three":
        nib.save(
            nib.Nifti1Image((np.asarray(label.dataobj) == 1).astype(np.uint8), label.affine), tmp_path / "o.nii.gz"
        )
        answer = server.put_label(image, tmp_path / "o.nii.gz")
        assert (answer.status, "open which bundle the label is for" in answer.text) == (422, True)


def test_several_bundles_have_labels_of_one_image(served, replay, viewer, label_of, tmp_path):
    kind, server = served
    if kind != "three":
        pytest.skip("one bundle")
    slicer = replay("slicer")
    slicer.press("Refresh")
    slicer.press("Next Sample")
    image = slicer.known["image"]
    mine = segments_of(slicer, viewer, label_of(image), ["posterior", "anterior"])
    mine.draw(0, (0, 0, 0), 5)  # left atrium
    slicer.files["label"] = mine.export(tmp_path / "label.nii.gz")
    slicer.press("Submit Label")
    assert slicer.known["saved"]["bundles"] == ["heart", MODEL]
    kept = {json.loads(f.read_text())["bundle"]: f for f in (server.studies / "labels").glob(f"*/{image}.json")}
    assert set(kept) == {"heart", MODEL}
    for bundle, values in {"heart": {"left atrium": 1}, MODEL: {"anterior": 1, "posterior": 2}}.items():
        voxels = np.asarray(nib.load(kept[bundle].with_suffix(".nii.gz")).dataobj)
        for name, value in values.items():
            [drawn] = [mask for segment, mask in mine.segments if segment == name]
            assert (voxels == value).sum() == drawn.sum()
            assert (drawn == (voxels == value)).all()
    assert server.get("/datastore/")["completed"] == 1


def test_another_persons_label_is_kept(served, replay, viewer, label_of, tmp_path):
    server = served[1]
    slicer = replay("slicer")
    slicer.press("Refresh")
    slicer.press("Next Sample")
    image = slicer.known["image"]
    mine = segments_of(slicer, viewer, label_of(image), ["anterior", "posterior"])
    slicer.files["label"] = mine.export(tmp_path / "label.nii.gz")
    slicer.press("Submit Label")
    first = stored(server, image, tmp_path)
    slicer.known["client_id"] = "Bob O'Neill/../x"
    mine.draw(0, (0, 0, 0), 3)
    mine.segments[0][0] = "anterior"
    slicer.known["label_info"] = mine.info()
    slicer.files["label"] = mine.export(tmp_path / "other.nii.gz")
    slicer.press("Submit Label")
    second = stored(server, image, tmp_path)
    assert (second != first).any()
    assert server.get("/datastore/")["label_tags"] == {"final": 1, f"final_{MODEL}_anna": 1}
    kept = server.ask("GET", f"/datastore/label?label={image}&tag=final_{MODEL}_anna")
    (tmp_path / "kept.nii.gz").write_bytes(kept.body)
    assert (np.asarray(nib.load(tmp_path / "kept.nii.gz").dataobj) == first).all()
    slicer.press("Submit Label")  # a correction of one's own
    assert server.get("/datastore/")["label_tags"] == {"final": 1, f"final_{MODEL}_anna": 1}
    slicer.known["client_id"] = "anna"
    slicer.press("Submit Label")
    tags = server.get("/datastore/")["label_tags"]
    assert len(tags) == 2
    assert f"final_{MODEL}_anna" not in tags  # hers is the final one now, and Bob's is kept
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", tag) for tag in tags)


@pytest.mark.parametrize("oddity", ["no codes", "pixdim", "negative pixdim"])
def test_an_image_that_viewers_place_elsewhere_can_be_labelled(served, viewer, label_of, tmp_path, oddity):
    """ITK, by which 3D Slicer reads, goes by pixdim where the sform says otherwise, and has its own origin without
    codes. What such a viewer gets lies on what it has read, and what it sends is taken."""
    simple = pytest.importorskip("SimpleITK")
    kind, server = served
    source = nib.load(server.studies / "hippocampus_001.nii.gz")
    header = source.header.copy()
    header["qform_code"] = 0
    if oddity == "no codes":
        header["sform_code"] = 0
    else:
        header["pixdim"][1:4] = 1 if oddity == "pixdim" else [1, 1, -1]
        header["srow_x"][:3] *= 1.25 if oddity == "pixdim" else 1
    nib.save(nib.Nifti1Image(source.dataobj, None, header), tmp_path / "odd.nii.gz")
    upload = {"file": ("odd.nii.gz", (tmp_path / "odd.nii.gz").read_bytes())}
    assert server.ask("PUT", "/datastore/image?image=odd", files=upload).status == 200
    image = simple.ReadImage(str(server.studies / "odd.nii.gz"))
    if kind != "without_weights":
        answer = server.infer(MODEL, "odd", result_extension=".nrrd", result_dtype="uint8")
        assert answer.status == 200, answer.text
        (tmp_path / "shown.nrrd").write_bytes(answer.body)
        shown = simple.ReadImage(str(tmp_path / "shown.nrrd"))
        for place in ("GetOrigin", "GetSpacing", "GetDirection"):
            assert np.allclose(getattr(shown, place)(), getattr(image, place)(), atol=1e-4)
    label = simple.GetImageFromArray(np.asarray(nib.load(label_of("hippocampus_001")).dataobj).transpose(2, 1, 0))
    label.CopyInformation(image)
    for ending in (".nii.gz", ".nrrd"):
        file = tmp_path / f"label{ending}"
        simple.WriteImage(label, str(file))
        answer = server.put_label("odd", file)
        assert answer.status == 200, answer.text
        kept = nib.load(server.studies / "labels" / "final" / "odd.nii.gz")
        assert np.allclose(kept.affine, nib.load(server.studies / "odd.nii.gz").affine)
        assert (np.asarray(kept.dataobj) == simple.GetArrayFromImage(label).transpose(2, 1, 0)).all()
    server.ask("DELETE", "/datastore/image?id=odd")


@pytest.mark.slow
def test_sequences_over_http_store_no_wrong_voxel(served, replay, viewer, tmp_path):
    kind, server = served
    if kind != "three":
        pytest.skip("names of several bundles are the harder case")
    replay("slicer")

    def submit(image: str) -> Any:
        def send(file: Path, info: list[dict], person: str) -> bool:
            params = json.dumps({"label_info": info, "client_id": person})
            answer = server.ask("PUT", f"/datastore/label?image={image}", fields={"params": params},
                                files={"label": (file.name, file.read_bytes())})  # fmt: skip
            assert answer.status in (200, 422), answer.text
            return answer.status == 200

        return send

    def kept(image: str, bundle: str) -> tuple[Path, dict[str, int]]:
        abouts = {f: json.loads(f.read_text()) for f in (server.studies / "labels").glob(f"final*/{image}.json")}
        mine = [f for f, about in abouts.items() if about["bundle"] == bundle]
        newest = max(mine, key=lambda f: abouts[f]["ts"])
        return newest.with_suffix(".nii.gz"), abouts[newest]["labels"]

    def predict(image: str, bundle: str) -> tuple[dict[str, int], np.ndarray]:
        answer = server.infer(bundle, image, save_label=True)
        (tmp_path / "predicted.nii.gz").write_bytes(answer.body)
        return viewer.BUNDLES[bundle], np.asarray(nib.load(tmp_path / "predicted.nii.gz").dataobj)

    def train(bundle: str) -> None:
        answer = server.ask("POST", f"/train/{bundle}", data={"max_epochs": 1})
        assert answer.status in (200, 429), answer.text
        server.ask("DELETE", "/train/")

    asked = viewer.Server(submit, kept, predict, train)
    images = sorted(server.studies.glob("*.nii.gz"))
    accepted = 0
    for seed in range(1000, 1020):
        wrong, count = viewer.sequence(seed, images[seed % 8], tmp_path, asked)
        assert wrong == 0, seed
        accepted += count
        for tag in server.get("/datastore/")["label_tags"]:
            server.ask("DELETE", f"/datastore/label?id={images[seed % 8].name.removesuffix('.nii.gz')}&tag={tag}")
    assert accepted > 10


@pytest.mark.slow
def test_sequences_store_no_wrong_voxel(label_environment, make_studies, phantoms, tmp_path):
    """Two hundred, by the server's own code without HTTP."""
    import subprocess

    studies = make_studies(phantoms, tmp_path / "studies")
    words = [label_environment, Path(__file__).with_name("viewer.py"), studies, "0", "200"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 200
    assert {wrong for wrong, _ in found.values()} == {0}
    assert sum(accepted for _, accepted in found.values()) > 100
