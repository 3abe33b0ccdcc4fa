"""Artificial anatomy: organ-like shapes with known labels, drawn in nominal millimetres and sampled on any grid.

Axes are RAS: x grows to the patient's right, y to the front, z to the head. Every body is bent by a smooth random
warp and every size, place and intensity is drawn anew, so no two cases are alike. Drawn for tests and demonstrations;
a network trained on them knows nothing about people.
"""

# ruff: noqa: RUF005  (here + adds vectors)
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Field = NDArray[np.float32]
Point = Sequence[float] | NDArray[np.floating]  # (x, y, z) in mm

AIR, LUNG, FAT, WATER, SOFT, MUSCLE, SPONGY, BONE = -1000, -860, -100, 5, 35, 55, 190, 650  # HU


class Canvas:
    """A grid with bent coordinates, an intensity and a label on every voxel.

    Args:
        shape: voxels along (X, Y, Z).
        size_mm: nominal extent of the picture along (X, Y, Z), centred on 0; the anatomy fills it, whatever the shape.
        rng: all that is random comes from here.
        warp_mm: largest shift of the smooth warp.
    """

    def __init__(self, shape: Sequence[int], size_mm: Sequence[float], rng: np.random.Generator, warp_mm: float):
        self.shape, self.rng, self.slack = tuple(shape), rng, warp_mm
        self.axes = [
            (((np.arange(n) + 0.5) / n - 0.5) * s).astype(np.float32) for n, s in zip(shape, size_mm, strict=True)
        ]
        self.step = max(s / n for n, s in zip(shape, size_mm, strict=True))  # mm; thinner things would vanish
        bends = [self.waves(0.6 * max(size_mm)) * warp_mm for _ in range(3)]
        self.x, self.y, self.z = (
            axis.reshape([-1 if i == k else 1 for i in range(3)]) + bends[k] for k, axis in enumerate(self.axes)
        )
        self.value = np.zeros(self.shape, np.float32)
        self.label = np.zeros(self.shape, np.uint8)

    def waves(self, length_mm: float, count: int = 4) -> Field:
        """Smooth random field within -1 .. 1 whose hills lie about ``length_mm`` apart."""
        total = np.zeros(self.shape, np.float32)
        for _ in range(count):
            direction = self.rng.normal(size=3)
            k = 2 * np.pi / (length_mm * self.rng.uniform(0.7, 1.4)) * direction / np.linalg.norm(direction)
            phase = np.exp(2j * np.pi * self.rng.random())
            # a plane wave is a product of three short vectors: no sine of every voxel
            ex, ey, ez = (np.exp(1j * k[i] * self.axes[i]).astype(np.complex64) for i in range(3))
            total += ((phase * ex)[:, None, None] * ey[:, None] * ez).real
        return total / np.float32(count)

    def near(self, value: float, share: float = 0.12) -> float:
        """Draw a number within ``share`` of ``value``."""
        return float(value * self.rng.uniform(1 - share, 1 + share))

    def place(self, center: Point, spread_mm: float) -> np.ndarray:
        """Draw a point within ``spread_mm`` of ``center`` along each axis."""
        return np.asarray(center) + self.rng.uniform(-spread_mm, spread_mm, 3)

    def radius(self, center: Point, radii: Point, turn: float = 0.0, bumps: Field | None = None) -> Field:
        """Distance from ``center`` in units of an ellipsoid's radii: below 1 inside; infinite far outside.

        ``turn`` rotates the ellipsoid about z by degrees; ``bumps`` is added to the distance.
        """
        extra = 1.0 if bumps is None else 1.0 + float(np.abs(bumps).max())
        in_plane = max(radii[:2]) if turn else 0
        box = self._box(center, [max(r, in_plane * (i < 2)) * extra for i, r in enumerate(radii)])
        dx, dy, dz = self.x[box] - center[0], self.y[box] - center[1], self.z[box] - center[2]
        if turn:
            c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
            dx, dy = c * dx + s * dy, c * dy - s * dx
        rx, ry, rz = (max(r, self.step * 0.6) for r in radii)
        result = np.full(self.shape, np.inf, np.float32)
        result[box] = np.sqrt((dx / rx) ** 2 + (dy / ry) ** 2 + (dz / rz) ** 2)
        if bumps is not None:
            result[box] += bumps[box]
        return result

    def ellipsoid(self, center: Point, radii: Point, turn: float = 0.0, bumps: Field | None = None) -> Mask:
        """Voxels of an ellipsoid."""
        return self.radius(center, radii, turn, bumps) < 1

    def tube(self, points: Sequence[Point] | NDArray[np.floating], radii: Point | float, flat: float = 1.0) -> Mask:
        """Voxels round a line through ``points`` whose radius changes from point to point; ``flat`` < 1 squeezes z."""
        line = np.asarray(points, float)
        widths = np.maximum(np.broadcast_to(radii, len(line)).astype(float), 0.5 * self.step)
        mask = np.zeros(self.shape, bool)
        for a, b, ra, rb in zip(line[:-1], line[1:], widths[:-1], widths[1:], strict=True):
            box = self._box((a + b) / 2, np.abs(b - a) / 2 + max(ra, rb))
            along = b - a
            d = [c[box] - a[i] for i, c in enumerate((self.x, self.y, self.z))]
            t = np.clip(sum(d[i] * along[i] for i in range(3)) / max(along @ along, 1e-6), 0, 1)
            rest = [d[i] - t * along[i] for i in range(3)]
            rest[2] /= flat
            mask[box] |= rest[0] ** 2 + rest[1] ** 2 + rest[2] ** 2 < (ra + t * (rb - ra)) ** 2
        return mask

    def tree(self, root: Point, direction: Point, length: float, width: float, levels: int) -> Mask:
        """Voxels of a vessel that forks ``levels`` times, thinner and shorter at each fork."""
        mask = np.zeros(self.shape, bool)
        stack = [(np.asarray(root, float), np.asarray(direction, float), length, width, levels)]
        while stack:
            start, way, long, wide, left = stack.pop()
            way = way / np.linalg.norm(way)
            middle = start + way * long / 2 + self.rng.normal(size=3) * long * 0.06
            end = start + way * long
            mask |= self.tube([start, middle, end], [wide, wide * 0.9, wide * 0.8])
            if left:
                side = np.cross(way, self.rng.normal(size=3))
                side /= np.linalg.norm(side)
                for sign in (-1, 1):
                    fork = way + sign * side * self.rng.uniform(0.4, 0.85)
                    stack.append((end, fork, long * self.rng.uniform(0.65, 0.85), wide * 0.74, left - 1))
        return mask

    def paint(self, mask: Mask, value: float | Field, label: int | None = None) -> None:
        """Give the voxels of ``mask`` an intensity, and a label if one is given."""
        self.value[mask] = value[mask] if isinstance(value, np.ndarray) else value
        if label is not None:
            self.label[mask] = label

    def pick(self, mask: Mask, margin_mm: float) -> np.ndarray:
        """Draw a bent point of ``mask`` that lies ``margin_mm`` within it, or as deep as the mask goes."""
        steps = [float(abs(a[1] - a[0])) if len(a) > 1 else 1.0 for a in self.axes]
        box = ndimage.find_objects(mask.astype(np.uint8))[0]
        depth = ndimage.distance_transform_edt(np.pad(mask[box], 1), sampling=steps)[1:-1, 1:-1, 1:-1]
        inside = np.argwhere(depth >= min(margin_mm, 0.8 * float(depth.max())))
        at = tuple(inside[self.rng.integers(len(inside))])
        return np.array([c[box][at] for c in (self.x, self.y, self.z)])

    def lesion(self, organ: Mask, radius_mm: float, bumpy: float = 0.25) -> Mask:
        """Voxels of a knobbly blob whose middle lies in ``organ``: never none."""
        center = self.pick(organ, 0.7 * radius_mm)
        radii = [self.near(radius_mm, 0.25) for _ in range(3)]
        distance = self.radius(center, radii, self.rng.uniform(0, 180), bumpy * self.waves(1.5 * radius_mm))
        mask = (distance < 1) & organ
        if not mask.any():  # a coarse grid may pass between the blob's voxels
            mask.flat[np.argmin(np.where(organ, self._distance(center), np.inf))] = True
        return mask

    def _distance(self, center: Point) -> Field:
        squares = (self.x - center[0]) ** 2 + (self.y - center[1]) ** 2 + (self.z - center[2]) ** 2
        return squares.astype(np.float32)

    def _box(self, center: Point, reach: Point) -> tuple[slice, ...]:
        return tuple(
            slice(*np.searchsorted(axis, (c - r - self.slack - self.step, c + r + self.slack + self.step)))
            for axis, c, r in zip(self.axes, center, reach, strict=True)
        )


# ---------------------------------------------------------------------------------------------------- CT of the trunk


def _trunk(c: Canvas, ribs_above: float) -> tuple[Field, Mask]:
    """Paint skin fat, muscle wall, ribs and the fat inside; return the distance from the axis (1 = skin), and inside.

    Ribs are drawn where z + 0.5 y exceeds ``ribs_above``: the costal arch falls to the sides.
    """
    u, v = (c.x / c.near(163, 0.05)) ** 2, (c.y / c.near(116, 0.05)) ** 2
    skin = np.sqrt(np.maximum(u + v - 0.5 * u * v, 0))
    wall = c.rng.uniform(0.84, 0.92)
    c.value[...] = AIR
    c.paint(skin < 1, FAT)
    c.paint(skin < wall, MUSCLE)
    inside = skin < wall - 0.09
    c.paint(inside, FAT + 5)
    slope = 0.45 * c.y - 0.25 * np.abs(c.x)
    stripe = np.cos(2 * np.pi * (c.z + slope) / 27)
    rib = (np.abs(skin - (wall - 0.06)) < 0.033) & (stripe > 0.25) & (c.z + 0.5 * c.y > ribs_above)
    c.paint(rib & (np.abs(c.x) > 25), BONE * 0.7)
    bed = (c.y > -146) & (c.y < -136) & (np.abs(c.x) < 150)
    c.paint(bed & (skin > 1.02), -150)
    return skin, inside


def _spine(c: Canvas) -> Mask:
    """Paint vertebrae, discs, canal, processes and the muscles beside them; return all of it."""
    whole = np.zeros(c.shape, bool)
    for side in (-1, 1):
        whole |= ((c.x - side * 34) / 30) ** 2 + ((c.y + 88) / 20) ** 2 < 1
    c.paint(whole, MUSCLE)
    round_body = ((c.x / 23) ** 2 + ((c.y + 58) / 18) ** 2).astype(np.float32)
    disc = np.cos(2 * np.pi * (c.z + c.rng.uniform(0, 34)) / 34) > 0.86
    spongy = SPONGY + 45 * c.waves(9)
    c.paint(round_body < 1, BONE * 0.75)
    c.paint(round_body < 0.74, spongy)
    c.paint((round_body < 1) & disc, 85)
    arch = ((c.x / 20) ** 2 + ((c.y + 84) / 14) ** 2 < 1) | ((np.abs(c.x) < 4.5) & (np.abs(c.y + 103) < 13))
    wings = (np.abs(c.y + 80) < 5) & (np.abs(c.x) < 38)
    c.paint((arch | (wings & ~disc)) & ~(disc & (c.y < -92)), BONE * 0.8)
    c.paint((c.x / 10) ** 2 + ((c.y + 82) / 8) ** 2 < 1, 25)
    return whole | (round_body < 1) | arch | wings


@dataclass
class _Abdomen:
    """Masks from which a task's scene continues."""

    inside: Mask
    liver: Mask
    spleen: Mask
    stomach: Mask
    portal: np.ndarray  # where the portal vein enters the liver
    blood: float  # HU of veins


def _abdomen(c: Canvas, *, colon: bool = True) -> _Abdomen:
    """Paint an upper abdomen in the portal venous phase."""
    skin, inside = _trunk(c, ribs_above=c.rng.uniform(-25, 5))
    liver_hu, spleen_hu, blood = c.near(105), c.near(118), c.near(155)
    bumps = 0.06 * c.waves(45)
    # organs end at the wall, so they take its shape where they touch it
    room = skin < c.rng.uniform(0.74, 0.76)

    dome_z = c.rng.uniform(66, 80)
    lungs = np.zeros(c.shape, bool)
    for side in (-1, 1):
        outward = side * c.x - 72
        dome = (outward / np.where(outward > 0, 75, 190)) ** 2 + ((c.y - 8) / np.where(c.y < 8, 85, 120)) ** 2
        lungs |= room & (c.z > dome_z + (6 if side > 0 else -2) + 14 - 75 * dome) & (side * c.x > 12)
    stump = room & c.ellipsoid((-22, 32, dome_z + 32), (56, 43, 40))  # the heart's underside

    if colon:
        _bowel(c, room & ~lungs)
    for side in (-1, 1):
        middle = c.place((side * 60, -48, -32 - 8 * (side > 0)), 5)
        kidney = c.radius(middle, (27, 25, c.near(52)), turn=-side * 25, bumps=bumps)
        c.paint(kidney < 1, c.near(165))
        c.paint(kidney < 0.68, c.near(120))
        c.paint(c.ellipsoid(middle + (-side * 14, 6, 0), (15, 10, 22)), FAT)

    stomach = c.ellipsoid(c.place((-62, 30, 38), 7), (c.near(42), 34, c.near(46)), turn=20, bumps=bumps)
    stomach |= c.tube([(-55, 34, 15), (-30, 50, -8), (8, 40, -12)], [30, 20, 13])
    stomach &= room & ~lungs
    core = ndimage.binary_erosion(stomach, iterations=2)
    c.paint(stomach, 60)
    c.paint(core, WATER + 20)
    c.paint(core & (c.y > c.rng.uniform(44, 56)), AIR + 40)

    spleen = c.ellipsoid(c.place((-108, -38, 40), 6), (c.near(38), c.near(54), c.near(58)), turn=-22, bumps=bumps)
    spleen &= ~c.ellipsoid(c.place((-62, -2, 34), 5), (33, 44, 60), turn=-22)
    spleen &= room & ~stomach & ~lungs
    c.paint(spleen, spleen_hu)

    right = c.ellipsoid(c.place((82, 0, 22), 5), (c.near(74), c.near(92), c.near(84)), bumps=bumps)
    left = c.ellipsoid(c.place((5, 45, 46), 6), (c.near(78), 38, c.near(36)), turn=-8, bumps=bumps)
    hilum = c.ellipsoid((28, -14, -4), (40, 28, 34)) | c.ellipsoid((30, -62, 0), (36, 34, 90))
    liver = (right | left) & ~hilum & room & ~lungs & ~spleen
    liver &= ~((np.abs(c.x - 30 + 0.2 * c.z) < 3) & (c.y > 42))  # fissure of the falciform ligament
    c.paint(liver, liver_hu + 5 * c.waves(14))
    gall_bladder = c.ellipsoid(c.place((44, 36, -14), 4), (13, c.near(22), 16)) & room
    c.paint(gall_bladder, WATER + 8)

    c.paint(lungs, LUNG + 40 * c.waves(25))
    c.paint(stump, 120)
    over = gall_bladder | stump | _spine(c)  # painted later than the organs: no part of them
    aorta_hu = c.near(165)
    aorta = c.tube([(-10, -28, -140), (-9, -28, 0), (-12, -32, 140)], c.near(11))
    c.paint(aorta, aorta_hu)
    cava = c.tube([(22, -26, -140), (22, -24, 0), (26, -14, 60), (20, -6, 140)], [11, 12, 13, 13])
    c.paint(cava & ~stump, blood)
    portal = np.array([34.0, 2, 10])
    trunk = c.tube([(0, -6, -50), (2, -2, -14), portal], [6, 8, 8])
    c.paint(trunk, blood)
    over |= aorta | (cava & ~stump) | trunk
    return _Abdomen(inside & ~lungs, liver & ~over, spleen & ~over, stomach, portal, blood)


def _bowel(c: Canvas, room: Mask) -> None:
    """Paint loops of small bowel and the colon's frame."""
    for _ in range(16):
        start = np.array([c.rng.uniform(-75, 75), c.rng.uniform(15, 75), c.rng.uniform(-120, -35)])
        bend = start + c.rng.normal(size=3) * 18
        loop = c.tube([start, bend, bend + c.rng.normal(size=3) * 18], c.near(12)) & room
        c.paint(loop, c.near(55, 0.3))
    _colon(c, room)


def _colon(c: Canvas, room: Mask) -> tuple[Mask, Mask, np.ndarray]:
    """Paint the colon; return all of it, its hollow, and the points of its middle line."""
    line = np.array(
        [(104, 8, -130), (106, 4, -95), (106, 6, -62), (92, 30, -48), (58, 58, -55), (18, 70, -66), (-24, 68, -60)]
        + [(-64, 50, -38), (-98, 20, -12), (-112, -10, -22), (-110, -18, -60), (-106, -14, -98), (-100, -6, -130)]
    )
    line = line + c.rng.uniform(-6, 6, line.shape)
    widths = c.near(17) * (1 + c.rng.uniform(-0.2, 0.2, len(line)))
    whole = c.tube(line, widths) & room
    hollow = c.tube(line, widths - 4.5) & whole
    c.paint(whole, c.near(48))
    stool = 10 + 40 * c.waves(7)
    c.paint(hollow, stool)
    gas = hollow & (c.waves(60) + (c.y - 25) / 60 > 0.05)  # gas rises to the front
    c.paint(gas, AIR + 60)
    return whole, hollow, line


def _draw_liver(c: Canvas) -> None:
    a = _abdomen(c)
    c.label[a.liver] = 1
    veins = c.tree(a.portal, (1, 0.1, 0.35), 32, 6.5, 4) | c.tree((26, -14, 62), (0.7, 0.5, -0.5), 36, 5.5, 3)
    c.paint(veins & a.liver, a.blood)
    for _ in range(c.rng.integers(1, 5)):
        cancer = c.lesion(a.liver, float(c.rng.choice([7, 10, 14, 22])))
        c.paint(cancer, c.near(58) + 8 * c.waves(8), 2)


def _draw_hepatic_vessel(c: Canvas) -> None:
    a = _abdomen(c)
    portal = c.tree(a.portal - (6, 4, 5), (1, 0.15, 0.3), 34, 8.0, 4)
    portal |= c.tree(a.portal, (-0.4, 0.75, 0.75), 34, 6.0, 3)
    hepatic = c.tree((26, -12, 62), (0.8, 0.35, -0.45), 42, 7.0, 3)
    hepatic |= c.tree((26, -10, 64), (0.3, 1, -0.3), 38, 6.0, 3)
    vessels = (portal | hepatic) & a.liver
    c.paint(vessels, c.near(175, 0.06), 1)
    for _ in range(c.rng.integers(1, 4)):
        tumour = c.lesion(a.liver & ~vessels, float(c.rng.choice([8, 12, 18, 24])))
        c.paint(tumour, c.near(60) + 8 * c.waves(9), 2)


def _draw_spleen(c: Canvas) -> None:
    a = _abdomen(c)
    veins = c.tree(a.portal, (1, 0.1, 0.35), 32, 6, 3) & a.liver
    c.paint(veins, a.blood)
    c.paint(c.tube([(-84, -30, 34), (-60, -22, 22), (-20, -8, 0)], [4, 4, 5]) & ~a.spleen, a.blood)  # splenic vein
    c.label[a.spleen] = 1


def _draw_pancreas(c: Canvas) -> None:
    a = _abdomen(c)
    head, tail = c.place((34, 10, -26), 4), c.place((-80, -26, 26), 5)
    neck, body = c.place((12, 18, -10), 4), c.place((-30, 6, 10), 5)
    size = c.rng.uniform(0.9, 1.15)
    line = [head - (0, 0, 18), head, neck, (neck + body) / 2 + (0, 3, 0), body, (body + tail) / 2, tail]
    pancreas = c.tube(line, np.array([10, 18, 11, 10.5, 12, 12, 10]) * size)
    pancreas &= ~(c.waves(13) > 0.42)  # lobes with fat between them
    duodenum = c.tube([head + (22, 6, 20), head + (26, 2, -5), head + (12, -4, -26)], 11) & ~pancreas
    c.paint(duodenum, 50)
    pancreas &= a.inside & ~a.spleen & ~a.liver & ~duodenum
    c.paint(pancreas, c.near(98, 0.08) + 10 * c.waves(9), 1)
    vein = c.tube([tail + (6, -15, 2), body + (0, -17, 2), neck + (0, -19, 0)], 4.5) & ~pancreas
    c.paint(vein, a.blood)
    c.paint(c.tube([head + (4, -2, 0), neck, body, tail], 1.5) & pancreas, 30, 1)  # duct
    size = c.rng.uniform(11, 18)
    bulge = c.tube(line, np.array([13, 21, 15, 15, 16, 15, 12])) & a.inside & ~a.liver & ~a.spleen & ~duodenum & ~vein
    c.paint(c.lesion(bulge, size), c.near(42) + 6 * c.waves(8), 2)


def _draw_colon(c: Canvas) -> None:
    a = _abdomen(c, colon=False)
    room = a.inside & ~a.liver & ~a.spleen & ~a.stomach & (c.value < 0)
    _bowel(c, room & (c.z < -20))
    whole, hollow, line = _colon(c, room)
    at = c.pick(hollow & (np.abs(c.z) < 100), 12)
    length = c.rng.uniform(18, 28)
    collar = c.radius(at, (length, length, length), bumps=0.2 * c.waves(14)) < 1
    narrow = c.tube(line, 4.0)
    # an apple core: the wall thick on most sides, the hollow a narrow channel
    cancer = ndimage.binary_dilation(whole) & collar & ~narrow & room
    if not cancer.any():
        cancer = c.lesion(whole, length)
    c.paint(collar & hollow & narrow, -500)
    c.paint(cancer, c.near(96, 0.08) + 6 * c.waves(8), 1)


def _draw_lung(c: Canvas) -> None:
    skin, inside = _trunk(c, ribs_above=-400)
    c.paint(inside, 45)  # mediastinum: soft tissue in place of fat
    room = skin < 0.75
    lungs = np.zeros(c.shape, bool)
    dome_z = c.rng.uniform(-100, -85)
    for side in (-1, 1):
        wing = c.radius((side * 74, -4, -40), (64 + 3 * side, 98, 185), bumps=0.04 * c.waves(60)) < 1
        floor = c.z > dome_z + 8 * side - 55 * (((c.x - side * 75) / 60) ** 2 + ((c.y + 5) / 85) ** 2 - 0.4)
        lungs |= wing & floor & room
    heart = c.ellipsoid(c.place((-28, 30, -62), 5), (c.near(58), c.near(44), c.near(58)), turn=25)
    belly = room & (c.z < dome_z + 20) & ~lungs
    c.paint(belly, 70)
    lungs &= ~heart
    c.paint(lungs, LUNG + 45 * c.waves(40) + 25 * c.waves(10))
    c.paint(heart, c.near(110) + 30 * c.waves(40))
    blood = c.near(150)
    arch = [(-18, -40, -150), (-19, -42, 0), (-22, -34, 42), (-8, 0, 58), (14, 28, 40), (8, 30, 0), (-5, 25, -40)]
    c.paint(c.tube(arch, [13, 13, 13, 14, 16, 17, 17]), blood)
    c.paint(c.tube([(30, 16, 120), (28, 14, 30), (26, 10, -40)], 11), blood)  # upper vena cava
    carina = np.array([2.0, -12, 16])
    airway = c.tube([(0, -4, 150), (2, -10, 60), carina], 9)
    for side in (-1, 1):
        hilum = np.array([side * 34, -14, -10])
        airway |= c.tube([carina, hilum], [8, 6])
        vessels = np.zeros(c.shape, bool)
        for way in ((side, 0.6, 0.9), (side, -0.3, 0.1), (side * 0.7, -0.6, -1), (side * 0.8, 0.7, -0.5)):
            vessels |= c.tree(hilum, way, 34, 5.5, 4)
        c.paint(vessels & lungs, c.near(35))
        airway |= c.tree(hilum, (side, -0.1, -0.6), 22, 4, 1)
    c.paint(airway, AIR + 30)
    _spine(c)
    c.paint((np.abs(c.x) < 17) & (np.abs(c.y - 92) < 6) & (c.z > -75), SPONGY + 60)  # breast bone
    for side in (-1, 1):
        blade = np.abs(c.y + 76 + 0.35 * (side * c.x - 90)) < 4
        c.paint(blade & (np.abs(side * c.x - 95) < 38) & (c.z > 0) & (skin < 0.97) & (skin > 0.77), BONE)
    _lung_cancers(c, lungs)


def _lung_cancers(c: Canvas, lungs: Mask) -> None:
    """Paint one to three cancers.

    Volumes of fewer than 200 slices get round ones of 6 to 16 mm in radius, which take about a tenth of the slices: 1%
    would be a single slice, and that is no volume. From 200 slices on, all cancers of a case lie in the same n // 100
    neighbouring slices, so that 1% of the slices or fewer show one. They are round ones of 5 to 12 mm of which these
    slices alone are kept: two up to 299 slices, so flat as no real tumour is. What stays of the real problem is how
    rare they are, and how they look in a slice, where they are at least 3 voxels across.
    """
    few = c.shape[2] // 100
    room = lungs
    if few >= 2:
        area = lungs.sum((0, 1))
        starts = np.flatnonzero(area[: 1 - few] > 0.5 * area.max())
        first = int(starts[c.rng.integers(len(starts))])
        room = np.zeros_like(lungs)
        room[..., first : first + few] = lungs[..., first : first + few]
    sizes = [6, 9, 12, 16] if few < 2 else [5, 7, 9, 12]
    for _ in range(c.rng.integers(1, 4)):
        size = float(c.rng.choice(sizes, p=[0.3, 0.35, 0.25, 0.1]))
        cancer = c.lesion(lungs, size, bumpy=0.35) if few < 2 else _slab_lesion(c, room, size)
        c.paint(cancer, c.near(35, 0.4) + 15 * c.waves(8), 1)


def _slab_lesion(c: Canvas, room: Mask, radius_mm: float) -> Mask:
    """Voxels of a knobbly blob, limited to the few slices of ``room``; at least 3 voxels across in a slice."""
    slices = np.flatnonzero(room.any((0, 1)))
    steps = [float(axis[1] - axis[0]) for axis in c.axes[:2]]
    radius_mm = max(radius_mm, 2.5 * max(steps))
    plane = room[..., slices].all(-1)
    depth = ndimage.distance_transform_edt(np.pad(plane, 1), sampling=steps)[1:-1, 1:-1]
    inside = np.argwhere(depth >= min(radius_mm, 0.8 * float(depth.max())))
    at = (*inside[c.rng.integers(len(inside))], slices[len(slices) // 2])
    center = [float(axis[at]) for axis in (c.x, c.y, c.z)]
    radii = [c.near(radius_mm, 0.2) for _ in range(3)]
    return (c.radius(center, radii, c.rng.uniform(0, 180), 0.25 * c.waves(1.5 * radius_mm)) < 1) & room


# --------------------------------------------------------------------------------------------------------------- MRI


def _draw_hippocampus(c: Canvas) -> None:
    gray, white, fluid = 0.62, 0.95, 0.22
    c.value[...] = white
    side = 1 if c.rng.random() < 0.5 else -1  # the picture holds a right or a left hippocampus
    folds = c.waves(11) + 0.7 * c.waves(7)
    c.paint(folds > 0.28, gray)  # cortex winding through the white matter
    c.paint(folds > 0.62, 0.4)
    t = np.linspace(0, 1, 9)  # from the tail to the head
    length, bend = c.rng.uniform(29, 34), c.rng.uniform(0.85, 1.15)
    line = np.stack(
        [
            side * bend * (-6 * (1 - t) ** 2 + 2.5 * np.sin(np.pi * t) - 2.5 * t**4),  # tail and uncus turn inward
            length * (t - 0.5),
            bend * (8.5 * (1 - t) ** 2 - 3.0 * t + 0.5),  # the tail climbs
        ],
        axis=1,
    ) + c.rng.uniform(-1.5, 1.5, 3)
    width = c.rng.uniform(1.0, 1.15) * np.interp(t, [0, 0.2, 0.5, 0.75, 0.9, 1], [3, 4.1, 4.7, 6, 7, 4.8])
    c.paint(c.tube(line + (side * 3.2, 0.5, 2.8), width * 0.85), fluid)  # temporal horn, at the outside
    c.paint(c.tube(line - (side * 9.5, 0, -1), np.linspace(2.5, 4, 9)), fluid * 1.3)  # cistern, at the inside
    c.paint(c.ellipsoid(line[-1] + (0, 4.5, 6), (8, 8, 6.5)), gray * 1.06)  # amygdala
    c.paint(c.tube(line - (0, 0, 5.5), width * 0.9), gray * 1.02)  # gyrus below
    c.paint(c.tube(line - (0, 0, 3.6), width * 0.86), white)
    whole = c.tube(line, width, flat=0.78)
    border = length * (c.rng.uniform(0.56, 0.62) - 0.5) + line[4, 1]
    c.paint(whole, gray * 1.1 + 0.05 * c.waves(5))
    c.label[whole] = 2
    c.label[whole & (c.y > border)] = 1


_BRAIN = {  # FLAIR, T1w, T1gd, T2w
    "fluid": (0.12, 0.18, 0.18, 1.0),
    "gray": (0.62, 0.52, 0.55, 0.62),
    "white": (0.48, 0.78, 0.80, 0.42),
    "edema": (1.0, 0.50, 0.52, 0.88),
    "core": (0.66, 0.33, 0.36, 0.95),
    "rim": (0.86, 0.48, 1.25, 0.72),
}


def _draw_brain_tumour(c: Canvas) -> Field:
    head = c.radius((0, 0, 0), (c.near(68, 0.04), c.near(84, 0.04), c.near(64, 0.04)))
    brain = (head < 1) & ~((np.abs(c.x) < 1.5) & (head > 0.55))
    brain &= ~((c.z < -38) & (c.y > -8) & (head > 0.82))
    tissue = np.zeros(c.shape, np.uint8)  # 0 outside, else 1 + the row of _BRAIN
    tissue[brain] = 1
    # the cortex is a band on both sides of folds that run inward from the surface, fluid in their depth
    fold = np.abs(c.waves(34, 8) + 0.35 * c.waves(15, 8)) * 3 + np.clip(0.74 - head, 0, None) * 4
    gyri = brain & (fold > 0.13) & (head < 0.985)
    tissue[gyri] = 2
    white = gyri & (fold > 0.42) & (head < 0.90)
    tissue[white] = 3
    for side in (-1, 1):
        horn = [(side * 8, 34, 8), (side * 11, 14, 14), (side * 15, -16, 13), (side * 22, -36, 4)]
        tissue[c.tube([*horn, (side * 28, -16, -12)], [5, 7, 8, 7, 4]) & brain] = 1
        tissue[c.ellipsoid((side * 13, -4, 0), (9, 14, 8)) & brain] = 2  # thalamus
        tissue[c.ellipsoid((side * 26, 8, 3), (6, 16, 9), turn=-side * 15) & brain] = 2  # putamen
    cerebellum = c.ellipsoid((0, -52, -40), (44, 28, 20)) & brain
    tissue[cerebellum] = np.where(np.cos(2 * np.pi * c.z / 7 + c.y / 6) > 0.2, 2, 3)[cerebellum]

    deep = brain & (head < 0.72) & (np.abs(c.x) > 18) & (c.z > -25)
    size = c.rng.uniform(11, 19)
    middle = c.pick(deep, 3)
    wide = c.radius(
        middle, [size * f for f in c.rng.uniform(1.7, 2.3, 3)], bumps=0.3 * c.waves(22) + 0.15 * c.waves(10)
    )
    inner = c.radius(middle, [size * f for f in c.rng.uniform(0.85, 1.1, 3)], bumps=0.2 * c.waves(14))
    hole = c.rng.uniform(0.5, 0.75)
    tumour_of = {1: (wide < 1) & white, 3: inner < 1, 2: inner < hole}
    for value, row in ((1, 4), (3, 6), (2, 5)):
        mask = tumour_of[value] & brain & (head < 0.97)
        tissue[mask] = row
        c.label[mask] = value
    table = np.array([(0, 0, 0, 0), *_BRAIN.values()], np.float32)
    table[1:] *= c.rng.uniform(0.93, 1.07, table[1:].shape)
    c.value = (brain * (1 + 0.04 * c.waves(12))).astype(np.float32)
    return table[tissue] * c.value[..., None]


def _draw_heart(c: Canvas) -> None:
    u, v = (c.x / c.near(160, 0.05)) ** 2, (c.y / c.near(108, 0.05)) ** 2
    skin = np.sqrt(np.maximum(u + v - 0.5 * u * v, 0))
    muscle, blood = 0.36, c.near(1.0, 0.06)
    c.value[...] = 0.02
    c.paint(skin < 1, 0.85)
    c.paint(skin < 0.9, muscle)
    inside = skin < 0.78
    c.paint(inside, 0.6)
    dome_z = c.rng.uniform(-62, -52)
    for side in (-1, 1):
        wing = c.ellipsoid((side * 80, -6, 0), (66, 96, 170)) & inside
        c.paint(wing, 0.07)
        c.paint(c.tree((side * 36, -16, 8), (side, 0.1, 0.3), 30, 4, 3) & wing, 0.5)
        c.paint(c.tree((side * 36, -20, 0), (side, -0.2, -0.5), 30, 4, 3) & wing, 0.5)
    c.paint(inside & (c.z < dome_z - 25 * ((c.x / 110) ** 2) + 8 * (c.x > 0)), 0.42)  # liver and stomach
    c.paint((c.x / 22) ** 2 + ((c.y + 62) / 17) ** 2 < 1, 0.48 + 0.06 * c.waves(12))
    c.paint((c.x / 9) ** 2 + ((c.y + 86) / 8) ** 2 < 1, 0.8)
    c.paint(c.ellipsoid((-18, 12, -18), (78, 56, 62), turn=28), 0.68)  # fat round the heart
    left = c.ellipsoid(c.place((-38, 16, -34), 3), (46, 38, 44), turn=35)
    c.paint(left, muscle)
    c.paint(c.ellipsoid((-38, 16, -34), (33, 26, 32), turn=35) & left, blood * 0.95)  # left ventricle
    c.paint(c.ellipsoid(c.place((8, 38, -34), 3), (38, 24, 40), turn=25) & ~left, blood * 0.92)
    c.paint(c.ellipsoid(c.place((40, 2, -18), 3), (24, 28, 36)), blood * 0.94)  # right atrium
    c.paint(c.tube([(-22, -38, -120), (-24, -40, 40)], 12), blood)
    c.paint(c.tube([(-8, 14, -14), (4, 20, 14), (6, 14, 70)], 15), blood)
    c.paint(c.tube([(10, 34, 0), (-12, 26, 24), (-6, 0, 34)], [14, 13, 11]), blood * 0.95)
    c.paint(c.tube([(32, 6, 90), (34, 4, 10)], 10), blood * 0.93)

    middle = c.place((-6, -22, -4), 4)
    bumps = 0.1 * c.waves(30)
    atrium = c.ellipsoid(middle, (c.near(32), c.near(21), c.near(26)), bumps=bumps)
    wall = c.ellipsoid(middle, (37, 25, 31), bumps=bumps)
    veins = np.zeros(c.shape, bool)
    for side in (-1, 1):
        for up in (-1, 1):
            mouth = middle + (side * 22, -6, up * 12)
            far = mouth + (side * c.near(30), -10 * c.rng.uniform(0.4, 1.4), up * c.near(12, 0.5))
            veins |= c.tube([mouth, far, far + (side * 26, -8, up * 10)], [c.near(9), 6.5, 4.5])
    appendage = c.tube([middle + (-24, 10, 8), middle + (-38, 24, 12), middle + (-36, 34, 6)], [9, 8, 5])
    c.paint(wall & (c.value > 0.5), muscle)
    c.paint(veins, blood)
    # the label holds the atrium, its appendage and the first centimetre of the veins, as the annotators drew it
    near = c.ellipsoid(middle, (46, 34, 38))
    c.paint(atrium | appendage, blood * (1 + 0.03 * c.waves(20)))
    c.label[atrium | appendage | (veins & near)] = 1


def _draw_prostate(c: Canvas) -> Field:
    fat, muscle, fluid = (0.72, 0.10), (0.16, 0.42), (1.0, 1.0)  # (T2, ADC)
    image = np.empty((*c.shape, 2), np.float32)

    def paint(mask: Mask, pair: Sequence[float], texture: Field | None = None) -> None:
        scale = 1.0 if texture is None else (1 + texture)[mask]
        for channel, value in enumerate(pair):
            image[..., channel][mask] = value * scale

    image[...] = fat
    for side in (-1, 1):
        thigh = c.ellipsoid((side * 88, 4, -4), (30, 34, 60))
        paint(thigh, (0.55, 0.15))  # femoral head
        paint(c.radius((side * 88, 4, -4), (34, 38, 64)) < 1, (0.12, 0.2))
        paint(c.radius((side * 88, 4, -4), (29, 33, 58)) < 1, (0.55, 0.15))
        paint(c.tube([(side * 48, 44, 0), (side * 46, 0, 0), (side * 36, -34, 0)], 10), muscle)  # obturator
        paint(c.ellipsoid((side * 56, -70, 0), (50, 24, 80), turn=side * 25), muscle, 0.25 * c.waves(14, 8))
    paint(c.ellipsoid((0, 62, -4), (26, 12, 24)), (0.2, 0.15))  # pubic bone
    size = c.rng.uniform(0.9, 1.18)
    middle = c.place((0, 2, -4), 3)
    radii = np.array([27, 20, 23]) * size * c.rng.uniform(0.93, 1.07, 3)
    paint(c.ellipsoid(middle + (0, 10, 36), (40, 34, 24)), (0.2, 0.45))
    paint(c.ellipsoid(middle + (0, 10, 37), (36, 30, 22)), fluid)  # bladder
    rectum_at = middle + (0, -radii[1] - 15, 0)
    rectum = c.tube([rectum_at + (0, -8, 50), rectum_at, rectum_at + (0, -4, -50)], [17, c.near(15), 14])
    paint(rectum, (0.32, 0.5))
    paint(c.tube([rectum_at + (0, -8, 50), rectum_at, rectum_at + (0, -4, -50)], [12, 11, 9]), (0.03, 0.02))
    whole = c.radius(middle, radii, bumps=0.05 * c.waves(30))
    gland = (whole < 1) & ~rectum
    paint((whole < 1.09) & ~rectum, (0.14, 0.3))  # capsule
    inner = c.radius(
        middle + (0, radii[1] * 0.24, radii[2] * 0.12), radii * (0.76, 0.72, 0.8), bumps=0.06 * c.waves(18)
    )
    zone = (inner < 1) & gland
    paint(gland, (c.near(0.88, 0.06), c.near(0.86, 0.06)), 0.2 * c.waves(8, 12))
    paint(zone, (c.near(0.45), c.near(0.58)), 0.6 * c.waves(10, 12))  # nodules
    paint((inner > 0.95) & (inner < 1.03) & gland, (0.2, 0.45))  # surgical capsule
    c.label[gland] = 1
    c.label[zone] = 2
    for side in (-1, 1):
        paint(c.ellipsoid(middle + (side * 30 * size, -radii[1] + 2, 0), (5, 5, 20)), (0.5, 0.4))  # vessels and nerves
    image[..., 1] = ndimage.gaussian_filter(
        image[..., 1], (1.5 / c.step, 1.5 / c.step, 0)
    )  # diffusion images are coarse
    return image


@dataclass(frozen=True)
class Scene:
    """How one task is drawn.

    Attributes:
        draw: paints a canvas; returns the image (X, Y, Z, C) where there is more than one channel.
        size_mm: nominal extent that the picture shows.
        shape: default voxels along X and Y, and along Z where the slices do not follow from ``slice_mm``.
        pixel_mm: range of the spacing along X and Y.
        slice_mm: range of the spacing along Z.
        warp_mm: strength of the smooth warp.
    """

    draw: Callable[[Canvas], Field | None]
    size_mm: tuple[float, float, float]
    shape: tuple[int, int]
    pixel_mm: tuple[float, float]
    slice_mm: tuple[float, float]
    warp_mm: float


_TRUNK_MM, _CHEST_MM = (360, 288, 240), (360, 288, 280)
# slices from the thin half of each task's range: a small body has few of the thick ones
SCENES = {
    "brain_tumour": Scene(_draw_brain_tumour, (146, 178, 138), (96, 116), (1.0, 1.0), (1.0, 1.0), 4),
    "heart": Scene(_draw_heart, (340, 272, 160), (160, 128), (1.25, 1.25), (1.37, 1.37), 6),
    "liver": Scene(_draw_liver, _TRUNK_MM, (160, 128), (0.7, 0.95), (1.0, 2.5), 7),
    "hippocampus": Scene(_draw_hippocampus, (35, 50, 36), (35, 50), (1.0, 1.0), (1.0, 1.0), 1.2),
    "prostate": Scene(_draw_prostate, (140, 140, 82), (160, 160), (0.625, 0.625), (3.0, 4.0), 3),
    "lung": Scene(_draw_lung, _CHEST_MM, (160, 128), (0.7, 0.95), (1.0, 2.5), 6),
    "pancreas": Scene(_draw_pancreas, _TRUNK_MM, (160, 128), (0.7, 0.95), (0.8, 2.5), 6),
    "hepatic_vessel": Scene(_draw_hepatic_vessel, _TRUNK_MM, (160, 128), (0.7, 0.95), (0.8, 2.0), 6),
    "spleen": Scene(_draw_spleen, _TRUNK_MM, (160, 128), (0.7, 0.95), (1.5, 3.0), 7),
    "colon": Scene(_draw_colon, _TRUNK_MM, (160, 128), (0.7, 0.95), (1.25, 3.0), 6),
}


def draw_case(
    task: str, rng: np.random.Generator, shape: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, label and spacing of one artificial case, with axes in RAS order.

    Args:
        task: name of the task, one of ``SCENES``.
        rng: the case's own generator.
        shape: voxels along (X, Y, Z); without it the scene's own, with as many slices as the drawn spacing asks for.

    Returns:
        image (X, Y, Z), or (X, Y, Z, C) for more than one channel: int16, or float32 where MR values exceed its
        range; label (X, Y, Z) uint8; spacing (X, Y, Z) in mm.
    """
    scene = SCENES[task]
    pixel = float(rng.uniform(*scene.pixel_mm))
    thick = float(np.exp(rng.uniform(*np.log(scene.slice_mm))))
    spacing = np.round([pixel, pixel, thick], 4)
    if shape is None:
        scale = scene.shape[0] * pixel / scene.size_mm[0]  # the body is small, its proportions are kept
        shape = (*scene.shape, max(round(scene.size_mm[2] * scale / thick), 8))
        if task == "hippocampus":
            shape = tuple(n + int(rng.integers(-3, 4)) for n in shape)  # cut out by hand, so never the same size
    canvas = Canvas(shape, scene.size_mm, rng, scene.warp_mm)
    channels = scene.draw(canvas)
    if channels is None and _is_ct(task):
        return _ct_scan(canvas), canvas.label, spacing
    if channels is None:
        return _mr_scan(canvas, canvas.value, task), canvas.label, spacing
    scans = [_mr_scan(canvas, channels[..., i], task) for i in range(channels.shape[-1])]
    return np.stack(scans, axis=-1), canvas.label, spacing


def _is_ct(task: str) -> bool:
    return SCENES[task].size_mm[0] == _TRUNK_MM[0]


def _ct_scan(c: Canvas) -> np.ndarray:
    """HU as a scanner gives them: blurred edges, grainy noise, whole numbers from -1024 to 3071."""
    value = ndimage.gaussian_filter(c.value, 0.55)
    grain = ndimage.gaussian_filter(c.rng.standard_normal(c.shape, np.float32), (0.6, 0.6, 0.3))
    value += grain * np.float32(c.rng.uniform(10, 20) / grain.std())
    return np.clip(np.rint(value), -1024, 3071).astype(np.int16)


def _mr_scan(c: Canvas, value: Field, task: str) -> np.ndarray:
    """MR magnitudes: blurred edges, a smooth bias field, Rician noise and a scale that differs between cases."""
    size = max(float(a[-1] - a[0]) for a in c.axes)
    value = ndimage.gaussian_filter(value, 0.5)
    outside = (
        c.value == 0 if task == "brain_tumour" else None
    )  # the skull was stripped: nothing outside, not even noise
    value = value * np.exp(0.3 * c.waves(1.6 * size, 3))
    sigma = np.float32(c.rng.uniform(0.02, 0.045))
    real, imaginary = (sigma * c.rng.standard_normal(c.shape, np.float32) for _ in range(2))
    value = np.sqrt((value + real) ** 2 + imaginary**2)
    if outside is not None:
        value[outside] = 0
    top = 10 ** c.rng.uniform(2.2, 5.5) if task == "hippocampus" else 10 ** c.rng.uniform(2.5, 3.4)
    value = np.rint(value * top)
    return value.astype(np.float32 if value.max() > 32767 else np.int16)
