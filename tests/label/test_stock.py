"""Where the weights of a training go that MONAI Label's own app has started."""

from __future__ import annotations

import sys

import pytest

from decathlete.label.stock import publish


@pytest.fixture
def run(tmp_path):
    """A run's folder with final weights, and a bundle that has weights."""
    for name, content in {"out/model_final.pt": b"new", "bundle/models/model.pt": b"old"}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_bundle_stays_as_it_is(run):
    publish([None], str(run / "out"), str(run / "bundle"))
    assert [(f.name, f.read_bytes()) for f in (run / "bundle" / "models").iterdir()] == [("model.pt", b"old")]


@pytest.mark.parametrize(("process", "written"), [("0", {b"new", b"old"}), ("1", {b"old"})])
def test_in_monai_label_the_new_weights_are_served_and_the_old_ones_kept(run, monkeypatch, process, written):
    monkeypatch.setitem(sys.modules, "monailabel", sys)
    monkeypatch.setenv("RANK", process)
    publish([None], str(run / "out"), str(run / "bundle"))
    files = {f.name: f.read_bytes() for f in (run / "bundle" / "models").iterdir()}
    assert set(files.values()) == written
    assert files["model.pt"] == (b"new" if process == "0" else b"old")
