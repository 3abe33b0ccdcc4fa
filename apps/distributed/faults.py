"""One message for a failure of several processes: the process where it happened tells it, the others end quietly."""

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
PATIENCE_S = 15.0  # for the process where it happened to say so, and for torchrun to end this one
_TOLD = "decathlete/told"
_ENDING = threading.Lock()  # never released: of several threads of a process that fail, one tells
_parent: int | None = None  # torchrun, which started this process


class FaultElsewhereError(TrainingError):
    """A failure that this process only sees the effects of."""


def process_name() -> str:
    """``process 1 of 8 on node-2``, counted from 0 as torchrun does."""
    return f"process {os.environ.get('RANK', '?')} of {os.environ.get('WORLD_SIZE', '?')} on {socket.gethostname()}"


@functools.cache
def process_store() -> Any:
    """The key-value store of torchrun's processes, which they meet at.

    A process that torchrun starts anew after a failure gets a part of it that the failed ones did not write to.
    """
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    return PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def watch_processes() -> None:
    """Have this process end with one message where it fails, or where the torchrun that started it is gone."""
    global _parent
    _parent = os.getppid()
    sys.excepthook = _end_by_exception
    threading.Thread(target=_watch_parent, daemon=True, name="watch-torchrun").start()


def fail_together(error: BaseException) -> NoReturn:
    """End this process at once because of ``error``, which is told on stderr unless another process has told of one.

    At once: ends of the interpreter wait for collectives that nobody joins any more. An error of ours is one line;
    any other one has its traceback before. Either names this process.

    Args:
        error: what happened. Where torchrun has ended, that is told instead of an exchange that failed: the processes
            see it one after the other, and those that go first are missed by the others.
    """
    _ENDING.acquire()
    ours = find_error(error)
    if ours is None and is_lost_process(error) and _is_orphan():
        ours = error = _torchrun_is_gone()
    status = ours.exit_status if ours is not None else 1
    effect = isinstance(ours, FaultElsewhereError) or (ours is None and is_lost_process(error))
    if effect and _is_told(PATIENCE_S):
        _end_quietly(status)
    if ours is None and is_lost_process(error):
        found = " ".join(str(error).split())[:200]
        ours = TrainingError(process_name(), "all processes must go on", f"another one that does not answer: {found}",
                             "Look for the machine or the process that ended, then go on with --resume")  # fmt: skip
    elif ours is not None:
        ours = type(ours)(f"{process_name()}, {ours.where}", ours.rule, ours.found, ours.remedy)
    # the store is on the first machine, and ends with its torchrun
    store = not (_is_orphan() and os.environ.get("GROUP_RANK", "0") == "0")
    if not _claim_telling(store):
        (_end_quietly if store else _end)(status)
    if ours is None:
        traceback.print_exception(error)
    print(f"decathlete: {ours or f'{process_name()}: {in_one_line(error)}'}", file=sys.stderr)
    _record(ours or error)
    _end(status)


def told_once(function: Callable[P, R]) -> Callable[P, R]:
    """The function, whose failure in several processes of torchrun ends all of them with one message."""

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


def _claim_telling(store: bool) -> bool:
    """Whether this process is the first to tell; where the store is gone, one process a machine is."""
    if store:
        with contextlib.suppress(Exception):
            return process_store().add(_TOLD, 1) == 1
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _is_told(patience_s: float) -> bool:
    """Whether a process tells of a failure within this time; where the store is gone, none will."""
    until = time.monotonic() + patience_s
    with contextlib.suppress(Exception):
        while time.monotonic() < until:
            if process_store().check([_TOLD]):
                return True
            time.sleep(0.2)
    return False


def _end_by_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if in_torchrun() and issubclass(kind, Exception):
        fail_together(error)
    if in_torchrun() and issubclass(kind, KeyboardInterrupt):  # all of them got it, and what started them says so
        _end(130)
    sys.__excepthook__(kind, error, trace)


def _watch_parent() -> None:
    """End this process once its parent is another one: torchrun was killed, and nobody would end what it started."""
    while not _is_orphan():
        time.sleep(1)
    fail_together(_torchrun_is_gone())


def _is_orphan() -> bool:
    return _parent is not None and os.getppid() != _parent


def _torchrun_is_gone() -> TrainingError:
    return TrainingError("torchrun", "must stay, it watches over its processes", "it has ended",
                         "Start it again with --resume")  # fmt: skip


def _record(error: BaseException) -> None:
    """Leave the error where torchrun's table of failures looks for it."""
    with contextlib.suppress(Exception):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        try:
            raise error.with_traceback(None) from None
        except type(error) as again:
            get_error_handler().record_exception(again)


def _end_quietly(status: int) -> NoReturn:
    """Give torchrun the time to end this process, so that it takes the one that told for the cause."""
    time.sleep(PATIENCE_S)
    _end(status)


def _end(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
