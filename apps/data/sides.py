"""Whether names of classes say left or right, in the languages and short forms that label files come in."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence

# Left and right, spelt as `_tokens` gives them; a stem stands for its endings, and takes its counterpart's place in a
# name: "linke Niere" becomes "rechte Niere".
_STEMS = (
    ("left", "right"), ("lft", "rgt"), ("lft", "rght"),
    ("link", "recht"), ("gauch", "droit"), ("gauche", "droit"), ("izquierd", "derech"), ("esquerd", "direit"),
    ("sinistr", "destr"), ("sinist", "dext"), ("stang", "drept"), ("stang", "dreapt"),
    ("vanst", "hog"), ("venst", "høj"), ("venst", "høy"), ("vasen", "oike"), ("vasem", "oike"),
    ("lew", "praw"), ("lev", "prav"), ("lijev", "desn"), ("bal", "jobb"), ("sol", "sag"), ("kiri", "kanan"),
    ("trai", "phai"), ("лев", "прав"), ("лів", "прав"), ("ляв", "дес"), ("αριστερ", "δεξι"),
    ("左", "右"), ("왼", "오른"), ("좌", "우"), ("يسر", "يمن"), ("ايسر", "ايمن"), ("يسار", "يمين"),
    ("שמאל", "ימין"),
)  # fmt: skip
# Whole words that stand for left and right only where the counterpart is there too. Words that begin or end alike but
# for l and r (lh and rh, LV and RV, kidneyL and kidneyR) need no list.
_SHORT = (("li", "re"), ("g", "d"), ("sin", "dex"), ("sin", "dx"), ("sin", "des"), ("sx", "dx"), ("izq", "der"),
          ("esq", "dir"), ("vi", "ho"))  # fmt: skip
# A name with one of these has a side though no other class bears its counterpart: the background may hold it.
_WORD = re.compile(
    r"l|r|lt|rt|lh|rh|lft|rgt|rght|(left|right|左|右).*|(link|recht)(s|e[nrs]?)|gauches?|droite?s?"
    r"|(izquierd|derech|esquerd|direit|sinistr|destr|dextr)[ao]s?|sinister|dexter|vanster|hoger|venstre|høj?y?re"
    r"|lew[aey]|praw[aey]|lev[aey]|prav[aey]|(лев|прав)(ая|ое|ыи)"
)
# The chambers of a heart differ in more than the side: nothing in the background is a left atrium's mirror image.
# A brain's ventricles are called lateral.
_UNPAIRED = re.compile(r"atri(um|a|al)|appendage|(?<!lateral)ventric(le|ular|ulus)")


def side_in_names(names: Iterable[str]) -> str:
    """What the names say about a side, for a person: "'lh' and 'rh' are two sides by name"; "" for nothing.

    Args:
        names: of all classes and regions.
    """
    known = list(dict.fromkeys(names))
    for a, b in itertools.combinations(known, 2):
        if are_counterparts(a, b):
            return f"'{a}' and '{b}' are two sides by name"
    for name in known:
        if _has_side(name):
            return f"'{name}' has a side by name"
    return ""


def are_counterparts(a: str, b: str) -> bool:
    """Whether two names differ in left and right alone: 'lh' and 'rh', 'Rein gauche' and 'rein_droit'."""
    return _swapped(a, b) or _swapped(b, a)


def _swapped(left: str, right: str) -> bool:
    """Whether ``left`` becomes ``right`` by one word of the tables."""
    tokens, others = _tokens(left), _tokens(right)
    glued, other = "".join(tokens), "".join(others)
    for stem, counter in _STEMS:
        starts = [m.start() for m in re.finditer(re.escape(stem), glued)]
        if any(glued[:at] + counter + glued[at + len(stem) :] == other for at in starts):
            return True
    if len(tokens) != len(others):
        return False
    differing = [pair for pair in zip(tokens, others, strict=True) if pair[0] != pair[1]]
    return len(differing) == 1 and (differing[0] in _SHORT or _differ_in_l_and_r(*differing[0]))


def _differ_in_l_and_r(a: str, b: str) -> bool:
    first = a[0] == "l" and b[0] == "r" and a[1:] == b[1:]
    return first or (a[-1] == "l" and b[-1] == "r" and a[:-1] == b[:-1])


def _has_side(name: str) -> bool:
    tokens = _tokens(name)
    if _UNPAIRED.search("".join(tokens)):
        return False
    return any(map(_WORD.fullmatch, tokens))


def _tokens(name: str) -> Sequence[str]:
    """Words in small letters without accents; a new one begins where small letters turn to capitals.

    Digits stay with their letters, so that R2 and L5 are no sides.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    plain = unicodedata.normalize("NFC", plain)  # which puts Korean's syllables together again
    split = re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", plain)
    return re.findall(r"[^\W_]+", split.casefold())
