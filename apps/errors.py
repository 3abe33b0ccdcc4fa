"""The errors, as a tree; each becomes one line on stderr.

DecathleteError
├── UsageError        a wrong name, option or config id           (exit status 2)
│   └── ConfigError   a config or an override names something that does not exist
└── WorkError         a valid command whose work failed           (exit status 1)
    ├── DataError     a file or folder breaks a rule
    │   └── GeometryError   shapes, spacings or affines do not fit
    ├── CheckpointError     weights that are not this network's, or no weights at all
    ├── TrainingError       a loss that is not a number, a run that cannot continue
    └── DeviceError         memory or device ran out
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from os import PathLike


class DecathleteError(Exception):
    """A failure in four parts, one line: ``WHERE: what is wrong (what was found). What to do.``

    Args:
        where: file, config id or case that the message is about.
        rule: what is wrong, or what is expected.
        found: what was there instead, with its value; it stands in parentheses.
        remedy: what the reader can do now.
    """

    exit_status = 1

    def __init__(self, where: str | PathLike[str], rule: str, found: str = "", remedy: str = "") -> None:
        self.where, self.rule, self.found, self.remedy = str(where), rule, found, remedy
        wrong = rule.rstrip(".") + (f" ({found.rstrip('.')})" if found else "")
        super().__init__(one_line(f"{self.where}: " + ". ".join(s for s in (wrong, remedy.rstrip(".")) if s) + "."))

    def __reduce__(self) -> tuple:
        # errors cross process borders (data workers); the default would call __init__ with the joined message
        return type(self), (self.where, self.rule, self.found, self.remedy)


class UsageError(DecathleteError):
    """The command line is invalid: exit status 2."""

    exit_status = 2


class ConfigError(UsageError):
    """A config or an override names something that does not exist."""


class TrustError(UsageError):
    """A bundle from elsewhere would run code that is not known to be harmless."""


class WorkError(DecathleteError):
    """The command was valid, but its work failed: exit status 1."""


class DataError(WorkError):
    """A file or folder of data breaks a rule."""


class DiskError(DataError):
    """An output that cannot be written: the next one could not be written either."""


class GeometryError(DataError):
    """Shapes, spacings or affines that should agree do not."""


class CheckpointError(WorkError):
    """Weights are missing, unsafe, or another network's."""


class TrainingError(WorkError):
    """A training cannot continue."""


class DeviceError(WorkError):
    """Memory or device ran out."""


def one_line(text: str) -> str:
    """The text with unprintable characters escaped (``\\n``, ``\\u202e``): file names may hold any of them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def listed(names: Iterable[object], most: int = 5) -> str:
    """Return the first names and how many more there are: ``"a, b, c, d, e and 2 more"``."""
    words = [str(name) for name in names]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def shape_text(shape: Iterable[object]) -> str:
    """Return a shape as it is written in messages: ``"4 x 5 x 6"``."""
    return " x ".join(map(str, shape))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'x'? Known: a, b, c"`` for a word that is not among ``known``."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(names)}"
