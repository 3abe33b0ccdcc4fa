"""What MONAI Label's own apps need of a bundle's training; ``decathlete serve`` needs none of it."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from decathlete.bundle.checkpoints import BEST, FINAL
from decathlete.files import atomic_write

logger = logging.getLogger(__name__)


def publish(done: Any, output_dir: str | Path, bundle_root: str | Path) -> None:
    """In MONAI Label, put a run's final weights where they are served: ``models/model.pt`` of the bundle.

    The weights of before stay beside them, as ``earlier_<time>.pt``. In all other processes nothing happens: a training
    leaves its bundle as it is, and `decathlete promote` releases weights.

    Args:
        done: the training's result; only waited for.
        output_dir: the run's folder.
        bundle_root: the bundle's folder.
    """
    if "monailabel" not in sys.modules or int(os.environ.get("RANK", 0)) != 0:
        return
    served = Path(bundle_root) / "models" / BEST
    served.parent.mkdir(exist_ok=True)
    if served.is_file():
        shutil.copy2(served, served.with_name(f"earlier_{datetime.now().strftime('%Y%m%d_%H%M%S_%f')}.pt"))
    with atomic_write(served) as part:
        shutil.copyfile(Path(output_dir) / FINAL, part)
    logger.info("%s holds the new weights", served)
