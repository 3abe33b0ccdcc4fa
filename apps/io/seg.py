"""A label map as DICOM SEG on the slices that it was predicted from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decathlete import __version__
from decathlete.colours import colour_of
from decathlete.errors import DataError, GeometryError, UsageError, listed
from decathlete.files import atomic_write
from decathlete.io.codes import UNKNOWN, SegmentCodes, segment_codes
from decathlete.io.conformity import leave_out_what_is_not_allowed
from decathlete.io.dicom import quiet_pydicom, read_dicom_header
from decathlete.io.volume import shape_text

if TYPE_CHECKING:
    import pydicom

logger = logging.getLogger(__name__)

SERIES_NUMBER = 900  # after those of a scanner
_LO = 64  # letters of a DICOM long string
# type 2: required by the standard, but may be empty
_MAY_BE_EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                 "StudyDate", "StudyTime", "ReferringPhysicianName")  # fmt: skip
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
# read strictly before, and written again
_PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices")
_ANY_CLASS = "1.2.840.10008.5.1.4.1.1.2"  # CT: patient and study have the same attributes in all classes of images


def check_highdicom() -> None:
    """Raise an error if highdicom is not installed.

    Raises:
        UsageError: names the extra to install.
    """
    if find_spec("highdicom") is None:
        raise UsageError("--dicom-seg", "highdicom is not installed", remedy="pip install 'decathlete[dicom-seg]'")


def write_dicom_seg(
    label: NDArray[Any], slices: Sequence[str | Path], target: str | Path, bundle: str, labels: Mapping[str, int]
) -> Path:
    """Write a label map as a DICOM SEG of one bit a voxel and class, and return ``target``.

    Patient, study and frame of reference (if stated) are those of the slices; each frame refers to its slice. The
    classes are segments 1, 2, ... in the order of their values, with their names and the codes of
    `decathlete.dicom.CODES`; classes without voxels are included. Slices without any class have no frame, unless the
    label map is empty. Invalid values of patient and study are left out, with one warning.

    Args:
        label: (X, Y, Z), as the volume of the slices: X along their rows.
        slices: files, in the order of Z.
        target: the file, written completely or not at all.
        bundle: name of the bundle, for the codes.
        labels: class name to value, without background.

    Raises:
        UsageError: highdicom is not installed.
        GeometryError: label map and slices do not fit.
        DataError: a slice lacks UIDs that a SEG refers to, or highdicom cannot make a SEG of the slices.
        OSError: the file cannot be written.
    """
    check_highdicom()
    with quiet_pydicom():  # about values that are copied as they are, and empty label maps
        seg = _seg(label, slices, target, bundle, labels)
        with atomic_write(target) as part:
            seg.save_as(part)
    return Path(target)


def _seg(
    label: NDArray[Any], slices: Sequence[str | Path], target: str | Path, bundle: str, labels: Mapping[str, int]
) -> pydicom.Dataset:
    import highdicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    headers = [_header(Path(path)) for path in slices]
    if not headers[0].get("FrameOfReferenceUID"):  # a SEG must name one
        logger.warning("%s: the slices state no frame of reference; the SEG gets its own", target)
        own = generate_uid(prefix=None)
        for header in headers:
            header.FrameOfReferenceUID = own
    left_out = _make_fit_to_copy(headers[0])
    if left_out:
        values = listed((f"{name}: {value}" for name, value in left_out.items()), most=20)
        logger.warning("%s: the SEG leaves out values of the slices that DICOM does not allow: %s", target, values)
    _warn_of_invalid_uids(target, headers)
    classes = {str(header.SOPInstanceUID): str(header.SOPClassUID) for header in headers}
    for header in headers:
        header.SOPClassUID = _ANY_CLASS  # highdicom copies nothing from classes that it does not know
    _set_distance(headers)
    size = (int(headers[0].Columns), int(headers[0].Rows), len(headers))
    if tuple(label.shape) != size:
        raise GeometryError(
            target, "label map and slices differ in shape", f"{shape_text(label.shape)} and {shape_text(size)}"
        )
    names = sorted((name for name, value in labels.items() if value), key=lambda name: labels[name])
    frames = np.zeros((size[2], size[1], size[0]), np.uint8)
    for number, name in enumerate(names, start=1):
        frames[(label == labels[name]).T] = number
    codes = {name: segment_codes(bundle, name) for name in names}
    if unknown := [name for name, found in codes.items() if found is UNKNOWN]:
        logger.warning("%s: no DICOM code is known for %s of '%s'; coded as tissue", target, listed(unknown), bundle)
    try:
        seg = highdicom.seg.Segmentation(
            source_images=headers,
            pixel_array=frames,
            segmentation_type="BINARY",
            segment_descriptions=[_segment(n, name, codes[name], bundle) for n, name in enumerate(names, start=1)],
            series_instance_uid=generate_uid(prefix=None),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(prefix=None),
            instance_number=1,
            manufacturer="decathlete",
            manufacturer_model_name=bundle[:_LO],
            software_versions=__version__,
            device_serial_number="0",
            content_label="SEGMENTATION",
            content_description=f"{bundle[:40]}; not for clinical use",
            series_description=f"decathlete {bundle[:30]}, not for clinical use",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            specific_character_set="ISO_IR 192",  # UTF-8: class names may have any letters
        )
        _refer_by_own_class(seg, classes)
    except Exception as error:  # highdicom raises anything for odd headers
        raise DataError(target, "no DICOM SEG can be made of the slices", f"{type(error).__name__}: {error}",
                        "Export the series again, or predict without --dicom-seg") from error  # fmt: skip
    return seg


def _header(path: Path) -> pydicom.Dataset:
    header = read_dicom_header(path)
    missing = [name for name in _NEEDED if not (header.get(name) and isinstance(header[name].value, str))]
    if missing:
        raise DataError(path, f"no {' and no '.join(missing)}, which a DICOM SEG needs", "",
                        "Export the series again, or predict without --dicom-seg")  # fmt: skip
    return header


def _make_fit_to_copy(header: pydicom.Dataset) -> dict[str, str]:
    """Delete what a SEG must not repeat from its slices; returns keyword to value."""
    left_out = leave_out_what_is_not_allowed(header, (*_NEEDED, "FrameOfReferenceUID", *_PLACE))
    for name in _MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, "")
    if header.PatientSex not in ("M", "F", "O", "", None):
        left_out["PatientSex"] = ascii(header.PatientSex)
        header.PatientSex = ""
    return left_out


def _warn_of_invalid_uids(target: str | Path, headers: Sequence[pydicom.Dataset]) -> None:
    from pydicom.uid import UID

    for name in (*_NEEDED, "FrameOfReferenceUID"):
        odd = sorted({str(header[name].value) for header in headers if not UID(header[name].value).is_valid})
        if odd:
            found = listed((ascii(uid[:80]) for uid in odd), most=1)
            logger.warning("%s: %s of the slices is not a valid UID: %s. The SEG keeps it, "
                           "to refer to them", target, name, found)  # fmt: skip


def _refer_by_own_class(seg: pydicom.Dataset, classes: Mapping[str, str]) -> None:
    """Let each reference to a slice name the class of that slice."""

    def correct(dataset: pydicom.Dataset, element: Any) -> None:
        if element.keyword == "ReferencedSOPClassUID":
            element.value = classes.get(str(dataset.get("ReferencedSOPInstanceUID")), element.value)

    seg.walk(correct)


def _set_distance(headers: Sequence[pydicom.Dataset]) -> None:
    """Write the distance of the slices into the headers, where highdicom reads it; the stated one may be wrong."""
    distance = float(headers[0].get("SliceThickness") or 1.0)
    if len(headers) > 1:
        first, last = (np.array(header.ImagePositionPatient, dtype=float) for header in (headers[0], headers[-1]))
        distance = round(float(np.linalg.norm(last - first)) / (len(headers) - 1), 6)
    for header in headers:
        header.SliceThickness = header.SpacingBetweenSlices = distance


def _segment(number: int, name: str, codes: SegmentCodes, bundle: str) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes as known

    kind = CodedConcept(codes.type.value, codes.type.scheme, codes.type.meaning)
    if codes.modifier is not None:
        kind.SegmentedPropertyTypeModifierCodeSequence = [_concept(codes.modifier)]
    return SegmentDescription(
        segment_number=number,
        segment_label=name[:_LO],
        segmented_property_category=_concept(codes.category),
        segmented_property_type=kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=f"decathlete {bundle}"[:_LO], family=known.cid7162.ArtificialIntelligence, version=__version__
        ),
        anatomic_regions=None if codes.region is None else [_concept(codes.region)],
        display_color=CIELabColor.from_rgb(*colour_of(number)),
    )


def _concept(concept: tuple[str, str, str]) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(*concept)
