from __future__ import annotations

import pytest

from decathlete.bundle import bundle_labels, bundle_names
from decathlete.io.codes import CODES, UNKNOWN, segment_codes

ALL = [codes for classes in CODES.values() for codes in classes.values()]


def test_every_class_of_every_bundle_has_codes_and_no_other():
    assert {name: set(bundle_labels(name).values()) for name in bundle_names()} == {
        name: set(classes) for name, classes in CODES.items()
    }


@pytest.mark.parametrize("concept", {c for codes in ALL for c in vars(codes).values() if c})
def test_codes_are_those_of_the_standard(concept):
    known = pytest.importorskip("pydicom.sr._concepts_dict").concepts[concept.scheme]
    meanings = [
        found[concept.value][0] for found in known.values() if isinstance(found, dict) and concept.value in found
    ]
    assert concept.meaning in meanings


def test_the_classes_of_a_bundle_are_told_apart():
    for classes in CODES.values():
        assert len(set(classes.values())) == len(classes)


def test_a_class_that_is_not_in_the_table_is_tissue():
    assert segment_codes("my_bundle", "spleen") is UNKNOWN
    assert segment_codes("spleen", "stone") is UNKNOWN
