from __future__ import annotations

import csv

import numpy as np
import pytest

from decathlete.data.folds import official_ids, split
from decathlete.data.tasks import TASKS, get_task
from decathlete.errors import DataError, UsageError


@pytest.fixture(scope="module")
def published(shared) -> dict[str, dict[str, int]]:
    """nnU-Net's fold of each case: task folder -> case id -> fold."""
    folds: dict[str, dict[str, int]] = {}
    with (shared / "facts" / "nnunet_five_fold_cases.csv").open() as file:
        for row in csv.DictReader(file):
            folds.setdefault(row["task"], {})[row["case"]] = int(row["fold"])
    return folds


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_folds_are_those_that_nnunet_published(task, published):
    of_case = published[task.folder]
    for fold in range(5):
        train, val = split(of_case, fold, task)
        assert val == sorted(c for c, f in of_case.items() if f == fold)
        assert train == sorted(c for c, f in of_case.items() if f != fold)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_official_ids_are_as_many_as_the_table_says(task):
    assert len(set(official_ids(task))) == task.num_training
    assert all(i.startswith(task.prefix + "_") for i in official_ids(task))


def test_missing_official_cases_leave_the_others_in_their_folds():
    ids = list(official_ids(get_task("hippocampus")))
    for fold in range(5):
        assert set(split(ids[::3], fold, "hippocampus")[1]) == set(split(ids, fold, "hippocampus")[1]) & set(ids[::3])


def test_heart_fold_0_is_the_published_one():
    # nnU-Net's splits for Task02, fold 0
    assert split(official_ids(get_task("heart")), 0, "heart")[1] == ["la_007", "la_016", "la_021", "la_024"]


def test_own_data_set_is_cut_by_kfold_over_sorted_ids():
    ids = [f"p{i:02d}" for i in range(13)]
    order = np.arange(13)
    np.random.RandomState(12345).shuffle(order)
    parts = order[:3], order[3:6], order[6:9], order[9:11], order[11:]  # 13 = 3 + 3 + 3 + 2 + 2
    for fold, part in enumerate(parts):
        train, val = split(reversed(ids), fold)
        assert val == sorted(ids[i] for i in part)
        assert sorted(train + val) == ids


def test_one_strange_id_makes_it_an_own_data_set():
    ids = list(official_ids(get_task("heart")))[:-1]
    assert split([*ids, "zz_mine"], 0, "heart") == split([*ids, "zz_mine"], 0)


def test_few_official_cases_still_give_five_folds():
    ids = official_ids(get_task("brain_tumour"))[:5]
    assert sorted(i for fold in range(5) for i in split(ids, fold, "brain_tumour")[1]) == list(ids)


def test_fewer_than_five_cases_are_left_out_one_at_a_time():
    assert sorted(split(["a", "b", "c"], fold)[1][0] for fold in range(3)) == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"3 cases\)\. Use fold 0 to 2"):
        split(["a", "b", "c"], 3)


def test_one_case_has_no_fold_but_all():
    with pytest.raises(DataError, match=r"1 case\)\. Add cases"):
        split(["a"], 0)
    assert split(["a"], "all") == (["a"], ["a"])


def test_fold_all_trains_and_validates_on_every_case():
    assert split(["b", "a"], "all") == (["a", "b"], ["a", "b"])


def test_fold_as_text_is_the_same_fold():
    ids = [str(i) for i in range(10)]
    assert split(ids, "2") == split(ids, 2)


@pytest.mark.parametrize("fold", [5, -1, "x", "", 1.5, True, None, "²"])
def test_other_folds_are_refused(fold):
    with pytest.raises(UsageError, match="must be 0, 1, 2, 3, 4 or 'all'"):
        split(["a", "b"], fold)


def test_no_cases_and_a_case_twice_are_refused():
    with pytest.raises(DataError, match="no cases to split"):
        split([], 0)
    with pytest.raises(DataError, match="b occurs more than once"):
        split(["b", "a", "b"], "all")
