"""Pictures of scans with their labels: PNG files and films for people, small arrays for TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decathlete.lazy import lazy_names

if TYPE_CHECKING:
    from decathlete.view.figure import overlay
    from decathlete.view.film_maker import film
    from decathlete.view.montage_maker import batch_montage
    from decathlete.view.panels import overlay_array

__all__ = ["batch_montage", "film", "overlay", "overlay_array"]

__getattr__ = lazy_names(
    __name__,
    {"batch_montage": "montage_maker", "film": "film_maker", "overlay": "figure", "overlay_array": "panels"},
)
