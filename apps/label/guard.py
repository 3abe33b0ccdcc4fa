"""What a request to the server may name: the layer in front of MONAI Label, which checks none of it.

MONAI Label joins ids, tags and file names from a request to its own folders as they come, so that ``..``, a slash or an
absolute path reads or writes anywhere. Here such requests end with status 400 and one sentence.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from decathlete.errors import UsageError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LONGEST_NAME = 200  # bytes: file systems take 255, and .nii.gz and the like come behind
MAX_BODY = 2**20  # bytes of a body that is no upload
MAX_UPLOAD = 2**33  # bytes of an upload
NAMES = ("image", "id", "label", "session_id", "model")  # what a query calls by a name
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
# not for bundles: whole-slide images, and a second app beside the running one
CLOSED = ("/infer/wsi", "/reload")


class NotFoundError(UsageError):
    """A request asks for what is not there."""


class Refusal(Exception):  # noqa: N818 - an answer, no failure of ours
    """A request that is answered by the guard."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


def check_name(value: object, what: str) -> str:
    """A name that is one part of a path, as it came.

    Raises:
        UsageError: no text, empty, too long, with a slash, ``..`` or an unprintable character in it, or with
            a dot in front.
    """
    rule, remedy = "not a plain name", "A name is printable, without a slash, '..' or a dot in front"
    if not isinstance(value, str):
        raise UsageError(what, rule, f"a {type(value).__name__}", remedy)
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise UsageError(what, rule, "text that is no Unicode", remedy) from None
    if not value or not value.isprintable() or "/" in value or "\\" in value or ".." in value or value.startswith("."):
        raise UsageError(what, rule, f"{value[:80]!r}", remedy)
    if length > LONGEST_NAME:
        raise UsageError(
            what, "the name is too long", f"{length} bytes, at most {LONGEST_NAME}", "Choose a shorter one"
        )
    return value


def check_tag(value: object, what: str = "tag") -> str:
    """A label's tag, which is the name of a folder, as it came.

    Raises:
        UsageError: other than letters, digits, ``-`` and ``_``.
    """
    if not isinstance(value, str) or not TAG.fullmatch(value):
        raise UsageError(what, "expected at most 64 letters, digits, '-' and '_'", f"{str(value)[:80]!r}")
    return value


def check_info(text: str, what: str, reserved: Collection[str] = ()) -> dict[str, Any]:
    """Remarks about an image or a label, from JSON.

    Raises:
        UsageError: no JSON object, a key that the server keeps for itself, numbers that JSON has not.
    """
    try:
        info = json.loads(text or "{}", parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(what, "expected a JSON object", str(error)[:120]) from None
    if not isinstance(info, dict):
        raise UsageError(what, "expected a JSON object", f"a {type(info).__name__}")
    if taken := sorted(set(info) & set(reserved)):
        raise UsageError(what, "only the server writes these keys", ", ".join(taken), "Choose other names")
    return info


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is no number")


def number(request: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A number of a request, which viewers also send as text.

    Raises:
        UsageError: no number, or out of range.
    """
    value = request.get(name, default)
    try:
        found = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not low <= found <= high:
        raise UsageError(name, f"expected a number from {low:g} to {high:g}", f"{str(value)[:80]!r}")
    return found


def switch(request: Mapping[str, Any], name: str, default: bool) -> bool:
    """A yes or no of a request, which viewers also send as text.

    Raises:
        UsageError: anything else.
    """
    value = request.get(name, default)
    word = str(value).strip().lower()
    if word not in ("true", "false", "1", "0", "yes", "no"):
        raise UsageError(name, "expected true or false", f"{str(value)[:80]!r}")
    return word in ("true", "1", "yes")


def choice(request: Mapping[str, Any], name: str, known: Collection[str], default: str) -> str:
    """One word of a request among those known; of a list, which viewers send as it stood in ``/info/``, the first.

    Raises:
        UsageError: another word.
    """
    value = request.get(name)
    value = next(iter(value), None) if isinstance(value, list) else value
    if value is None or value == "":
        return default
    if not isinstance(value, str) or value not in known:
        raise UsageError(name, f"expected one of {', '.join(sorted(known))}", f"{str(value)[:80]!r}")
    return value


class Guard:
    """ASGI application in front of another: answers what must not get through.

    Args:
        app: what comes behind.
        local: the server listens on this machine alone: only its own names are taken for it (a page elsewhere that
            calls its own host 127.0.0.1 is not).
        proxy: whether there is a DICOMweb server behind ``/proxy``.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], local: bool = True, proxy: bool = False) -> None:
        self.app, self.local, self.proxy = app, local, proxy

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self.check(scope)
        except Refusal as refusal:
            await _answer(send, refusal.status, refusal.detail)
            return
        except UsageError as error:
            await _answer(send, 400, str(error))
            return
        await self.app(scope, _limited(receive, _most(scope)), send)

    def check(self, scope: Message) -> None:
        """Refuse a request by its line and headers.

        Raises:
            Refusal: with the status to answer.
            UsageError: a name that is none.
        """
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self._check_origin(headers)
        path = scope["path"]
        parts = path.strip("/").split("/")
        if any(p in (".", "..") or "\\" in p or any(ord(c) < 32 for c in p) for p in parts) or "//" in path:
            raise Refusal(400, "path: expected plain names, without '..', '//' and control characters.")
        if any(path == p or path.startswith((p + "/", p + "_")) for p in CLOSED):
            raise Refusal(404, f"{path}: not part of this server.")
        if parts[0] == "proxy" and not self.proxy:
            raise Refusal(404, "proxy: no DICOMweb server behind this one (the studies are a folder).")
        if path.rstrip("/") == "/logs/gpu" and shutil.which("nvidia-smi") is None:
            raise Refusal(404, "logs/gpu: no nvidia-smi on this machine.")
        for name, value in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True):
            if name in NAMES and value:
                check_name(value, name)
            if name == "tag" and value:
                check_tag(value)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > _most(scope):
            raise Refusal(413, f"body: too large ({length[:20]} bytes, at most {_most(scope)}). Send less.")

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        host = headers.get("host", "")
        if self.local and _host_name(host) not in ("127.0.0.1", "localhost", "::1"):
            raise Refusal(421, f"host: this server answers to 127.0.0.1 and localhost only ({host[:80]!r}).")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise Refusal(
                403,
                f"origin: pages of other servers may not use this one ({origin[:80]!r}).",
            )


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname if "@" not in host else None
    except ValueError:  # brackets without an address
        return None


def _most(scope: Message) -> int:
    kinds = [value for name, value in scope["headers"] if name.lower() == b"content-type"]
    return MAX_UPLOAD if any(b"multipart/" in kind or b"dicom" in kind for kind in kinds) else MAX_BODY


def _limited(receive: Receive, most: int) -> Receive:
    """``receive`` that ends a body of unknown length at ``most`` bytes."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return {"type": "http.disconnect"} if seen > most else message

    return limited


async def _answer(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
