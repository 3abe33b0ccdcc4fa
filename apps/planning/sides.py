"""Whether classes differ by left and right, from where they lie in the cases, and from their names.

Training on mirrored copies teaches the network to call a left kidney right in half of them, and no message would say
so. So when in doubt, classes count as sides: training without mirrored copies loses little.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from decathlete.data.sides import side_in_names
from decathlete.planning.fingerprints import FEW_CASES, CaseFacts

NEARLY_ALL = 0.9  # of the cases
TOGETHER = 0.1  # of the cases with the rarer of two classes; fewer that hold both say nothing of how they lie
# Distances along x, in standard deviations of the wider class. Two halves that touch are 3.5 apart, the left and the
# right ventricle of a heart about 2; a tumour at the end of a long organ is 1.7 at most.
ORDERED = 1.0  # always to the same side
BESIDE = 1.5  # to either side: headers that confuse left and right
# Third moments of one class and of the other one's mirror image: 0 where they agree. Left and right hippocampi of two
# persons differ by 0.2, and are 0.5 from each other unmirrored; anterior and posterior parts of one by 0.7 and 0.8.
MIRRORED = 0.4
BETTER = 0.6  # times what they differ unmirrored
ALIKE = 1.5  # at most, from one volume to the other
SHAPES = 100  # compared at most: with a hundred classes, all of a thousand cases take a minute


def find_side(classes: Mapping[str, int], cases: Sequence[CaseFacts], regions: Iterable[str] = ()) -> str:
    """Why scans must not be mirrored, for a person: "'a' lies to the left of 'b' in 38 of 40 cases"; "" for no reason.

    Args:
        classes: name to value, background at 0.
        cases: of the fingerprint; without any, names alone decide.
        regions: names of what is made of the classes.
    """
    return _side_in_places(classes, cases) or side_in_names([*classes, *regions])


def _side_in_places(classes: Mapping[str, int], cases: Sequence[CaseFacts]) -> str:
    pairs = list(itertools.combinations([_Class(name, value, cases) for name, value in classes.items() if value], 2))
    ordered = [(_unlike(a, b), text) for a, b in pairs if (text := _ordered(a, b))]
    if ordered:
        return min(ordered)[1]  # of kidneys, liver and spleen, the kidneys are named
    return next((text for test in (_apart, _mirrored) for a, b in pairs if (text := test(a, b))), "")


def one_sided(classes: Mapping[str, int], cases: Sequence[CaseFacts]) -> str:
    """Which class keeps to one side of the scans' middle, for a person; "" for none.

    What lies on the other side is background then, whether its counterpart or another organ; labels do not say.
    """
    for found in (_Class(name, value, cases) for name, value in classes.items() if value):
        away = found.centres[:, 0] / found.spreads[:, 0]
        away = away[~np.isnan(away)]
        for side, kept in (("left", away <= -BESIDE), ("right", away >= BESIDE)):
            if len(kept) >= FEW_CASES and _is_in_nearly_all(kept):
                return f"{found} lies {side} of the scan's middle in {_of(kept)}"
    return ""


class _Class:
    """A class over the cases, in arrays with a row a case: NaN, or 0 voxels, where the case has none of it."""

    def __init__(self, name: str, value: int, cases: Sequence[CaseFacts]) -> None:
        self.name, self.places = name, [case.places.get(value) for case in cases]
        self.voxels = np.array([case.voxels.get(value, 0) for case in cases])
        nowhere = (np.nan,) * 3
        self.centres = np.array([p.centre if p else nowhere for p in self.places]).reshape(-1, 3)
        self.spreads = np.array([p.spread if p else nowhere for p in self.places]).reshape(-1, 3)

    def __str__(self) -> str:
        return f"'{self.name}'"


def _ordered(a: _Class, b: _Class) -> str:
    """Two classes that lie beside each other along x."""
    apart = (b.centres[:, 0] - a.centres[:, 0]) / np.maximum(a.spreads[:, 0], b.spreads[:, 0])
    apart = apart[~np.isnan(apart)]
    few = "" if len(apart) >= FEW_CASES else "; too few to rule out chance"
    for side, beside in (("left", apart >= ORDERED), ("right", apart <= -ORDERED)):
        if _is_in_nearly_all(beside):
            return f"{a} lies to the {side} of {b} in {_of(beside)}{few}"
    beside = np.abs(apart) >= BESIDE
    return f"{a} and {b} lie side by side in {_of(beside)}{few}" if _is_in_nearly_all(beside) else ""


def _apart(a: _Class, b: _Class) -> str:
    """Two classes of which a case holds one: crops around the left or the right of an organ, say."""
    fewer = min(np.count_nonzero(a.voxels), np.count_nonzero(b.voxels))
    together = np.count_nonzero(a.voxels * b.voxels)
    if not fewer or together >= TOGETHER * fewer:
        return ""
    rarely = "never" if not together else f"in {together} of {len(a.voxels)} cases"
    return f"{a} and {b} are {rarely} together, and may be two sides of one structure"


def _mirrored(a: _Class, b: _Class) -> str:
    """Two classes of the same size that are each other's mirror image across the plane halfway between them, in
    whatever direction the scans lie.
    """
    both = [(p, q) for p, q in zip(a.places, b.places, strict=True) if p and q]
    if not both or _unlike(a, b) > np.log(ALIKE):
        return ""
    both = both[:: math.ceil(len(both) / SHAPES)]
    gap = np.array([np.subtract(q.centre, p.centre) for p, q in both])  # (N, 3)
    length = np.linalg.norm(gap, axis=1)
    wide = np.array([max(np.linalg.norm(p.spread), np.linalg.norm(q.spread)) for p, q in both])
    if np.median(length / wide) < 1:  # one around the other
        return ""
    normal = gap / np.maximum(length, 1e-9)[:, None]
    mirror = np.eye(3) - 2 * normal[:, :, None] * normal[:, None, :]
    one, other = (np.array([pair[n].skew for pair in both]) for n in range(2))  # (N, 3, 3, 3)
    image = np.einsum("nia,njb,nkc,nabc->nijk", mirror, mirror, mirror, one, optimize=True)
    mirrored, copied = _differ(image, other), _differ(one, other)
    if np.median(mirrored) > min(MIRRORED, BETTER * np.median(copied)):
        return ""
    return f"{a} and {b} are each other's mirror image in {_of(mirrored < copied)}"


def _differ(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """Relative difference of tensors, case by case: 0 of equal ones, 1 of opposite ones."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    sizes = np.linalg.norm(a, axis=1) + np.linalg.norm(b, axis=1)
    return np.linalg.norm(a - b, axis=1) / np.maximum(sizes, 1e-9)


def _unlike(a: _Class, b: _Class) -> float:
    """Logarithm of how many times larger one class is than the other, in the median case that holds both."""
    both = (a.voxels > 0) & (b.voxels > 0)
    return float(abs(np.median(np.log(a.voxels[both] / b.voxels[both])))) if both.any() else np.inf


def _is_in_nearly_all(held: NDArray[np.bool_]) -> bool:
    return len(held) > 0 and float(held.mean()) >= NEARLY_ALL


def _of(held: NDArray[np.bool_]) -> str:
    """How many of how many: "38 of 40 cases"."""
    return f"{held.sum()} of {len(held)} case{'s' * (len(held) != 1)}"
