"""Which labelled cases a training is validated on, and how they come into its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from decathlete.bundle.configs import load
from decathlete.label.adoption import Pair
from decathlete.names import inert


def split(pairs: Sequence[Pair], fraction: float) -> tuple[list[Pair], list[Pair]]:
    """Cases to train on and cases to validate on, in the order of the pairs.

    Which cases are held out goes by their ids, so that a case mostly stays where it is while others come. Where
    none can be held out (one label, or ``fraction`` 0), all are trained on and validated on.
    """
    count = min(max(1, round(len(pairs) * fraction)), len(pairs) - 1) if fraction > 0 else 0
    ranked = sorted(pairs, key=lambda pair: sha256(pair["case_id"].encode()).digest())
    held_out = ranked[:count]
    training = [pair for pair in pairs if pair not in held_out]
    return training, [pair for pair in pairs if pair in held_out] or training


def data_overrides(training: Sequence[Pair], validation: Sequence[Pair] | None, output: Path) -> dict[str, Any]:
    """Overrides of a training's config that put pairs in the place of its data.

    The ids of the pairs are names of files that somebody uploaded: they enter as values that nothing evaluates.

    Args:
        training: pairs to train on.
        validation: pairs to validate on; None for the cases that the bundle itself names.
        output: the run's folder.
    """
    values = {"train::dataset::data": inert(training), "output_dir": output}
    if validation is not None:
        values |= {"validate::dataset::data": inert(validation), "dataset_dir": output.parent}
    return values


def own_validation(folder: Path, overrides: Mapping[str, Any]) -> list[Pair]:
    """The cases that a bundle itself names for validation, those of one image file and one label file each."""
    data = load(folder, "train", overrides).get_parsed_content("validate::dataset::data")
    return [
        {key: str(case[key]) for key in ("image", "label", "case_id")}
        for case in data
        if all(isinstance(case.get(key), str) for key in ("image", "label", "case_id"))
    ]
