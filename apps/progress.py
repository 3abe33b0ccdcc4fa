"""Progress of long work on stderr: a bar on a terminal, a line from time to time in a log file."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm


class ProgressBar(tqdm):
    """tqdm's bar on a terminal; elsewhere a line every ``every_s`` seconds, and none if the work is done before.

    Args:
        every_s: seconds between two lines.
        args, kwargs: as tqdm's.
    """

    disable: bool

    def __init__(self, *args: Any, every_s: float = 10.0, **kwargs: Any) -> None:
        self._in_lines = not sys.stderr.isatty()
        self._every_s, self._line_at = every_s, time.monotonic()
        kwargs = {"file": sys.stderr, "dynamic_ncols": True} | kwargs
        if self._in_lines:
            unit = kwargs.get("unit", "it")
            many = unit if unit in ("it", "B") else f"{unit}s"  # tqdm's own bar has the one: case/s, s/case
            kwargs["bar_format"] = f"{{desc}}: {{n_fmt}} of {{total_fmt}} {many}, {{elapsed}}, {{remaining}} left"
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draw the bar, or print a line if it is time."""
        if not self._in_lines:
            return super().display(msg, pos)
        now = time.monotonic()
        if now - self._line_at >= self._every_s:
            self._line_at = now
            print(self, file=self.fp, flush=True)
        return True

    def close(self) -> None:
        """Leave the finished bar on a terminal; nothing elsewhere."""
        if not self._in_lines:
            super().close()
        elif not self.disable:
            self.disable = True  # closed: tqdm's own close would write an empty line
            self._decr_instances(self)
