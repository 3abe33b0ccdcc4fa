"""Colours of classes, the same in every picture and file."""

from __future__ import annotations

# Okabe and Ito's palette without black and gray: told apart with every common form of colour blindness.
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)


def colour_of(value: int) -> tuple[int, int, int]:
    """RGB, 0 to 255, of a label value; the seven colours come round again after seven classes."""
    return COLOURS[(value - 1) % len(COLOURS)]
