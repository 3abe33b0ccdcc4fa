"""A folder of studies as MONAI Label's datastore, for several threads at a time."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag

from decathlete.errors import DataError
from decathlete.files import NIFTI_SUFFIXES
from decathlete.label.guard import NotFoundError, check_name, check_tag
from decathlete.transforms.read import check_pair, read_nifti

logger = logging.getLogger(__name__)

INDEX = "datastore_v2.json"  # MONAI Label's own list of the images and labels in a folder
# methods of LocalDatastore that read or change its list of images
SHARED = (
    "add_image", "datalist", "get_dataset_archive", "get_image_info", "get_image_uri", "get_label_info",
    "get_label_uri", "get_labeled_images", "get_labels_by_image_id", "get_unlabeled_images", "json", "list_images",
    "refresh", "remove_image", "remove_label", "save_label", "status", "update_image_info", "update_label_info",
    "_init_from_datastore_file", "_on_modify_event", "_reconcile_datastore", "_update_datastore_file",
)  # fmt: skip


def _one_at_a_time(method: Callable) -> Callable:
    @functools.wraps(method)
    def locked(self: StudiesFolder, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            return method(self, *args, **kwargs)

    return locked


class StudiesFolder(LocalDatastore):
    """NIfTI images of a folder with their labels in ``labels/final`` and ``labels/original``.

    MONAI Label's own watcher of the folder ends at the first file that comes while it goes through its list; here one
    thread at a time sees the list. Images and labels are read strictly before they are taken.

    Args:
        folder: the studies.
        channels: volumes along the fourth axis that an image may hold, by what the served bundles take.
        watch: follow what other programs do to the folder.
    """

    def __init__(self, folder: str | Path, channels: set[int], watch: bool = True) -> None:
        self.lock = threading.RLock()
        self.channels = sorted(channels) or [1]
        _set_damaged_index_aside(Path(folder) / INDEX)
        super().__init__(str(folder), extensions=[f"*{end}" for end in NIFTI_SUFFIXES], auto_reload=watch)

    def _on_any_event(self, event: Any) -> None:
        for wait_s in (0, 0.2, 1):  # a file that is still being renamed or removed
            time.sleep(wait_s)
            try:
                self.refresh()
                return
            except (RuntimeError, OSError) as error:
                logger.warning("%s: %s; looking again", event, error)

    def check_known(self, image_id: str) -> str:
        """An image's id, as it came.

        Raises:
            NotFoundError: the folder holds no such image.
        """
        if check_name(image_id, "image") not in self.list_images():
            raise NotFoundError(f"image '{image_id}'", "is an image of the studies", "no such image",
                                "GET /datastore/?output=all lists them")  # fmt: skip
        return image_id

    def check_image(self, file: str | Path) -> None:
        """Refuse a file that none of the served bundles can read.

        Raises:
            DataError: no NIfTI image, a damaged one, or one of another number of channels.
        """
        faults = []
        for channels in self.channels:
            try:
                read_nifti(file, channels=channels)
                return
            except DataError as error:
                faults.append(error)
        raise faults[0]

    def check_label(self, image_id: str, file: str | Path) -> None:
        """Refuse a label map that does not lie on its image voxel by voxel.

        Raises:
            DataError: no NIfTI label map.
            GeometryError: another grid than the image's.
        """
        label = read_nifti(file, kind="label")
        for channels in self.channels:
            try:
                image = read_nifti(self.get_image_uri(image_id), channels=channels)
            except DataError:
                if channels == self.channels[-1]:
                    raise
            else:
                break
        check_pair(image, label)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep a label map of an image; one of another suffix that the image had under this tag goes."""
        self.check_known(image_id)
        check_tag(str(getattr(label_tag, "value", label_tag)))
        before = self.get_label_uri(image_id, label_tag)
        label_id = super().save_label(image_id, label_filename, label_tag, label_info)
        if before and before != self.get_label_uri(image_id, label_tag):
            Path(before).unlink(missing_ok=True)
        return label_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label; MONAI Label's watcher does not see those under a tag that is new since the start."""
        super().remove_label(label_id, label_tag)
        self.refresh()

    def remove_image(self, image_id: str) -> None:
        """Remove an image with its labels."""
        super().remove_image(image_id)
        self.refresh()

    def pairs(self) -> list[dict[str, str]]:
        """``{"image": path, "label": path, "case_id": id}`` of every image with a final label, sorted by id."""
        tag = DefaultLabelTag.FINAL
        return [
            {"image": self.get_image_uri(i), "label": self.get_label_uri(i, tag), "case_id": i}
            for i in sorted(self.get_labeled_images())
        ]


for _name in SHARED:
    setattr(StudiesFolder, _name, _one_at_a_time(getattr(StudiesFolder, _name)))


def _set_damaged_index_aside(index: Path) -> None:
    """Rename an index that is no JSON, as a process killed while writing leaves it; it is made again from the files."""
    try:
        json.loads(index.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        aside = index.with_name(f"{INDEX}.damaged")
        shutil.move(index, aside)
        logger.warning("%s was damaged and is now %s; the list is made again from the files", index, aside.name)
