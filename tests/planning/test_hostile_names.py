"""Whatever a data set calls its parts: nothing of it runs, no id comes into a config, a refusal is one line."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from monai.bundle import ConfigParser

from decathlete.bundle.configs import load
from decathlete.cli import main
from decathlete.data import get_task
from decathlete.errors import DataError, DecathleteError, UsageError
from decathlete.names import LONGEST_NAME, LONGEST_TEXT, check_name, inert, plain_text
from decathlete.planning import find_layout, plan_of_task
from decathlete.planning.rules import _name_of, _source
from decathlete.planning.writer import render

HERE = Path(__file__)


def _module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


boxes, hostile = _module(HERE.with_name("boxes.py")), _module(HERE.parent.with_name("hostile.py"))
TEXTS = hostile.TEXTS
CONFIGS = ("configs/train.yaml", "configs/inference.yaml", "configs/evaluate.yaml", "configs/multi_gpu_train.yaml")


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    """Each test starts in a folder of its own, in which code of a text would leave a file."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield
    assert not Path("touched").exists()


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory) -> Path:
    return boxes.write_decathlon(tmp_path_factory.mktemp("d") / "data", n=1, channels=2, classes=2)


@pytest.fixture(scope="module")
def nnunet(tmp_path_factory) -> Path:
    return boxes.write_nnunet(tmp_path_factory.mktemp("n") / "data", n=1)


def layouts_of(folder: Path, changes) -> list:
    """Layouts of the data set with each of the changes to its dataset.json, but for those that are refused."""
    file, taken = folder / "dataset.json", []
    before = file.read_text()
    try:
        for change in changes:
            file.write_text(json.dumps(json.loads(before) | change))
            try:
                taken.append(find_layout(folder))
            except DecathleteError as error:
                assert_one_line(error)
    finally:
        file.write_text(before)
    return taken


def assert_one_line(error: DecathleteError) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 2000


def plan_with(**changes):
    return replace(plan_of_task(get_task("prostate")), task="", **changes)


def assert_same_ids(texts: dict[str, str], folder: Path, classes: int) -> ConfigParser:
    """The configs have the ids of the same plan with names of ours, for MONAI too, which can resolve them."""
    names = {f"c{n}": n for n in range(classes)}
    ours = render(plan_with(classes=names), root="bundles/x")
    for name in (*CONFIGS, "configs/metadata.json"):
        found, expected = ({k: v for k, v in yaml.safe_load(t[name]).items() if k != "labels"} for t in (texts, ours))
        assert list(found) == list(expected), name
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        if name.startswith("configs"):
            (folder / name).write_text(text, encoding="utf-8")
    for name in ("train", "inference"):
        parser = load(folder, name)
        parser.parse()
        parser.get_parsed_content("dataset_dir")
        assert list(parser.get_parsed_content("labels").values()) == list(range(classes))
    return parser


def test_the_texts_are_a_hundred_and_more():
    assert len(TEXTS) >= 100
    assert len(set(TEXTS)) == len(TEXTS)


@pytest.mark.parametrize("field", ["labels", "labels of nnU-Net", "regions"])
def test_names_of_classes(decathlon, nnunet, tmp_path, field):
    forms = {
        "labels": (decathlon, lambda text: {"labels": {"0": "background", "1": "a", "2": text}}),
        "labels of nnU-Net": (nnunet, lambda text: {"labels": {"background": 0, text: 1}}),
        "regions": (nnunet, lambda text: {"labels": {"background": 0, text: [1, 2], "b": 2}}),
    }
    folder, form = forms[field]
    taken = layouts_of(folder, map(form, TEXTS))
    names = list(dict.fromkeys(name for layout in taken for name in (*layout.classes, *layout.regions)))
    assert {"{a: 1}", "é" * 3_000, "null", "{{ 7 * 7 }}", "😀"} & set(names) == {"{a: 1}", "null", "{{ 7 * 7 }}", "😀"}
    classes = dict.fromkeys(["background", *names])
    made = plan_with(classes={name: value for value, name in enumerate(classes)})
    parser = assert_same_ids(render(made), tmp_path / "b", len(classes))
    assert list(parser.get("labels")) == list(classes)


@pytest.mark.parametrize("field", ["modality", "channel_names"])
def test_names_of_channels(decathlon, nnunet, tmp_path, field):
    folder = decathlon if field == "modality" else nnunet
    taken = layouts_of(folder, ({field: {"0": "a", "1": text}} for text in TEXTS))
    names = list(dict.fromkeys(name for layout in taken for name in layout.channels))
    assert len(names) > 40
    texts = render(plan_with(channels=tuple(names)))
    parser = assert_same_ids(texts, tmp_path / "b", 3)
    assert parser.get_parsed_content("deterministic_transforms")[2].names == names


@pytest.mark.parametrize("field", ["name", "description", "reference", "licence", "license"])
def test_free_texts_are_kept_on_one_harmless_line(decathlon, tmp_path, field):
    taken = layouts_of(decathlon, ({field: text} for text in TEXTS))
    assert len(taken) == len(TEXTS)
    sources = [_source(layout) for layout in taken]
    told = [text for layout in taken for text in layout.about.values()]
    assert all(text.isprintable() and len(text) <= LONGEST_TEXT for text in told)
    every = tuple(dict.fromkeys([*told, *sources]))
    made = plan_with(references=every, notes=tuple(text for text in every if text), data_source=sources[0])
    texts = render(replace(made, licence=told[0]))
    assert_same_ids(texts, tmp_path / "b", 3)
    assert set(json.loads(texts["configs/metadata.json"])["references"]) >= set(every)
    for source in sources[::9]:  # one after the other in the place where it stands alone
        assert json.loads(render(replace(made, data_source=source))["configs/metadata.json"])["data_source"] == source


@pytest.mark.parametrize(
    "form",
    [
        lambda text: {"modality": {text: "T2"}},
        lambda text: {"modality": text},
        lambda text: {"modality": [text]},
        lambda text: {"labels": {"0": "background", "1": {text: text}}},
        lambda text: {"labels": {"background": 0, "a": text}},
        lambda text: {"labels": [text]},
        lambda text: {"labels": text},
        lambda text: {"numTraining": text, "tensorImageSize": text, "release": text, "regions_class_order": [text]},
        lambda text: {"training": text},
        lambda text: {"training": [text]},
        lambda text: {"training": [{"image": text, "label": text}]},
        lambda text: {"training": [{"image": [text, text], "label": "./labelsTr/case_0.nii.gz"}]},
        lambda text: {"training": [{text: text}]},
        lambda text: {"test": [text]},
    ],
)
def test_other_fields_are_refused_in_one_line_or_left_alone(decathlon, form):
    for layout in layouts_of(decathlon, map(form, TEXTS)):
        assert layout.channels in (("M0", "M1"), ("image",))  # stated, or nothing stated
        assert layout.classes in ({"background": 0, "box 1": 1, "box 2": 2}, None)
        assert all(str(fault).isprintable() for fault in layout.faults)


def test_endings_of_files(nnunet):
    taken = layouts_of(nnunet, ({"file_ending": text} for text in [*TEXTS, ".NII.GZ"]))
    assert [layout.images[0] for layout in taken] == ["imagesTr/*_0000.nii.gz"]


WRONG_JSON = [
    "[" * 100_000, "1" * 10_000, '{"labels": {"0": "a", "1": "b", "2": ' + "9" * 5000 + "}}", "", "{", "null", "[]",
    '{"labels": {"a": 999999999999}}', b"\xed\xa0\x80", b"\xff\xfe\x00",
]  # fmt: skip


def test_dataset_json_of_any_json(decathlon):
    file = decathlon / "dataset.json"
    before = file.read_text()
    try:
        for text in WRONG_JSON:
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
            with pytest.raises(DataError) as error:
                find_layout(decathlon)
            assert_one_line(error.value)
    finally:
        file.write_text(before)


@pytest.mark.parametrize("option", ["channels", "classes", "modality", "images", "labels"])
def test_options_of_the_command_line(decathlon, option):
    for text in TEXTS:
        given = (
            {"images": ["imagesTr/*.nii.gz"], "labels": "labelsTr/*.nii.gz"} if option in ("images", "labels") else {}
        )
        value = (
            text if option in ("modality", "labels") else ["a", text] if option in ("channels", "classes") else [text]
        )
        try:
            layout = find_layout(decathlon, **(given | {option: value}))
        except DecathleteError as error:
            assert_one_line(error)
            continue
        for name in (*layout.channels, *layout.classes, *layout.images, layout.modality or "x"):
            assert check_name(name, "x", "x", 255) == name


def test_file_names(tmp_path):
    folder = tmp_path / "data"
    made = []
    for text in TEXTS:
        try:
            (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
            (folder / "imagesTr" / f"{text}.nii.gz").touch()
            made.append(text)
        except (OSError, ValueError):  # names that no file has
            continue
    made = [text for text in made if "/" not in text]
    assert len(made) > 70
    layout = find_layout(folder)
    assert len(layout.cases) == sum(not text.startswith(".") and bool(text) for text in made)
    assert all(str(fault).isprintable() for fault in layout.faults)
    data = [{key: str(value) for key, value in case.items()} for case in layout.cases]
    parser = ConfigParser({"labels": {}, "data": inert(data)})
    assert parser.get_parsed_content("data") == data


def test_names_of_folders(tmp_path):
    for n, text in enumerate(TEXTS):
        folder = tmp_path / str(n) / text
        try:
            folder.mkdir(parents=True)
        except (OSError, ValueError):
            continue
        (folder / "imagesTr").mkdir(exist_ok=True)
        (folder / "imagesTr" / "a.nii.gz").touch()
        layout = find_layout(folder)
        try:
            made = plan_with(dataset=_name_of(layout), data_source=_source(layout))
        except DataError as error:
            assert_one_line(error)
            continue
        texts = render(made, root="bundles/x")
        stated = yaml.safe_load(texts["configs/train.yaml"])["dataset_dir"]
        parser = ConfigParser({"imports": ["$from decathlete.data import dataset_folder"], "dataset_dir": stated})
        assert parser.get_parsed_content("dataset_dir") == str(Path("data", made.dataset))


PLACES = {
    "classes": lambda text: {"classes": {"background": 0, text: 1, "b": 2}},
    "channels": lambda text: {"channels": ("a", text)},
    "regions": lambda text: {"regions": {text: (1, 2)}},
    "images": lambda text: {"images": (text, "y*"), "labels_pattern": "labels/*"},
    "labels": lambda text: {"images": ("x*", "y*"), "labels_pattern": text},
    "dataset": lambda text: {"dataset": text},
    "reasons": lambda text: {"reasons": dict.fromkeys(("network", "spacing", "batch_size"), text)},
}


@pytest.mark.parametrize("place", PLACES)
def test_names_that_came_past_the_border_add_nothing_either(place):
    plain = {name: yaml.safe_load(text) for name, text in render(plan_with(**PLACES[place]("plain"))).items()
             if name in CONFIGS}  # fmt: skip
    for text in (text for text in TEXTS if hostile.TOUCH in text or text[:1] in set("$@%_&*!{\x00\u202e")):
        try:
            texts = render(plan_with(**PLACES[place](text)))
        except DataError as error:
            assert_one_line(error)
            continue
        for name, expected in plain.items():
            found = yaml.safe_load(texts[name])
            assert [key for key in found if key != "label_files"] == [key for key in expected if key != "label_files"]
            differ = {key for key in found if found[key] != expected.get(key)}
            assert differ <= {"labels", "regions", "image_files", "label_files", "dataset_dir", "datalist", "train",
                              "deterministic_transforms"}  # fmt: skip


@pytest.mark.parametrize("name", ["$x", "a\nb", "x" * (LONGEST_NAME + 1), " a", "%T1", "a::b", "", None, ["a"], True])
def test_what_is_refused_names_the_place(name):
    with pytest.raises(
        UsageError, match=r"^dataset\.json, modality: a channel's name (cannot be used|must be text)"
    ) as error:
        check_name(name, "dataset.json, modality", "a channel's name", kind=UsageError)
    assert_one_line(error.value)


@pytest.mark.parametrize("name", ["T1w", "left hippocampus", "FLAIR (3D)", "Läsion", "海馬", "a: b", "5", "PD/T2"])
def test_plain_names_pass(name):
    assert check_name(name, "x", "x") == name
    assert check_name(5, "x", "x") == "5"


def test_data_in_an_override_stay_data():
    data = [{"image": text, "label": [text], "case_id": f"a{text}", "n": 3} for text in TEXTS]
    parser = ConfigParser({"labels": {"background": 0}, "x": inert(data), "y": "@x"})
    assert parser.get_parsed_content("y") == data


def test_free_text_stays_readable():
    assert plain_text("Lesions,\n  drawn by hand\t(v2)") == "Lesions, drawn by hand (v2)"
    assert plain_text("@article{x}") == "'@article{x}'"


@pytest.mark.parametrize(
    "change",
    [
        {"modality": {"0": f"${hostile.TOUCH}"}},
        {"labels": {"0": "background", "1": f"box\nrun: ${hostile.TOUCH}"}},
        {"modality": {"0": "%T1"}},
    ],
)
def test_new_refuses_code_in_one_line(tmp_path, capsys, change):
    data = boxes.write_decathlon(tmp_path / "data", **change)
    assert main(["new", "own", "--data", str(data), "--memory", "4"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "dataset.json" in error
    assert not Path("bundles").exists()


@pytest.mark.slow
def test_a_bundle_of_odd_but_plain_names_is_sound(tmp_path, capsys):
    labels = {"0": "background", "1": "it's: {a} [b] \"c\" & 'd'", "2": "{{ 7 * 7 }}"}
    data = boxes.write_decathlon(
        tmp_path / "anna's $ %T1 data", classes=2, labels=labels, modality={"0": "null"},
        description=f"${hostile.TOUCH}", licence="@labels\nrun: 1", reference="%T1",
    )  # fmt: skip
    assert main(["new", "own", "--data", str(data), "--memory", "4"]) == 0
    assert main(["check", "bundles/own", "--dataset_dir", str(data)]) == 0
    assert "FAULT" not in capsys.readouterr().out
