"""A bundle for any data set: layout, fingerprint, plan and files. Imports nothing heavy by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decathlete.lazy import lazy_names

if TYPE_CHECKING:
    from decathlete.planning.fine_tuning import load_fitting
    from decathlete.planning.fingerprints import Fingerprint, take_fingerprint
    from decathlete.planning.layouts import Layout, find_layout, matched_cases
    from decathlete.planning.making import new_bundle
    from decathlete.planning.plans import Plan, Topology
    from decathlete.planning.rules import plan, plan_of_task
    from decathlete.planning.writer import write_bundle

__all__ = [
    "Fingerprint",
    "Layout",
    "Plan",
    "Topology",
    "find_layout",
    "load_fitting",
    "matched_cases",
    "new_bundle",
    "plan",
    "plan_of_task",
    "take_fingerprint",
    "write_bundle",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Fingerprint": "fingerprints",
        "Layout": "layouts",
        "Plan": "plans",
        "Topology": "plans",
        "find_layout": "layouts",
        "load_fitting": "fine_tuning",
        "matched_cases": "layouts",
        "new_bundle": "making",
        "plan": "rules",
        "plan_of_task": "rules",
        "take_fingerprint": "fingerprints",
        "write_bundle": "writer",
    },
)
