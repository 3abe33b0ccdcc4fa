"""MONAI Label with our bundles: an app of our own, started by ``decathlete serve`` in an environment of its own.

``environment``, ``guard``, ``serving`` and ``stock`` run anywhere; most of the other modules import MONAI Label, which
only that environment has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from decathlete.lazy import lazy_names

if TYPE_CHECKING:
    from decathlete.label.environment import set_up
    from decathlete.label.serving import serve

__all__ = ["serve", "set_up"]

__getattr__ = lazy_names(__name__, {"serve": "serving", "set_up": "environment"})
