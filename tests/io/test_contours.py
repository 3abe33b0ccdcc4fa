from __future__ import annotations

import numpy as np
import pytest

from decathlete.errors import DataError
from decathlete.io.contours import contour_area, contour_coverage, contour_mask, read_contour, write_contour

SQUARE = np.array([[3.5, 2.5], [7.5, 2.5], [7.5, 5.5], [3.5, 5.5]])  # counted from 1: pixels 3..6 x 2..4 of the array


def circle(x: float, y: float, radius: float, count: int = 400) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)


def write(tmp_path, text: str | bytes):
    path = tmp_path / "IM-0001-0001-icontour-manual.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_square_along_the_borders_of_pixels_is_those_pixels():
    mask = contour_mask(SQUARE, (12, 10))
    expected = np.zeros((12, 10), dtype=bool)
    expected[3:7, 2:5] = True  # x from 3.5 to 7.5 holds the centres 4 to 7, which are the pixels 3 to 6
    np.testing.assert_array_equal(mask, expected)


def test_coordinates_count_from_one_unless_told():
    assert contour_mask(circle(5, 3, 0.9), (9, 9))[4, 2]
    assert contour_mask(circle(5, 3, 0.9), (9, 9), origin=0)[5, 3]


def test_coverage_of_a_triangle_is_exact():
    # counted from 1, the corners are those of pixels (0, 0) to (1, 1): the diagonal halves two pixels
    covered = contour_coverage([[0.5, 0.5], [2.5, 0.5], [0.5, 2.5]], (3, 3))
    np.testing.assert_allclose(covered, [[1, 0.5, 0], [0.5, 0, 0], [0, 0, 0]], atol=1e-12)


def test_edges_through_pixel_centres_do_not_change_the_area():
    square = np.array([[4.0, 4], [8, 4], [8, 8], [4, 8]])  # 4 x 4 = 16; counting centres would give 9 or 25
    assert contour_mask(square, (12, 12)).sum() == 16


@pytest.mark.parametrize("radius", [4.0, 7.3, 15.0, 40.25])
@pytest.mark.parametrize("at", [(50.0, 50.0), (50.5, 49.75)])
def test_area_of_a_circle_is_kept_to_one_percent(radius, at):
    points = circle(*at, radius)
    assert contour_area(points) == pytest.approx(np.pi * radius**2, rel=1e-3)
    assert contour_mask(points, (100, 100)).sum() == pytest.approx(contour_area(points), rel=0.01)
    found = np.argwhere(contour_mask(points, (100, 100))).mean(axis=0) + 1
    np.testing.assert_allclose(found, at, atol=0.15)  # in pixels: the mask is not moved


def test_start_direction_and_repeats_change_nothing():
    points = np.round(2 * circle(20, 21, 8.3, 60)) / 2
    mask = contour_mask(points, (40, 40))
    for same in (
        points[::-1],
        np.roll(points, 7, axis=0),
        np.repeat(points, 3, axis=0),
        np.vstack([points, points[:1]]),
    ):
        np.testing.assert_array_equal(contour_mask(same, (40, 40)), mask)


def test_both_halves_of_a_bow_tie_are_inside():
    mask = contour_mask([[2, 2], [10, 10], [10, 2], [2, 10]], (12, 12))
    assert mask[2, 5]
    assert mask[8, 5]


def test_a_contour_smaller_than_half_a_pixel_is_empty():
    assert not contour_mask([[5, 5], [5.3, 5], [5, 5.3]], (9, 9)).any()


@pytest.mark.parametrize("point", [(-3.0, 5.0), (0.4, 5.0), (9.6, 5.0), (5.0, 8.6)])
def test_a_point_outside_the_image_is_named(point):
    with pytest.raises(DataError, match=r"1 of 4 points are outside the image of 9 x 8 pixels \(first point 4"):
        contour_mask([[2, 2], [5, 2], [5, 5], point], (9, 8))


def test_text_as_people_write_it_is_read(tmp_path):
    path = write(tmp_path, "\r\n 10.5\t12 \r\n11 1.3e+01\r\n\r\n9.0   13.50")
    np.testing.assert_array_equal(read_contour(path), [[10.5, 12], [11, 13], [9, 13.5]])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no points"),
        ("1 2\n3\n4 5\n", "line 2 .1 column"),
        ("1 2 3\n", "line 1 .3 columns"),
        ("1 2\n3,5 4\n4 5\n", "line 2 .'3,5'"),
        ("1 2\n3 nan\n4 5\n", "line 2 .'nan'"),
        ("1 2\n3 1_6.0\n", "line 2 .'1_6.0'"),
        ("# x y\n1 2\n", "line 1"),
        ("1 2\n3 1e308\n", "line 2 is outside any image"),
        ("1 2\n3 4\n1 2\n", "three distinct points"),
        ("1 2\n3 4\n5 6\n7 8\n", "encloses no area"),
        (b"\xff\xfe1\x00 \x002\x00", "ASCII"),
    ],
)
def test_what_is_no_contour_is_refused_with_its_line(tmp_path, text, said):
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=said) as caught:
        read_contour(path)
    assert str(path) in str(caught.value)


def test_a_written_contour_reads_the_same(tmp_path):
    points = np.array([[120.5, 137.5], [120, 136], [119.5, 137]])
    write_contour(points, tmp_path / "c.txt")
    assert (tmp_path / "c.txt").read_text() == "120.50 137.50\n120.00 136.00\n119.50 137.00\n"
    np.testing.assert_array_equal(read_contour(tmp_path / "c.txt"), points)


def test_a_contour_may_begin_with_a_mark(tmp_path):
    path = tmp_path / "c.txt"
    path.write_bytes(b"\xef\xbb\xbf1 1\r\n4 1\r\n4 5\r\n")
    assert read_contour(path).tolist() == [[1, 1], [4, 1], [4, 5]]
