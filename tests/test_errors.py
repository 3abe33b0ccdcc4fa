"""Errors of one line, told in four parts."""

from __future__ import annotations

import pickle

import pytest

from decathlete import errors
from decathlete.errors import DataError, DecathleteError, GeometryError, UsageError, listed, nearest

LEAVES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DecathleteError)]


def test_message_has_place_rule_finding_and_remedy_in_one_line():
    error = DataError("la_007", "must be finite", "3 NaN", "Fix the file.")
    assert str(error) == "la_007: must be finite (3 NaN). Fix the file."


def test_message_leaves_out_empty_parts():
    assert str(DataError("a.nii", "must be 3D")) == "a.nii: must be 3D."


@pytest.mark.parametrize("kind", LEAVES)
def test_error_survives_the_way_from_a_data_worker(kind):
    error = pickle.loads(pickle.dumps(kind("case_1", "must be so", "not so", "Change it")))
    assert type(error) is kind
    assert (error.where, error.rule, error.found, error.remedy) == ("case_1", "must be so", "not so", "Change it")


def test_wrong_use_and_failed_work_differ_in_exit_status():
    assert UsageError("--fold", "must be 0 to 4").exit_status == 2
    assert GeometryError("a.nii", "affines must agree").exit_status == 1


def test_long_lists_are_cut_and_the_rest_is_counted():
    assert listed(["a", 2, "c"], most=3) == "a, 2, c"
    assert listed("abcdefg") == "a, b, c, d, e and 2 more"


def test_nearest_names_the_close_word_and_all_known():
    assert nearest("hipocampus", ["spleen", "hippocampus"]) == "Did you mean 'hippocampus'? Known: hippocampus, spleen"


def test_nearest_guesses_nothing_for_a_word_far_from_all():
    assert nearest("xyz", ["spleen", "liver"]) == "Known: liver, spleen"
