"""Where a NIfTI header places its voxels: by sform, qform or spacing, checked against each other."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from decathlete.errors import GeometryError
from decathlete.io.volume import check_handedness, numbers_text

_SPACING_MM = (1e-3, 100.0)
_FAR_MM = 1e4  # an origin farther than 10 m from zero is no scanner's
_UNITS = {1: "metres", 3: "micrometres"}


def affine_of(path: Path, header: nib.Nifti1Header, shape: tuple[int, ...], notes: list[str]) -> NDArray[np.float64]:
    """Affine in RAS+ mm, by the sform, else the qform, else the spacing alone."""
    codes = {name: int(header[name]) for name in ("sform_code", "qform_code")}
    for name, code in codes.items():
        if not 0 <= code <= 5:
            raise GeometryError(path, f"{name} is not between 0 and 5", f"{code}", "Correct the header")
    units = int(header["xyzt_units"]) & 7
    if units in _UNITS:
        raise GeometryError(
            path, "lengths are not in millimetres", f"unit: {_UNITS[units]}", "Convert the header to mm"
        )
    pixdim = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    pixdim_good = bool(np.isfinite(pixdim).all() and (pixdim > 0).all())
    if codes["sform_code"] == 0 and not pixdim_good:
        raise GeometryError(
            path,
            "spacing is not a positive number on each axis",
            f"pixdim {numbers_text(pixdim)}",
            "Correct the header",
        )

    if codes["sform_code"] > 0:
        affine = np.asarray(header.get_sform(), dtype=np.float64)
    elif codes["qform_code"] > 0:
        affine = _qform(path, header)
    else:
        affine = np.asarray(header.get_base_affine(), dtype=np.float64)
        affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape[:3]) - 1) / 2)
        notes.append(
            "no sform and no qform: the orientation is unknown; LAS is assumed, "
            f"spacing {numbers_text(pixdim, ' x ')} mm"
        )
    _check_affine(path, affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    spacing_agrees = pixdim_good and np.abs(pixdim / spacing - 1).max() <= 1e-2
    if not spacing_agrees:
        notes.append(
            f"pixdim ({numbers_text(pixdim)}) and sform disagree on the spacing; "
            f"the sform's is used, {numbers_text(spacing, ' x ')} mm"
        )
    if codes["sform_code"] > 0 and codes["qform_code"] > 0:  # directions are compared whatever pixdim says
        _check_forms_agree(path, affine, _qform(path, header, None if spacing_agrees else spacing), shape)
    if np.abs(affine[:3, 3]).max() > _FAR_MM:
        notes.append(f"the origin is {np.abs(affine[:3, 3]).max() / 1000:,.0f} m from zero")
    return affine


def _qform(path: Path, header: nib.Nifti1Header, spacing: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Affine of the qform, with ``spacing`` (mm) in place of that of pixdim."""
    quaternion = np.array([header[f"quatern_{axis}"] for axis in "bcd"], dtype=np.float64)
    if not np.isfinite(quaternion).all():
        raise GeometryError(
            path, "the quaternion of the qform is not finite", numbers_text(quaternion), "Correct the header"
        )
    qfac = float(header["pixdim"][0])
    if qfac < 0 and qfac != -1:  # the standard's own library reads -1 here and nibabel 1: one of them mirrors the image
        raise GeometryError(
            path, "the handedness of the qform is neither 1 nor -1", f"pixdim[0] {qfac:g}", "Correct the header"
        )
    header = header.copy()
    header["pixdim"][0] = -1 if qfac == -1 else 1  # by the standard, 0 reads as 1
    if spacing is not None:
        header["pixdim"][1:4] = spacing
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except ValueError as error:
        raise GeometryError(path, "the quaternion of the qform is no rotation: b^2 + c^2 + d^2 is above 1",
                            numbers_text(quaternion), "Correct the header") from error  # fmt: skip


def _check_affine(path: Path, affine: NDArray[np.float64]) -> None:
    if not np.isfinite(affine).all():
        raise GeometryError(path, "the affine is not finite", numbers_text(affine[:3]), "Correct the header")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if (spacing == 0).any():
        raise GeometryError(path, "the affine has a column of zeros", f"spacing {numbers_text(spacing, ' x ')} mm",
                            "Correct the header")  # fmt: skip
    directions = affine[:3, :3] / spacing
    if abs(np.linalg.det(directions)) < 1e-3:
        raise GeometryError(path, "the three axes of the affine lie in one plane", numbers_text(affine[:3, :3]),
                            "Correct the header")  # fmt: skip
    if spacing.min() < _SPACING_MM[0] or spacing.max() > _SPACING_MM[1]:
        low, high = _SPACING_MM
        raise GeometryError(path, f"spacing is not between {low:g} and {high:g} mm",
                            f"{numbers_text(spacing, ' x ')} mm", "Correct the header")  # fmt: skip
    cosine = np.abs(directions.T @ directions - np.eye(3)).max()
    if cosine > 1e-2:  # 0.6 degrees; rounded headers stay far below
        raise GeometryError(path, "the axes are not at right angles", f"{math.degrees(math.acos(cosine)):.1f} degrees",
                            "Resample the image to a grid without shear")  # fmt: skip


def _check_forms_agree(path: Path, sform: NDArray, qform: NDArray, shape: tuple[int, ...]) -> None:
    check_handedness(path, {"sform": sform, "qform": qform},
                      "Correct the header, or set the code of the wrong one to 0")  # fmt: skip
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]])).reshape(3, -1)
    apart = np.linalg.norm((sform - qform)[:3, :3] @ corners + (sform - qform)[:3, 3:], axis=0).max()
    # a quarter of a voxel: a float32 quaternion near a half turn is off by 2e-4 rad, 0.1 mm over a large volume
    if apart > 0.25 * np.linalg.norm(sform[:3, :3], axis=0).min():
        raise GeometryError(path, "sform and qform place the image differently", f"corners up to {apart:.3g} mm apart",
                            "Correct the header, or set the code of the wrong one to 0")  # fmt: skip
