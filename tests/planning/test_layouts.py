"""Which files belong to which case, told by their names alone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from decathlete.data.folds import split
from decathlete.errors import DataError, UsageError
from decathlete.planning import find_layout, matched_cases
from decathlete.planning.layouts import check_consecutive

_spec = importlib.util.spec_from_file_location("boxes", Path(__file__).with_name("boxes.py"))
boxes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(boxes)
draw, save, write_decathlon, write_nnunet = boxes.draw, boxes.save, boxes.write_decathlon, boxes.write_nnunet


def test_decathlon_folders_state_channels_and_classes(tmp_path):
    layout = find_layout(write_decathlon(tmp_path / "data", channels=2, classes=2))
    assert layout.kind == "msd"
    assert layout.channels == ("M0", "M1")
    assert layout.classes == {"background": 0, "box 1": 1, "box 2": 2}
    assert [case["case_id"] for case in layout.cases] == [f"case_{i}" for i in range(5)]


def test_nnunet_folders_give_a_file_a_channel(tmp_path):
    layout = find_layout(write_nnunet(tmp_path / "data"))
    assert layout.images == ("imagesTr/*_0000.nii.gz", "imagesTr/*_0001.nii.gz")
    assert layout.labels == "labelsTr/*.nii.gz"
    first = layout.cases[0]
    assert [path.rpartition("/")[2] for path in first["image"]] == ["case_0_0000.nii.gz", "case_0_0001.nii.gz"]
    assert (first["case_id"], layout.channels, layout.faults) == ("case_0", ("M0", "M1"), ())


def test_nnunet_folders_are_known_without_a_description(tmp_path):
    folder = write_nnunet(tmp_path / "data", channels=1)
    (folder / "dataset.json").unlink()
    layout = find_layout(folder)
    assert (layout.images, layout.classes) == (("imagesTr/*_0000.nii.gz",), None)


def test_decathlon_names_that_end_in_four_digits_stay_the_decathlons(tmp_path):
    folder = tmp_path / "data"
    for i in range(3):
        image, label = draw(i)
        save(folder / "imagesTr" / f"scan_{i:04d}.nii.gz", image[0])
        save(folder / "labelsTr" / f"scan_{i:04d}.nii.gz", label)
    assert find_layout(folder).kind == "msd"


def test_pairs_are_found_by_patterns(tmp_path):
    for name in ("anna", "bert"):
        image, label = draw(0)
        save(tmp_path / name / "t1.nii.gz", image[0])
        save(tmp_path / name / f"{name}_seg.nii", label)
    layout = find_layout(tmp_path, ["*/t1.nii.gz"], "*/*_seg.nii", ["T1"], ["box"])
    assert [(c["case_id"], c["label"].rpartition("/")[2]) for c in layout.cases] == [
        ("anna", "anna_seg.nii"),
        ("bert", "bert_seg.nii"),
    ]
    assert (layout.channels, layout.classes) == (("T1",), {"background": 0, "box": 1})


def test_folds_of_patterns_are_those_of_the_ids(tmp_path):
    folder = write_nnunet(tmp_path / "data", n=7)
    patterns = ["imagesTr/*_0000.nii.gz", "imagesTr/*_0001.nii.gz"]
    held_out = matched_cases(folder, patterns, "labelsTr/*.nii.gz", 2, "validation")
    assert [case["case_id"] for case in held_out] == split([f"case_{i}" for i in range(7)], 2)[1]
    assert [sorted(case) for case in matched_cases(folder, patterns)] == [["case_id", "image"]] * 7


@pytest.mark.parametrize(
    ("missing", "words"),
    [("imagesTr/case_3_0001.nii.gz", "case_3 has no image"), ("labelsTr/case_3.nii.gz", "case_3 has no label")],
)
def test_a_missing_file_is_named_with_its_case(tmp_path, missing, words):
    folder = write_nnunet(tmp_path / "data")
    (folder / missing).unlink()
    layout = find_layout(folder)
    assert len(layout.cases) == 4
    assert [words in str(fault) for fault in layout.faults] == [True]


def test_a_label_that_is_missing_in_decathlon_folders_is_named(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    (folder / "labelsTr" / "case_1.nii.gz").unlink()
    assert [str(f.path.name) for f in find_layout(folder).faults] == ["case_1.nii.gz"]


def test_a_channel_beyond_those_stated_is_named(tmp_path):
    folder = write_nnunet(tmp_path / "data")
    save(folder / "imagesTr" / "case_2_0002.nii.gz", draw(2)[0][0])
    faults = find_layout(folder).faults
    assert [fault.path.name for fault in faults] == ["case_2_0002.nii.gz"]
    assert "channel 2" in str(faults[0])


def test_channels_without_the_first_are_named(tmp_path):
    folder = write_nnunet(tmp_path / "data")
    (folder / "dataset.json").unlink()
    for file in (folder / "imagesTr").glob("*_0000.nii.gz"):
        file.unlink()
    faults = find_layout(folder).faults
    assert len(faults) == 5
    assert "imagesTr/*_0000.nii.gz" in str(faults[0])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"0": "background", "1": "a", "3": "b"}, "without 2"),
        ({"background": 0, "a": 1, "b": 1}, "neither used twice"),
        ({"background": 0, "whole": [1, 3], "core": 3}, "without 2"),
        ({"background": 0, "a": 1, "ignore": 3}, "after the classes, 2"),
        ({"background": 0, "a": []}, "each label must be one name"),
        (["background", "a"], "labels must name the classes"),
    ],
)
def test_classes_that_a_network_cannot_give_are_refused(tmp_path, labels, words):
    folder = write_decathlon(tmp_path / "data", labels=labels)
    with pytest.raises(DataError, match=words):
        find_layout(folder)


def test_regions_and_an_ignored_value_are_read_as_nnunet_states_them(tmp_path):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    layout = find_layout(write_nnunet(tmp_path / "data", labels=labels))
    assert layout.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert layout.classes == {"background": 0, "class 1": 1, "class 2": 2, "enhancing": 3}
    assert layout.ignore == (4,)


def test_plain_classes_are_no_regions(tmp_path):
    layout = find_layout(write_nnunet(tmp_path / "data", labels={"background": 0, "a": 1, "Ignore": 2}))
    assert (layout.classes, layout.regions, layout.ignore) == ({"background": 0, "a": 1}, {}, (2,))


def test_channel_numbers_with_a_gap_are_refused(tmp_path):
    with pytest.raises(DataError, match="without a gap"):
        find_layout(write_decathlon(tmp_path / "data", modality={"0": "T1", "2": "T2"}))


def test_a_folder_of_another_kind_is_told_what_is_wanted(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match=r"notes\.txt.*--images"):
        find_layout(tmp_path)


@pytest.mark.parametrize("pattern", ["../*.nii.gz", "/data/*.nii.gz", "t1.nii.gz", "**/t1.nii.gz", "case_?.nii.gz"])
def test_patterns_stay_in_the_folder_and_have_stars_alone(tmp_path, pattern):
    with pytest.raises(UsageError):
        find_layout(tmp_path, [pattern], "*_seg.nii.gz")


def test_two_files_that_stars_give_one_name_are_refused(tmp_path):
    for name in ("a/b_c", "a_b/c"):
        save(tmp_path / f"{name}.nii.gz", draw(0)[0][0])
    with pytest.raises(DataError, match="a pattern matches two files of one case"):
        matched_cases(tmp_path, ["*/*.nii.gz"])


def test_stars_that_stand_for_one_word_give_it_once(tmp_path):
    save(tmp_path / "sub-1" / "sub-1_T1w.nii.gz", draw(0)[0][0])
    assert [case["case_id"] for case in matched_cases(tmp_path, ["sub-*/sub-*_T1w.nii.gz"])] == ["1"]


def test_modality_is_ct_only_where_every_channel_is(tmp_path):
    assert find_layout(write_decathlon(tmp_path / "a", modality={"0": "CT"})).modality == "CT"
    assert find_layout(write_decathlon(tmp_path / "b", channels=2, modality={"0": "CT", "1": "PET"})).modality == "MRI"
    folder = write_decathlon(tmp_path / "c")
    content = json.loads((folder / "dataset.json").read_text())
    del content["modality"]
    (folder / "dataset.json").write_text(json.dumps(content))
    assert find_layout(folder).modality is None


@pytest.mark.parametrize("write", [write_decathlon, write_nnunet])
def test_links_whose_content_was_not_fetched_are_faults_and_no_fewer_cases(tmp_path, write):
    folder = write(tmp_path / "data")
    before = find_layout(folder)
    for name in ("images", "labels"):
        path = sorted((folder / f"{name}Tr").glob("case_1*"))[0]
        path.unlink()
        path.symlink_to("../.git/annex/objects/KEY")
    layout = find_layout(folder)
    assert [case["case_id"] for case in layout.cases] == [case["case_id"] for case in before.cases]
    if write is write_decathlon:  # of patterns the reader tells it
        assert ["(a link to ../.git/annex" in str(fault) for fault in layout.faults] == [True, True]


def test_images_without_the_number_of_a_channel_are_named(tmp_path):
    folder = write_nnunet(tmp_path / "data", channels=1)
    for file in (folder / "imagesTr").iterdir():
        file.rename(file.with_name(file.name.replace("_0000", "")))
    with pytest.raises(DataError, match=r"case_0\.nii\.gz.*Rename case_0\.nii\.gz to case_0_0000\.nii\.gz"):
        find_layout(folder)


def test_one_image_without_the_number_of_a_channel_is_named(tmp_path):
    folder = write_nnunet(tmp_path / "data", channels=1)
    (folder / "imagesTr" / "case_3_0000.nii.gz").rename(folder / "imagesTr" / "case_3.nii.gz")
    faults = {fault.path.name: str(fault) for fault in find_layout(folder).faults}
    assert "Rename it to case_3_0000.nii.gz" in faults["case_3.nii.gz"]


@pytest.mark.parametrize("write", [write_nnunet, write_decathlon])
@pytest.mark.parametrize("listed", [True, False])
def test_letters_composed_in_another_way_are_one_name(tmp_path, write, listed):
    folder = write(tmp_path / "data", channels=1)
    composed, apart = "Gr\u00f6\u00dfe", "Gro\u0308\u00dfe"
    for file in (folder / "imagesTr").iterdir():
        file.rename(file.with_name(file.name.replace("case", apart)))
    for file in (folder / "labelsTr").iterdir():
        file.rename(file.with_name(file.name.replace("case", composed)))
    text = (folder / "dataset.json").read_text().replace("case", composed)
    (folder / "dataset.json").write_text(text) if listed else (folder / "dataset.json").unlink()
    layout = find_layout(folder)
    assert layout.faults == ()
    assert [case["case_id"] for case in layout.cases] == [f"{composed}_{i}" for i in range(5)]
    assert all(path.is_file() for path in layout.files)


@pytest.mark.parametrize("write", [write_nnunet, write_decathlon])
def test_suffixes_in_capitals_are_accepted(tmp_path, write):
    folder = write(tmp_path / "data", channels=1)
    for file in [*(folder / "imagesTr").iterdir(), *(folder / "labelsTr").iterdir()]:
        file.rename(str(file).replace(".nii.gz", ".NII.GZ"))
    layout = find_layout(folder)
    assert (len(layout.cases), layout.faults) == (5, ())
    assert all(path.is_file() for path in layout.files)
    assert (
        len(find_layout(folder, [f"imagesTr/*{'_0000' * (write is write_nnunet)}.nii.gz"], "labelsTr/*.nii.gz").cases)
        == 5
    )


@pytest.mark.parametrize("ending", [".nrrd", ".png", 5])
def test_a_wrong_file_ending_is_told_from_dataset_json(tmp_path, ending):
    folder = write_nnunet(tmp_path / "data", file_ending=ending)
    with pytest.raises(DataError, match=r"dataset\.json: file_ending (does not fit|must be)") as error:
        find_layout(folder)
    assert "Quote" not in str(error.value)


def test_labels_beside_the_images_are_no_images(tmp_path):
    for name in ("anna", "bert"):
        image, label = draw(0)
        save(tmp_path / f"{name}.nii.gz", image[0])
        save(tmp_path / f"{name}_seg.nii.gz", label)
    layout = find_layout(tmp_path, ["*.nii.gz"], "*_seg.nii.gz")
    assert [(c["case_id"], Path(c["image"]).name, Path(c["label"]).name) for c in layout.cases] == [
        ("anna", "anna.nii.gz", "anna_seg.nii.gz"),
        ("bert", "bert.nii.gz", "bert_seg.nii.gz"),
    ]
    assert layout.faults == ()
    alone = matched_cases(tmp_path, ["*.nii.gz"], without="*_seg.nii.gz")
    assert [case["case_id"] for case in alone] == ["anna", "bert"]


def test_a_channel_of_a_narrower_pattern_is_no_case_of_the_wider_one(tmp_path):
    for name in ("anna", "bert"):
        for end in ("", "_t2", "_seg"):
            save(tmp_path / f"{name}{end}.nii.gz", draw(0)[1])
    layout = find_layout(tmp_path, ["*.nii.gz", "*_t2.nii.gz"], "*_seg.nii.gz", ["T1", "T2"])
    assert [case["case_id"] for case in layout.cases] == ["anna", "bert"]
    assert layout.faults == ()


def test_a_file_that_is_image_and_label_at_once_is_refused(tmp_path):
    save(tmp_path / "a_seg.nii.gz", draw(0)[1])
    with pytest.raises(DataError, match="matches the pattern of the images and that of the labels"):
        find_layout(tmp_path, ["*_seg.nii.gz"], "*_seg.nii.gz")


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16"])
def test_dataset_json_may_begin_with_a_mark(tmp_path, mark):
    folder = write_decathlon(tmp_path / "data")
    (folder / "dataset.json").write_text((folder / "dataset.json").read_text(), encoding=mark)
    assert find_layout(folder).channels == ("M0",)


def test_values_of_any_size_are_told_at_once():
    with pytest.raises(DataError, match="without 1, 2"):
        check_consecutive("labels", [0, 2**31])
