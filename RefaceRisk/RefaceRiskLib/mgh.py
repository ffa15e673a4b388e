"""FreeSurfer's .mgh/.mgz, read and written with header and footer (tags, scan parameters) as they were.

Format: https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat. Big-endian throughout; no intensity
scaling.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from .errors import RefaceRiskError
from .geometry import spacing_of
from .nifti import check_complete, four_d

_LAYOUT = np.dtype(
    [
        ("version", ">i4"), ("dims", ">i4", 4), ("type", ">i4"), ("dof", ">i4"), ("good_ras", ">i2"),
        ("delta", ">f4", 3), ("directions", ">f4", (3, 3)), ("centre", ">f4", 3),
    ]
)  # fmt: skip
HEADER_SIZE = 284  # the voxels follow
_SCAN_PARAMETERS = 20  # bytes after the voxels: TR, flip angle, TE, TI, field of view, as float32
_DTYPES = {0: "u1", 1: "i4", 3: "f4", 4: "i2", 10: "u2"}
_CODES = {np.dtype(name): code for code, name in _DTYPES.items()}
# What the format cannot store goes into the next type that can hold it.
_WIDER = {"b1": "u1", "i1": "i2", "u4": "f4", "i8": "f4", "u8": "f4", "f2": "f4", "f8": "f4", "u2": "i4"}


@dataclass(frozen=True)
class MghHeader:
    """The bytes before and after the voxels, as they were."""

    block: bytes
    tail: bytes


def promised_size(data: bytes, path) -> int:
    """Bytes of header and voxels together, as the first ``HEADER_SIZE`` bytes of a file tell; errors as of `read`."""
    _, dims, dtype = _told(data, path)
    return HEADER_SIZE + prod(dims) * dtype.itemsize


def read(data: bytes, path) -> tuple[np.ndarray, np.ndarray, MghHeader]:
    """Voxels (I, J, K), affine and header of an unzipped .mgh file."""
    fields, dims, dtype = _told(data, path)
    size = prod(dims) * dtype.itemsize
    check_complete(data, HEADER_SIZE, size, path)
    voxels = np.frombuffer(data, dtype, prod(dims), HEADER_SIZE).reshape(dims[:3], order="F")
    header = MghHeader(data[:HEADER_SIZE], data[HEADER_SIZE + size :])
    return voxels.astype(dtype.newbyteorder("=")), _affine(fields), header


def _told(data: bytes, path) -> tuple[np.ndarray, list[int], np.dtype]:
    """Fields of the header, and what it tells of the voxels: four sizes and the type."""
    if len(data) < HEADER_SIZE or np.frombuffer(data, ">i4", 1)[0] != 1:
        raise _corrupt(path, "it does not begin as an MGH file does")
    fields = np.frombuffer(data, _LAYOUT, 1)[0]
    dims = fields["dims"].tolist()
    if min(dims) < 1:
        raise _corrupt(path, f"its dimensions are {dims}")
    if dims[3] > 1:
        raise four_d(path, dims)
    if int(fields["type"]) not in _DTYPES:
        raise _corrupt(path, f"the data type code {int(fields['type'])} is not known")
    return fields, dims, np.dtype(_DTYPES[int(fields["type"])]).newbyteorder(">")


def write(voxels: np.ndarray, affine: np.ndarray, header: MghHeader | None) -> bytes:
    """The unzipped file; from the same format only the header fields that differ are changed."""
    if voxels.dtype not in _CODES:
        voxels = voxels.astype(_WIDER[voxels.dtype.str[1:]])
    block = bytearray(header.block if header else bytes(HEADER_SIZE))
    fields = np.frombuffer(block, _LAYOUT, 1)
    if header is None:
        fields["version"] = 1
    same_grid = header is not None and tuple(fields["dims"][0, :3]) == voxels.shape
    fields["dims"] = (*voxels.shape, 1)
    fields["type"] = _CODES[voxels.dtype]
    if not same_grid or not np.array_equal(_affine(fields[0]), affine):
        fields["good_ras"] = 1
        fields["delta"] = spacing_of(affine)
        fields["directions"] = (affine[:3, :3] / spacing_of(affine)).T
        fields["centre"] = affine[:3, :3] @ (np.array(voxels.shape) / 2) + affine[:3, 3]
    return (
        bytes(block)
        + voxels.astype(voxels.dtype.newbyteorder(">")).tobytes(order="F")
        + (header.tail if header else b"")
    )


def without_text(header: MghHeader) -> MghHeader:
    """The header without tags (command lines, transforms by file name); five scan parameters stay."""
    block = header.block[: _LAYOUT.itemsize] + bytes(HEADER_SIZE - _LAYOUT.itemsize)
    return MghHeader(block, header.tail[:_SCAN_PARAMETERS])


def _affine(fields: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    if fields["good_ras"]:
        affine[:3, :3] = fields["directions"].astype(float).T * fields["delta"]
        centre = fields["centre"].astype(float)
    else:  # the format's default: coronal slices of 1 mm round the origin
        affine[:3, :3] = [[-1, 0, 0], [0, 0, 1], [0, -1, 0]]
        centre = np.zeros(3)
    affine[:3, 3] = centre - affine[:3, :3] @ (fields["dims"][:3] / 2)
    return affine


def _corrupt(path, what: str) -> RefaceRiskError:
    return RefaceRiskError(f"the header is corrupt ({what})", "copy, download or export it again", path)
