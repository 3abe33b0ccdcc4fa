"""Overrides are read from words and checked against a config, one way for every command."""

from __future__ import annotations

import pytest

from decathlete.bundle.overrides import check_overrides, has_id, laid_over
from decathlete.errors import ConfigError

CONFIG = {"fold": 0, "amp": True, "train": {"trainer": {"max_epochs": 3}, "handlers": [{"x": 1}]}}


@pytest.mark.parametrize("name", ["fold", "train::trainer::max_epochs", "train#trainer", "train::handlers::0::x"])
def test_both_spellings_find_an_id(name):
    assert has_id(CONFIG, name)


@pytest.mark.parametrize("name", ["fould", "train::trainer::x", "train::handlers::1", "fold::x", "train::handlers::x"])
def test_what_is_not_there_has_no_id(name):
    assert not has_id(CONFIG, name)


def test_later_files_override_single_ids_of_earlier_ones():
    made = laid_over([CONFIG, {"fold": 1, "train::trainer::amp": False, "train#sampler": {"a": 1}, "new::id": 2}])
    assert made["fold"] == 1
    assert made["train"] == {**CONFIG["train"], "trainer": {"max_epochs": 3, "amp": False}, "sampler": {"a": 1}}
    assert made["new"] == {"id": 2}
    assert CONFIG["train"]["trainer"] == {"max_epochs": 3}  # the inputs stay as they are


def test_a_fold_given_as_text_becomes_a_number():
    assert check_overrides(CONFIG, {"fold": "2"}) == {"fold": 2}
    assert check_overrides(CONFIG, {"fold": "all"}) == {"fold": "all"}
    with pytest.raises(ConfigError, match=r"fold \(override\): expected a number, such as 0 \('some'\)"):
        check_overrides(CONFIG, {"fold": "some"})
