"""Text that comes with the data, not from the user's own command line, made safe for configs and messages.

MONAI runs a value that begins with ``$``, takes ``@id`` for a reference and ``%id`` for a copied block, reads ``#`` as
``::`` in every text, and takes a mapping with ``_target_`` for a call. Such names of channels and
classes are therefore refused when they are read (`check_name`), free text is made harmless (`plain_text`), and data
that enter a config as a value are wrapped (`inert`). Imports nothing heavy.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decathlete.errors import DataError, DecathleteError

LONGEST_NAME = 100
LONGEST_TEXT = 1000
SPECIAL = ("$", "@", "%")  # what a value of a config must not begin with
_RELATIVE = re.compile(r"([@%])(?=#|::)")  # MONAI replaces these anywhere in a text


def check_name(
    text: object,
    where: str | os.PathLike[str],
    what: str,
    longest: int = LONGEST_NAME,
    kind: type[DecathleteError] = DataError,
) -> str:
    """A name that may stand in a config, as it came; a number becomes text.

    Args:
        text: the name, such as that of a channel.
        where: the file or option that it stands in.
        what: what it names, such as ``a channel's name``.
        longest: most characters that it may have.
        kind: class of the error.

    Raises:
        DataError, or ``kind``: not text, empty, too long, with unprintable characters, with blanks at the start or
            end, or what a config would take for code.
    """
    name = str(text) if isinstance(text, (int, float)) and not isinstance(text, bool) else text
    if not isinstance(name, str):
        raise kind(where, f"{what} must be text", f"{text!r:.80}", "Correct it")
    found = ""
    if not name.strip():
        found = "it is empty"
    elif not name.isprintable():
        strange = next(c for c in name if not c.isprintable())
        found = f"the unprintable character U+{ord(strange):04X} in '{name[:40]}'"
    elif len(name) > longest:
        found = f"{len(name)} characters, '{name[:40]}...'"
    elif name != name.strip():
        found = f"a blank at the start or end of '{name}'"
    elif name.startswith(SPECIAL) or "::" in name or "#" in name or re.fullmatch(r"_\w+_", name):
        found = f"'{name}'"
    if found:
        rules = "that does not start with $, @ or %, has no # or ::, and is not of the form _name_"
        remedy = f"Choose one line of 1 to {longest} printable characters {rules}"
        raise kind(where, f"{what} cannot be used in a config", found, remedy)
    return name


def plain_text(text: object, longest: int = LONGEST_TEXT) -> str:
    """Free text, such as a licence, on one printable line that no config takes for code, shortened if necessary."""
    words = " ".join("".join(c if c.isprintable() else " " for c in str(text)[: 10 * longest]).split())
    words = _RELATIVE.sub(r"\1 ", words).replace("<!--", "< !--")  # marks of the bundle's card
    if words.startswith(SPECIAL):
        words = f"'{words}'"
    return words if len(words) <= longest else words[: longest - 3] + "..."


def is_code(text: str) -> bool:
    """Whether MONAI would run a text of a config, or put something else in its place."""
    return text.startswith(SPECIAL) or _RELATIVE.search(text) is not None


def expression(value: object) -> str:
    """Python's spelling of a value, for an expression of a config: nothing in it is special to MONAI."""
    return re.sub(r"[#@%]", lambda match: f"\\x{ord(match[0]):02x}", repr(value))


def inert(value: Any, expressions: bool = False) -> Any:
    """Value of a config that stays as it is, for paths and for text from data and requests.

    Where MONAI would run, replace or rewrite a text, the text becomes an expression that gives it.

    Args:
        value: lists and mappings are gone through; paths become text; all but texts is returned as given.
        expressions: leave a text that starts with ``$``, ``@`` or ``%`` to MONAI, as the user's own command line is.
            A path is kept as it is even then.
    """
    if isinstance(value, os.PathLike):
        return inert(os.fsdecode(value))
    if isinstance(value, Mapping):
        return {key: inert(item, expressions) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(inert(item, expressions) for item in value)
    if not isinstance(value, str) or (expressions and value.startswith(SPECIAL)):
        return value
    return f"${expression(value)}" if is_code(value) or "#" in value else value


def read_text(path: str | os.PathLike[str]) -> str:
    """Text of a file that a person wrote: UTF-8, or UTF-16 with the mark that Windows puts in front; without the mark.

    Raises:
        OSError, UnicodeDecodeError: the file cannot be read, or is not such text.
    """
    content = Path(path).read_bytes()
    return content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")


def same_name(text: str) -> str:
    """A file's name in the form in which names are compared: macOS writes ``ö`` as two characters."""
    return unicodedata.normalize("NFC", text)
