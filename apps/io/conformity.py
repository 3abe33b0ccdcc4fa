"""Which values DICOM allows for an attribute: an object made from a header must not repeat invalid ones."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from decathlete.io.dicom import quiet_pydicom

if TYPE_CHECKING:
    import pydicom

_TEXT = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")
_SEVERAL_LINES = ("LT", "ST", "UT")
_ASCII_ALONE = ("", "ISO_IR 6", "ISO 2022 IR 6")  # values of SpecificCharacterSet for plain ASCII
_SHOWN = 40  # letters of a value in a message


def leave_out_what_is_not_allowed(
    header: pydicom.Dataset, keep: Collection[str] = (), letters: bool = False
) -> dict[str, str]:
    """Delete standard attributes with invalid values, also in sequences, and return what they were.

    A value must fit the representation of the attribute (a date must exist, a text must not be too long, a name has at
    most five parts), the number of values, and the character set that the header states.

    Args:
        header: changed in place.
        keep: keywords that are not checked.
        letters: whether the dataset above, of which this is an item, states a character set beyond ASCII.

    Returns:
        keyword to value, shortened to one line.
    """
    from pydicom.datadict import keyword_for_tag
    from pydicom.sequence import Sequence

    letters = _states_letters(header, letters)
    found = {}
    for tag in list(header.keys()):
        keyword = keyword_for_tag(tag)
        if not keyword or keyword in keep or keyword == "SpecificCharacterSet":
            continue
        try:
            element = header[tag]
            allowed = _is_allowed(element, letters)
            if allowed and isinstance(element.value, Sequence):
                for number, item in enumerate(element.value, start=1):
                    inner = leave_out_what_is_not_allowed(item, (), letters)
                    found.update({f"{keyword}[{number}].{word}": value for word, value in inner.items()})
        except Exception:  # a damaged value makes pydicom raise anything
            allowed = False
        if not allowed:
            found[keyword] = _shown(header.get_item(tag))
            del header[tag]
    return found


def _states_letters(header: pydicom.Dataset, above: bool) -> bool:
    """Whether the header states a character set beyond ASCII that pydicom knows."""
    from pydicom.charset import convert_encodings

    stated = header.get("SpecificCharacterSet")
    if stated is None:
        return above
    names = [stated] if isinstance(stated, str) else list(stated)
    with quiet_pydicom() as said:
        convert_encodings(names)
    return any(name not in _ASCII_ALONE for name in names) and not any("Unknown encoding" in line for line in said)


def _is_allowed(element: Any, letters: bool) -> bool:
    """Whether the values of an element are valid; an invalid one may also raise ValueError or the like."""
    from pydicom.config import RAISE
    from pydicom.datadict import dictionary_VM, dictionary_VR
    from pydicom.multival import MultiValue
    from pydicom.sequence import Sequence
    from pydicom.valuerep import DA, DT, TM, validate_value

    kind = dictionary_VR(element.tag)
    if kind == "SQ" or isinstance(element.value, Sequence):
        return kind == "SQ" and isinstance(element.value, Sequence)
    values = element.value if isinstance(element.value, (MultiValue, list)) else [element.value]
    if len(values) > 1 and dictionary_VM(element.tag) == "1":
        return False
    for value in values:
        if value is None or value == "":
            continue
        if kind not in _TEXT:
            validate_value(kind, value, RAISE)
            continue
        text = str(value)
        if isinstance(value, bytes) or not _has_letters_allowed(text, kind in _SEVERAL_LINES, letters):
            return False
        if kind == "PN" and any(part.count("^") > 4 for part in text.split("=")):
            return False
        validate_value(kind, text, RAISE)
        if kind in ("DA", "DT", "TM"):
            {"DA": DA, "DT": DT, "TM": TM}[kind](text)  # 31 February, and ranges
    return True


def _has_letters_allowed(text: str, several_lines: bool, letters: bool) -> bool:
    if not text.isascii() and (not letters or "\ufffd" in text):
        return False
    text = text.translate(dict.fromkeys(map(ord, "\t\n\f\r"))) if several_lines else text
    return not any(ord(letter) < 32 or 127 <= ord(letter) < 160 or 0xD800 <= ord(letter) < 0xE000 for letter in text)


def _shown(element: Any) -> str:
    value = element.value
    text = value.decode("latin-1").rstrip("\0 ") if isinstance(value, bytes) else str(value)
    return ascii(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
