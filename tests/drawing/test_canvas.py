"""Colours and places of single pixels, text that fits, and sheets."""

from __future__ import annotations

import numpy as np
import pytest

from decathlete.colours import COLOURS
from decathlete.drawing.canvas import (
    Canvas,
    Entry,
    Palette,
    Tile,
    legend,
    legend_rows,
    picture_size,
    sheet,
    shortened,
    text_width,
)

ORANGE, BLUE = COLOURS[0], COLOURS[1]


def painted(plane, label=None, prediction=None, values=(1, 2), scale=10, window=(0, 1)):
    palette = Palette(values, filled=prediction is not None)
    size = (plane.shape[0] * scale, plane.shape[1] * scale)
    return palette.colours[palette.paint(plane, label, prediction, window, size)].astype(int)


def test_outline_lies_on_the_edge_of_the_label():
    label = np.zeros((10, 12), dtype=np.uint8)
    label[2:6, 3:9] = 2
    picture = painted(np.zeros((10, 12)), label)
    assert picture.shape == (120, 100, 3)
    # columns run from the patient's right, x 9, to the left; rows from the front, y 11, to the back
    coloured = (picture == BLUE).all(-1)
    rows, columns = np.nonzero(coloured)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (30, 89, 40, 79)
    assert coloured.sum() == 2 * (60 + 40) - 4  # one pixel wide
    assert picture[31:89, 41:79].max() == 0  # the image inside


def test_neighbouring_classes_keep_their_own_outlines():
    label = np.ones((4, 4), dtype=np.uint8)
    label[2:] = 2
    picture = painted(np.zeros((4, 4)), label)
    assert picture[20, 19].tolist() == list(BLUE)  # x 2 and 3, shown on the left
    assert picture[20, 20].tolist() == list(ORANGE)


def test_prediction_is_a_fill_that_shows_the_image():
    picture = painted(np.full((4, 4), 0.5), prediction=np.ones((4, 4), dtype=int))
    expected = 0.65 * 127.5 + 0.35 * np.array(ORANGE)
    assert np.abs(picture - expected).max() <= 2  # steps of the palette


def test_window_runs_from_black_to_white():
    picture = painted(np.array([[-300.0, -160.0, 40.0, 240.0, 900.0]]), window=(-160, 240), scale=1)
    assert picture[::-1, 0, 0].tolist()[:2] == [0, 0]
    assert picture[::-1, 0, 0].tolist()[3:] == [255, 255]
    assert picture[2, 0, 0] == pytest.approx(127.5, abs=1.5)


@pytest.mark.parametrize(("values", "filled"), [((), True), ((1,), False), (range(1, 8), True), (range(1, 105), True)])
def test_palette_has_every_class_and_rising_grays(values, filled):
    palette = Palette(list(values), filled)
    assert len(palette.colours) <= 256
    assert [palette.colours[palette.line(v)].tolist() for v in list(values)[:7]] == [list(c) for c in COLOURS][
        : len(values)
    ]
    assert (np.diff(palette.colours[palette.gray][:, 0].astype(int)) >= 0).all()


def test_palette_uses_no_more_grays_than_asked_for():
    palette = Palette([1, 2], filled=True, grays=64)
    assert len(np.unique(palette.gray)) == 64
    assert len(palette.colours) == 64 + 2 * (1 + 32)


def test_picture_has_the_physical_aspect():
    assert picture_size((10 * 1.0, 6 * 3.0), 180) == (100, 180)


def test_long_text_is_shortened_to_its_room():
    text = shortened("a case with a very long name", 100)
    assert text.endswith("…")
    assert 60 < text_width(text) <= 100
    assert shortened("short", 100) == "short"


def test_scale_bar_is_as_long_as_it_says():
    bar = legend({1: "heart"}, {}, pixels_per_mm=2.0, width=300)[0]
    assert (bar.kind, bar.text, bar.number) == ("bar", "50 mm", 100)


def test_legend_breaks_into_lines():
    entries = [Entry("class", "a class", n) for n in range(1, 6)]
    rows = legend_rows(entries, entries[0].width * 2)
    assert [len(row) for row in rows] == [2, 2, 1]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 2), (12, 4)])
def test_sheet_has_no_empty_cells_where_it_can(count, columns):
    tile = Tile(np.zeros((280, 224), dtype=np.uint8), "")
    assert sheet([tile] * count, Palette([], False), "", [], "").width == max(columns * 232 - 8 + 24, 420)


def test_sheet_holds_every_picture():
    palette = Palette([1], filled=False)
    tiles = [Tile(np.full((60, 100), palette.gray[255]), f"slice {n}") for n in range(5)]
    picture = np.asarray(sheet(tiles, palette, "title", [], "note").convert("L"))
    assert (picture == 255).sum() == 5 * 60 * 100


def test_lines_below_each_other_leave_underscores_alone():
    canvas = Canvas(60, 60, Palette([], filled=False))
    canvas.text(5, 20, "_" * 5, size=12)
    alone = canvas.pixels.copy()
    canvas.text(5, 38, "0", size=12)
    assert alone[:29].max() > 200
    assert (canvas.pixels[:29] == alone[:29]).all()
