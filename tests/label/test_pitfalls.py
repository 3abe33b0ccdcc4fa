"""What goes wrong in MONAI Label as it comes, and must not here."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.label
FIRST, SECOND = "hippocampus_001", "hippocampus_002"


@pytest.fixture
def weights(server) -> Path:
    """The served weights, which are put back after the test, with what it left beside them."""
    file = server.folder / "model" / "hippocampus" / "models" / "model.pt"
    content = file.read_bytes()
    yield file
    file.write_bytes(content)
    for other in file.parent.iterdir():
        if other != file:
            other.unlink()


@pytest.fixture
def labels(server, label_of):
    """Puts final labels to the first images, and takes them away after the test."""
    put = []

    def put_labels(count: int) -> list[str]:
        for n in range(1, count + 1):
            image = f"hippocampus_{n:03d}"
            assert server.put_label(image, label_of(image)).status == 200
            put.append(image)
        return put

    yield put_labels
    for image in put:
        server.ask("DELETE", f"/datastore/label?id={image}&tag=final")


def test_training_that_makes_it_worse_does_not_lose_the_better_weights(server, weights, labels):
    labels(4)
    before = weights.read_bytes()
    result = server.result(server.train("hippocampus", max_epochs=1, val_split=0.5, pretrained=False))
    assert not result["adopted"]
    assert result["dice_after"] < result["dice_before"]
    assert weights.read_bytes() == before
    [kept] = weights.parent.glob("worse_*.pt")
    assert server.infer("hippocampus", FIRST, model_filename=kept.name).body != server.infer("hippocampus", FIRST).body


@pytest.mark.parametrize("split", [0.2, 0])
def test_one_label_still_gives_weights(server, weights, labels, split):
    labels(1)
    weights.unlink()
    assert "hippocampus" not in server.get("/info/")["models"]
    result = server.result(server.train("hippocampus", max_epochs=1, val_split=split))
    assert (result["adopted"], result["dice_before"], result["held_out"]) == (True, None, False)
    assert "hippocampus" in server.get("/info/")["models"]
    assert server.infer("hippocampus", SECOND).status == 200


def test_missing_weights_are_an_error_and_no_random_answer(server, weights):
    assert server.infer("hippocampus", FIRST).status == 200
    assert server.ask("DELETE", "/model/hippocampus").status == 200
    answer = server.infer("hippocampus", FIRST)
    assert answer.status == 409
    assert "model 'hippocampus': no weights to predict with (no model.pt)" in answer.json["detail"]
    assert server.ask("POST", "/batch/infer/hippocampus").status == 409
    assert server.ask("POST", "/scoring/hippocampus_uncertainty?run_sync=true").status == 409


def test_another_networks_weights_are_an_error(server, weights):
    torch.save({"a.weight": torch.zeros(2)}, weights)
    answer = server.infer("hippocampus", FIRST)
    assert answer.status == 409
    assert "the weights do not fit this network" in answer.json["detail"]
    put = server.ask("PUT", "/model/hippocampus", files={"file": ("w.pt", weights.read_bytes())})
    assert put.status == 409


def test_damaged_weights_are_an_error_and_training_from_new_ones_cures_it(server, weights, labels):
    weights.write_bytes(weights.read_bytes()[:1000])
    assert server.infer("hippocampus", FIRST).status == 409
    labels(2)
    assert server.train("hippocampus", max_epochs=1)["status"] == "ERROR"  # it cannot go on from them
    assert "not readable as a checkpoint" in "\n".join(server.get("/train/")["details"])
    assert server.result(server.train("hippocampus", max_epochs=1, pretrained=False))["adopted"]
    assert server.infer("hippocampus", FIRST).status == 200


def test_dice_of_several_labels_by_hand(server, labels, tmp_path):
    """Final 1, 1, 2, 2 against 1, 2, 2, 2: Dice 2*1/(2+1) of label 1, 2*2/(2+3) of label 2."""
    image = nib.load(server.studies / f"{FIRST}.nii.gz")
    for tag, values in {"final": (1, 1, 2, 2), "original": (1, 2, 2, 2)}.items():
        voxels = np.zeros(image.shape, np.uint8)
        voxels[10:14, 20, 20] = values
        nib.save(nib.Nifti1Image(voxels, image.affine), tmp_path / f"{tag}.nii.gz")
        assert server.put_label(FIRST, tmp_path / f"{tag}.nii.gz", tag=tag).status == 200
    found = server.ask("POST", "/scoring/dice?run_sync=true").json
    assert found == {FIRST: pytest.approx((2 / 3 + 4 / 5) / 2)}
    info = server.get(f"/datastore/image/info?image={FIRST}")
    assert info["dice_of_labels"] == {"1": pytest.approx(2 / 3), "2": pytest.approx(4 / 5)}
    for tag in ("final", "original"):
        server.ask("DELETE", f"/datastore/label?id={FIRST}&tag={tag}")


def test_doubt_is_never_negative(server):
    scores = server.ask("POST", "/scoring/hippocampus_uncertainty?run_sync=true").json["scores"]
    assert len(scores) == 8
    assert all(0 <= score <= 1 for score in scores.values())


def test_image_by_chance_is_offered_twice_within_a_second(server):
    assert all(server.ask("POST", "/activelearning/random").json["id"] for _ in range(10))


def test_one_damaged_image_does_not_stop_a_batch(server):
    bad = server.studies / "damaged.nii.gz"
    bad.write_bytes(b"no image")
    wait_for(lambda: server.get("/datastore/")["total"] == 9)
    assert server.ask("POST", "/batch/infer/hippocampus").status == 200
    task = server.finish("/batch/infer")
    assert task["status"] == "ERROR"
    assert "damaged: 1 of 9 images could not be predicted" in "\n".join(task["details"])
    wait_for(lambda: server.get("/datastore/")["label_tags"].get("original") == 8)
    bad.unlink()
    wait_for(lambda: server.get("/datastore/")["total"] == 8)


def test_watcher_survives_uploads(server):
    """Sixty images come and go while others look; then files that come by themselves are still seen."""
    content = (server.studies / f"{FIRST}.nii.gz").read_bytes()
    busy = threading.Event()
    busy.set()

    def look() -> None:
        while busy.is_set():
            assert server.ask("GET", "/datastore/").status == 200

    watcher = threading.Thread(target=look)
    watcher.start()
    with ThreadPoolExecutor(4) as pool:
        names = [f"guest_{n}" for n in range(60)]
        put = pool.map(
            lambda n: server.ask("PUT", f"/datastore/image?image={n}", files={"file": ("x.nii.gz", content)}), names
        )
        assert {answer.status for answer in put} == {200}
        gone = pool.map(lambda n: server.ask("DELETE", f"/datastore/image?id={n}"), names)
        assert {answer.status for answer in gone} == {200}
    busy.clear()
    watcher.join()
    assert server.get("/datastore/")["total"] == 8
    shutil.copy(server.studies / f"{FIRST}.nii.gz", server.studies / "by_hand.nii.gz")
    wait_for(lambda: server.get("/datastore/")["total"] == 9)
    (server.studies / "by_hand.nii.gz").unlink()
    wait_for(lambda: server.get("/datastore/")["total"] == 8)


def test_label_of_another_grid_is_refused_when_it_comes(server, label_of):
    answer = server.put_label(SECOND, label_of(FIRST))
    assert answer.status == 422
    assert "label and image differ in shape" in answer.json["detail"]
    assert answer.json["detail"].startswith(f"{FIRST}.nii.gz: ")  # the user's own name of the file


def test_values_that_are_no_class_end_a_training_with_the_file_named(server, labels, weights):
    labels(2)
    file = server.studies / "labels" / "final" / f"{SECOND}.nii.gz"
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj).astype(np.uint8) * 3, image.affine), file)
    assert server.train("hippocampus", max_epochs=1)["status"] == "ERROR"
    assert f"{SECOND}.nii.gz" in "\n".join(server.get("/train/")["details"])


def test_damaged_index_is_made_again(start_server, make_studies, phantoms, tmp_path):
    studies = make_studies(phantoms, tmp_path / "studies", labelled=2)
    (studies / "datastore_v2.json").write_text('{"name": "cut sho')
    with start_server(["hippocampus"], studies, tmp_path / "app") as server:
        assert server.get("/datastore/") == {"total": 8, "completed": 2, "label_tags": {"final": 2}}
    assert (studies / "datastore_v2.json.damaged").is_file()


def test_a_stopped_server_leaves_no_training_behind(start_server, make_studies, phantoms, tmp_path):
    studies = make_studies(phantoms, tmp_path / "studies", labelled=2)
    with start_server(["hippocampus"], studies, tmp_path / "app") as server:
        server.ask("POST", "/train/hippocampus", data={"max_epochs": 100_000})
        wait_for(lambda: "training: iteration" in "\n".join(server.get("/train/").get("details", [])), 120)
    assert [p for p in Path("/proc").glob("[0-9]*/environ") if environment_of(p).count(str(tmp_path))] == []


def environment_of(process: Path) -> str:
    try:
        return process.read_text(errors="replace")
    except OSError:  # it has just ended
        return ""


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
