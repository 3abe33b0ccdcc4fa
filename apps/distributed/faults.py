"""One message when several processes fail: the process where it happened reports it, the others end quietly."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, ParamSpec, TypeVar

from decathlete.distributed.torchrun import in_torchrun
from decathlete.errors import TrainingError
from decathlete.failures import find_error, in_one_line

P = ParamSpec("P")
R = TypeVar("R")
PATIENCE_S = 15.0  # for the process where it happened to report it, and for torchrun to end this one
_REPORTED = "decathlete/reported"
_ENDING = threading.Lock()  # never released: of several threads that fail, one reports
_parent: int | None = None  # torchrun, which started this process


class FaultElsewhereError(TrainingError):
    """A failure of another process, of which this one only sees the effect."""


def process_name() -> str:
    """``process 1 of 8 on node-2``, counted from 0 as torchrun does."""
    return f"process {os.environ.get('RANK', '?')} of {os.environ.get('WORLD_SIZE', '?')} on {socket.gethostname()}"


@functools.cache
def process_store() -> Any:
    """The key-value store through which torchrun's processes meet.

    After a restart by torchrun, processes use another part of it than the failed ones did.
    """
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    return PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def watch_processes() -> None:
    """End this process with one message when it fails, or when the torchrun that started it has ended."""
    global _parent
    _parent = os.getppid()
    sys.excepthook = _end_by_exception
    threading.Thread(target=_watch_parent, daemon=True, name="watch-torchrun").start()


def fail_together(error: BaseException) -> NoReturn:
    """End this process at once because of ``error``; print it on stderr unless another process has reported one.

    At once, because a normal exit waits for collectives that no other process joins any more. An error of ours is one
    line; any other one comes after its traceback. Both name this process.

    Args:
        error: what happened. Where torchrun has ended, that is reported instead of a failed exchange: the processes
            notice it one after the other, and the first ones to end make the exchanges of the others fail.
    """
    _ENDING.acquire()
    ours = find_error(error)
    if ours is None and is_lost_process(error) and _is_orphan():
        ours = error = _torchrun_is_gone()
    status = ours.exit_status if ours is not None else 1
    effect = isinstance(ours, FaultElsewhereError) or (ours is None and is_lost_process(error))
    if effect and _is_reported(PATIENCE_S):
        _end_quietly(status)
    if ours is None and is_lost_process(error):
        found = " ".join(str(error).split())[:200]
        ours = TrainingError(process_name(), "another process no longer answers", found,
                             "Find out which machine or process ended, then start again with --resume")  # fmt: skip
    elif ours is not None:
        ours = type(ours)(f"{process_name()}, {ours.where}", ours.rule, ours.found, ours.remedy)
    # the store is on the first machine, and ends with its torchrun
    store = not (_is_orphan() and os.environ.get("GROUP_RANK", "0") == "0")
    if not _claim_report(store):
        (_end_quietly if store else _end)(status)
    if ours is None:
        traceback.print_exception(error)
    print(f"decathlete: {ours or f'{process_name()}: {in_one_line(error)}'}", file=sys.stderr)
    _record(ours or error)
    _end(status)


def reported_once(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function: if it fails under torchrun, all processes end with one message."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if in_torchrun() and int(os.environ["WORLD_SIZE"]) > 1:
                fail_together(error)
            raise

    return wrapped


def is_lost_process(error: BaseException | None) -> bool:
    """Whether an exchange between processes failed because one of them ended or did not answer in time."""
    from torch.distributed import DistError

    words = ("gloo", "connection closed by peer", "connection reset by peer", "broken pipe", "timed out waiting")
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, DistError):
            return True
        if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def _claim_report(store: bool) -> bool:
    """Whether this process is the first to report; without the store, it is one process per machine."""
    if store:
        with contextlib.suppress(Exception):
            return process_store().add(_REPORTED, 1) == 1
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _is_reported(patience_s: float) -> bool:
    """Whether a process reports a failure within this time; without the store, none can."""
    until = time.monotonic() + patience_s
    with contextlib.suppress(Exception):
        while time.monotonic() < until:
            if process_store().check([_REPORTED]):
                return True
            time.sleep(0.2)
    return False


def _end_by_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if in_torchrun() and issubclass(kind, Exception):
        fail_together(error)
    if in_torchrun() and issubclass(kind, KeyboardInterrupt):  # all processes got it, and their starter reports it
        _end(130)
    sys.__excepthook__(kind, error, trace)


def _watch_parent() -> None:
    """End this process when its parent changes: then torchrun was killed, and nothing else would end its processes."""
    while not _is_orphan():
        time.sleep(1)
    fail_together(_torchrun_is_gone())


def _is_orphan() -> bool:
    return _parent is not None and os.getppid() != _parent


def _torchrun_is_gone() -> TrainingError:
    return TrainingError("torchrun", "ended while its processes were still running", "", "Start it again with --resume")


def _record(error: BaseException) -> None:
    """Write the error where torchrun's table of failures looks for it."""
    with contextlib.suppress(Exception):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        try:
            raise error.with_traceback(None) from None
        except type(error) as again:
            get_error_handler().record_exception(again)


def _end_quietly(status: int) -> NoReturn:
    """Wait for torchrun to end this process, so that it blames the one that reported the failure."""
    time.sleep(PATIENCE_S)
    _end(status)


def _end(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
