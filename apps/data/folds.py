"""Five folds by nnU-Net's rule, so that scores can be compared case by case with published ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from decathlete.data.tasks import Task, get_task
from decathlete.errors import DataError, UsageError

NUM_FOLDS = 5
_SEED = 12345  # nnU-Net's; with another the folds would not be the published ones


@cache
def official_ids(task: Task) -> tuple[str, ...]:
    """Case ids of a task's official training set, sorted as text."""
    return tuple(json.loads(Path(__file__).with_name("msd_cases.json").read_text("utf-8"))[task.folder])


def split(
    case_ids: Iterable[str], fold: int | str, task: Task | str | int | None = None
) -> tuple[list[str], list[str]]:
    """Ids to train on and ids to validate on, each sorted.

    When all ids are official ones of ``task``, the folds are those of the complete official set without the missing
    cases, so a case is always in the same fold. Any other set is split by the same rule over its own sorted ids, and so
    are official cases that would leave a fold empty. Fewer than five cases are left out one at a time: n cases have the
    folds 0 to n - 1.

    Args:
        case_ids: one id per patient, in any order, without duplicates.
        fold: 0 to 4, as a number or as text, or ``"all"``: train on all and validate on all.
        task: MSD task whose official ids count, or None for a data set of its own.

    Raises:
        UsageError: no such fold.
        DataError: no ids, an id twice, or too few cases for this fold.

    Source: scikit-learn's ``KFold(5, shuffle=True, random_state=12345)`` over sorted ids, as nnU-Net v2 calls it.
    """
    number = _fold_number(fold)
    task = task if task is None or isinstance(task, Task) else get_task(task)
    where = task.folder if task else "the data set"
    ids = sorted(case_ids)
    if not ids:
        raise DataError(where, "no cases to split into folds", "", "Check dataset_dir, or run 'decathlete data TASK'")
    twice = sorted({a for a, b in pairwise(ids) if a == b})
    if twice:
        raise DataError(where, "case ids must be unique", f"{twice[0]} occurs more than once",
                        "Rename one of the cases")  # fmt: skip
    if number is None:
        return ids, list(ids)
    parts = _parts(ids, task)
    if len(ids) < 2 or number >= len(parts):
        cases = "1 case" if len(ids) == 1 else f"{len(ids)} cases"
        remedy = "Add cases, or use fold 'all'" if len(ids) == 1 else f"Use fold 0 to {len(parts) - 1}, or 'all'"
        raise DataError(where,
                        f"too few cases for fold {number}, which needs one to validate on and another to train on",
                        cases, remedy)  # fmt: skip
    held_out = parts[number]
    return [i for i in ids if i not in held_out], [i for i in ids if i in held_out]


def _parts(ids: list[str], task: Task | None) -> list[frozenset[str]]:
    if task and set(ids) <= set(official_ids(task)):
        parts = [part & frozenset(ids) for part in _folds(official_ids(task))]
        if all(parts):
            return parts
    return _folds(ids)


def _folds(ids: Iterable[str]) -> list[frozenset[str]]:
    order = list(ids)
    indices = np.arange(len(order))
    np.random.RandomState(_SEED).shuffle(indices)
    # array_split gives the first parts one more where the number does not divide, as KFold does
    return [frozenset(order[i] for i in part) for part in np.array_split(indices, min(NUM_FOLDS, len(order)))]


def _fold_number(fold: int | str) -> int | None:
    word = str(fold).strip().lower()
    if word == "all":
        return None
    if isinstance(fold, bool) or not word.isascii() or not word.isdigit() or int(word) >= NUM_FOLDS:
        raise UsageError("fold", "must be 0, 1, 2, 3, 4 or 'all'", repr(fold), "Pass --fold 0 for the first fold")
    return int(word)
