"""Bundles that have one source: their configs are what the table of tasks and the templates give."""

from __future__ import annotations

import pytest

from decathlete.bundle import packaged_root
from decathlete.planning.packaged import PLANS, render_packaged, write_packaged


@pytest.mark.parametrize("name", PLANS)
def test_the_configs_are_those_that_make_bundles_writes(name):
    for file, text in render_packaged(name).items():
        written = (packaged_root() / name / file).read_text(encoding="utf-8")
        assert written == text, f"{name}/{file} differs: change the table or the template, then run 'make bundles'"


def test_a_second_rendering_writes_nothing(tmp_path):
    first = write_packaged(tmp_path)
    assert len(first) == 4 * len(PLANS)
    assert write_packaged(tmp_path) == []
