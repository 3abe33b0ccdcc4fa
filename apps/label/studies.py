"""A folder of studies as MONAI Label's datastore, for several threads at a time."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import SimpleITK
from dicomweb_client import DICOMwebClient
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.datastore.utils.dicom import dicom_web_download_series
from monailabel.interfaces.datastore import DefaultLabelTag
from pydicom.dataset import Dataset

from decathlete.errors import DataError
from decathlete.files import (
    NIFTI_SUFFIXES,
    atomic_write,
    check_content,
    is_nifti_name,
    nifti_files,
    strip_nifti_suffix,
)
from decathlete.io.nifti import read_nifti
from decathlete.io.volume import Volume
from decathlete.io.write import write_on_grid
from decathlete.label.classes import Classes
from decathlete.label.drawing import read_drawing, read_seg
from decathlete.label.guard import NotFoundError, check_name, check_tag

logger = logging.getLogger(__name__)

INDEX = "datastore_v2.json"  # MONAI Label's own list of the images and labels in a folder
WHEN = ("SeriesDate", "SeriesTime", "ContentDate", "ContentTime")  # of a DICOM SEG
FINAL, ORIGINAL = DefaultLabelTag.FINAL.value, DefaultLabelTag.ORIGINAL.value
# methods of LocalDatastore that read or change its list of images
SHARED = (
    "add_image", "datalist", "get_image_info", "get_image_uri", "get_label_info",
    "get_label_uri", "get_labeled_images", "get_labels_by_image_id", "get_unlabeled_images", "json", "list_images",
    "labelled", "pairs", "refresh", "remove_image", "remove_label", "save_label", "status", "update_image_info",
    "update_label_info",
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


@dataclass(frozen=True)
class About:
    """What is known of a label file; beside it as JSON, under its name.

    Attributes:
        bundle: whose classes its values are; None where nobody has said so.
        labels: class to value.
        by: who has submitted it, as the viewer says; empty if it says nothing.
        ts: when, in seconds since 1970.
    """

    bundle: str | None = None
    labels: Mapping[str, int] | None = None
    by: str = ""
    ts: float = 0.0


class StudiesFolder(Watching, LocalDatastore):
    """NIfTI images of a folder with their labels in ``labels/final`` and ``labels/original``.

    A label file belongs to one bundle, which a JSON file beside it names. ``labels/final`` holds what was submitted
    last. What another person has submitted before, or the label of another bundle, is kept as
    ``labels/final_<bundle>_<person>`` and, for other bundles, still trained on.

    MONAI Label's own watcher of the folder ends at the first file that comes while it goes through its list; here one
    thread at a time sees the list. Images and labels are read strictly before they are taken.

    Args:
        folder: the studies.
        channels: volumes along the fourth axis that an image may hold, by what the served bundles take.
        classes: of the served bundles.
        watch: follow what other programs do to the folder.
    """

    def __init__(
        self, folder: str | Path, channels: set[int], classes: Classes | None = None, watch: bool = True
    ) -> None:
        self.lock = threading.RLock()
        self.channels = sorted(channels) or [1]
        self.classes = classes or Classes({})
        self._reported: set[str] = set()
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
                if str(error) not in self._reported:
                    logger.warning("not listed: %s", error)
                self._reported.add(str(error))
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
            raise NotFoundError(f"image '{image_id}'", "no such image in the studies", "",
                                "GET /datastore/?output=all lists them")  # fmt: skip
        return image_id

    def check_image(self, file: str | Path) -> Volume:
        """An image as a served bundle reads it.

        Raises:
            DataError: no NIfTI image, a damaged one, or one of another number of channels.
        """
        faults = []
        for channels in self.channels:
            try:
                return read_nifti(file, channels=channels)
            except DataError as error:
                faults.append(error)
        raise faults[0]

    def volume(self, image_id: str) -> Volume:
        """An image, read.

        Raises:
            DataError: as `check_image`.
        """
        return self.check_image(self.get_image_uri(image_id))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep a label map of an image, and what is known of it beside it.

        One that another person has submitted under this tag, or for another bundle, is kept under a tag of its own;
        predictions give way.

        Args:
            image_id: the image.
            label_filename: NIfTI file with the values of the bundle's classes.
            label_tag: where it goes.
            label_info: remarks; ``model`` names the bundle, ``client_id`` who has drawn it.
        """
        self.check_known(image_id)
        tag = check_tag(str(getattr(label_tag, "value", label_tag)))
        bundle = label_info.get("model") or self._only_bundle()
        labels = self.classes.of.get(bundle) if bundle else None
        about = About(bundle, labels, str(label_info.get("client_id") or "")[:100], time.time())
        before = self.get_label_uri(image_id, tag)
        if before and tag != ORIGINAL:
            self._keep_another(image_id, tag, about)
        self._about_file(image_id, tag).unlink(missing_ok=True)  # it must never speak of another file
        label_id = super().save_label(image_id, label_filename, tag, label_info)
        self._write_about(image_id, tag, about)
        if before and before != self.get_label_uri(image_id, tag):
            Path(before).unlink(missing_ok=True)
        if tag == FINAL and (older := _kept_tag(FINAL, about)) in self.get_labels_by_image_id(image_id):
            self.remove_label(image_id, older)  # of the same person for the same bundle
        return label_id

    def _keep_another(self, image_id: str, tag: str, new: About) -> None:
        old = self.about(image_id, tag)
        if (old.bundle, old.by) == (new.bundle, new.by):
            return
        kept, file = _kept_tag(tag, old), self.get_label_uri(image_id, tag)
        super().save_label(image_id, file, kept, dict(self.get_label_info(image_id, tag)))
        self._write_about(image_id, kept, old)
        logger.info("%s: the earlier label of %s is kept as %s", image_id, old.by or "somebody", kept)

    def about(self, image_id: str, tag: str) -> About:
        """What is known of a label; a file that somebody has put there belongs to the only bundle, or to the one that
        its folder names, ``final_<bundle>``."""
        try:
            said = json.loads(self._about_file(image_id, tag).read_text(encoding="utf-8"))
            return About(said["bundle"], said["labels"], str(said["by"]), float(said["ts"]))
        except (OSError, ValueError, KeyError, TypeError):  # none, or not ours
            named = [bundle for bundle in self.classes.bundles if tag == _kept_tag(FINAL, About(bundle))]
            return About(named[0] if named else self._only_bundle())

    def _about_file(self, image_id: str, tag: str) -> Path:
        return Path(self._datastore.label_path(tag)) / f"{image_id}.json"

    def _write_about(self, image_id: str, tag: str, about: About) -> None:
        with atomic_write(self._about_file(image_id, tag)) as part_file:
            part_file.write_text(json.dumps(asdict(about), indent=1), encoding="utf-8")

    def _only_bundle(self) -> str | None:
        return self.classes.bundles[0] if len(self.classes.bundles) == 1 else None

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label; MONAI Label's watcher does not see those under a tag that is new since the start."""
        super().remove_label(label_id, label_tag)
        self._about_file(label_id, str(getattr(label_tag, "value", label_tag))).unlink(missing_ok=True)
        self.refresh()

    def remove_image(self, image_id: str) -> None:
        """Remove an image with its labels."""
        super().remove_image(image_id)
        self.refresh()

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of the images with a final label of any bundle."""
        return [i for i, one in self._datastore.objects.items() if any(map(_is_final, one.labels))]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of the images without a final label."""
        return [i for i, one in self._datastore.objects.items() if not any(map(_is_final, one.labels))]

    def labelled(self, bundle: str) -> dict[str, str]:
        """Image id to the tag of its newest final label for a bundle."""
        found: dict[str, str] = {}
        for image in sorted(self.list_images()):
            mine = {tag: about for tag in filter(_is_final, self.get_labels_by_image_id(image))
                    if (about := self.about(image, tag)).bundle == bundle}  # fmt: skip
            if mine:
                found[image] = max(mine, key=lambda tag: (tag == FINAL, mine[tag].ts, tag))
        return found

    def pairs(self, bundle: str) -> list[dict[str, str]]:
        """``{"image": path, "label": path, "case_id": id}`` of every image with a final label for a bundle, sorted."""
        return [
            {"image": self.get_image_uri(image), "label": self.get_label_uri(image, tag), "case_id": image}
            for image, tag in self.labelled(bundle).items()
        ]


def _is_final(tag: str) -> bool:
    return tag == FINAL or str(tag).startswith(f"{FINAL}_")


def _kept_tag(tag: str, about: About) -> str:
    """Tag of a label that gave way to another: of letters, digits, '-' and '_', at most 64."""
    words = f"{tag}_{about.bundle or 'unknown'}" + (f"_{about.by}" if about.by else "")
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", words)
    if plain == words and len(words) <= 64:
        return words
    return f"{plain[:55]}_{hashlib.sha256(words.encode()).hexdigest()[:8]}"


class Archive(Watching, DICOMWebDatastore):
    """Series of a DICOMweb server; what was fetched of them is kept in a folder.

    No lock here: it would be held while another server answers.

    Args:
        client: of the server.
        search_filter: which series are listed, such as ``{"Modality": "MR"}``.
        cache: folder for what is fetched.
    """

    def __init__(
        self,
        client: DICOMwebClient,
        search_filter: dict[str, Any],
        cache: str | Path,
        classes: Classes | None = None,
    ) -> None:
        self.classes = classes or Classes({})
        super().__init__(client, search_filter, cache_path=str(cache))

    def check_known(self, image_id: str) -> str:
        """A series' UID, as it came.

        Raises:
            NotFoundError: the server lists no such series.
        """
        if check_name(image_id, "image") not in self.list_images():
            raise NotFoundError(f"series '{image_id}'", "no such series among those listed",
                                f"listed are those of {self._search_filter}")  # fmt: skip
        return image_id

    def volume(self, image_id: str) -> Volume:
        """A series, fetched and read.

        Raises:
            DataError: it cannot be read as a volume.
        """
        return read_nifti(self.get_image_uri(image_id))

    def labelled(self, bundle: str) -> dict[str, Seg]:
        """Series to its newest SEG with a class of a bundle."""
        found = {}
        for seg in sorted(self._segs(), key=lambda seg: seg.when):
            if any(self.classes.value(bundle, name) is not None for name in seg.names):
                found[seg.image] = seg
        return dict(sorted(found.items()))

    def _segs(self) -> list[Seg]:
        listed_images, found = set(self.list_images()), []
        for series in self._client.search_for_series(search_filters={"Modality": "SEG"}):
            uids = [str(Dataset.from_json(series)[name].value) for name in ("StudyInstanceUID", "SeriesInstanceUID")]
            about = Dataset.from_json(self._client.retrieve_series_metadata(*uids)[0])
            refers = about.get("ReferencedSeriesSequence")
            image = str(refers[0].SeriesInstanceUID) if refers else ""
            if image not in listed_images:
                logger.warning("SEG of series %s: refers to no listed series; left out", uids[1])
                continue
            names = tuple(str(one.get("SegmentLabel", "")) for one in about.get("SegmentSequence", ()))
            when = tuple(str(about.get(name, "")) for name in WHEN)
            found.append(Seg(image, uids[1], names, when))
        return found

    def pairs(self, bundle: str) -> list[dict[str, str]]:
        """``{"image": path, "label": path, "case_id": UID}`` of every series with a SEG for a bundle, fetched and as
        NIfTI, sorted. The segments go by their names; those of other served bundles are left out.

        Raises:
            DataError: a segment that is no class.
        """
        found = []
        for image, seg in self.labelled(bundle).items():
            folder = Path(self._datastore.label_path(None)) / "segs" / seg.series
            if not folder.is_dir() or not any(folder.iterdir()):
                dicom_web_download_series(None, seg.series, str(folder), self._client, self._fetch_by_frame)
            [file] = [file for file in folder.iterdir() if file.is_file()]
            path, target = self.get_image_uri(image), folder.parent.parent / f"{image}.nii.gz"
            label = label_map(file, path, self.classes.of[bundle], target, self.classes)
            found.append({"image": path, "label": str(label), "case_id": image})
        return found


@dataclass(frozen=True)
class Seg:
    """A DICOM SEG of an archive: the series that it refers to, its own UID, its segments' names, date and time."""

    image: str
    series: str
    names: tuple[str, ...]
    when: tuple[str, ...]


def label_map(seg: Path, image: str, labels: Mapping[str, int], output: Path, others: Classes | None = None) -> Path:
    """Write a DICOM SEG as a label map on the grid of its image, and return ``output``.

    Args:
        seg: file of the SEG.
        image: file of the image.
        labels: class name to value: the segments go by their names.
        output: NIfTI file to write.
        others: bundles whose classes are left out.

    Raises:
        DataError: a segment that is no class.
    """
    known = Classes({"": labels, **(others.of if others else {})})
    drawing = read_seg(seg, SimpleITK.ReadImage(image))
    values = {}
    for name in [segment.name for segment in drawing.segments if segment.name is not None]:
        if (value := known.value("", name)) is not None:
            values[name] = value
        elif not any(known.value(bundle, name) is not None for bundle in known.bundles):
            raise DataError(f"SEG of series {strip_nifti_suffix(output.name)}", "a segment has a name that is no class",
                            f"'{name}'", f"Known: {', '.join(labels)}")  # fmt: skip
    write_on_grid(drawing.label_map(values, str(seg)), read_nifti(image), output, "drawn")
    return output


@contextlib.contextmanager
def label_files(
    store: StudiesFolder | Archive, image_id: str, file: Path, info: Mapping[str, Any], bundle: str | None
) -> Iterator[dict[str, Path]]:
    """What a viewer has sent as an image's label: bundle to a file with its classes' values, until the block ends.

    Raises:
        UsageError: a drawn name that is no class, or it is open of which bundle.
        DataError: the file cannot be read.
        GeometryError: it does not lie on its image.
    """
    image = store.volume(image_id)
    where = f"label of {image_id}"
    parts = read_drawing(file, image, info.get("label_info") or None, where).parts(store.classes, where, bundle)
    with tempfile.TemporaryDirectory(prefix="label_") as folder:
        files = {}
        for owner, array in parts.items():
            files[owner] = Path(folder) / f"{owner}.nii.gz"
            write_on_grid(array, image, files[owner], f"drawn, {owner}")
        yield files


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
