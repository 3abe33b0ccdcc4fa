"""HTML pages from templates, which escape all text: a page loads nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decathlete.errors import UsageError
from decathlete.files import atomic_write, check_output_folder

if TYPE_CHECKING:
    from PIL.Image import Image

TEMPLATES = Path(__file__).with_name("templates")
JPEG_QUALITY = 88
DOT, ROW, LEFT, WIDTH = 4, 54, 150, 640  # pixels of `dot_plot`


def check_page_file(path: str | Path, option: str = "--report") -> None:
    """Refuse a page that cannot be written, before any work is done for it.

    Raises:
        UsageError: another suffix than .html, a folder of that name, or a folder that cannot be written to.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
        found = "this is a folder" if path.is_dir() else f"'{path.suffix}'" if path.suffix else "no suffix"
        raise UsageError(path, "expected a file name that ends in .html", found, f"Choose another {option}")
    check_output_folder(path.absolute().parent, option)


def write_page(path: str | Path, template: Path, **values: Any) -> Path:
    """Write a page, completely or not at all, and return its path.

    Args:
        path: the HTML file.
        template: a Jinja template, which extends ``layout.html`` and may import ``parts.html`` of `TEMPLATES`.
        values: what the template needs; their text is escaped.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    with atomic_write(path) as part:
        part.write_text(environment.get_template(template.name).render(values), encoding="utf-8")
    return Path(path)


def as_jpeg(picture: Image) -> bytes:
    """A picture as JPEG: a third of the bytes of PNG. Colours are as fine as grays, since outlines are thin."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    return buffer.getvalue()


def dot_plot(values: Mapping[str, Mapping[str, float]], intervals: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Places of the macro ``dot_plot``: values up to 1, a row per class, with each row's mean and interval.

    Args:
        values: class to case to value; NaN is left out.
        intervals: class to mean, low and high; NaN: not drawn.
    """
    known = [v for of_cases in values.values() for v in of_cases.values() if math.isfinite(v)]
    low = min(math.floor(10 * min(known, default=0)) / 10, 0.9)

    def x(value: float) -> float | None:
        return round(LEFT + (value - low) / (1 - low) * WIDTH, 1) if math.isfinite(value) else None

    rows = []
    for row, (name, of_cases) in enumerate(values.items()):
        middle = ROW * row + ROW // 2
        # dots of similar value are spread over the height of the row, in the same way in every run
        dots = [
            {"x": x(value), "y": middle + ((n * 7) % 25) - 12, "case": case, "value": value}
            for n, (case, value) in enumerate(of_cases.items())
            if math.isfinite(value)
        ]
        mean, *ends = map(x, intervals[name])
        rows.append({"name": name[:22], "y": middle, "dots": dots, "mean": mean, "ends": ends if all(ends) else None})
    ticks = [(x(tick), tick) for tick in (low + n / 10 for n in range(round((1 - low) * 10) + 1))]
    size = {"left": LEFT, "width": LEFT + WIDTH + 30, "height": ROW * len(values) + 30, "dot": DOT}
    return {"rows": rows, "ticks": ticks, **size}
