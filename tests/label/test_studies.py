"""Which files of a folder are its studies."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.label
LIST = (
    "import json, sys; from decathlete.label.studies import StudiesFolder\n"
    "found = StudiesFolder(sys.argv[1], {1}, watch=False)\n"
    "print(json.dumps({i: [found.get_image_uri(i), found.get_labels_by_image_id(i)] for i in found.list_images()}))"
)


def studies(python: Path, folder: Path) -> tuple[dict, str]:
    done = subprocess.run([python, "-c", LIST, folder], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_the_names_that_all_commands_take_are_listed_and_no_others(label_environment, phantoms, tmp_path):
    first = min((phantoms / "imagesTr").glob("*.nii.gz"))
    for name in ("plain.nii.gz", "UPPER.NII.GZ"):
        shutil.copy(first, tmp_path / name)
    for name in ("._plain.nii.gz", ".hidden.nii", "notes.txt"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "missing.nii.gz").symlink_to("../store/KEY.nii.gz")
    final = tmp_path / "labels" / "final"
    final.mkdir(parents=True)
    shutil.copy(phantoms / "labelsTr" / first.name, final / "UPPER.NII.GZ")
    (final / "._plain.nii.gz").write_text("no label")
    found, said = studies(label_environment, tmp_path)
    assert found == {
        "plain": [str(tmp_path / "plain.nii.gz"), {}],
        "UPPER": [str(tmp_path / "UPPER.NII.GZ"), {"final": "UPPER"}],
    }
    assert said.count("not listed: ") == 1
    assert "missing.nii.gz: the file's content is missing" in said


def test_side_files_of_an_earlier_index_are_forgotten(label_environment, phantoms, tmp_path):
    shutil.copy(min((phantoms / "imagesTr").glob("*.nii.gz")), tmp_path / "plain.nii.gz")
    studies(label_environment, tmp_path)
    index = tmp_path / "datastore_v2.json"
    content = json.loads(index.read_text())
    content["objects"]["._plain"] = content["objects"]["plain"]
    index.write_text(json.dumps(content))
    (tmp_path / "._plain.nii.gz").write_text("no image")
    assert list(studies(label_environment, tmp_path)[0]) == ["plain"]
    assert list(json.loads(index.read_text())["objects"]) == ["plain"]


def test_label_maps_put_there_by_hand_belong_to_the_bundle_of_their_folder(label_environment, phantoms, tmp_path):
    first, second = sorted((phantoms / "imagesTr").glob("*.nii.gz"))[:2]
    for image, tag in ((first, "final_heart"), (second, "final")):
        shutil.copy(image, tmp_path)
        (tmp_path / "labels" / tag).mkdir(parents=True)
        shutil.copy(phantoms / "labelsTr" / image.name, tmp_path / "labels" / tag)
    code = (
        "import json, sys; from decathlete.label.studies import Classes, StudiesFolder\n"
        "bundles = {name: {'a': 1} for name in sys.argv[2:]}\n"
        "store = StudiesFolder(sys.argv[1], {1}, Classes(bundles), watch=False)\n"
        "print(json.dumps({b: [pair['case_id'] for pair in store.pairs(b)] for b in bundles}))"
    )

    def trained_on(*bundles: str) -> dict[str, list[str]]:
        words = [str(word) for word in (label_environment, "-c", code, tmp_path, *bundles)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    names = [image.name.removesuffix(".nii.gz") for image in (first, second)]
    assert trained_on("heart", "nfbs") == {"heart": names[:1], "nfbs": []}  # it is open whose the other one is
    assert trained_on("heart") == {"heart": names}
