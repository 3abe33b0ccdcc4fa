"""Pictures of scans with their label maps: films, sheets, PNG files, and arrays for TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decathlete.lazy import lazy_names

if TYPE_CHECKING:
    from decathlete.drawing.panels import overlay_array
    from decathlete.drawing.planes import overlay
    from decathlete.view.film_maker import film
    from decathlete.view.montage_maker import batch_montage

__all__ = ["batch_montage", "film", "overlay", "overlay_array"]

__getattr__ = lazy_names(
    __name__,
    {
        "batch_montage": "montage_maker",
        "film": "film_maker",
        "overlay": "decathlete.drawing.planes",
        "overlay_array": "decathlete.drawing.panels",
    },
)
