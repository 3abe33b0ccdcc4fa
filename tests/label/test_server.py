"""The server over HTTP, step by step as a viewer goes, with the hippocampus."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.label
FIRST = "hippocampus_001"
# what a viewer does, in MONAI Label's own client library, the one that 3D Slicer's module carries
VIEWER = """
import json, sys
from monailabel.client import MONAILabelClient
url, image, label = sys.argv[1:]
client = MONAILabelClient(url)
said = {"labels": client.info()["labels"], "next": client.next_sample("first", {})["id"]}
file, result = client.infer("hippocampus", "hippocampus_001", {"result_extension": ".nrrd", "result_dtype": "uint8"})
said |= {"file": file, "names": result["label_names"]}
said["saved"] = client.save_label("hippocampus_001", label, params={})
said["uploaded"] = client.upload_image(image, "from_viewer")
session = client.create_session(image)["session_id"]
said["of_session"] = client.infer("hippocampus", "", {}, session_id=session)[0]
client.remove_session(session)
said["counts"] = client.datastore()
print(json.dumps(said))
"""


def array_of(content: bytes, folder: Path) -> np.ndarray:
    """Voxels of a NIfTI file in an answer."""
    file = folder / "answer.nii.gz"
    file.write_bytes(content)
    return np.asarray(nib.load(file).dataobj)


@pytest.fixture
def labelled(server, label_of):
    """Two studies with their true labels, for one test."""
    images = [FIRST, "hippocampus_002"]
    for image in images:
        assert server.put_label(image, label_of(image)).json == {"image": image, "label": image}
    yield images
    for image in images:
        assert server.ask("DELETE", f"/datastore/label?id={image}&tag=final").status == 200
    assert server.get("/datastore/")["completed"] == 0


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_info_tells_models_trainers_and_studies(server):
    info = server.get("/info/")
    assert info["models"]["hippocampus"]["labels"] == {"anterior": 1, "posterior": 2}
    assert info["models"]["hippocampus"]["config"]["model_filename"] == ["model.pt"]
    assert info["trainers"]["hippocampus"]["config"]["max_epochs"] == 50
    assert set(info["strategies"]) == {"random", "first", "hippocampus_uncertainty"}
    assert set(info["scoring"]) == {"sum", "dice", "hippocampus_uncertainty"}
    assert info["datastore"]["total"] == 8


def test_store_lists_images_and_pairs(server, labelled):
    assert server.get("/datastore/")["label_tags"] == {"final": 2}
    assert set(server.get("/datastore/?output=all")["objects"]) == {f"hippocampus_{n:03d}" for n in range(1, 9)}
    pairs = server.get("/datastore/?output=train")
    assert {Path(pair["label"]).name for pair in pairs} == {f"{image}.nii.gz" for image in labelled}


def test_label_map_lies_on_its_image(server, tmp_path, on_same_grid):
    answer = server.infer("hippocampus", FIRST)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    (tmp_path / "label.nii.gz").write_bytes(answer.body)
    assert on_same_grid(tmp_path / "label.nii.gz", server.studies / f"{FIRST}.nii.gz")
    assert nib.load(tmp_path / "label.nii.gz").get_data_dtype() == np.uint8


def test_label_maps_are_those_of_the_bundles_own_run(server, tmp_path):
    images = sorted(server.studies.glob("hippocampus_00[1-4].nii.gz"))
    (tmp_path / "images").mkdir()
    for image in images:
        shutil.copy(image, tmp_path / "images")
    copy = server.folder / "model" / "hippocampus"
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "inferring",
        "--config_file",
        copy / "configs/inference.yaml",
    ]
    command += ["--bundle_root", copy, "--image_dir", tmp_path / "images", "--output_dir", tmp_path / "out"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    for image in images:
        run = np.asarray(nib.load(tmp_path / "out" / image.name).dataobj)
        served = array_of(server.infer("hippocampus", image.name.removesuffix(".nii.gz")).body, tmp_path)
        assert run.max() > 0
        assert np.count_nonzero(run != served) == 0


def test_flipped_image_gets_the_flipped_label(server, tmp_path, on_same_grid):
    image = nib.load(server.studies / f"{FIRST}.nii.gz")
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = image.shape[0] - 1
    file = tmp_path / "flipped.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine @ flip), file)
    answer = server.ask("POST", "/infer/hippocampus?output=image", files={"file": (file.name, file.read_bytes())})
    (tmp_path / "label.nii.gz").write_bytes(answer.body)
    assert on_same_grid(tmp_path / "label.nii.gz", file)
    straight = array_of(server.infer("hippocampus", FIRST).body, tmp_path)
    assert (np.asarray(nib.load(tmp_path / "label.nii.gz").dataobj)[::-1] == straight).all()


def test_an_answer_warns_of_an_image_unlike_the_training_scans(server):
    (warning,) = server.ask("POST", f"/infer/hippocampus?image={FIRST}&output=json").json["warnings"]  # a phantom
    assert "looks unlike the training scans" in warning


def test_answers_come_in_the_forms_that_viewers_ask_for(server):
    form = server.ask("POST", f"/infer/hippocampus?image={FIRST}")
    assert b'name="params"' in form.body
    assert b'name="image"' in form.body
    facts = server.ask("POST", f"/infer/hippocampus?image={FIRST}&output=json").json
    assert facts["label_names"] == {"anterior": 1, "posterior": 2}
    assert server.infer("hippocampus", FIRST, result_extension=".nrrd").body.startswith(b"NRRD")
    seg = server.ask("POST", f"/infer/hippocampus?image={FIRST}&output=dicom_seg")
    assert (seg.status, "needs studies on a DICOMweb server" in seg.text) == (422, True)


def test_a_result_is_kept_as_a_label_if_asked(server, tmp_path):
    answer = server.infer("hippocampus", FIRST, save_label=True, label_tag="draft", result_extension=".nrrd")
    kept = server.ask("GET", f"/datastore/label?label={FIRST}&tag=draft")
    assert (array_of(kept.body, tmp_path) == array_of(answer.body, tmp_path)).all()
    server.ask("DELETE", f"/datastore/label?id={FIRST}&tag=draft")
    assert "draft" not in server.get("/datastore/")["label_tags"]


def test_labels_are_read_back_and_carry_remarks(server, labelled, label_of, tmp_path):
    image = labelled[0]
    answer = server.ask("GET", f"/datastore/label?label={image}&tag=final")
    assert (array_of(answer.body, tmp_path) == np.asarray(nib.load(label_of(image)).dataobj)).all()
    put = server.ask("PUT", f"/datastore/label/info?label={image}&tag=final", fields={"info": '{"by": "me"}'})
    assert put.status == 200
    assert server.get(f"/datastore/label/info?label={image}&tag=final")["by"] == "me"


def test_all_labelled_cases_come_as_a_zip(server, labelled):
    answer = server.ask("GET", "/datastore/dataset")
    names = zipfile.ZipFile(io.BytesIO(answer.body)).namelist()
    assert {f"label/{image}.nii.gz" for image in labelled} <= set(names)
    assert len([name for name in names if name.startswith("image/")]) == 2


def test_images_come_and_go(server):
    content = (server.studies / f"{FIRST}.nii.gz").read_bytes()
    put = server.ask("PUT", "/datastore/image?image=guest", files={"file": ("x.nii.gz", content)})
    assert put.json == {"image": "guest"}
    assert server.ask("GET", "/datastore/image?image=guest").body == content
    assert server.ask("HEAD", "/datastore/image?image=guest").status == 200
    assert server.ask("DELETE", "/datastore/image?id=guest").status == 200
    assert server.get("/datastore/")["total"] == 8
    assert server.ask("GET", "/datastore/image?image=guest").status == 404


def test_active_learning_offers_what_has_no_final_label(server, labelled):
    offered = {server.ask("POST", "/activelearning/random", data={}).json["id"] for _ in range(20)}
    assert offered
    assert not offered & set(labelled)
    assert server.ask("POST", "/activelearning/first").json["id"] not in labelled


def test_most_doubted_image_is_offered_first(server):
    answer = server.ask("POST", "/scoring/hippocampus_uncertainty?run_sync=true").json
    assert (answer["total"], answer["failed"]) == (8, {})
    stored = {i: server.get(f"/datastore/image/info?image={i}")["hippocampus_uncertainty"] for i in answer["scores"]}
    assert all(0 <= value <= 1 for value in stored.values())
    assert len(set(stored.values())) == 8
    first = server.ask("POST", "/activelearning/hippocampus_uncertainty").json["id"]
    assert first == max(stored, key=stored.__getitem__)
    again = server.ask("POST", "/scoring/hippocampus_uncertainty?run_sync=true").json
    assert (again["executed"], again["skipped"]) == (0, 8)


def test_batch_of_the_unlabelled_without_a_body(server, labelled):
    answer = server.ask("POST", "/batch/infer/hippocampus?images=unlabeled")
    assert answer.status == 200
    assert server.finish("/batch/infer")["status"] == "DONE"
    wait_for(lambda: server.get("/datastore/")["label_tags"].get("original") == 6)
    assert server.ask("GET", f"/datastore/label?label={labelled[0]}&tag=original").status == 404


def test_scores_of_labels(server, labelled, label_of):
    server.put_label(FIRST, label_of(FIRST), tag="copy")
    sums = server.ask("POST", "/scoring/sum?run_sync=true").json
    assert sums[FIRST]["sum"] == int(np.asarray(nib.load(label_of(FIRST)).dataobj).sum())
    dice = server.ask("POST", "/scoring/dice?run_sync=true", data={"y_pred": "copy"}).json
    assert dice == {FIRST: 1.0}
    info = server.get(f"/datastore/image/info?image={FIRST}")
    assert info["dice_of_labels"] == {"1": 1.0, "2": 1.0}
    server.ask("DELETE", f"/datastore/label?id={FIRST}&tag=copy")


def test_training_runs_beside_the_server_and_can_be_stopped(server, labelled):
    before = server.get("/model/info/hippocampus")["checksum"]
    started = server.ask("POST", "/train/hippocampus", data={"max_epochs": 5000, "val_split": 0.5}).json
    assert started["status"] in ("SUBMITTED", "RUNNING")
    wait_for(lambda: any("training: iteration" in line for line in server.get("/train/").get("details", [])), 120)
    assert server.ask("POST", "/train/hippocampus").status == 429
    assert server.infer("hippocampus", FIRST).status == 200
    assert server.ask("DELETE", "/train/").json["status"] == "STOPPED"
    wait_for(lambda: server.ask("GET", "/train/?check_if_running=true").status == 404)
    assert server.get("/model/info/hippocampus")["checksum"] == before


def test_training_ends_with_weights_that_are_served(server, labelled):
    """From the bundle's weights, as text, lists and numbers as viewers send them."""
    config = server.get("/info/")["trainers"]["hippocampus"]["config"]
    before = server.get("/model/info/hippocampus")["checksum"]
    result = server.result(server.train("hippocampus", **(config | {"max_epochs": "2", "val_split": "0.5"})))
    assert (result["cases"], result["held_out"]) == (1, True)
    kept = server.folder / "model" / "hippocampus" / "models"
    if result["adopted"]:
        assert result["dice_after"] >= result["dice_before"]
        assert server.get("/model/info/hippocampus")["checksum"] != before
        assert list(kept.glob("earlier_*.pt"))
    else:
        assert result["dice_after"] < result["dice_before"]
        assert server.get("/model/info/hippocampus")["checksum"] == before
        assert list(kept.glob("worse_*.pt"))
    run = server.folder / "runs" / "hippocampus" / result["run"]
    assert {"model_final.pt", "last.pt"} <= {file.name for file in run.iterdir()}
    assert list(run.glob("events.out.tfevents*"))
    names = server.get("/info/")["models"]["hippocampus"]["config"]["model_filename"]
    assert len(names) >= 2
    assert server.infer("hippocampus", FIRST, model_filename=names[1]).status == 200


def bar_and_accuracy(info: dict) -> tuple[float, float]:
    """What 3D Slicer's module (0.8.5) shows of an answer to ``/info/``: per cent and Dice."""
    stats = next(iter(info["train_stats"].values()))
    current = 0 if stats.get("total_time") else stats.get("epoch", 1)
    return max(1, 100 * current / stats.get("total_epochs", 1)), stats.get("best_metric", 0)


def test_bar_moves_while_a_training_runs_and_accuracy_is_that_of_the_weights_in_use(server, labelled):
    assert server.ask("POST", "/train/hippocampus", data={"max_epochs": 30, "val_split": 0.5}).status == 200
    seen = []
    while server.get("/train/")["status"] in ("SUBMITTED", "RUNNING"):
        seen.append(server.get("/info/"))
        time.sleep(0.02)
    result = server.result(server.get("/train/"))
    bars = [bar_and_accuracy(info)[0] for info in seen]
    running = [info["train_stats"]["hippocampus"] for info in seen if bar_and_accuracy(info)[0] > 1]
    assert bars[-1] == 1 or bars[-1] == 100
    assert len({stats["epoch"] for stats in running}) > 3
    assert {stats["total_epochs"] for stats in running} == {30}
    validated = [stats["eval"] for stats in running if "eval" in stats]
    assert validated[0]["best_metric_epoch"] == 10
    classes = {"val_anterior_mean_dice", "val_posterior_mean_dice"}
    assert set(validated[0]["metrics"]) == classes | {validated[0]["key_metric_name"]}
    stats = server.get("/info/")["train_stats"]["hippocampus"]
    assert (stats["epoch"], "total_time" in stats, "current_time" in stats) == (30, True, False)
    served = result["dice_after" if result["adopted"] else "dice_before"]
    assert bar_and_accuracy(server.get("/info/")) == (1, pytest.approx(served))
    if result["adopted"]:
        summary = json.loads((server.folder / "runs" / "hippocampus" / result["run"] / "summary.json").read_text())
        assert stats["best_metric"] == summary["mean"]["dice"]["mean"]


def test_bar_of_a_training_that_was_stopped_stands_still(server, labelled):
    server.ask("POST", "/train/hippocampus", data={"max_epochs": 5000, "val_split": 0.5})
    wait_for(lambda: server.get("/info/")["train_stats"]["hippocampus"].get("epoch", 0) > 50, 120)
    server.ask("DELETE", "/train/")
    wait_for(lambda: server.ask("GET", "/train/?check_if_running=true").status == 404)
    assert bar_and_accuracy(server.get("/info/"))[0] == 1


def test_weights_come_and_go_over_http(server, tmp_path):
    import torch

    good = server.ask("GET", "/model/hippocampus").body
    right = server.infer("hippocampus", FIRST).body
    weights = torch.load(server.folder / "model/hippocampus/models/model.pt", weights_only=True)
    torch.save({k: torch.zeros_like(v) if k.startswith("heads.") else v for k, v in weights.items()}, tmp_path / "w.pt")
    put = server.ask("PUT", "/model/hippocampus", files={"file": ("w.pt", (tmp_path / "w.pt").read_bytes())})
    assert put.status == 200
    assert array_of(server.infer("hippocampus", FIRST).body, tmp_path).max() == 0  # loaded anew: it sees nothing now
    assert server.ask("PUT", "/model/hippocampus", files={"file": ("g.pt", good)}).status == 200
    again = array_of(server.infer("hippocampus", FIRST).body, tmp_path)
    assert (again == array_of(right, tmp_path)).all()


def test_twenty_at_a_time_are_answered_rightly_and_info_meanwhile(server, tmp_path):
    images = [f"hippocampus_{n:03d}" for n in range(1, 9)]
    alone = {image: array_of(server.infer("hippocampus", image).body, tmp_path) for image in images}
    under_way, told = threading.Event(), []

    def look() -> None:
        under_way.wait()
        while under_way.is_set():
            told.append(server.ask("GET", "/info/").status)

    watcher = threading.Thread(target=look)
    watcher.start()
    with ThreadPoolExecutor(20) as pool:
        asked = [(images[n % 8], pool.submit(server.infer, "hippocampus", images[n % 8])) for n in range(20)]
        under_way.set()
        answers = [(image, answer.result()) for image, answer in asked]
        under_way.clear()
    watcher.join()
    assert all(answer.status == 200 for _, answer in answers)
    for image, answer in answers:
        assert (array_of(answer.body, tmp_path) == alone[image]).all()
    assert len(told) > 1
    assert set(told) == {200}


def test_a_viewers_own_client_finds_all_it_needs(server, label_environment, label_of):
    image = server.studies / "hippocampus_002.nii.gz"
    command = [label_environment, "-c", VIEWER, f"http://127.0.0.1:{server.port}", image, label_of(FIRST)]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["labels"] == ["anterior", "posterior"]
    assert said["next"].startswith("hippocampus_")
    assert said["names"] == {"anterior": 1, "posterior": 2}
    assert Path(said["file"]).read_bytes().startswith(b"NRRD")
    assert said["saved"] == {"image": FIRST, "label": FIRST}
    assert said["uploaded"] == {"image": "from_viewer"}
    assert len(said["counts"]["objects"]) == 9
    assert nib.load(said["of_session"]).shape == nib.load(image).shape
    server.ask("DELETE", "/datastore/image?id=from_viewer")
    server.ask("DELETE", f"/datastore/label?id={FIRST}&tag=final")


def test_logs_are_text_and_hold_no_password(server):
    answer = server.ask("GET", "/logs/")
    assert answer.headers["content-type"].startswith("text/plain")
    assert len(answer.text.splitlines()) == 300
    assert "<script" not in answer.text


def test_ohif_and_the_list_of_requests_are_served(server):
    assert "<title>OHIF Viewer</title>" in server.ask("GET", "/ohif/").text
    assert "/infer/{model}" in server.get("/openapi.json")["paths"]
