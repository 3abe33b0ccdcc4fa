from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, LoadImaged

from decathlete.cli import main
from decathlete.data import fetch, index_sunnybrook, make_sunnybrook_phantoms, sunnybrook_datalist
from decathlete.data.sunnybrook import frame_files, leaves_by_px, patient_folder
from decathlete.errors import DataError, UsageError
from decathlete.io.contours import contour_area, contour_mask, read_contour, write_contour
from decathlete.io.dicom import read_dicom_frame
from decathlete.transforms import ContourMaskd


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two patients, 2 slices x 4 phases, 96 x 96 pixels."""
    return make_sunnybrook_phantoms(2, tmp_path_factory.mktemp("data"), size=96, slices=2, phases=4)


@pytest.fixture
def phantoms(made, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "sunnybrook"))


def contour(folder: Path, patient: int, number: int, kind: str) -> Path:
    name = f"IM-0001-{number:04d}-{kind}contour-manual.txt"
    return folder / "final_data" / "contourfiles" / f"SC-PH-{patient}" / f"{kind}-contours" / name


def frame(folder: Path, patient: int, number: int) -> Path:
    return folder / "final_data" / "dicoms" / f"PHANTOM{patient:02d}" / f"{number}.dcm"


def found(folder: Path, severity: str = "FAULT") -> str:
    return "\n".join(str(f) for f in index_sunnybrook(folder).findings if f.severity == severity)


def test_the_real_set_is_paired_and_its_copied_contours_are_left_out(shared):
    index = index_sunnybrook(shared / "data" / "sunnybrook")
    assert (len(index.frames), len(index.contoured), len(index.pairs)) == (428, 96, 37)
    assert sum(f.inner is not None for f in index.frames) == 96
    left_out = [f for f in index.findings if f.severity != "note"]
    assert len(left_out) == 1
    assert "SC-HF-I-6" in str(left_out[0].path)
    assert left_out[0].message.startswith("9 files hold the same bytes as those of SC-HF-I-1")
    assert sum("touches or crosses" in f.message for f in index.findings) == 2


def test_masks_of_the_real_contours_have_their_area_to_one_percent(shared):
    for item in index_sunnybrook(shared / "data" / "sunnybrook").contoured:
        for path in filter(None, (item.inner, item.outer)):
            points = read_contour(path)
            assert contour_mask(points, (256, 256)).sum() == pytest.approx(contour_area(points), rel=0.01), path


def test_cavity_volume_of_a_real_patient_is_that_of_its_contours(shared):
    items = [i for i in sunnybrook_datalist(shared / "data" / "sunnybrook", part="contoured") if "301" in i["patient"]]
    phases: dict[int, float] = {}
    for item in items:
        spacing = read_dicom_frame(item["image"]).spacing
        mask = contour_mask(read_contour(item["inner"]), (256, 256))
        phase = (int(item["case_id"][-4:]) - 1) % 20 + 1
        phases[phase] = phases.get(phase, 0) + mask.sum() * spacing[0] * spacing[1] * 8 / 1000  # slices 8 mm apart
    assert phases == {7: pytest.approx(180, abs=1), 20: pytest.approx(230, abs=1)}


def test_every_case_of_frames_and_contours_is_read_or_refused_by_its_file(shared):
    folder = shared / "data" / "bad_inputs"
    cases = [c for c in json.loads((folder / "cases.json").read_text()) if c["kind"] == "contour-case"]
    wrong = []
    for case in cases:
        try:
            index = index_sunnybrook(folder / case["path"])
            faults = [str(f) for f in index.findings if f.severity == "FAULT"]
            refused = bool(faults) or not any(f.inner for f in index.frames)
        except DataError as error:
            faults, refused = [str(error)], True
        named = all(str(folder / case["path"]) in fault for fault in faults)
        if (refused and case["verdict"] == "read") or (not refused and case["verdict"] == "refuse") or not named:
            wrong.append((case["path"], case["should"], faults))
    assert wrong == []
    assert len(cases) == 49


def test_the_same_contour_in_other_spellings_gives_the_same_mask(shared):
    folder = shared / "data" / "bad_inputs" / "dicom" / "sunnybrook"
    masks = {
        name: contour_mask(read_contour(index_sunnybrook(folder / name).contoured[0].inner), (32, 32))
        for name in ("valid_reference", "valid_windows_line_ends", "valid_closed", "valid_clockwise", "valid_tabs",
                     "valid_blank_lines", "valid_repeated_points", "valid_trailing_spaces", "valid_no_final_newline")
    }  # fmt: skip
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, masks["valid_reference"], err_msg=name)


def test_a_case_list_gives_one_item_a_contoured_frame(made):
    items = sunnybrook_datalist(made, part="contoured")
    assert [item["case_id"] for item in items[:3]] == ["PHANTOM01_0002", "PHANTOM01_0004", "PHANTOM01_0006"]
    assert items[0]["outer"] is None
    assert items[1] == {
        "image": str(frame(made, 1, 4)),
        "inner": str(contour(made, 1, 4, "i")),
        "outer": str(contour(made, 1, 4, "o")),
        "case_id": "PHANTOM01_0004",
        "patient": "PHANTOM01",
    }
    assert len(sunnybrook_datalist(made, part="frames")) == 16


def test_a_fold_keeps_patients_apart(made):
    train, validation = (sunnybrook_datalist(made, 1, part) for part in ("training", "validation"))
    assert len(train) == len(validation) == 4
    assert {i["patient"] for i in train}.isdisjoint(i["patient"] for i in validation)
    with pytest.raises(UsageError, match="must be 0, 1"):
        sunnybrook_datalist(made, 7)


def test_items_with_and_without_outer_contour_make_a_batch(made):
    chain = Compose(
        [LoadImaged("image", reader="decathlete.transforms.DicomReader", ensure_channel_first=True), ContourMaskd()]
    )
    loader = DataLoader(Dataset(sunnybrook_datalist(made, part="contoured"), chain), batch_size=4, shuffle=True)
    batch = next(iter(loader))
    assert batch["image"].shape == (4, 1, 96, 96)
    assert batch["label"].shape == (4, 2, 96, 96)
    assert torch.equal(batch["label"].sum(dim=(2, 3)) > 0, batch["drawn"] > 0)
    spacings = {read_dicom_frame(f.image).spacing[0] for f in index_sunnybrook(made).contoured}
    for image in batch["image"]:
        assert any(image.affine[0, 0] == pytest.approx(mm) for mm in spacings)


def test_masks_lie_on_the_blood_of_their_phantom(made):
    item = sunnybrook_datalist(made, part="contoured")[1]
    image = read_dicom_frame(item["image"]).array
    inner, outer = (contour_mask(read_contour(item[kind]), image.shape) for kind in ("inner", "outer"))
    assert image[inner].mean() > 2 * image[outer & ~inner].mean()


def test_a_contour_without_its_frame_is_named_and_left_out(phantoms):
    frame(phantoms, 1, 4).unlink()
    assert f"{contour(phantoms, 1, 4, 'i')}: frame 4 is missing" in found(phantoms)
    assert "1 of frames 1 to 8 are not there: 4" in found(phantoms, "note")
    assert len(index_sunnybrook(phantoms).pairs) == 3


def test_a_contour_outside_its_frame_is_named_and_left_out(phantoms):
    write_contour([[10, 10], [20, 10], [20, 97]], contour(phantoms, 1, 4, "o"))
    assert "96 x 96 pixels" in found(phantoms)
    assert str(contour(phantoms, 1, 4, "o")) in found(phantoms)
    index = index_sunnybrook(phantoms)
    assert (len(index.pairs), sum(f.inner is not None for f in index.frames)) == (3, 8)


def test_swapped_contours_are_named_and_left_out(phantoms):
    inner, outer = contour(phantoms, 1, 4, "i"), contour(phantoms, 1, 4, "o")
    points = read_contour(inner)
    write_contour(read_contour(outer), inner)
    write_contour(points, outer)
    assert "the inner contour leaves the outer one by" in found(phantoms)
    assert "PHANTOM01_0004" not in [f.case_id for f in index_sunnybrook(phantoms).contoured]


def test_contours_that_touch_are_kept(phantoms):
    contour(phantoms, 1, 4, "o").write_bytes(contour(phantoms, 1, 4, "i").read_bytes())
    assert found(phantoms) == ""
    assert len(index_sunnybrook(phantoms).pairs) == 4


def test_copies_of_another_patients_contours_are_left_out_where_they_do_not_fit(phantoms):
    for number in (4, 8):
        for kind in "io":  # the first patient's heart lies elsewhere
            path = contour(phantoms, 1, number, kind)
            write_contour(read_contour(path) + np.array([12, 0]), path)
        contour(phantoms, 2, number, "o").write_bytes(contour(phantoms, 1, number, "o").read_bytes())
    said = found(phantoms, "left out")
    assert said.startswith(f"{contour(phantoms, 2, 4, 'o').parent}: 2 files hold the same bytes as those of SC-PH-1")
    assert {f.patient for f in index_sunnybrook(phantoms).pairs} == {"PHANTOM01"}


def test_a_frame_that_another_patient_has_too_is_left_out(phantoms):
    shutil.copy(frame(phantoms, 1, 3), frame(phantoms, 2, 3))
    assert "PHANTOM02_0003 hold the same bytes" in found(phantoms)
    assert "PHANTOM02_0003" not in [f.case_id for f in index_sunnybrook(phantoms).frames]


def test_an_unreadable_frame_is_named_and_left_out(phantoms):
    frame(phantoms, 2, 2).write_text("no picture")
    assert f"{frame(phantoms, 2, 2)}: not a DICOM file (no DICM" in found(phantoms)
    assert len(index_sunnybrook(phantoms).frames) == 15


def test_an_id_that_stands_for_two_patients_leaves_both_out(phantoms):
    with (phantoms / "final_data" / "link.csv").open("a") as file:
        file.write("PHANTOM03,SC-PH-2\n")
    assert "id SC-PH-2 stands for two patients (PHANTOM02,SC-PH-2, PHANTOM03,SC-PH-2)" in found(phantoms)
    assert {f.patient for f in index_sunnybrook(phantoms).frames} == {"PHANTOM01"}


def test_a_link_that_leads_elsewhere_is_refused(phantoms):
    (phantoms / "final_data" / "link.csv").write_text("patient_id,original_id\n../..,SC-PH-1\n")
    with pytest.raises(DataError, match="line 2: a line must be two folder names"):
        index_sunnybrook(phantoms)


def test_a_patient_who_is_not_linked_is_named(phantoms):
    (phantoms / "final_data" / "link.csv").write_text("patient_id,original_id\nPHANTOM01,SC-PH-1\n")
    assert "PHANTOM02: is not in link.csv: the patient is left out" in found(phantoms)


def test_distance_outside_is_measured_to_the_nearest_edge():
    square = np.array([[0.0, 0], [10, 0], [10, 10], [0, 10]])
    assert leaves_by_px(np.array([[5.0, 5], [13, 5], [6, 6]]), square) == pytest.approx(3)
    assert leaves_by_px(np.array([[5.0, 5], [13, 14], [6, 6]]), square) == pytest.approx(5)
    assert leaves_by_px(np.array([[5.0, 5], [6, 5], [6, 6]]), square) == 0


def test_phantoms_of_another_kind_are_not_mixed_in(made):
    assert make_sunnybrook_phantoms(2, made.parent, size=96, slices=2, phases=4) == made
    with pytest.raises(DataError, match="already holds other phantoms"):
        make_sunnybrook_phantoms(3, made.parent, size=96, slices=2, phases=4)


def test_a_patient_is_the_same_however_many_there_are(made, tmp_path):
    alone = make_sunnybrook_phantoms(1, tmp_path, size=96, slices=2, phases=4)
    for path in (p for p in (made / "final_data").rglob("*") if p.is_file() and "1" in p.parent.name):
        if "PHANTOM01" in path.parts or "SC-PH-1" in path.parts:
            assert (alone / path.relative_to(made)).read_bytes() == path.read_bytes()


def test_data_that_are_not_there_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DECATHLETE_DATA", raising=False)
    with pytest.raises(DataError, match="--phantom N"):
        fetch("sunnybrook", output=tmp_path)


@pytest.mark.parametrize(
    ("case", "status", "said"),
    [
        ("valid_reference", 0, "3      2      1     1"),
        ("valid_tabs", 0, "all"),
        ("valid_4000_points", 0, "all"),
        ("inner_outside_outer", 1, "icontour-manual.txt: the inner contour leaves the outer one"),
        ("outside_image", 1, "icontour-manual.txt: the contour leaves the image of 32 x 32 pixels"),
        ("two_inner_files", 1, "two inner contours for frame 20"),
        ("contour_without_frame", 1, "IM-0001-0099-icontour-manual.txt: frame 99 is missing"),
        ("outer_only", 1, "no frame has a usable inner contour"),
        ("empty_file", 1, "no points in the file"),
        ("decimal_comma", 1, "two numbers, x and y, in line 1"),
        ("utf16", 1, "ASCII"),
        ("nan", 1, "line 5"),
        ("frame_is_text", 1, "IM-0001-0020.dcm: not a DICOM file"),
        ("contour_is_dicom", 1, "ASCII"),
    ],
)
def test_the_command_tells_each_fault_by_its_file(shared, capsys, case, status, said):
    folder = shared / "data" / "bad_inputs" / "dicom" / "sunnybrook" / case
    assert main(["check", str(folder)]) == status
    shown = capsys.readouterr()
    assert said in shown.out + shown.err
    assert "Traceback" not in shown.err


def test_frames_of_a_folder_are_in_the_order_of_their_numbers(made, tmp_path):
    source = Path(patient_folder(made))
    assert source.name == "PHANTOM01"
    for number, name in ((1, "10.dcm"), (2, "9.dcm"), (3, "IM-0001-0002.dcm"), (4, "MR_without_suffix")):
        shutil.copy(source / f"{number}.dcm", tmp_path / name)
    (tmp_path / "notes.txt").write_text("no frame")
    (tmp_path / ".DS_Store").write_text("")
    names = ["IM-0001-0002.dcm", "9.dcm", "10.dcm", "MR_without_suffix"]
    assert [path.name for path in frame_files(tmp_path)] == names
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    assert [path.name for path in frame_files(tmp_path)] == ["scan.nii.gz"]


def test_a_folder_without_frames_is_told(made, tmp_path):
    with pytest.raises(DataError, match="2 patients' folders"):
        frame_files(made)
    with pytest.raises(DataError, match=r"no frames found, such as 59\.dcm"):
        frame_files(tmp_path)
    with pytest.raises(DataError, match="frames of SCD0000301"):
        patient_folder(made, "SCD0000301")


def test_a_frame_that_was_not_fetched_is_a_fault_and_an_input(phantoms):
    path = frame(phantoms, 1, 2)
    path.unlink()
    path.symlink_to("../store/KEY.dcm")
    assert f"{path}: the file's content is missing (a link to ../store/KEY.dcm" in found(phantoms)
    assert path in frame_files(path.parent)
