"""Pages: all text is escaped, and a template that lacks a value writes nothing."""

from __future__ import annotations

import math

import jinja2
import pytest

from decathlete.drawing.pages import LEFT, WIDTH, dot_plot, write_page

PAGE = """{% extends "layout.html" %}{% import "parts.html" as parts %}
{% block body %}<p>{{ text }}</p>
{{ parts.table([text], [[text]], text) }}{{ parts.picture(jpeg, text) }}
{{ parts.dot_plot(plot, text) }}{{ parts.provenance({"command": text, "versions": {text: "1"}, text: text}) }}
{% endblock %}"""


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "page.html.jinja"
    path.write_text(PAGE)
    return path


def test_text_is_escaped_everywhere(tmp_path, template):
    text = "<script>alert('&')</script>"
    plot = dot_plot({text: {text: 0.5}}, {text: (0.5, 0.4, 0.6)})
    page = write_page(tmp_path / "a.html", template, text=text, plot=plot, jpeg=b"jpeg").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 1 + 3 + 2 + 3 + 4  # paragraph, table, picture, plot, provenance
    assert "src='data:image/jpeg;base64,anBlZw=='" in page  # by hand: the bytes of "jpeg" in base64


def test_a_value_that_is_missing_leaves_the_old_page(tmp_path, template):
    (tmp_path / "a.html").write_text("earlier")
    with pytest.raises(jinja2.UndefinedError, match="text"):
        write_page(tmp_path / "a.html", template, plot=dot_plot({}, {}), jpeg=b"")
    assert (tmp_path / "a.html").read_text() == "earlier"


def test_dots_lie_between_the_lowest_tenth_and_one():
    plot = dot_plot({"a": {"x": 0.75, "y": 1.0, "z": math.nan}}, {"a": (0.875, math.nan, math.nan)})
    (row,) = plot["rows"]
    places = [(dot["case"], dot["x"]) for dot in row["dots"]]
    assert places == [("x", round(LEFT + WIDTH / 6, 1)), ("y", LEFT + WIDTH)]
    assert [round(tick, 1) for _, tick in plot["ticks"]] == [0.7, 0.8, 0.9, 1.0]
    assert (row["mean"], row["ends"]) == (round(LEFT + WIDTH * 7 / 12, 1), None)
