"""Our error inside what MONAI, ignite or a data worker made of it. Imports nothing heavy."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from decathlete import errors
from decathlete.errors import DecathleteError


def find_error(error: BaseException | None) -> DecathleteError | None:
    """Our error inside what MONAI, ignite or a data worker made of it, or None.

    The first along ``__cause__`` and ``__context__`` counts; a data worker hands over only the text of its traceback.
    """
    seen: set[int] = set()
    queue = [error]
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, DecathleteError):
            return current
        for name, text in re.findall(r"^decathlete\.errors\.(\w+): (.*)$", str(current), flags=re.MULTILINE):
            kind = getattr(errors, name, None)
            if isinstance(kind, type) and issubclass(kind, DecathleteError):
                where, _, rule = text.partition(": ")
                return kind(where, rule)
        queue += [current.__cause__, current.__context__]
    return None


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory of the GPU or of the machine ran out somewhere along the causes of an error."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = str(error).lower()
        if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


def in_one_line(error: BaseException) -> str:
    """An error that is none of ours, by its first cause, and the part of a config that MONAI says it came from."""
    cause, seen = error, {id(error)}
    while (before := cause.__cause__ or cause.__context__) is not None and id(before) not in seen:
        cause = before
        seen.add(id(before))
    if isinstance(cause, OSError) and cause.filename is not None:
        text = f"{cause.filename}: {cause.strerror}"
    else:
        text = f"{type(cause).__name__}: {cause}"
    outer = re.sub(r"__local_refs\['([^']*)'\]", r"\1", " ".join(str(error).split()))
    part = re.match(
        r"Failed to (?:instantiate component|evaluate ConfigExpression:) *['\"$]*([A-Za-z_][^'\" ]*)", outer
    )
    return " ".join((f"{part[1]}: {text}" if part and cause is not error else text).split())


def shorten_log() -> None:
    """Leave the tracebacks of our own errors out of the log from now on: their one line comes at the end."""
    factory = logging.getLogRecordFactory()

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = factory(*args, **kwargs)
        if made.exc_info and find_error(made.exc_info[1]) is not None:
            made.exc_info = None
        return made

    logging.setLogRecordFactory(record)


@contextmanager
def short_log() -> Iterator[None]:
    """``shorten_log`` while the block runs."""
    factory = logging.getLogRecordFactory()
    shorten_log()
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)
