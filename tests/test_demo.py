"""What `make demo` runs, on phantoms and in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from decathlete import demo
from decathlete.data import download, make_phantoms


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch) -> Path:
    """An empty working directory with a space in its path, and no data anywhere."""
    folder = tmp_path / "a place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DECATHLETE_DATA", raising=False)
    return folder


def test_phantoms_are_drawn_and_called_so_where_no_data_can_be_had(monkeypatch, capsys):
    monkeypatch.setenv("DECATHLETE_MSD_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(download, "_WAIT_S", 0)
    monkeypatch.setattr(demo, "PHANTOMS", 2)
    folder, source = demo.find_data(Path("demo"))
    assert folder == Path("demo/phantoms/Task04_Hippocampus")
    assert source == "phantoms, not real scans"
    told = capsys.readouterr()
    assert "the download failed" in told.err
    assert "say nothing about real scans" in told.out


def test_phantoms_among_the_users_data_are_not_called_real(work, monkeypatch):
    make_phantoms("hippocampus", 2, work / "mine")
    monkeypatch.setenv("DECATHLETE_DATA", str(work / "mine"))
    assert demo.find_data(Path("demo")) == (work / "mine" / "Task04_Hippocampus", "phantoms, not real scans")


@pytest.mark.slow
def test_demo_ends_with_a_table_and_paths_and_is_kept(work, monkeypatch, capsys):
    make_phantoms("hippocampus", 10, work / "data")
    monkeypatch.setenv("DECATHLETE_DEMO_MINUTES", "0.03")
    assert demo.main() == 0
    text = capsys.readouterr().out
    run = work / "demo" / "phantoms_0.03_minutes"
    weights = (run / "model_final.pt").stat().st_mtime_ns
    for word in ("anterior", "posterior", "prediction", "overlay", "TensorBoard"):
        assert word in text
    last = torch.load(run / "last.pt", weights_only=True)
    taken = (last["schedule"]["trained_s"] + last["schedule"]["other_s"]) / 60  # measured, not the 0.03 asked for
    assert f"{last['iteration']} iterations in {taken:.2f} minutes" in text
    assert json.loads((run / "summary.json").read_text())["minutes"] == pytest.approx(taken, abs=0.006)
    assert (run / "overlay.png").stat().st_size > 10_000
    assert (run / "summary.json").is_file()
    assert demo.main() == 0
    assert "training: already done" in capsys.readouterr().out
    assert (run / "model_final.pt").stat().st_mtime_ns == weights


@pytest.mark.parametrize("text", ["abc", "0", "-1", "inf", ""])
def test_time_that_is_no_number_is_one_line(text, monkeypatch, capsys):
    monkeypatch.setenv("DECATHLETE_DEMO_MINUTES", text)
    assert demo.main() == 2
    assert capsys.readouterr().err.startswith(
        "decathlete: DECATHLETE_DEMO_MINUTES: expected a number of minutes above 0"
    )


def test_the_minutes_told_are_those_that_the_training_took(work):
    torch.save({"iteration": 7, "schedule": {"minutes": 3.0, "trained_s": 120.0, "other_s": 30.0}}, work / "last.pt")
    assert demo.training_facts(work) == (7, 2.5)
