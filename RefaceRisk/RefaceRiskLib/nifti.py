"""NIfTI-1 and NIfTI-2 single files, read and written without loss: header, extensions, voxels.

The file's own header bytes travel with the volume and only the fields that really change are patched when it
is saved. This is done here, in numpy, because general libraries normalise headers on the way and because a
stock 3D Slicer has no nibabel; SimpleITK would drop one of the two forms and the stored scaling. Format:
nifti1.h and nifti2.h of nifti.nimh.nih.gov.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from scipy.spatial.transform import Rotation

from .errors import RefaceRiskError
from .geometry import spacing_of

_FIELDS_1 = [
    ("sizeof_hdr", "i4"), ("data_type", "S10"), ("db_name", "S18"), ("extents", "i4"),
    ("session_error", "i2"),
    ("regular", "S1"), ("dim_info", "u1"), ("dim", "i2", 8), ("intent_p", "f4", 3), ("intent_code", "i2"),
    ("datatype", "i2"), ("bitpix", "i2"), ("slice_start", "i2"), ("pixdim", "f4", 8), ("vox_offset", "f4"),
    ("scl_slope", "f4"), ("scl_inter", "f4"), ("slice_end", "i2"), ("slice_code", "u1"), ("xyzt_units", "u1"),
    ("cal_max", "f4"), ("cal_min", "f4"), ("slice_duration", "f4"), ("toffset", "f4"), ("glmax", "i4"),
    ("glmin", "i4"), ("descrip", "S80"), ("aux_file", "S24"), ("qform_code", "i2"), ("sform_code", "i2"),
    ("quatern", "f4", 3), ("qoffset", "f4", 3), ("srow", "f4", (3, 4)), ("intent_name", "S16"),
    ("magic", "S4"),
]  # fmt: skip
_FIELDS_2 = [
    ("sizeof_hdr", "i4"), ("magic", "S8"), ("datatype", "i2"), ("bitpix", "i2"), ("dim", "i8", 8),
    ("intent_p", "f8", 3), ("pixdim", "f8", 8), ("vox_offset", "i8"), ("scl_slope", "f8"),
    ("scl_inter", "f8"),
    ("cal_max", "f8"), ("cal_min", "f8"), ("slice_duration", "f8"), ("toffset", "f8"), ("slice_start", "i8"),
    ("slice_end", "i8"), ("descrip", "S80"), ("aux_file", "S24"), ("qform_code", "i4"), ("sform_code", "i4"),
    ("quatern", "f8", 3), ("qoffset", "f8", 3), ("srow", "f8", (3, 4)), ("slice_code", "i4"),
    ("xyzt_units", "i4"),
    ("intent_code", "i4"), ("intent_name", "S16"), ("dim_info", "u1"), ("unused_str", "S15"),
]  # fmt: skip
_DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
HEADER_SIZE = 540  # of the longer of the two
_CODES = {np.dtype(name): code for code, name in _DTYPES.items()}
_UNREADABLE = {
    1: "one-bit", 32: "complex", 128: "RGB colour", 1536: "128-bit float", 1792: "complex", 2048: "complex",
    2304: "RGBA colour",
}  # fmt: skip


@dataclass(frozen=True)
class NiftiHeader:
    """A file's bytes before and after the voxels, as they were; ``fields`` reads them."""

    block: bytes  # header, extension flags and extensions
    tail: bytes  # whatever followed the voxels
    layout: np.dtype  # of the header, in the file's byte order

    @property
    def fields(self) -> np.ndarray:
        return np.frombuffer(self.block, self.layout, 1)[0]

    @property
    def byte_order(self) -> str:
        return self.layout["datatype"].str[0]


def promised_size(data: bytes, path) -> int:
    """Bytes of header and voxels together, as the first ``HEADER_SIZE`` bytes of a file tell; errors as of `read`."""
    _, _, shape, dtype, offset = _told(data, path)
    return offset + prod(shape) * dtype.itemsize


def read(data: bytes, path) -> tuple[np.ndarray, np.ndarray, float, float, NiftiHeader]:
    """Voxels (I, J, K) in native byte order, affine, slope, intercept and header of an unzipped file."""
    layout, fields, shape, dtype, offset = _told(data, path)
    size = prod(shape) * dtype.itemsize
    check_complete(data, offset, size, path)
    slope, intercept = _scaling(fields, path)
    voxels = np.frombuffer(data, dtype, prod(shape), offset).reshape(shape, order="F")
    voxels = voxels.astype(dtype.newbyteorder("="), copy=False)
    header = NiftiHeader(data[:offset], data[offset + size :], layout)
    return voxels, best_affine(fields, shape, path), slope, intercept, header


def check_complete(data: bytes, offset: int, size: int, path) -> None:
    """Raise `RefaceRiskError` unless ``size`` bytes of voxels follow the header's ``offset`` bytes."""
    if len(data) < offset + size:
        raise RefaceRiskError(
            f"the file ends early: {max(0, len(data) - offset)} bytes of voxels, the header promises {size}",
            "copy or download it again",
            path,
        )


def _told(data: bytes, path) -> tuple[np.dtype, np.ndarray, tuple[int, int, int], np.dtype, int]:
    """Layout and fields of the header, and what it tells of the voxels: shape, type and where they start."""
    layout = _layout_of(data, path)
    fields = np.frombuffer(data, layout, 1)[0]
    shape = _shape(fields, path)
    code = int(fields["datatype"])
    if code not in _DTYPES:
        kind = _UNREADABLE.get(code)
        if kind is None:
            raise _corrupt(path, f"the data type code {code} does not exist")
        raise RefaceRiskError(f"the voxels are {kind}", "give one grey value a voxel (int or float)", path)
    dtype = np.dtype(_DTYPES[code]).newbyteorder(layout["datatype"].str[0])
    offset = float(fields["vox_offset"])
    if not layout.itemsize <= offset <= 2**31:
        raise _corrupt(path, f"the voxels cannot start at byte {offset:g}")
    return layout, fields, shape, dtype, int(offset)


def write(
    voxels: np.ndarray,
    affine: np.ndarray,
    slope: float,
    intercept: float,
    header: NiftiHeader | None,
    description: str | None,
) -> bytes:
    """The unzipped file. In its source's header only the fields that differ from the volume are changed."""
    voxels = voxels.astype({"b1": "u1", "f2": "f4"}.get(voxels.dtype.str[1:], voxels.dtype), copy=False)
    fresh = header is None
    header = _new_header() if fresh else header
    block = bytearray(header.block)
    fields = np.frombuffer(block, header.layout, 1)[0:1]  # writes into block
    old_shape = _shape(fields[0], None) if not fresh else None
    if voxels.shape != old_shape:
        fields["dim"][0] = 1
        fields["dim"][0, :4] = (3, *voxels.shape)
    if fields["datatype"][0] != _CODES[voxels.dtype]:
        fields["datatype"], fields["bitpix"] = _CODES[voxels.dtype], 8 * voxels.dtype.itemsize
        fields["cal_min"] = fields["cal_max"] = 0
    if fresh or _scaling(fields[0], None) != (slope, intercept):
        fields["scl_slope"], fields["scl_inter"] = slope, intercept
        fields["cal_min"] = fields["cal_max"] = 0
    old_affine = None if fresh else best_affine(fields[0], old_shape, None)
    if fresh or not np.array_equal(old_affine, affine):
        _set_geometry(fields, old_affine, affine)
    if description is not None:
        fields["descrip"] = description.encode("ascii", "replace")[:79]
    stored = voxels.astype(voxels.dtype.newbyteorder(header.byte_order), copy=False)
    return bytes(block) + stored.tobytes(order="F") + header.tail


def without_text(header: NiftiHeader) -> NiftiHeader:
    """The header without its free text, its unused fields and its extensions; voxels then follow at once."""
    size = header.layout.itemsize
    block = bytearray(header.block[:size]) + bytes(4)  # no extension follows
    fields = np.frombuffer(block, header.layout, 1)
    for name in ("data_type", "db_name", "unused_str", "descrip", "aux_file", "intent_name"):
        if name in fields.dtype.names:
            fields[name] = b""
    for name in ("extents", "session_error", "glmax", "glmin"):
        if name in fields.dtype.names:
            fields[name] = 0
    fields["vox_offset"] = len(block)
    return NiftiHeader(bytes(block), b"", header.layout)


def best_affine(fields: np.ndarray, shape: tuple[int, ...], path) -> np.ndarray:
    """Voxel index to RAS mm by nibabel's rule (``get_best_affine``): sform, else qform, else voxel sizes."""
    if fields["sform_code"] > 0:
        return np.vstack([fields["srow"].astype(float), [0, 0, 0, 1]])
    if fields["qform_code"] > 0:
        return _qform(fields, path)
    affine = np.diag([*(fields["pixdim"][1:4].astype(float) * (-1, 1, 1)), 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _qform(fields: np.ndarray, path) -> np.ndarray:
    xyz = fields["quatern"].astype(float)
    w2 = 1.0 - xyz @ xyz
    if w2 < -1e-5 or not np.isfinite(w2):
        raise _corrupt(path, "the rotation of its qform is not a unit quaternion")
    rotation = Rotation.from_quat([*xyz, np.sqrt(max(w2, 0.0))]).as_matrix()
    sizes = fields["pixdim"][1:4].astype(float)
    sizes[2] *= -1 if fields["pixdim"][0] < 0 else 1
    affine = np.eye(4)
    affine[:3, :3] = rotation * sizes
    affine[:3, 3] = fields["qoffset"]
    return affine


def _set_geometry(fields: np.ndarray, old_affine: np.ndarray | None, affine: np.ndarray) -> None:
    """Write ``affine``; where the grid was only cropped or turned, both forms keep their own spaces."""
    forms = {"sform": affine, "qform": affine}
    if old_affine is not None:
        change = np.linalg.inv(old_affine) @ affine
        if np.allclose(change, np.round(change), atol=1e-4) and abs(abs(np.linalg.det(change)) - 1) < 1e-3:
            forms["sform"] = np.vstack([fields["srow"][0].astype(float), [0, 0, 0, 1]]) @ np.round(change)
            if fields["qform_code"][0] > 0:
                forms["qform"] = _qform(fields[0], None) @ np.round(change)
            affine = affine if fields["sform_code"][0] <= 0 else forms["sform"]
    if old_affine is None or (fields["sform_code"][0] <= 0 and fields["qform_code"][0] <= 0):
        fields["sform_code"] = fields["qform_code"] = 1
        forms = {"sform": affine, "qform": affine}
    if fields["sform_code"][0] > 0:
        fields["srow"] = forms["sform"][:3]
    if fields["qform_code"][0] > 0:
        _set_qform(fields, forms["qform"])
    # pixdim belongs to the qform; the sform holds its own sizes.
    fields["pixdim"][0, 1:4] = spacing_of(forms["qform"] if fields["qform_code"][0] > 0 else affine)
    # Slice order and timing spoke of the old axes.
    for name in ("dim_info", "slice_code", "slice_start", "slice_end", "slice_duration"):
        fields[name] = 0


def _set_qform(fields: np.ndarray, affine: np.ndarray) -> None:
    directions = affine[:3, :3] / spacing_of(affine)
    if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):
        fields["qform_code"] = 0  # a qform cannot say a shear
        return
    left_handed = np.linalg.det(directions) < 0
    fields["pixdim"][0, 0] = -1 if left_handed else 1
    x, y, z, w = Rotation.from_matrix(directions * ((1, 1, -1) if left_handed else (1, 1, 1))).as_quat()
    fields["quatern"] = np.array([x, y, z]) * (-1 if w < 0 else 1)
    fields["qoffset"] = affine[:3, 3]


def _new_header() -> NiftiHeader:
    layout = np.dtype([(f[0], "<" + f[1], *f[2:]) for f in _FIELDS_1])
    fields = np.zeros(1, layout)
    fields["sizeof_hdr"], fields["magic"], fields["vox_offset"] = 348, b"n+1", 352
    fields["regular"], fields["xyzt_units"] = b"r", 2
    fields["pixdim"] = 1
    return NiftiHeader(fields.tobytes() + bytes(4), b"", layout)


def _layout_of(data: bytes, path) -> np.dtype:
    for size, names, magic in ((348, _FIELDS_1, (344, b"n+1")), (540, _FIELDS_2, (4, b"n+2"))):
        for order in "<>":
            if len(data) >= size and int(np.frombuffer(data, order + "i4", 1)[0]) == size:
                at, text = magic
                if data[at : at + 3] != text:
                    if data[at : at + 2] == text[:1] + b"i":
                        raise RefaceRiskError(
                            "a header whose voxels lie in another file (.hdr/.img)",
                            "save it as .nii.gz",
                            path,
                        )
                    raise _corrupt(path, "its NIfTI signature is missing")
                return np.dtype([(f[0], order + f[1], *f[2:]) for f in names])
    raise _corrupt(path, "it does not begin as a NIfTI file does")


def _shape(fields: np.ndarray, path) -> tuple[int, int, int]:
    axes = int(fields["dim"][0])
    if not 1 <= axes <= 7 or (fields["dim"][1 : axes + 1] < 1).any():
        raise _corrupt(path, f"its dimensions are {fields['dim'].tolist()}")
    shape = [int(n) for n in fields["dim"][1 : axes + 1]]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) < 3:
        raise RefaceRiskError(f"a {len(shape)}-D image", "give a 3-D volume", path)
    if len(shape) > 3:
        raise four_d(path, shape)
    return tuple(shape)


def four_d(path, shape) -> RefaceRiskError:
    """The refusal of a series of volumes, with a command that splits it."""
    command = (
        'python -c "import nibabel, sys; '
        "[nibabel.save(v, f'{sys.argv[1]}{n:04d}.nii.gz') "
        f'for n, v in enumerate(nibabel.four_to_three(nibabel.squeeze_image(nibabel.load(sys.argv[2]))))]" '
        f"volume_ {quoted(path)}"
    )
    return RefaceRiskError(f"a {len(shape)}-D image ({' x '.join(map(str, shape))})", f"split it: {command}", path)


def quoted(name) -> str:
    """A file name for a POSIX shell."""
    return '"' + str(name).replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("`", "\\`") + '"'


def _scaling(fields: np.ndarray, path) -> tuple[float, float]:
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0  # the format's words for "not scaled"
    if not np.isfinite(intercept):
        raise _corrupt(path, f"its intensity scaling is {slope:g} * voxel + {intercept:g}")
    return slope, intercept


def _corrupt(path, what: str) -> RefaceRiskError:
    return RefaceRiskError(f"the header is corrupt ({what})", "copy, download or export it again", path)
