"""Data sets fetched: an archive downloaded with resume, checked, unpacked safely; or phantoms made."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.client
import logging
import os
import re
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from decathlete.data import nfbs
from decathlete.data.kinds import read_description
from decathlete.data.tasks import Task, get_task
from decathlete.errors import DataError
from decathlete.files import disk_errors, lock, nifti_files, temporary_folder
from decathlete.progress import ProgressBar

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20
_TIMEOUT_S = 60.0  # of silence, not of the complete download
_TRIES = 6  # interrupted connections in a row without one new byte
_FIRST_TRIES = 3  # if nothing has answered yet: most likely there is no network
_WAIT_S = 1.0  # before the second of these tries, doubled before each further one
_MAX_MEMBERS = 1_000_000
_BY_HAND = "Check the network, put the data set's folder there by hand, or make phantoms with --phantom N"
_CERTIFICATES = "Check this machine's clock; behind a proxy, name its certificates in SSL_CERT_FILE"
_FAILED = "the data set cannot be written"
_RESUMES = "Free disk space, or pass another --output; an interrupted download resumes"
_HOSTILE = "Do not trust this archive; get it from its publisher"


def fetch(
    task: str, output: str | Path = "data", phantom: int | None = None, seed: int = 0, verify: bool = False
) -> Path:
    """Folder of a data set under ``output``: the one that is there, else downloaded and checked.

    Args:
        task: name of an MSD task, ``hippocampus`` or ``Task04_Hippocampus``; or ``nfbs``; or ``sunnybrook``,
            which is only checked, never downloaded.
        output: folder that holds, or will hold, the data set's folder.
        phantom: make this many artificial cases instead; nothing is downloaded.
        seed: of the phantoms.
        verify: only check what is there, file by file; download nothing.

    Raises:
        UsageError: unknown task.
        DataError: the download failed, there is nothing to check, or (with ``verify``) files have faults; each fault
            is logged by its file before.
    """
    if task.strip().lower() == "sunnybrook":
        from decathlete.data.sunnybrook import fetch_sunnybrook

        return fetch_sunnybrook(output, phantom, seed)
    facts = None if nfbs.is_name(task) else get_task(task)
    folder = Path(output) / (facts.folder if facts else nfbs.FOLDER)
    if phantom is not None:
        folder = _draw(facts, phantom, output, seed)
    elif not verify:
        if is_complete(folder):
            if (read_description(folder) or {}).get("phantom"):
                logger.warning("%s: holds phantoms, not patients; move it away to download the real data set", folder)
            return folder
        folder = download_task(facts, output) if facts else download_nfbs(output)
    elif not folder.is_dir() and (root := os.environ.get("DECATHLETE_DATA")):
        folder = Path(root) / folder.name
    if verify or phantom is None:
        count = _log_faults(folder, facts)
        if count and verify:
            found = "1 fault, named above" if count == 1 else f"{count} faults, named above"
            raise DataError(folder, "some files of the data set are faulty", found, "Correct or remove these files")
    return folder


def _draw(facts: Task | None, phantom: int, output: str | Path, seed: int) -> Path:
    if facts is None:
        from decathlete.phantoms.heads import make_heads

        return make_heads(phantom, output, seed)
    from decathlete.phantoms.cases import make_phantoms

    return make_phantoms(facts, phantom, output, seed)


def is_complete(folder: Path) -> bool:
    """Whether a data set is there: ``dataset.json`` and images, or NFBS's heads.

    Unpacking renames the folder last, so a folder of this name is complete.
    """
    if nfbs.is_nfbs(folder):
        return bool(nfbs.list_heads(folder))
    images = folder / "imagesTr"
    return (folder / "dataset.json").is_file() and images.is_dir() and bool(nifti_files(images))


def download_task(task: Task | str, output: str | Path, progress: bool = True) -> Path:
    """Folder of a task's data set under ``output``, downloaded and unpacked unless it is there.

    An interrupted download resumes where it stopped, from ``<archive>.part``. The address of the archives can be
    replaced by a mirror's in the environment variable DECATHLETE_MSD_URL.

    Raises:
        DataError: the archive cannot be downloaded, its MD5 is wrong, it holds unsafe members, the disk is full, or
            another process is downloading it.
    """
    facts = get_task(task) if isinstance(task, str) else task
    return _download_set(Path(output) / facts.folder, facts.archive_url, facts.md5, None, progress)


def download_nfbs(output: str | Path, progress: bool = True) -> Path:
    """Folder of NFBS under ``output``, downloaded (1.75 GB) and unpacked unless it is there; resumed as a task's is.

    No checksum of the archive is published: its size counts, and the gzip checksums of the archive and of each image.
    DECATHLETE_NFBS_URL is the address of a mirror's archive.

    Raises:
        DataError: as `download_task`.
    """
    return _download_set(Path(output) / nfbs.FOLDER, nfbs.archive_url(), None, nfbs.SIZE, progress)


def _download_set(folder: Path, url: str, md5: str | None, size: int | None, progress: bool) -> Path:
    if is_complete(folder):
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise DataError(folder, "the data set folder is incomplete", "dataset.json or images are missing",
                        "Move it away and run the command again")  # fmt: skip
    output = folder.parent
    archive = output / url.rpartition("/")[2]
    with disk_errors(output, _FAILED, _RESUMES), lock(folder, wait=False) as mine:
        if not mine:
            raise DataError(folder, "another process is downloading this data set", "",
                            "Wait for it, or pass another --output")  # fmt: skip
        if is_complete(folder):  # by a process that has just ended
            return folder
        if not archive.is_file() or _wrong(archive.stat().st_size, size) or (md5 and _md5(archive) != md5):
            download(url, archive, md5, progress, size)
        unpack(archive, folder, progress, check_gzip=md5 is None)
        archive.unlink()
    return folder


def _wrong(found: int, size: int | None) -> bool:
    return size is not None and found != size


def download(url: str, path: Path, md5: str | None, progress: bool = True, size: int | None = None) -> None:
    """Write the file at ``url`` to ``path`` if its MD5 is ``md5``; resume a download from ``<path>.part``.

    Args:
        url: http or https.
        path: where the file goes.
        md5: None where none is known.
        progress: show a bar on stderr.
        size: bytes that the file must have, if known.

    Raises:
        DataError: the server refuses or is not reached, or the MD5 or size is wrong; then what was downloaded is
            removed.
    """
    if not url.startswith(("https://", "http://")):
        raise DataError(url, "the address of an archive must start with https:// or http://", "",
                        "Correct DECATHLETE_MSD_URL or DECATHLETE_NFBS_URL")  # fmt: skip
    bar = ProgressBar(desc=path.name, unit="B", unit_scale=True, unit_divisor=1024, disable=not progress)
    with bar, _Part(path.with_name(path.name + ".part"), bar) as part:
        fruitless, start = 0, part.size
        while True:
            before = part.size
            try:
                if _receive(url, part):
                    break
                problem: object = "the connection was lost"
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code not in (408, 429):
                    raise DataError(url, "the server did not give the archive", f"HTTP {error.code} {error.reason}",
                                    _BY_HAND) from error  # fmt: skip
                problem = error
            except _NetworkError as error:
                problem = error.problem
                if isinstance(problem, ssl.SSLCertVerificationError):  # the next try would find the same
                    raise DataError(url, "the server's certificate cannot be verified", problem.verify_message,
                                    _CERTIFICATES) from error  # fmt: skip
            fruitless = 0 if part.size > before else fruitless + 1
            answered = part.size > start or isinstance(problem, urllib.error.HTTPError)
            if fruitless == (_TRIES if answered else _FIRST_TRIES):
                raise DataError(url, "the server cannot be reached", f"{problem}", _BY_HAND)
            wait = min(_WAIT_S * 2**fruitless, 30) if fruitless else 0
            if fruitless:
                logger.warning("%s: %s; trying again in %.0f s", url, problem, wait)
            time.sleep(wait)
        found, got = part.digest.hexdigest(), part.size
    again = "The download was deleted; run the command again, or try another mirror"
    if _wrong(got, size):
        part.path.unlink()
        raise DataError(url, f"expected an archive of {size:,} bytes", f"{got:,} bytes", again)
    if md5 is not None and found != md5:
        part.path.unlink()
        raise DataError(url, f"wrong MD5, expected {md5}", found, again)
    part.path.replace(path)


def unpack(archive: Path, folder: Path, progress: bool = True, check_gzip: bool = False) -> None:
    """Unpack a tar archive of a data set into ``folder``, which appears only when complete; ``._*`` files are left out.

    Args:
        archive: compressed or not.
        folder: of the name that the archive's folder has.
        progress: show a bar on stderr.
        check_gzip: unpack each member in ``.gz`` once more in memory and compare its checksum, where no checksum of the
            archive is known.

    Raises:
        DataError: a member leads out of the archive's folder, is a link or a device, or holds more than it can, or
            the archive is damaged, or does not hold the folder's data set.
    """
    packed = archive.stat().st_size
    if shutil.disk_usage(folder.parent).free < packed:
        raise OSError(errno.ENOSPC, "not enough disk space for the unpacked files")
    try:
        with (
            temporary_folder(folder.parent) as work,
            tarfile.open(archive) as tar,
            ProgressBar(desc=f"unpack {archive.name}", unit="file", disable=not progress) as bar,
        ):
            # a plain tar holds what it says, but for sparse members; NIfTI compresses threefold
            limit = packed + _BLOCK if _is_plain(archive) else 30 * packed + _BLOCK
            for member, target in _members(tar, work, archive, limit):
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                with target.open("xb") as file:
                    if source is not None:
                        shutil.copyfileobj(source, file, _BLOCK)
                if check_gzip and target.suffix == ".gz":
                    _check_gzip(target, archive, member.name)
                bar.update()
            while tar.fileobj is not None and tar.fileobj.read(_BLOCK):
                pass  # to the end, where the checksum of a compressed tar stands
            if not is_complete(work / folder.name):
                held = "heads in their subjects' folders" if nfbs.is_nfbs(folder) else "dataset.json and images"
                raise DataError(archive, f"the archive does not hold {folder.name} with {held}", "",
                                "Check the address of the mirror")  # fmt: skip
            if folder.exists():
                folder.rmdir()
            (work / folder.name).replace(folder)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, FileExistsError) as error:
        raise DataError(
            archive,
            "the archive is damaged",
            str(error).partition("\n")[0].rstrip(":"),
            "Remove it and run the command again",
        ) from error


def _check_gzip(path: Path, archive: Path, name: str) -> None:
    try:
        with gzip.open(path) as file:
            while file.read(_BLOCK):
                pass
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(archive, "an image in the archive is damaged", f"'{name}': {error}",
                        "Remove the archive and run the command again") from error  # fmt: skip


def _members(tar: tarfile.TarFile, work: Path, archive: Path, limit: int) -> Iterator[tuple[tarfile.TarInfo, Path]]:
    """Regular files of an archive with where they go; anything that could write elsewhere is refused."""
    total = 0
    for number, member in enumerate(tar):
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or "\\" in member.name or "\0" in member.name:
            raise DataError(archive, "a member of the archive leads out of its folder", f"'{member.name}'", _HOSTILE)
        if any(part.startswith("._") for part in name.parts) or member.isdir():
            continue
        if not member.isfile():
            kind = "a link" if member.issym() or member.islnk() else "a device or pipe"
            raise DataError(archive, "a member of the archive is neither a file nor a folder",
                            f"'{member.name}', {kind}", _HOSTILE)  # fmt: skip
        total += member.size
        if total > limit or number > _MAX_MEMBERS:
            raise DataError(archive, f"the archive holds more than {limit:,} bytes or {_MAX_MEMBERS:,} files",
                            f"at least {total:,} bytes in {number + 1:,} files", _HOSTILE)  # fmt: skip
        yield member, work.joinpath(*name.parts)


class _Part:
    """A download's file so far, with its MD5; it continues what an earlier call left."""

    def __init__(self, path: Path, bar: ProgressBar) -> None:
        self.path, self._bar = path, bar
        self.digest, self.size = hashlib.md5(usedforsecurity=False), 0

    def __enter__(self) -> _Part:
        self._file = self.path.open("ab+")
        self._file.seek(0)
        for block in iter(lambda: self._file.read(_BLOCK), b""):
            self._count(block)
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def append(self, block: bytes) -> None:
        """Write a block at the end."""
        self._file.write(block)
        self._count(block)

    def restart(self) -> None:
        """Throw away what is there."""
        self._file.truncate(0)
        self.digest, self.size = hashlib.md5(usedforsecurity=False), 0
        self._bar.reset()

    def expect(self, total: int) -> None:
        """Note the size of the complete file; OSError where the disk cannot hold it."""
        self._bar.total = total
        self._bar.refresh()
        if shutil.disk_usage(self.path.parent).free < total - self.size:
            raise OSError(errno.ENOSPC, "not enough disk space for the archive")

    def _count(self, block: bytes) -> None:
        self.digest.update(block)
        self.size += len(block)
        self._bar.update(len(block))


def _receive(url: str, part: _Part) -> bool:
    """One connection: append what it gives; whether the file is now complete."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={part.size}-"} if part.size else {})
    try:
        with _of_the_network():
            response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: no bytes after those that are here
            raise
        complete = error.headers.get("Content-Range", "").rpartition("/")[2] == str(part.size)
        if not complete:
            part.restart()
        return complete
    with response:
        start, total = _range(response)
        if start != part.size:
            part.restart()
            if start != 0:
                return False
        if total is not None:
            part.expect(total)
        while block := _next_block(response):
            part.append(block)
    return total is None or part.size == total


def _next_block(response: http.client.HTTPResponse) -> bytes:
    with _of_the_network():
        return response.read1(_BLOCK)  # whatever has arrived: the connection may be lost before a full block


class _NetworkError(Exception):
    """A connection that failed because of ``problem``; not an error of the disk."""

    def __init__(self, problem: object) -> None:
        super().__init__(str(problem))
        self.problem = problem


@contextmanager
def _of_the_network() -> Iterator[None]:
    """Treat every error in the block as the network's; a server's answer passes unchanged."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _NetworkError(error.reason if isinstance(error, urllib.error.URLError) else error) from error


def _range(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """First byte that a response gives, and size of the complete file, None where it is not given."""
    if response.status == 206:
        given = response.headers.get("Content-Range", "")
        if (match := re.match(r"bytes (\d+)-\d+/(\d+|\*)$", given)) is None:
            raise _NetworkError(f"part of a file, but not which (Content-Range: {given or 'none'})")
        return int(match[1]), int(match[2]) if match[2].isdigit() else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _is_plain(archive: Path) -> bool:
    """Whether a tar archive is not compressed: the first member's header has its mark."""
    with archive.open("rb") as file:
        return file.read(262)[257:262] == b"ustar"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _log_faults(folder: Path, task: Task | None) -> int:
    from decathlete.data.verification import verify

    faults = verify(folder, task)
    for fault in faults:
        logger.warning("%s", fault)
    return len(faults)
