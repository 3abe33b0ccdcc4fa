"""The one renderer: pictures in 256 colours of slices with outlines, with text around them, and sheets of many.

All frames of a film share one palette, so that a GIF neither flickers nor dithers, and a frame costs milliseconds.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import maximum_filter, minimum_filter

from decathlete.colours import colour_of
from decathlete.drawing.slices import as_picture, to_unit_range

FILL_OPACITY = 0.35  # the tissue below stays readable
BACKGROUND, DIM, BRIGHT = 16, 150, 235  # gray levels
MARGIN = 12  # pixels
ROW = 22  # height of a line of text
SCALE_BARS_MM = (1, 2, 5, 10, 20, 50, 100)
NOT_CLINICAL = "not for clinical use"


class Palette:
    """At most 256 colours: grays, and for each class the colour of its outline and of its fill over each gray.

    Args:
        values: label values that are drawn.
        filled: whether fills are needed; without them there are more grays.
        grays: maximum number of grays.

    Attributes:
        colours: (N, 3), uint8.
        gray: index of the colour of each gray level from 0 to 255, (256,).
    """

    def __init__(self, values: Sequence[int], filled: bool, grays: int = 256) -> None:
        self._values = list(values)
        shades = list(dict.fromkeys(colour_of(v) for v in self._values))  # seven at most
        levels = min(64, grays // 2, 120 // len(shades)) if filled and shades else 0
        grays = min(grays, 256 - len(shades) * (1 + levels))
        ramp = np.linspace(0, 255, grays)[:, None].repeat(3, axis=1)
        over = np.linspace(0, 255, levels)[:, None]
        fills = [(1 - FILL_OPACITY) * over + FILL_OPACITY * np.array(shade) for shade in shades]
        lines = np.array(shades, dtype=float).reshape(-1, 3)
        self.colours = np.concatenate([ramp, lines, *fills]).round().astype(np.uint8)
        level = np.arange(256) / 255
        self.gray = np.round(level * (grays - 1)).astype(np.uint8)
        # tables by rank: 0 background, 1 the first of the values, ...
        first = grays + len(shades)
        numbers = [shades.index(colour_of(v)) for v in self._values]
        self._line = np.array([0, *(grays + n for n in numbers)], dtype=np.uint8)
        steps = np.round(level * max(levels - 1, 0)).astype(int)
        self._fill = np.array([self.gray, *(first + n * levels + steps for n in numbers)]).astype(np.uint8)
        self._rank = np.zeros(max(self._values, default=0) + 1, dtype=np.uint8)
        self._rank[self._values] = np.arange(len(self._values)) % 255 + 1  # bytes: what Pillow enlarges exactly

    def ranks(self, plane: NDArray[Any]) -> NDArray[np.uint8]:
        """Label values as numbers of the classes, 1 for the first of the values; 0 for all others."""
        known = (plane >= 0) & (plane < len(self._rank))
        return np.where(known, self._rank[np.where(known, plane, 0)], 0).astype(np.uint8)

    def line(self, value: int) -> int:
        """Index of the colour of a class's outline."""
        return int(self._line[self._values.index(value) + 1])

    def image(self, pixels: NDArray[np.uint8]) -> Image.Image:
        """Colour indices (H, W) as Pillow's image of mode P."""
        image = Image.frombytes("P", pixels.shape[::-1], np.ascontiguousarray(pixels).tobytes())
        image.putpalette(self.colours.tobytes())
        return image

    def paint(
        self,
        plane: NDArray[Any],
        label: NDArray[Any] | None,
        prediction: NDArray[Any] | None,
        window: tuple[float, float],
        size: tuple[int, int],
    ) -> NDArray[np.uint8]:
        """Colour indices (height, width) of a plane, reference as outline, prediction as fill.

        Args:
            plane: intensities; its two axes are in RAS order, or are shown as if they were.
            label: reference, label values of the same shape.
            prediction: likewise.
            window: intensities that are shown black and white.
            size: width and height in pixels.
        """
        gray = (to_unit_range(as_picture(plane), *window) * 255).round().astype(np.uint8)
        gray = np.asarray(Image.fromarray(gray).resize(size, Image.Resampling.BICUBIC))
        pixels = self.gray[gray]
        if prediction is not None:
            ranks = self._enlarged(prediction, size)
            pixels = np.where(ranks > 0, self._fill[ranks, gray], pixels)
        if label is not None:
            ranks = self._enlarged(label, size)
            width = 2 * max(1, round(max(size) / 170)) + 1
            low, high = (f(ranks, width, mode="constant", cval=0) for f in (minimum_filter, maximum_filter))
            pixels = np.where((ranks > 0) & (low != high), self._line[ranks], pixels)
        return pixels

    def _enlarged(self, plane: NDArray[Any], size: tuple[int, int]) -> NDArray[np.uint8]:
        # nearest: a label map has no values between classes
        ranks = np.ascontiguousarray(self.ranks(as_picture(plane)))
        return np.asarray(Image.fromarray(ranks).resize(size, Image.Resampling.NEAREST))


def with_letters(pixels: NDArray[np.uint8], letters: str, palette: Palette) -> NDArray[np.uint8]:
    """A picture with letters at its left, right, top and bottom; their dark rim keeps them readable on any tissue."""
    height, width = pixels.shape
    drawn, rim = Image.new("L", (width, height)), Image.new("L", (width, height))
    places = [
        (4, height // 2, "lm"),
        (width - 5, height // 2, "rm"),
        (width // 2, 4, "mt"),
        (width // 2, height - 5, "mb"),
    ]
    for letter, (x, y, anchor) in zip(letters, places, strict=True):
        for layer, stroke in ((drawn, 0), (rim, 2)):
            style = {"font": _font(13, True), "fill": 255, "anchor": anchor, "stroke_width": stroke}
            ImageDraw.Draw(layer).text((x, y), letter, **style)
    return np.where(np.asarray(rim) > 0, palette.gray[np.asarray(drawn)], pixels)


class Canvas:
    """A picture to paste pictures and write text on.

    Attributes:
        pixels: colour indices (H, W).
    """

    def __init__(self, width: int, height: int, palette: Palette) -> None:
        self.palette = palette
        self.pixels = np.full((height, width), palette.gray[BACKGROUND], dtype=np.uint8)

    def copy(self) -> Canvas:
        """Another canvas with the same picture."""
        other = Canvas(0, 0, self.palette)
        other.pixels = self.pixels.copy()
        return other

    def paste(self, x: int, y: int, pixels: NDArray[np.uint8]) -> None:
        """Put a picture with its upper left corner at (x, y)."""
        self.pixels[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels

    def text(
        self,
        x: int,
        y: int,
        text: str,
        *,
        size: int = 13,
        level: int = BRIGHT,
        align: Literal["left", "center", "right"] = "left",
        bold: bool = False,
    ) -> None:
        """Write a line of text: ``y`` is its middle, ``x`` its left end, centre or right end, by ``align``."""
        width = text_width(text, size, bold)
        left = max(0, x - {"left": 0, "center": width // 2, "right": width}[align])
        height = size + 6  # a line 18 below another of size 12 leaves its underscores alone
        strip = Image.new("L", (min(width, self.pixels.shape[1] - left), height), BACKGROUND)
        ImageDraw.Draw(strip).text((0, height // 2), text, font=_font(size, bold), fill=level, anchor="lm")
        top = max(0, y - height // 2)
        self.paste(left, top, self.palette.gray[np.asarray(strip)][: self.pixels.shape[0] - top])


@dataclass(frozen=True)
class Entry:
    """One thing that a legend explains: a class, how reference or prediction are drawn, or a length.

    Attributes:
        kind: ``class``, ``outline``, ``fill`` or ``bar``.
        text: what it says.
        number: label value of a class, pixels of a bar.
    """

    kind: Literal["class", "outline", "fill", "bar"]
    text: str
    number: int = 0

    @property
    def width(self) -> int:
        """Pixels with the space after it."""
        return (self.number if self.kind == "bar" else 16) + 7 + text_width(self.text) + 18


def legend(
    names: Mapping[int, str],
    maps: Mapping[Literal["outline", "fill"], str],
    pixels_per_mm: float | None,
    width: int,
) -> list[Entry]:
    """Entries for a picture.

    Args:
        names: label value to text of the classes that occur.
        maps: how a map is drawn, to what it is.
        pixels_per_mm: for a scale bar; None: no bar.
        width: of the picture in pixels; the bar takes at most a third of it.
    """
    entries = [Entry("class", text, value) for value, text in names.items()]
    entries += [Entry(kind, text) for kind, text in maps.items()]
    if pixels_per_mm is not None:
        lengths = [mm for mm in SCALE_BARS_MM if mm * pixels_per_mm <= width / 3]
        mm = max(lengths, default=SCALE_BARS_MM[0])
        entries.insert(0, Entry("bar", f"{mm} mm", round(mm * pixels_per_mm)))
    return entries


def legend_rows(entries: Sequence[Entry], width: int) -> list[list[Entry]]:
    """Entries in lines of at most ``width`` pixels; an entry that is wider has a line of its own."""
    rows: list[list[Entry]] = []
    used = width
    for entry in entries:
        if used + entry.width > width + 18:
            rows.append([])
            used = 0
        rows[-1].append(entry)
        used += entry.width
    return rows


def draw_legend(canvas: Canvas, rows: Sequence[Sequence[Entry]], y: int) -> int:
    """Draw the lines from height ``y`` on and return where they end."""
    for row in rows:
        x = MARGIN
        for entry in row:
            symbol = _symbol(entry, canvas.palette)
            canvas.paste(x, y + (ROW - symbol.shape[0]) // 2, symbol)
            canvas.text(x + symbol.shape[1] + 7, y + ROW // 2, entry.text)
            x += entry.width
        y += ROW
    return y


def _symbol(entry: Entry, palette: Palette) -> NDArray[np.uint8]:
    bright, background = palette.gray[BRIGHT], palette.gray[BACKGROUND]
    if entry.kind == "bar":
        bar = np.full((9, entry.number), background)
        bar[4:6] = bright
        bar[:, :2] = bar[:, -2:] = bright
        return bar
    box = np.full((12, 16), palette.gray[DIM] if entry.kind == "fill" else background)
    if entry.kind == "class":
        box[:] = palette.line(entry.number)
    if entry.kind == "outline":
        box[:2] = box[-2:] = bright
        box[:, :2] = box[:, -2:] = bright
    return box


@dataclass(frozen=True)
class Tile:
    """A picture on a sheet: colour indices (H, W), and one or two lines below it."""

    pixels: NDArray[np.uint8]
    caption: str
    second: str = ""


def sheet(tiles: Sequence[Tile], palette: Palette, title: str, entries: Sequence[Entry], note: str) -> Image.Image:
    """Pictures of one size in rows, with title, legend and a note at the foot; the sheet is about 4 wide to 3 high."""
    height, width = tiles[0].pixels.shape
    lines = 1 + any(t.second for t in tiles)
    cell_width, cell_height = width + 8, height + lines * 18 + 10

    def misfit(columns: int) -> float:
        rows = -(-len(tiles) // columns)
        shape = np.log(columns * cell_width / (rows * cell_height) / (4 / 3))
        return float(abs(shape) + 2 * (1 - len(tiles) / (columns * rows)))  # empty cells look unfinished

    columns = min(range(1, len(tiles) + 1), key=misfit)
    total = max(columns * cell_width - 8 + 2 * MARGIN, 420)
    rows = legend_rows(entries, total - 2 * MARGIN)
    grid_rows = -(-len(tiles) // columns)
    top = 40
    canvas = Canvas(total, top + grid_rows * cell_height + (len(rows) + 1) * ROW + 10, palette)
    canvas.text(MARGIN, 20, shortened(title, total - 2 * MARGIN, 16, True), size=16, bold=True)
    start = (total - columns * cell_width + 8) // 2
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        x, y = start + column * cell_width, top + row * cell_height
        canvas.paste(x, y, tile.pixels)
        for line, (text, level) in enumerate([(tile.caption, BRIGHT), (tile.second, DIM)]):
            if text:
                middle = (x + width // 2, y + height + 11 + 18 * line)
                canvas.text(*middle, shortened(text, width, 12), size=12, level=level, align="center")
    foot(canvas, draw_legend(canvas, rows, top + grid_rows * cell_height), note)
    return palette.image(canvas.pixels)


def foot(canvas: Canvas, y: int, note: str) -> None:
    """The last line: a note, and "not for clinical use"."""
    width = canvas.pixels.shape[1]
    free = width - 2 * MARGIN - text_width(NOT_CLINICAL, 11) - 10
    canvas.text(MARGIN, y + ROW // 2, shortened(note, free, 11), size=11, level=DIM)
    canvas.text(width - MARGIN, y + ROW // 2, NOT_CLINICAL, size=11, level=DIM, align="right")


def window_note(window: tuple[float, float], kind: str = "percentiles 0.5 and 99.5") -> str:
    """What the note at the foot says of the intensities shown black and white, and how they were chosen."""
    low, high = (f"{value:.4g}".replace("-", "\u2212") for value in window)
    return f"window {low} to {high}{kind and f' ({kind})'}"


def picture_size(extent_mm: Sequence[float] | NDArray[Any], longest: int) -> tuple[int, int]:
    """Width and height in pixels of a plane with this width and height in mm, in its physical aspect."""
    scale = longest / max(extent_mm)
    width, height = (max(1, round(float(mm) * scale)) for mm in extent_mm)
    return width, height


def text_width(text: str, size: int = 13, bold: bool = False) -> int:
    """Pixels of a line of text."""
    return int(np.ceil(_font(size, bold).getlength(text))) + 1


def shortened(text: str, width: int, size: int = 13, bold: bool = False) -> str:
    """The text, or its beginning and an ellipsis if it is wider than ``width`` pixels."""
    if text_width(text, size, bold) <= width:
        return text
    while text and text_width(text + "…", size, bold) > width:
        text = text[:-1]
    return text + "…" if text else ""


@functools.cache
def _font(size: int, bold: bool = False) -> Any:
    """DejaVu Sans, which has the letters of most languages, from matplotlib's files: its import takes a while."""
    package = find_spec("matplotlib")
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(package.origin if package and package.origin else "").parent / "mpl-data" / "fonts" / "ttf" / name
    if not path.is_file():  # some distributions keep the fonts elsewhere
        from matplotlib import get_data_path

        path = Path(get_data_path(), "fonts", "ttf", name)
    return ImageFont.truetype(str(path), size)  # Pillow 10 takes no path
