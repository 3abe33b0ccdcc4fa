"""Files written completely or not at all, the lock for what several processes share, and the names of NIfTI files.

Temporary files and locks that a killed process left are removed by the next process that writes into their folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import re
import secrets
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from decathlete.errors import DataError, DiskError, UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:
    msvcrt = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

NIFTI_SUFFIXES = (".nii.gz", ".nii")
POINTER_BYTES = 32768  # git-annex writes no larger pointer
PROBABILITIES = "_probabilities"  # ends the name of the class probabilities beside a label map

# of a temporary file: machine, process and a random part; only the random part where an older version made it
_PART = re.compile(r"\.part_(?:(?P<machine>[0-9a-f]{8})(?P<process>[0-9a-f]+)_)?[a-z0-9_]{8}(?:\..*)?")
_LOCK = re.compile(r"\.lock_[0-9a-f]{16}")
_UNSIGNED_S = 7 * 86400  # after which a leftover goes that may be another machine's
_POLL_S = 0.05
_ONLY_OURS = getattr(os, "O_NOFOLLOW", 0)  # a link in the place of a lock's file may lead anywhere


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it is synced and renamed to ``path``, on failure removed.

    The temporary name keeps the suffixes, because writers choose the format by them. It is short, because the name of
    ``path`` may already be as long as names can be. The permissions are those of any new file, or of the file that is
    replaced.
    """
    path = Path(path)
    suffix = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix
    kept = _permissions(path)
    # who may not read the file that is replaced may not read the new one either, even while it is written
    mode = 0o666 if kept is None else kept | 0o600
    with _part(path.parent, suffix, functools.partial(_make_file, mode=mode)) as part:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        if kept is not None and kept != _permissions(part):
            part.chmod(kept)
        part.replace(path)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """As :func:`atomic_write`, for a folder that does not exist yet, or is empty."""
    path = Path(path)
    with temporary_folder(path.parent) as part:
        yield part
        part.replace(path)


@contextlib.contextmanager
def temporary_folder(parent: str | Path) -> Iterator[Path]:
    """Give a new hidden folder in ``parent``, with the permissions of any new folder; it is removed in the end."""
    with _part(Path(parent), "", Path.mkdir) as part:
        yield part


@contextlib.contextmanager
def lock(target: str | Path, wait: bool | float = True, sure: bool = False) -> Iterator[bool]:
    """Whether this thread alone may work on ``target``, for as long as the block lasts.

    It works between threads, processes and, on file systems that share locks, machines (NFS does; Lustre where it is
    mounted with ``flock``). The lock is on a hidden file beside ``target``, which is removed afterwards; the system
    releases the lock when a process ends, however it ends.

    Args:
        target: file or folder; it need not exist.
        wait: True waits until the lock is free, a number waits for so many seconds, False answers no at once.
        sure: answer no where a file system has no locks. By default the answer is yes, with a warning in the log.

    Raises:
        OSError: the folder of ``target`` cannot be written to.
    """
    path = Path(target)
    path = path.with_name(f".lock_{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    end = None if isinstance(wait, bool) else time.monotonic() + wait
    while True:
        handle = _open_lock(path)
        held: bool | None = False
        try:
            held = _take(handle, wait is True)
            if held is False and (end is None or time.monotonic() >= end):
                yield False
                return
            if held is not False and _is_same(handle, path):  # else deleted between being opened and locked
                if held is None and not sure:
                    _say_no_locks(path.parent)
                _sign(handle)
                yield held or not sure
                return
        finally:
            if held is not False and _is_same(handle, path):
                _remove_and_release(handle, path)
            else:
                _release(handle)
        if held is False:
            time.sleep(_POLL_S)


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files, folders and locks in ``folder`` that were left by processes that were killed.

    Files that a living process still uses are kept; those that may be another machine's are kept for a week. What
    cannot be removed is kept as well.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # another process was quicker, or it is somebody else's
                if (part := _PART.fullmatch(entry.name)) and not entry.is_symlink():
                    _remove_part(entry, part["machine"], part["process"])
                elif _LOCK.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    _remove_free_lock(Path(entry.path))


def _remove_part(entry: os.DirEntry[str], machine: str | None, process: str | None) -> None:
    if machine == _this_machine() and process is not None and os.name == "posix":
        if entry.name in _at_work or _is_another(int(process, 16)):
            return
    elif time.time() - entry.stat().st_mtime < _UNSIGNED_S:
        return
    if entry.is_dir():
        shutil.rmtree(entry.path, ignore_errors=True)
    else:
        os.unlink(entry.path)


def _remove_free_lock(path: Path) -> None:
    handle = os.open(path, os.O_RDWR | _ONLY_OURS)
    try:
        # on some file systems a machine sees its own locks only
        theirs = os.read(handle, 99) not in (_this_machine().encode(), b"")
        if theirs and time.time() - os.fstat(handle).st_mtime < _UNSIGNED_S:
            return
        if _take(handle, wait=False) and _is_same(handle, path):
            _remove_and_release(handle, path)
            handle = -1
    finally:
        if handle >= 0:
            _release(handle)


_swept: set[Path] = set()  # folders that this process has looked through for leftovers
_at_work: set[str] = set()  # names of this process's temporary files


@contextlib.contextmanager
def _part(folder: Path, suffix: str, make: Callable[[Path], object]) -> Iterator[Path]:
    """A temporary file or folder, made by ``make``, which fails where there is one; removed where it is still there."""
    folder.mkdir(parents=True, exist_ok=True)
    if (there := folder.absolute()) not in _swept:
        _swept.add(there)
        remove_leftovers(folder)
    part = folder / f".part_{_this_machine()}{os.getpid():x}_{secrets.token_hex(4)}{suffix}"
    _at_work.add(part.name)
    try:
        make(part)
        try:
            yield part
        finally:
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)
    finally:
        _at_work.discard(part.name)


def _make_file(path: Path, mode: int) -> None:
    # the system takes the umask off `mode`: to ask for the umask is to set it, for all threads of the process
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode))


def _permissions(path: Path) -> int | None:
    """Permission bits of a file that is there; None for a link, which is replaced itself."""
    with contextlib.suppress(OSError):
        there = path.lstat()
        return stat.S_IMODE(there.st_mode) if stat.S_ISREG(there.st_mode) else None
    return None


@functools.cache
def _this_machine() -> str:
    """Eight digits for what numbers its processes by itself: a machine, or a container."""
    name = platform.node()
    with contextlib.suppress(OSError):
        name += os.readlink("/proc/self/ns/pid")
    return f"{zlib.crc32(name.encode()):08x}"


def _is_another(process: int) -> bool:
    """Whether another process of this number lives; a container that was started again numbers them as before."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    with contextlib.suppress(OSError):  # killed, and nobody asks how it ended, as in many containers
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | _ONLY_OURS, 0o666)
    except PermissionError:
        if not path.exists():
            raise
    return os.open(path, os.O_RDONLY | _ONLY_OURS)  # another user's, which can be locked all the same


def _take(handle: int, wait: bool) -> bool | None:
    """Whether an open file could be locked; None where there are no locks."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True
    if msvcrt is None:
        return None
    while True:
        try:
            os.lseek(handle, 1 << 20, os.SEEK_SET)  # beyond the content, which others read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            return True
        except OSError:
            if not wait:
                return False
        time.sleep(_POLL_S)


def _sign(handle: int) -> None:
    """Write into a lock's file on which machine it was taken."""
    with contextlib.suppress(OSError):  # another user's file
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, _this_machine().encode())


def _release(handle: int) -> None:
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing is not enough: a forked process may have the file open too
    os.close(handle)


def _remove_and_release(handle: int, path: Path) -> None:
    if fcntl is None:
        os.close(handle)  # Windows removes no open file; so neither the one that somebody else has opened since
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    if fcntl is not None:
        _release(handle)  # after it lost its name: whoever waits for it sees that, and takes a new one


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except OSError:
        return False


@functools.cache
def _say_no_locks(folder: Path) -> None:
    logger.warning("%s: the file system has no locks; do not start two jobs on this folder", folder)


def check_output_folder(folder: str | Path, option: str = "--output") -> None:
    """Refuse an output folder that cannot be made or written to, before work is done for it; creates nothing.

    Raises:
        UsageError: a file is in the way, or the folder above cannot be written to; names ``option``.
    """
    there = Path(folder).absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UsageError(folder, "cannot be made as a folder, since a file is in the way", str(there),
                         f"Choose another {option}")  # fmt: skip
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(folder, "no permission to write here", str(there), f"Choose another {option}")


@contextlib.contextmanager
def disk_errors(
    where: str | Path,
    what: str = "the output cannot be written",
    remedy: str = "Free disk space, or choose another --output",
) -> Iterator[None]:
    """Raise what the system refuses in the block, such as more space on a full disk, as a DiskError of ``where``."""
    try:
        yield
    except OSError as error:
        raise DiskError(where, what, error.strerror or str(error), remedy) from error


def cache_folder(folder: str | Path | None = None) -> Path:
    """``folder``, else ``$DECATHLETE_CACHE``, else ``~/.cache/decathlete``."""
    return Path(folder or os.environ.get("DECATHLETE_CACHE") or Path.home() / ".cache" / "decathlete")


def strip_nifti_suffix(name: str) -> str:
    """Return the name before ``.nii.gz`` or ``.nii``, in any case: ``a.b.NII.GZ`` gives ``a.b``."""
    for suffix in NIFTI_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def is_nifti_name(name: str) -> bool:
    """Whether a file's name is that of a NIfTI file, in any case, and not hidden or a macOS side file (``._x``)."""
    return name.lower().endswith(NIFTI_SUFFIXES) and not name.startswith(".")


def nifti_files(folder: str | Path) -> list[Path]:
    """NIfTI files directly in ``folder``, sorted; without side files (``._x``), hidden files and folders.

    Broken links are included: reading one fails with a message, so that no case is left out unnoticed.
    """
    return sorted(p for p in Path(folder).iterdir() if is_nifti_name(p.name) and is_file_or_broken_link(p))


def is_file_or_broken_link(path: str | Path) -> bool:
    """Whether a path is a file, or a link to something that is not there, as git-annex leaves it."""
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))


def check_content(path: str | Path) -> None:
    """Refuse a broken link, and the small text file that git-annex or Git LFS leave in place of the content.

    A path that does not exist at all is left to the caller.

    Raises:
        DataError: says what is there instead, and how to fetch the content.
    """
    found, remedy = "", "Fetch it ('git annex get' or 'datalad get'), or leave it out"
    if os.path.islink(path) and not os.path.exists(path):
        found = f"a link to {os.readlink(path)}, which does not exist"
    elif os.path.isfile(path) and os.path.getsize(path) <= POINTER_BYTES:
        with Path(path).open("rb") as file:
            start = file.read(256)
        if re.match(rb"[\w./-]*/annex/objects/", start):
            found = "only a git-annex pointer"
        elif start.startswith(b"version https://git-lfs"):
            found, remedy = "only a Git LFS pointer", "Fetch it ('git lfs pull'), or leave it out"
    if found:
        raise DataError(path, "the file's content is missing", found, remedy)


def file_sha256(path: str | Path) -> str:
    """Hash of a file's content.

    Raises:
        DataError: something stands in the file's place; see `check_content`.
    """
    check_content(path)
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """Hash over names and contents of files, in the order of the names."""
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        total.update(f"{path.name} {file_sha256(path)}\n".encode())
    return total.hexdigest()
