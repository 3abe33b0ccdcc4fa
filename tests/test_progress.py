import io
import sys

import pytest

from decathlete.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "every_s", "expected"), [(Terminal, 10, "100%"), (io.StringIO, 0, "read: 2 of 2 cases, ")]
)
def test_bar_on_a_terminal_and_lines_in_a_log(monkeypatch, stream, every_s, expected):
    monkeypatch.setattr(sys, "stderr", written := stream())
    assert list(ProgressBar(["a", "b"], desc="read", unit="case", every_s=every_s, mininterval=0)) == ["a", "b"]
    assert expected in written.getvalue()
    assert ("\r" in written.getvalue()) == (stream is Terminal)


def test_short_work_leaves_a_log_empty(monkeypatch):
    monkeypatch.setattr(sys, "stderr", written := io.StringIO())
    assert len(list(ProgressBar(range(1000), desc="read"))) == 1000
    assert written.getvalue() == ""
