"""Parts of our HTML pages: their style, tables, pictures and dots."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from decathlete.errors import UsageError
from decathlete.files import atomic_write, check_output_folder

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 14px; margin: 1rem 0 } caption { text-align: left; font-weight: 600 }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left } img { max-width: 100% } td.good { background: #dff0d8 }
.pairs img { width: 100% } .scroll { overflow-x: auto } footer { color: #666; font-size: 13px; margin-top: 3rem }
figure { margin: 1.5rem 0 } figcaption { font-size: 14px } .warn { background: #fff3cd; padding: .1rem .4rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px } summary { cursor: pointer }
"""
# nothing is loaded: a browser refuses whatever a page of ours might ask for
_SEALED = (
    "<meta http-equiv='Content-Security-Policy' "
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
)
_GRID, _POINT, _BAR = "#ddd", "#0072b2", "#d55e00"
_DOT, _ROW, _LEFT, _WIDTH = 4, 54, 150, 640  # pixels


def check_page_file(path: str | Path, option: str = "--report") -> None:
    """Refuse a page that can never be written, before work is done for it.

    Raises:
        UsageError: another suffix than .html, a folder of that name, or a folder that cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise UsageError(path, "a report is a file that ends in .html", "another name" if not path.is_dir() else
                         "a folder", f"Choose another {option}")  # fmt: skip
    check_output_folder(path.absolute().parent, option)


def page(title: str, parts: Sequence[str], *, sealed: bool = False) -> str:
    """An HTML page of parts.

    Args:
        title: of the browser's tab.
        parts: HTML.
        sealed: all pictures are within the page, and nothing else may be loaded.
    """
    head = [
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>",
        _SEALED if sealed else "",
        f"<meta name='viewport' content='width=device-width'><title>{escape(title)}</title>",
        f"<style>{STYLE}</style></head><body>",
    ]
    return "\n".join([*filter(None, head), *parts, "</body></html>"]) + "\n"


def write_page(path: str | Path, title: str, parts: Sequence[str]) -> Path:
    """Write a page that loads nothing, whole or not at all, and return its path."""
    with atomic_write(path) as part:
        part.write_text(page(title, parts, sealed=True), encoding="utf-8")
    return Path(path)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table of text."""
    cells = "".join(f"<th>{escape(word)}</th>" for word in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(word)}</td>" for word in row) + "</tr>" for row in rows)
    return (
        f"<div class='scroll'><table><caption>{escape(caption)}</caption><thead><tr>{cells}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def picture(jpeg: bytes, caption: str) -> str:
    """A JPEG within the page, with a line below."""
    data = base64.b64encode(jpeg).decode()
    below = escape(caption)
    return f"<figure><img alt='{below}' src='data:image/jpeg;base64,{data}'><figcaption>{below}</figcaption></figure>"


def dots(values: Mapping[str, Mapping[str, float]], intervals: Mapping[str, Sequence[float]], caption: str) -> str:
    """Points of values between 0 and 1, a row a class; the pointer tells a point's case. The bar is the interval.

    Args:
        values: class to case to value; nan is left out.
        intervals: class to mean, low and high; nan: no bar.
        caption: a line below.
    """
    known = [v for of_cases in values.values() for v in of_cases.values() if math.isfinite(v)]
    low = min(math.floor(10 * min(known, default=0)) / 10, 0.9)
    height = _ROW * len(values) + 30

    def x(value: float) -> float:
        return round(_LEFT + (value - low) / (1 - low) * _WIDTH, 1)

    def line(start: tuple[float, float], end: tuple[float, float], colour: str, width: int) -> str:
        (x1, y1), (x2, y2) = start, end
        return f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='{colour}' stroke-width='{width}'/>"

    parts = [f"<svg viewBox='0 0 {_LEFT + _WIDTH + 30} {height}' role='img' font-size='13' font-family='sans-serif'>"]
    for tick in (low + n / 10 for n in range(round((1 - low) * 10) + 1)):
        parts.append(line((x(tick), 0), (x(tick), height - 24), _GRID, 1))
        parts.append(f"<text x='{x(tick)}' y='{height - 8}' text-anchor='middle'>{tick:.1f}</text>")
    for row, (name, of_cases) in enumerate(values.items()):
        middle = _ROW * row + _ROW // 2
        parts.append(f"<text x='{_LEFT - 10}' y='{middle + 4}' text-anchor='end'>{escape(name[:22])}</text>")
        for n, (case, value) in enumerate(of_cases.items()):
            if math.isfinite(value):
                y = middle + ((n * 7) % 25) - 12  # apart from each other, the same in every run
                parts.append(
                    f"<circle cx='{x(value)}' cy='{y}' r='{_DOT}' fill='{_POINT}' fill-opacity='.55'>"
                    f"<title>{escape(case)}: {value:.3f}</title></circle>"
                )
        mean, *ends = intervals[name]
        if math.isfinite(mean):
            parts.append(line((x(mean), middle - 20), (x(mean), middle + 20), _BAR, 2))
        if all(map(math.isfinite, ends)):
            parts.append(line((x(ends[0]), middle), (x(ends[1]), middle), _BAR, 3))
    return f"<figure>{''.join(parts)}</svg><figcaption>{escape(caption)}</figcaption></figure>"


def facts(values: Mapping[str, Any]) -> list[str]:
    """The command, the versions and the hashes at the foot of a report.

    Args:
        values: ``command`` and ``versions`` of `decathlete.evaluation.report.provenance`, and more.
    """
    versions = ", ".join(f"{name} {number}" for name, number in values["versions"].items())
    more = {name: text for name, text in values.items() if name not in ("versions", "command")}
    lines = [f"$ {values['command']}", versions, *(f"{name}: {text}" for name, text in more.items())]
    return [
        "<h2>How it was made</h2>",
        f"<pre>{escape(chr(10).join(lines))}</pre>",
        "<footer>Written by decathlete. Not for clinical use.</footer>",
    ]
