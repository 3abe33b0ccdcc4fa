"""A folder of studies as MONAI Label's datastore, for several threads at a time."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom_seg
import SimpleITK
from dicomweb_client import DICOMwebClient
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag

from decathlete.errors import DataError
from decathlete.files import (
    NIFTI_SUFFIXES,
    atomic_write,
    check_content,
    is_nifti_name,
    nifti_files,
    strip_nifti_suffix,
)
from decathlete.io.dicom import check_inflation
from decathlete.io.nifti import read_nifti
from decathlete.io.volume import check_pair
from decathlete.label.guard import NotFoundError, check_name, check_tag

logger = logging.getLogger(__name__)

INDEX = "datastore_v2.json"  # MONAI Label's own list of the images and labels in a folder
# methods of LocalDatastore that read or change its list of images
SHARED = (
    "add_image", "datalist", "get_image_info", "get_image_uri", "get_label_info",
    "get_label_uri", "get_labeled_images", "get_labels_by_image_id", "get_unlabeled_images", "json", "list_images",
    "refresh", "remove_image", "remove_label", "save_label", "status", "update_image_info", "update_label_info",
    "_init_from_datastore_file", "_on_modify_event", "_reconcile_datastore", "_update_datastore_file",
)  # fmt: skip


def _one_at_a_time(method: Callable) -> Callable:
    @functools.wraps(method)
    def locked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            return method(self, *args, **kwargs)

    return locked


class Watching:
    """What becomes of files that come and go by themselves: the list is made again, however often that fails."""

    def _on_any_event(self, event: Any) -> None:
        for wait_s in (0, 0.2, 1):  # a file that is still being renamed or removed
            time.sleep(wait_s)
            try:
                self.refresh()  # type: ignore[attr-defined]
                return
            except (RuntimeError, OSError) as error:
                logger.warning("%s: %s; looking again", event, error)


class StudiesFolder(Watching, LocalDatastore):
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
        self._told: set[str] = set()
        _set_damaged_index_aside(Path(folder) / INDEX)
        super().__init__(str(folder), extensions=[f"*{end}" for end in NIFTI_SUFFIXES], auto_reload=watch)

    def _list_files(self, path: str, patterns: Any) -> dict[str, str]:
        """NIfTI files of a folder by the rule that all commands have; MONAI Label's patterns are not asked.

        A file whose content is not there is left out, and a line in the log says so once.
        """
        found = {}
        for file in nifti_files(path):
            try:
                check_content(file)
                found[file.name] = file.name
            except DataError as error:
                if str(error) not in self._told:
                    logger.warning("not listed: %s", error)
                self._told.add(str(error))
        return found

    def _to_id(self, file: str) -> tuple[str, str]:
        """Id and suffix of a file's name, in any case."""
        name = strip_nifti_suffix(file)
        return (name, file[len(name) :]) if name != file else super()._to_id(file)

    def _remove_non_existing(self) -> int:
        """Forget images of an earlier index that are no images by their names too."""
        names = {image: self._filename(image, one.image.ext) for image, one in self._datastore.objects.items()}
        for image in (none := [image for image, name in names.items() if not is_nifti_name(name)]):
            del self._datastore.objects[image]
        return len(none) + super()._remove_non_existing()

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

    def pairs(self, labels: Mapping[str, int]) -> list[dict[str, str]]:
        """``{"image": path, "label": path, "case_id": id}`` of every image with a final label, sorted by id."""
        tag = DefaultLabelTag.FINAL
        return [
            {"image": self.get_image_uri(i), "label": self.get_label_uri(i, tag), "case_id": i}
            for i in sorted(self.get_labeled_images())
        ]


class Archive(Watching, DICOMWebDatastore):
    """Series of a DICOMweb server; what was fetched of them is kept in a folder.

    No lock here: it would be held while another server answers.

    Args:
        client: of the server.
        search_filter: which series are listed, such as ``{"Modality": "MR"}``.
        cache: folder for what is fetched.
    """

    def __init__(self, client: DICOMwebClient, search_filter: dict[str, Any], cache: str | Path) -> None:
        super().__init__(client, search_filter, cache_path=str(cache))

    def check_known(self, image_id: str) -> str:
        """A series' UID, as it came.

        Raises:
            NotFoundError: the server lists no such series.
        """
        if check_name(image_id, "image") not in self.list_images():
            raise NotFoundError(f"series '{image_id}'", "is in the archive and among those listed", "no such series",
                                f"Listed are those of {self._search_filter}")  # fmt: skip
        return image_id

    def pairs(self, labels: Mapping[str, int]) -> list[dict[str, str]]:
        """``{"image": path, "label": path, "case_id": UID}`` of every series with a SEG, fetched and as NIfTI.

        Args:
            labels: class name to value: the segments go by their names.

        Raises:
            DataError: a segment that is none of the classes.
        """
        found = []
        for pair in sorted(self.datalist(), key=lambda pair: pair["image"]):
            case = strip_nifti_suffix(Path(pair["image"]).name)
            label = Path(pair["label"])
            if not label.name.lower().endswith(NIFTI_SUFFIXES):  # fetched; what was submitted here is NIfTI
                uid = self.get_label_info(case, DefaultLabelTag.FINAL)["SeriesInstanceUID"]
                [seg] = [file for file in (label.parent / uid).iterdir() if file.is_file()]
                label = label_map(seg, pair["image"], labels, label.parent.parent / f"{case}.nii.gz")
            found.append({"image": pair["image"], "label": str(label), "case_id": case})
        return found


def label_map(seg: Path, image: str, labels: Mapping[str, int], output: Path) -> Path:
    """Write a DICOM SEG as a label map on the grid of its image, and return ``output``.

    A SEG holds the slices with something in them alone, and numbers its segments as they come.

    Raises:
        DataError: a segment that is none of the classes, or a file that unpacks to more than it states.
    """
    reference = SimpleITK.ReadImage(image)
    values = {name.strip().lower(): value for name, value in labels.items()}
    check_inflation(seg)
    found = pydicom_seg.SegmentReader().read(pydicom.dcmread(seg))
    voxels = np.zeros(reference.GetSize()[::-1], np.uint16)
    for number, about in found.segment_infos.items():
        name = str(about.SegmentLabel)
        if name.strip().lower() not in values:
            series = strip_nifti_suffix(output.name)
            rule = "its segments bear the names of the bundle's classes"
            raise DataError(f"SEG of series {series}", rule, f"'{name}'", f"Known: {', '.join(labels)}")
        part = found.segment_image(number)
        whole = SimpleITK.Resample(part, reference, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0)
        voxels[SimpleITK.GetArrayViewFromImage(whole) > 0] = values[name.strip().lower()]
    written = SimpleITK.GetImageFromArray(voxels)
    written.CopyInformation(reference)
    with atomic_write(output) as part_file:
        SimpleITK.WriteImage(written, str(part_file))
    return output


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
