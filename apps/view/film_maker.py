"""The slices of a scan with outlines and fills, as a film or as a sheet."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from decathlete.drawing.canvas import (
    DIM,
    MARGIN,
    ROW,
    Canvas,
    Palette,
    Tile,
    draw_legend,
    foot,
    legend,
    legend_rows,
    picture_size,
    sheet,
    shortened,
    text_width,
    window_note,
    with_letters,
)
from decathlete.drawing.scan import LETTERS, PLANES, Scan, class_dice, class_names, load_scan
from decathlete.drawing.slices import foreground_counts, gray_window
from decathlete.errors import DecathleteError, UsageError, WorkError, nearest
from decathlete.files import atomic_write, check_output_folder
from decathlete.progress import ProgressBar

CT_SOFT = (-160.0, 240.0)  # HU: level 40, width 400
CT_LUNG = (-1350.0, 150.0)  # HU: level -600, width 1500
LUNG_HU = (-950, -600)  # aerated lung; air around a patient is darker
GIF_GRAYS = 64  # looks the same as 256 in noisy tissue, at half the file size
GUTTER = 24  # pixels around the picture, for the orientation letters
HEADER = 40
FILM_SIZE, TILE_SIZE = 512, 300  # longer side of a picture in pixels
NARROWEST = 440  # pixels of a frame: what the title needs


def film(
    image: Any,
    output: str | Path,
    label: Any = None,
    prediction: Any = None,
    axis: int | str = 2,
    fps: float = 10.0,
    channel: int = 0,
    window: tuple[float, float] | None = None,
    slices: tuple[int | None, int | None] | None = None,
    *,
    labels: Mapping[int, str] | None = None,
    case_id: str | None = None,
    affine: NDArray[Any] | None = None,
    size: int | None = None,
    tiles: int = 12,
) -> Path:
    """Write a film of a volume, or a sheet of its slices, and return its path.

    Shown in the radiologist's way with true proportions: reference as outline, prediction as fill, a colour per class,
    orientation letters, a scale bar, the slice's number and its place in mm, and each class's Dice over the whole
    volume where both maps are given. Slices run from left to right, back to front, or feet to head.

    Args:
        image: NIfTI file, or array or tensor (X, Y, Z), (C, X, Y, Z) or (X, Y).
        output: ``.gif`` (loops), ``.mp4`` (needs ffmpeg), or ``.png`` for a sheet of slices spread evenly over the
            volume, or over the part that has foreground. Written completely or not at all.
        label: reference on the image's grid: file, or label values (X, Y, Z) with or without a leading axis.
        prediction: predicted label values likewise.
        axis: across the slices, in RAS order: 0 or ``sagittal``, 1 or ``coronal``, 2 or ``axial``.
        fps: slices per second. A GIF counts in hundredths of a second and shows 50 slices per second at most.
        channel: channel of the image that is shown.
        window: intensities that are shown black and white, in the image's units; default: percentiles 0.5 and 99.5,
            and for CT the window of soft tissue, or of the lung if the labelled part lies in it.
        slices: first and last slice, counted from 1 as in the title; None: from the first, or to the last.
        labels: value to name of the classes; default: ``labels`` of a ``dataset.json`` beside the files' folder.
        case_id: default: the image file's name.
        affine: voxel to RAS mm of arrays, 4x4; default: the image's own if it is a MetaTensor, else 1 mm in RAS order.
        size: pixels of the longer side of a picture; default 512 in a film, 300 on a sheet.
        tiles: slices on a sheet.

    Raises:
        UsageError: an invalid suffix, axis, window, rate, size or slice, or an output that cannot be written.
        DataError: a file cannot be read, or the image has no such channel.
        GeometryError: image and label maps are not on one grid.
        WorkError: an ``.mp4`` without ffmpeg, or one that ffmpeg cannot write.
    """
    output = Path(output)
    suffix = output.suffix.lower()
    if suffix not in _KINDS:
        found = f"'{output.suffix}'" if suffix else "no suffix"
        raise UsageError(output, f"expected a name that ends in {', '.join(_KINDS)}", found)
    axis = _axis(axis)
    if not 0 < fps < math.inf:
        raise UsageError("fps", "expected a number above 0", f"{fps}")
    if window is not None and not -math.inf < window[0] < window[1] < math.inf:
        found = f"{window[0]:g},{window[1]:g}"
        raise UsageError("window", "expected LOW,HIGH, two intensities of which the first is lower", found)
    if size is not None and not 16 <= size <= 4096:
        raise UsageError("size", "expected 16 to 4096 pixels", f"{size}")
    check_output_folder(output.parent)
    if suffix == ".mp4":
        find_ffmpeg()  # reported before the files are read
    scan = load_scan(image, label, prediction, channel=channel, affine=affine)
    chosen = _chosen(slices, scan.image.shape[axis], PLANES[axis])
    if labels is None:
        labels = _stated_names(label, prediction, image)
    if size is None:
        size = TILE_SIZE if suffix == ".png" else FILM_SIZE
    grays = GIF_GRAYS if suffix == ".gif" else 256
    drawer = _Drawer(scan, axis, window, labels, case_id or scan.name, size, grays)
    with atomic_write(output) as part:
        if suffix == ".png":
            drawer.sheet(_spread(chosen, scan, axis, tiles)).save(part, format="PNG", optimize=True)
        else:
            bar = ProgressBar(chosen, desc=output.name, unit="slice")
            _KINDS[suffix](part, (drawer.frame(n) for n in bar), fps)
    return output


class _Drawer:
    """What all slices of a film have in common: window, colours, and the canvas with all but title and slice."""

    def __init__(
        self,
        scan: Scan,
        axis: int,
        window: tuple[float, float] | None,
        labels: Mapping[int, str] | None,
        title: str,
        size: int,
        grays: int = 256,
    ) -> None:
        self.scan, self.axis, self.title = scan, axis, title
        names = _present_names(scan, labels)
        self.window, kind = (window, "") if window is not None else default_window(scan)
        self.note = window_note(self.window, kind)
        self.palette = Palette(list(names), scan.prediction is not None, grays)
        extent_mm = np.delete(np.array(scan.image.shape) * scan.spacing, axis)  # width and height of a slice
        self.size = picture_size(extent_mm, size)
        scores = class_dice(*scan.maps, names)
        texts = {v: name + (f" (Dice {scores[v]:.3f})" if v in scores else "") for v, name in names.items()}
        self.entries = legend(texts, scan.drawn_as, self.size[0] / extent_mm[0], self.size[0])
        self._still = self._draw_still()

    def _draw_still(self) -> Canvas:
        (width, height), even = self.size, 2  # mp4 halves the colours' resolution: sides must be even
        total = max(width + 2 * GUTTER, NARROWEST)
        rows = legend_rows(self.entries, total - 2 * MARGIN)
        bottom = HEADER + height + 2 * GUTTER
        canvas = Canvas(-(-total // even) * even, -(-(bottom + (len(rows) + 1) * ROW + 6) // even) * even, self.palette)
        self._corner = ((total - width) // 2, HEADER + GUTTER)
        x, y = self._corner
        middles = [(x - GUTTER // 2, y + height // 2), (x + width + GUTTER // 2, y + height // 2)]
        middles += [(x + width // 2, y - GUTTER // 2), (x + width // 2, y + height + GUTTER // 2)]
        for letter, middle in zip(LETTERS[self.axis], middles, strict=True):
            canvas.text(*middle, letter, size=14, level=DIM, align="center", bold=True)
        foot(canvas, draw_legend(canvas, rows, bottom), self.note)
        return canvas

    def frame(self, index: int) -> Image.Image:
        """One slice of the film."""
        canvas = self._still.copy()
        width = canvas.pixels.shape[1]
        where = f"{PLANES[self.axis]} {index + 1} / {self.scan.image.shape[self.axis]}   {self.place(index)}"
        free = width - 3 * MARGIN - text_width(where, 14)
        canvas.text(MARGIN, 22, shortened(self.title, free, 15, True), size=15, bold=True)
        canvas.text(width - MARGIN, 22, where, size=14, align="right")
        canvas.paste(*self._corner, self._picture(index))
        return self.palette.image(canvas.pixels)

    def sheet(self, indices: Sequence[int]) -> Image.Image:
        """Slices beside each other."""
        number = self.scan.image.shape[self.axis]
        pictures = [self._picture(n) for n in indices]
        pictures[0] = with_letters(pictures[0], LETTERS[self.axis], self.palette)
        captions = [f"{n + 1} / {number}   {self.place(n)}" for n in indices]
        tiles = [Tile(picture, caption) for picture, caption in zip(pictures, captions, strict=True)]
        return sheet(tiles, self.palette, f"{self.title}   {PLANES[self.axis]}", self.entries, self.note)

    def place(self, index: int) -> str:
        """Side and millimetres of a slice, as scanners write them: ``S 12.5 mm``."""
        mm = self.scan.position_mm(self.axis, index)
        return f"{('LR', 'PA', 'IS')[self.axis][mm >= 0]} {abs(mm):.1f} mm"

    def _picture(self, index: int) -> NDArray[np.uint8]:
        return self.palette.paint(*self.scan.slice_at(self.axis, index), self.window, self.size)


def default_window(scan: Scan) -> tuple[tuple[float, float], str]:
    """Intensities shown black and white, and what the window is called.

    CT is recognized by its air, far below the values of any other modality. It gets the lung window if at least a
    tenth of the voxels around the foreground (of all voxels, if there is no foreground) are aerated lung.
    """
    low, high = gray_window(scan.image)
    if low > -500:
        return (low, high), "percentiles 0.5 and 99.5"
    around = scan.image
    for values in scan.maps:
        if values is not None and values.any():
            around = around[_box(values, margin=10)]
            break
    lung = np.count_nonzero((around > LUNG_HU[0]) & (around < LUNG_HU[1])) / around.size
    return (CT_LUNG, "CT, lung") if lung >= 0.1 else (CT_SOFT, "CT, soft tissue")


def find_ffmpeg() -> str:
    """Path of ffmpeg: from the package imageio-ffmpeg, otherwise the system's.

    Raises:
        WorkError: neither is installed.
    """
    with contextlib.suppress(ImportError, RuntimeError):
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    if found := shutil.which("ffmpeg"):
        return found
    found = "neither the package imageio-ffmpeg nor ffmpeg in the PATH"
    raise WorkError(".mp4", "ffmpeg is not installed", found, "Write a .gif, or run 'pip install imageio-ffmpeg'")


def _write_gif(path: Path, frames: Iterator[Image.Image], fps: float) -> None:
    duration_ms = max(2, round(100 / fps)) * 10
    first = next(frames)
    first.save(path, format="GIF", save_all=True, append_images=frames, duration=duration_ms, loop=0, optimize=False)


def _write_mp4(path: Path, frames: Iterable[Image.Image], fps: float) -> None:
    process = None
    with tempfile.TemporaryFile() as log:
        try:
            for frame in frames:
                if process is None:
                    command = [find_ffmpeg(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
                    command += ["-s", "{}x{}".format(*frame.size), "-r", f"{fps:g}", "-i", "-", "-an"]
                    # yuv420p and the index at the start: what browsers and slides play
                    command += ["-pix_fmt", "yuv420p", "-preset", "veryfast", "-crf", "18", "-movflags", "+faststart"]
                    command.append(os.fspath(path))
                    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log)
                process.stdin.write(frame.convert("RGB").tobytes())  # type: ignore[union-attr]
            process.stdin.close()  # type: ignore[union-attr]
            status = process.wait()  # type: ignore[union-attr]
        except BrokenPipeError:
            status = process.wait() or 1  # type: ignore[union-attr]
        finally:
            if process is not None and process.poll() is None:  # an interrupt, or a slice that cannot be drawn
                process.kill()
                process.wait()
        if status:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines() or [f"exit status {status}"]
            raise WorkError(path.suffix, "ffmpeg failed to write the film", lines[-1], "Write a .gif")


_KINDS: dict[str, Callable[..., None]] = {".gif": _write_gif, ".mp4": _write_mp4, ".png": lambda *_: None}


def _axis(axis: int | str) -> int:
    names = {name: number for number, name in PLANES.items()}
    known = {**names, **{str(number): number for number in PLANES}}
    word = str(axis).strip().lower()
    if word not in known:
        raise UsageError("axis", "expected sagittal, coronal, axial, or 0, 1, 2", repr(axis), nearest(word, names))
    return known[word]


def _chosen(slices: tuple[int | None, int | None] | None, count: int, plane: str) -> range:
    first, last = slices or (None, None)
    first, last = 1 if first is None else first, count if last is None else last
    if not 1 <= first <= last <= count:
        raise UsageError("slices", f"expected FIRST:LAST within 1:{count}, the {plane} slices", f"{first}:{last}")
    return range(first - 1, last)


def _spread(chosen: range, scan: Scan, axis: int, tiles: int) -> list[int]:
    """Slices spread evenly over those with foreground and one more on each side; without foreground, over all."""
    counts = foreground_counts(axis, *scan.maps, shape=scan.image.shape)
    full = [n for n in chosen if counts[n]]
    if full:
        chosen = range(max(chosen[0], full[0] - 1), min(chosen[-1], full[-1] + 1) + 1)
    count = min(max(1, tiles), len(chosen))
    if count == 1:
        return [max(chosen, key=lambda n: counts[n]) if full else chosen[len(chosen) // 2]]
    return [chosen[round(n * (len(chosen) - 1) / (count - 1))] for n in range(count)]


def _present_names(scan: Scan, labels: Mapping[int, str] | None) -> dict[int, str]:
    """Names of the classes that occur; a class without a name is called by its value."""
    named = class_names(labels, ()) if labels else {}
    return {value: named.get(value, number) for value, number in class_names(None, scan.maps).items()}


def _stated_names(*files: Any) -> dict[int, str] | None:
    """Classes named in the ``dataset.json`` of the data set that a file belongs to; None if there is none."""
    from decathlete.bundle.labels import foreground
    from decathlete.data.kinds import read_description

    for file in files:
        if isinstance(file, (str, os.PathLike)):
            with contextlib.suppress(DecathleteError, AttributeError):  # only names are at stake
                for folder in (Path(file).parent, Path(file).absolute().parent.parent):
                    if stated := (read_description(folder) or {}).get("labels"):
                        return foreground(stated)
    return None


def _box(values: NDArray[Any], margin: int) -> tuple[slice, ...]:
    """Box around the foreground with a margin in voxels on every side, cut at the border of the volume."""
    ranges = []
    for axis in range(values.ndim):
        there = np.flatnonzero(values.any(axis=tuple(a for a in range(values.ndim) if a != axis)))
        ranges.append(slice(max(0, int(there[0]) - margin), int(there[-1]) + 1 + margin))
    return tuple(ranges)
