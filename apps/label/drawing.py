"""What an annotator has drawn, from the files that viewers send, on the grid of its image."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from decathlete.errors import DataError, GeometryError, UsageError
from decathlete.files import NIFTI_SUFFIXES
from decathlete.io.dicom import check_inflation
from decathlete.io.nifti import read_nifti
from decathlete.io.volume import PAIR_TOLERANCE_MM, Volume, check_pair
from decathlete.label.classes import Classes, values_of_names

SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".dcm", ".bin")  # .nrrd is .seg.nrrd too; .bin are the voxels alone, of OHIF
BACKGROUND = "background"  # a segment of this name is no class
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MOST_PACKED = 1032  # bytes that a byte of gzip can hold
_HEADER = 2**20  # bytes of a NRRD header, of which a segment takes some hundred


@dataclass(frozen=True)
class Segment:
    """A structure of a drawing: the voxels of one value in one layer.

    Attributes:
        layer: place in the drawing's layers; several where segments overlap.
        value: in that layer.
        name: as the annotator sees it; None where the file and the viewer name nothing.
    """

    layer: int
    value: int
    name: str | None


@dataclass(frozen=True)
class Drawing:
    """Segments on the grid of an image.

    Attributes:
        layers: integers (X, Y, Z), one array a layer.
        segments: those that have voxels.
    """

    layers: list[NDArray[Any]]
    segments: list[Segment]

    def parts(self, classes: Classes, where: str, bundle: str | None = None) -> dict[str, NDArray[Any]]:
        """One label map (X, Y, Z) for each bundle of which something was drawn, with the values of its classes.

        Args:
            classes: of the served bundles.
            where: what the message is about.
            bundle: the bundle that the drawing is for, if it is known.

        Raises:
            UsageError: a name that is no class, or it is open of which bundle.
            DataError: segments of two classes of one bundle overlap.
        """
        if not self.segments or self.segments[0].name is not None:
            owners = classes.assign_names([s.name for s in self.segments if s.name is not None], where, bundle)
            return {owner: self.label_map(values, where) for owner, values in owners.items()}
        owner = classes.assign_values([s.value for s in self.segments], where, bundle)
        return {owner: self._label_map({s: s.value for s in self.segments}, where)}

    def label_map(self, values: Mapping[str, int], where: str) -> NDArray[Any]:
        """Label map (X, Y, Z) of the segments that ``values`` names, name to value.

        Raises:
            DataError: two of them overlap.
        """
        named = [(s, s.name) for s in self.segments if s.name is not None]
        return self._label_map({s: values[name] for s, name in named if name in values}, where)

    def _label_map(self, values: Mapping[Segment, int], where: str) -> NDArray[Any]:
        out = np.zeros(self.layers[0].shape, np.uint8 if max(values.values(), default=0) < 256 else np.uint16)
        for segment, value in values.items():
            here = self.layers[segment.layer] == segment.value
            if len(self.layers) > 1 and (both := here & (out != 0) & (out != value)).any():
                raise DataError(where, f"segment '{segment.name}' overlaps another class of its bundle",
                                f"{int(both.sum())} voxels", "Let each voxel be of one class")  # fmt: skip
            out[here] = value
        return out


def read_drawing(file: Path, image: Volume, label_info: Any = None, where: str = "label") -> Drawing:
    """Read what a viewer sends as the label of an image.

    Names stand in the file itself (``.seg.nrrd``, DICOM SEG), or else in ``label_info``.

    Args:
        file: NIfTI, NRRD with 3D Slicer's segments or without, DICOM SEG, or bare voxels (``.bin``).
        image: which it was drawn on.
        label_info: what the viewer says of the values; None if it says nothing.
        where: what messages about ``label_info`` are about.

    Raises:
        DataError: the file cannot be read, or holds no label map.
        GeometryError: it does not lie on the image.
        UsageError: ``label_info`` does not name the values.
    """
    name = file.name.lower()
    if name.endswith(".dcm"):
        return read_seg(file, SimpleITK.ReadImage(str(image.path)))
    named: dict[tuple[int, int], str] = {}
    if name.endswith(".nrrd"):
        layers, named = _read_nrrd(file, image)
    elif name.endswith(".bin"):
        layers = [_read_voxels(file, image)]
    else:
        layers = [_read_label(file, image)]
    there = [(layer, int(value)) for layer, array in enumerate(layers) for value in np.unique(array) if value]
    if named:
        if unnamed := [value for value in there if value not in named]:
            raise DataError(file, "a value of the segmentation belongs to no segment", str(unnamed[0][1]),
                            "Save the segmentation again")  # fmt: skip
        segments = [Segment(*value, named[value]) for value in there]
    elif label_info is not None:
        names = values_of_names([value for _, value in there], label_info, where)
        segments = [Segment(*value, names[value[1]]) for value in there]
    else:
        segments = [Segment(*value, None) for value in there]
    return Drawing(layers, _without_background(segments))


def read_seg(file: Path, reference: SimpleITK.Image) -> Drawing:
    """A DICOM SEG on the grid of its image, a layer a segment.

    A SEG holds the slices with something in them alone, and numbers its segments as they come.

    Raises:
        DataError: the file is no SEG, or unpacks to more than it states.
    """
    import pydicom
    import pydicom_seg  # only MONAI Label's environment has it

    try:
        check_inflation(file)
        found = pydicom_seg.SegmentReader().read(pydicom.dcmread(file))
    except DataError:
        raise
    except Exception as error:  # a damaged file makes them raise whatever its values lead to
        raise DataError(
            file, "cannot be read as DICOM SEG", " ".join(str(error).split())[:120], "Export it again"
        ) from error
    layers, segments = [], []
    for number, about in found.segment_infos.items():
        part = found.segment_image(number)
        whole = SimpleITK.Resample(part, reference, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0)
        layers.append((SimpleITK.GetArrayFromImage(whole).transpose(2, 1, 0) > 0).astype(np.uint8))
        if layers[-1].any():
            segments.append(Segment(len(layers) - 1, 1, str(about.SegmentLabel)))
    return Drawing(layers, _without_background(segments))


def viewer_affine(path: str | Path) -> NDArray[np.float64] | None:
    """Affine (voxel to RAS mm) with which 3D Slicer and others that read by ITK place a file; None if they cannot.

    ITK takes the spacing from ``pixdim`` where it disagrees with the sform, and another origin where neither sform nor
    qform is stated.
    """
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    return _affine(reader)


def nrrd_fields(file: Path) -> dict[str, str]:
    """Header of a NRRD file from somebody else, before a library reads it: key to text.

    Raises:
        DataError: no NRRD, voxels in another file (of the server), or more voxels than the file can hold.
    """
    with file.open("rb") as opened:
        head = re.split(rb"\r?\n\r?\n", opened.read(_HEADER), maxsplit=1)[0].decode("utf-8", "replace")
    fields = dict(re.findall(r"(?m)^([^#:\r\n]+):=? ?(.*?)\r?$", head))
    if not head.startswith("NRRD"):
        raise DataError(file, "cannot be read as NRRD", "other bytes at the start", "Save it again")
    known = {key.strip().lower().replace(" ", ""): text for key, text in fields.items()}
    if "datafile" in known:
        raise DataError(file, "the voxels are in another file", "", "Save header and voxels as one file")
    sizes = [int(word) for word in known.get("sizes", "").split() if word.isdecimal()]
    if math.prod(sizes) > file.stat().st_size * _MOST_PACKED:
        raise DataError(file, "the header states more voxels than the file can hold", known["sizes"], "Save it again")
    return fields


def _without_background(segments: list[Segment]) -> list[Segment]:
    return [s for s in segments if s.name is None or s.name.strip().lower() != BACKGROUND]


def _affine(image: SimpleITK.ImageFileReader) -> NDArray[np.float64]:
    axes = image.GetDimension()
    affine = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(axes, axes)[:3, :3]
    affine[:3, :3] = directions * np.array(image.GetSpacing()[:3])  # columns
    affine[:3, 3] = image.GetOrigin()[:3]
    return _LPS_TO_RAS @ affine


def _read_label(file: Path, image: Volume) -> NDArray[Any]:
    label = read_nifti(file, kind="label")
    try:
        check_pair(image, label)
    except GeometryError:  # a viewer reads some headers otherwise than we do: then it was drawn on what it has read
        seen = viewer_affine(image.path)
        if seen is None or label.array.shape != image.array.shape[:3] or _differ(seen, label.affine):
            raise
    return label.array


def _read_voxels(file: Path, image: Volume) -> NDArray[Any]:
    shape, content = image.array.shape[:3], file.read_bytes()
    for dtype in (np.uint8, np.uint16):
        if len(content) == np.prod(shape) * np.dtype(dtype).itemsize:
            return np.frombuffer(content, dtype).reshape(shape, order="F")
    raise GeometryError(file, "the label has not as many voxels as its image",
                        f"{len(content)} bytes, image {_by(shape)}", "Draw on the image itself")  # fmt: skip


def _read_nrrd(file: Path, image: Volume) -> tuple[list[NDArray[Any]], dict[tuple[int, int], str]]:
    """Layers on the image's grid, and the name of each (layer, value); no names where the file states none."""
    fields = nrrd_fields(file)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(file))
    reader.SetImageIO("NrrdImageIO")
    try:
        reader.ReadImageInformation()
        size, count = reader.GetSize(), reader.GetNumberOfComponents()
        if len(size) != 3 or any(n > most for n, most in zip(size, image.array.shape, strict=False)) or count > 255:
            raise _misplaced(file, size, image)
        found = reader.Execute()
    except RuntimeError as error:
        raise DataError(file, "cannot be read as NRRD", "damaged or incomplete", "Save it again") from error
    array = SimpleITK.GetArrayFromImage(found)
    array = array.reshape(*array.shape[:3], count).transpose(2, 1, 0, 3)
    if array.dtype.kind == "f" or (array.dtype.kind == "i" and array.min() < 0):
        whole = np.rint(array)
        if not np.array_equal(whole, array) or whole.min() < 0 or whole.max() > np.iinfo(np.uint16).max:
            raise DataError(file, "values are not whole numbers, or negative", "", "Save the label map itself")
        array = whole
    placed = _place(array.astype(np.uint16), _affine(found), image, file)
    names = {}
    for key, name in fields.items():
        if number := re.fullmatch(r"Segment(\d+)_Name", key):
            segment = f"Segment{number[1]}_"
            try:
                value = int(fields[f"{segment}LabelValue"]), int(fields.get(f"{segment}Layer", 0))
            except (KeyError, ValueError):
                raise DataError(file, f"segment '{name[:80]}' states no label value", "", "Save it again") from None
            names[value[::-1]] = name
    return [placed[..., layer] for layer in range(count)], names


def _place(array: NDArray[Any], affine: NDArray[np.float64], image: Volume, file: Path) -> NDArray[Any]:
    """Voxels (x, y, z, layers) of a part of the image's grid on all of it: 3D Slicer can save the drawn part alone."""
    shape = image.array.shape[:3]
    for grid in (image.affine, viewer_affine(image.path)):
        if grid is None:
            continue
        first = np.rint((np.linalg.inv(grid) @ affine)[:3, 3]).astype(int)
        shifted = grid.copy()
        shifted[:3, 3] += grid[:3, :3] @ first
        last = first + array.shape[:3]
        if not _differ(shifted, affine) and (first >= 0).all() and (last <= shape).all():
            whole = np.zeros((*shape, array.shape[3]), array.dtype)
            whole[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = array
            return whole
    raise _misplaced(file, array.shape[:3], image)


def _differ(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    return bool(np.abs(one - other).max() > PAIR_TOLERANCE_MM)


def _misplaced(file: Path, shape: Sequence[int], image: Volume) -> GeometryError:
    found = f"label {_by(shape)}, image {_by(image.array.shape[:3])} ({image.path.name})"
    return GeometryError(file, "the label does not lie on the grid of its image", found, "Draw on the image itself")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)


def known_bundle(info: Mapping[str, Any], classes: Classes) -> str | None:
    """The bundle that a request names as ``model``; None if it names none.

    Raises:
        UsageError: no bundle of this server.
    """
    named = info.get("model")
    if named in (None, ""):
        return None
    if not isinstance(named, str) or named not in classes.of:
        raise UsageError("params, model", "no such bundle on this server", f"{named!r:.80}",
                         f"Known: {', '.join(sorted(classes.of))}")  # fmt: skip
    return named
