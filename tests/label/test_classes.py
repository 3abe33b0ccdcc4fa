"""Drawn names and the classes of the served bundles."""

from __future__ import annotations

import pytest

from decathlete.errors import UsageError
from decathlete.label.classes import Classes, values_of_names

THREE = Classes({"heart": {"left atrium": 1}, "hippocampus": {"anterior": 1, "posterior": 2}, "nfbs": {"brain": 1}})
SHARED = Classes({"lung": {"tumour": 1}, "liver": {"liver": 1, "tumour": 2}})


def info(*names: str, start: int = 1) -> list[dict]:
    """Segments as 3D Slicer states them."""
    return [{"name": name, "idx": place} for place, name in enumerate(names, start)]


def test_all_classes_are_shown_bundle_by_bundle():
    assert THREE.names == ["left atrium", "anterior", "posterior", "brain"]


def test_a_name_of_several_bundles_is_shown_with_its_bundle():
    assert SHARED.names == ["lung: tumour", "liver", "liver: tumour"]
    assert SHARED.shown("liver") == {"liver": 1, "liver: tumour": 2}


def test_a_name_goes_to_the_bundle_that_has_it():
    assert THREE.assign_names(["posterior", "anterior"], "x") == {"hippocampus": {"posterior": 2, "anterior": 1}}


def test_names_are_compared_without_case_and_extra_spaces():
    assert THREE.assign_names([" Left  Atrium"], "x") == {"heart": {" Left  Atrium": 1}}


def test_names_of_two_bundles_go_each_to_its_own():
    assert THREE.assign_names(["left atrium", "posterior"], "x") == {
        "heart": {"left atrium": 1},
        "hippocampus": {"posterior": 2},
    }


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"no class \('Segment_1'\).*left atrium, anterior, posterior, brain"):
        THREE.assign_names(["anterior", "Segment_1"], "x")


def test_a_name_of_another_bundle_is_refused_where_the_bundle_is_known():
    with pytest.raises(UsageError, match=r"no class \('anterior'\).*known classes: left atrium"):
        THREE.assign_names(["anterior"], "x", "heart")


def test_a_shared_name_goes_with_another_name_of_its_bundle():
    assert SHARED.assign_names(["tumour", "liver"], "x") == {"liver": {"tumour": 2, "liver": 1}}


def test_a_shared_name_alone_is_refused_with_the_way_to_name_it():
    with pytest.raises(UsageError, match=r"\(lung, liver\).*'lung: tumour'"):
        SHARED.assign_names(["tumour"], "x")
    assert SHARED.assign_names(["liver: tumour"], "x") == {"liver": {"liver: tumour": 2}}


@pytest.mark.parametrize(("values", "bundle"), [([1, 2], "hippocampus"), ([2], "hippocampus")])
def test_values_without_names_go_to_the_only_bundle_that_has_them(values, bundle):
    assert THREE.assign_values(values, "x") == bundle


def test_values_that_several_bundles_have_are_refused():
    with pytest.raises(UsageError, match=r"which bundle .*\(served are heart, hippocampus, nfbs\)"):
        THREE.assign_values([1], "x")
    assert THREE.assign_values([1], "x", "nfbs") == "nfbs"


def test_values_that_are_no_classes_are_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"\(1, 3\).*hippocampus: 1 anterior, 2 posterior"):
        THREE.assign_values([1, 3], "x")


def test_an_empty_label_map_belongs_to_the_only_bundle():
    assert Classes({"heart": {"left atrium": 1}}).assign_names([], "x") == {"heart": {}}
    with pytest.raises(UsageError, match="which bundle"):
        THREE.assign_names([], "x")


def test_values_are_named_by_their_place():
    assert values_of_names([1, 2], info("posterior", "anterior"), "x") == {1: "posterior", 2: "anterior"}


def test_undrawn_segments_need_no_value():
    assert values_of_names([2], info("Segment_1", "anterior"), "x") == {2: "anterior"}


def test_names_without_an_index_count_by_their_place():
    assert values_of_names([2], [{"name": "a"}, {"name": "b"}], "x") == {2: "b"}


def test_values_beyond_the_list_are_named_by_their_index():
    assert values_of_names([2, 7], [{"name": "a", "idx": 2}, {"name": "b", "idx": 7}], "x") == {2: "a", 7: "b"}


def test_segments_behind_one_that_was_left_out_are_named_by_their_place():
    """3D Slicer leaves 'background' out of the label map, and counts it in 'idx'."""
    assert values_of_names([1, 2], info("anterior", "posterior", start=2), "x") == {1: "anterior", 2: "posterior"}


def test_two_readings_that_differ_are_refused():
    with pytest.raises(UsageError, match=r"value 2 has two names .*'posterior', by 'idx' 'anterior'"):
        values_of_names([2], info("anterior", "posterior", start=2), "x")


@pytest.mark.parametrize("wrong", [{"a": 1}, "anterior", [1], [{"idx": 1}], [{"name": 3}], [{"name": " "}]])
def test_what_is_no_list_of_names_is_refused(wrong):
    with pytest.raises(UsageError, match=r"^x: .*label_info"):
        values_of_names([1], wrong, "x")


def test_a_value_without_a_name_is_refused():
    with pytest.raises(UsageError, match="does not name all values"):
        values_of_names([1, 3], info("anterior", "posterior"), "x")
