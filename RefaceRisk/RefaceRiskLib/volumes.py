"""Volume: voxels and where they lie; read and written so that what is not changed on purpose does not change.

NIfTI (.nii, .nii.gz), MGH (.mgz, .mgh), NRRD (.nrrd, .nhdr), MetaImage (.mha) and folders of DICOM slices are
read; all but DICOM and .nhdr are written. Voxels are indexed (i, j, k) as nibabel does and the affine leads
to RAS millimetres.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import re
import secrets
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from . import __version__, dicom, mgh, nifti, text_headers
from .errors import RefaceRiskError, unheard_libraries
from .geometry import (  # noqa: F401  (part of this module's interface)
    axcodes_of,
    axes_of,
    distance_to,
    grid_points,
    resample,
    sample,
    spacing_of,
    to_integers,
    transform_points,
)
from .hounsfield import as_mri

EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha")
THINNEST_MM = 40.0  # a field of view that shows less of a head along any axis is a slice or a slab
FARTHEST_MM = 1e5  # from the origin of its space to a volume's first voxel
# Squares of intensities have to fit into a 32-bit float, in which most is computed.
LARGEST_INTENSITY = 1e19
_LONGEST_TAIL = 1 << 24  # bytes after the voxels that are carried along
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Meta:
    """Beside voxels and affine: intensity = slope * voxel + intercept, where from, and the opaque header."""

    slope: float = 1.0
    intercept: float = 0.0
    format: str = ""
    header: object = None
    path: Path | None = None
    sha256: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """Stored numbers ``voxels`` (I, J, K) in the file's own type, ``affine`` (4, 4) from index to RAS mm.

    The arrays cannot be written to: every change makes a new volume.
    """

    voxels: np.ndarray
    affine: np.ndarray
    meta: Meta = field(default_factory=Meta)

    def __post_init__(self):
        voxels, affine = np.asarray(self.voxels), np.array(self.affine, float)
        voxels = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
        if voxels.ndim != 3 or affine.shape != (4, 4):
            raise ValueError(f"a volume is (I, J, K) and (4, 4), not {voxels.shape} and {affine.shape}")
        object.__setattr__(self, "voxels", _read_only(voxels))
        object.__setattr__(self, "affine", _read_only(affine))

    def __repr__(self) -> str:
        name = f" of {self.meta.path.name}" if self.meta.path else ""
        size = " x ".join(f"{n} ({s:.3g} mm)" for n, s in zip(self.shape, self.spacing, strict=True))
        return f"<Volume{name}: {size}, {self.axcodes}, {self.voxels.dtype}>"

    @cached_property
    def intensities(self) -> np.ndarray:
        """(I, J, K) float32 in physical units."""
        if self.meta.slope == 1 and self.meta.intercept == 0:
            return _read_only(self.voxels.astype(np.float32, copy=False))
        # 24 bits hold the small integers exactly; larger numbers are scaled in double.
        wide = np.float32 if self.voxels.dtype.itemsize < 4 else np.float64
        scaled = self.voxels.astype(wide) * wide(self.meta.slope) + wide(self.meta.intercept)
        return _read_only(scaled.astype(np.float32, copy=False))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.voxels.shape

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size (3,) in mm."""
        return spacing_of(self.affine)

    @property
    def axcodes(self) -> str:
        """Where the voxel axes point to, as "RAS"."""
        return axcodes_of(self.affine)

    def replaced(self, mask: np.ndarray, values) -> Volume:
        """A volume with new intensities inside ``mask`` and equal bit for bit outside.

        ``values`` in physical units: one number, one a voxel of the mask (in C order) or an array (I, J, K).
        They are rounded and clipped into the stored type.
        """
        mask = np.asarray(mask, bool)
        if mask.shape != self.shape:
            raise ValueError(f"the mask is {mask.shape}, the volume {self.shape}")
        values = np.asarray(values, np.float64)
        if values.shape == self.shape:
            values = values[mask]
        elif values.shape not in ((), (int(mask.sum()),)):
            raise ValueError(f"values of shape {values.shape} for {int(mask.sum())} voxels of {self.shape}")
        stored = self.voxels.copy(order="K")
        stored[mask] = _stored(values, self.voxels.dtype, self.meta)
        return replace(self, voxels=stored)

    def with_intensities(self, array: np.ndarray, dtype=np.float32) -> Volume:
        """Another image (I, J, K) on the same grid, stored as ``dtype`` and not scaled."""
        if np.shape(array) != self.shape:
            raise ValueError(f"the image is {np.shape(array)}, the volume {self.shape}")
        meta = replace(self.meta, slope=1.0, intercept=0.0)
        return replace(self, voxels=_stored(np.asarray(array), np.dtype(dtype), meta), meta=meta)

    def noted(self, **notes: str) -> Volume:
        """With notes for the file: NRRD and MetaImage keep all, NIfTI the ``description`` (79 characters)."""
        return replace(self, meta=replace(self.meta, notes={**self.meta.notes, **notes}))


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _stored(values: np.ndarray, dtype: np.dtype, meta: Meta) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError("intensities to store hold NaN or infinite values")
    if meta.slope != 1 or meta.intercept != 0:
        values = (np.asarray(values, np.float64) - meta.intercept) / meta.slope
    return to_integers(values, dtype) if np.issubdtype(dtype, np.integer) else np.asarray(values).astype(dtype)


def load(path: str | os.PathLike) -> Volume:
    """Read a volume from a file, or from the folder that holds the slices of one DICOM series.

    Raises `RefaceRiskError` for what is missing, unreadable, corrupt, not 3-D, in colour or complex, with NaN
    or infinite voxels, or with an affine that no scanner makes.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise RefaceRiskError("no such file", "check the path", path)
        with np.errstate(all="ignore"):  # what numpy would warn of is refused below
            volume = _load_dicom(path) if path.is_dir() or _extension(path) == ".dcm" else _load_file(path)
            _check_geometry(volume, path)
            _check_finite(volume, path)
    except OSError as error:
        raise RefaceRiskError(f"cannot be read ({error.strerror or error})", "check the file", path) from error
    except MemoryError as error:
        raise RefaceRiskError("does not fit into memory", "use a computer with more memory", path) from error
    return volume


def _load_file(path: Path) -> Volume:
    extension = _extension(path)
    if extension not in EXTENSIONS:
        raise RefaceRiskError(
            f"the file type {path.suffix or 'without extension'} is not known",
            f"give one of {', '.join(EXTENSIONS)} or a folder of DICOM slices",
            path,
        )
    if not path.is_file():  # a pipe or a device may never end
        raise RefaceRiskError("is no regular file", "copy it into one", path)
    raw = path.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    if extension in (".nii", ".nii.gz"):
        voxels, affine, slope, intercept, header = nifti.read(_unzipped(raw, nifti, path), path)
        meta = Meta(slope, intercept, "nifti", header, path.absolute(), digest)
    elif extension in (".mgz", ".mgh"):
        voxels, affine, header = mgh.read(_unzipped(raw, mgh, path), path)
        meta = Meta(1.0, 0.0, "mgh", header, path.absolute(), digest)
    else:
        volume = from_sitk(_read_sitk(raw, extension, path))
        return replace(volume, meta=replace(volume.meta, format=extension[1:], path=path.absolute(), sha256=digest))
    return Volume(voxels, affine, meta)


def _load_dicom(path: Path) -> Volume:
    with unheard_libraries():
        voxels, affine, files = dicom.read(path)
    digest = hashlib.sha256()
    for file in files:
        digest.update(Path(file).read_bytes())
    header = dicom.DicomHeader(tuple(files))
    meta = Meta(format="dicom", header=header, path=path.absolute(), sha256=digest.hexdigest())
    return Volume(voxels, affine, meta)


def _unzipped(raw: bytes, reader: ModuleType, path: Path) -> bytes:
    """The bytes of a file that may be zipped: not more than its header, as ``reader`` understands it, accounts for."""
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        promised = reader.promised_size(_inflated(raw, reader.HEADER_SIZE), path)
        if promised > len(raw) * text_headers.DEFLATE_RATIO:
            raise RefaceRiskError(
                f"the file ends early: {len(raw)} zipped bytes cannot hold the {promised} that the header promises",
                "copy or download it again",
                path,
            )
        data = _inflated(raw, promised + _LONGEST_TAIL)
    except EOFError as error:
        raise RefaceRiskError("the gzip stream is cut off", "copy or download it again", path) from error
    except zlib.error as error:
        raise RefaceRiskError(f"the gzip stream is damaged ({error})", "copy or download it again", path) from error
    if len(data) == promised + _LONGEST_TAIL:
        raise RefaceRiskError(
            f"the file goes on for more than {_LONGEST_TAIL} bytes after its voxels", "export it again", path
        )
    return data


def _inflated(raw: bytes, most: int) -> bytes:
    """The first ``most`` bytes of a gzip file, which may have several members; EOFError if it is cut off before."""
    parts = []
    while raw and most > 0:
        stream = zlib.decompressobj(wbits=31)
        parts.append(stream.decompress(raw, most))
        most -= len(parts[-1])
        if not stream.eof and most > 0:
            raise EOFError
        raw = stream.unused_data.lstrip(b"\0")
    return b"".join(parts)


def _read_sitk(raw: bytes, extension: str, path: Path) -> sitk.Image:
    meta_image = extension == ".mha"
    (text_headers.check_meta if meta_image else text_headers.check_nrrd)(raw, path)
    try:
        # The one reader that is meant: others would be asked too, and some take whatever they are given.
        with unheard_libraries():
            image = sitk.ReadImage(str(path), imageIO="MetaImageIO" if meta_image else "NrrdImageIO")
    except RuntimeError as error:
        raise RefaceRiskError(
            f"the file is corrupt or cut off ({_last_line(error)})", "copy, download or export it again", path
        ) from error
    if image.GetDimension() > 3:
        raise RefaceRiskError(
            f"a {image.GetDimension()}-D image ({' x '.join(map(str, image.GetSize()))})",
            "split it: " + _split_command(path, "i[:, :, :, n]", "i.GetSize()[3]"),
            path,
        )
    if image.GetDimension() < 3:
        raise RefaceRiskError(f"a {image.GetDimension()}-D image", "give a 3-D volume", path)
    if "complex" in image.GetPixelIDTypeAsString():
        raise RefaceRiskError("the voxels are complex", "give one grey value a voxel (int or float)", path)
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise RefaceRiskError(
            f"a voxel has {image.GetNumberOfComponentsPerPixel()} values (colour, vectors or a 4-D series)",
            "split it: "
            + _split_command(path, "s.VectorIndexSelectionCast(i, n)", "i.GetNumberOfComponentsPerPixel()"),
            path,
        )
    return image


def _split_command(path: Path, part: str, count: str) -> str:
    return (
        'python -c "import SimpleITK as s, sys; i = s.ReadImage(sys.argv[1]); '
        f"[s.WriteImage({part}, f'volume_{{n:04d}}.nrrd') for n in range({count})]\" {nifti.quoted(path)}"
    )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def save(volume: Volume, path: str | os.PathLike) -> Path:
    """Write ``volume`` as the extension of ``path`` says; a file is either complete or not there.

    A volume that came from the same format takes its header along. Raises `RefaceRiskError` where the file
    would replace the volume's own source, and when it cannot be written.
    """
    path = Path(path)
    extension = _extension(path)
    if extension not in EXTENSIONS or extension == ".nhdr":
        raise RefaceRiskError(
            f"cannot write the file type {path.suffix or 'without extension'}",
            f"name it {', '.join(e for e in EXTENSIONS if e != '.nhdr')}",
            path,
        )
    source = volume.meta.path
    if source is not None and source.exists() and path.exists() and source.samefile(path):
        raise RefaceRiskError("this is the input and is never overwritten", "choose another output name", path)
    with written_beside(path, extension) as temporary:
        if extension in (".nii", ".nii.gz"):
            header = volume.meta.header if volume.meta.format == "nifti" else None
            note = volume.meta.notes.get("description")
            data = nifti.write(volume.voxels, volume.affine, volume.meta.slope, volume.meta.intercept, header, note)
            temporary.write_bytes(_zipped(data) if extension == ".nii.gz" else data)
        elif extension in (".mgz", ".mgh"):
            header = volume.meta.header if volume.meta.format == "mgh" else None
            data = mgh.write(_unscaled(volume), volume.affine, header)
            temporary.write_bytes(_zipped(data) if extension == ".mgz" else data)
        else:
            image = to_sitk((_unscaled(volume), volume.affine), dtype=None)
            for key, value in {**_keys(volume), **volume.meta.notes}.items():
                image.SetMetaData(str(key), str(value))
            sitk.WriteImage(image, str(temporary), useCompression=True)
    return path


def _zipped(data: bytes) -> bytes:
    # No name and no time in the gzip header: the same volume gives the same file.
    return gzip.compress(data, compresslevel=4, mtime=0)


def _unscaled(volume: Volume) -> np.ndarray:
    scaled = volume.meta.slope != 1 or volume.meta.intercept != 0
    return volume.intensities if scaled else volume.voxels


def _keys(volume: Volume) -> Mapping[str, str]:
    return volume.meta.header if volume.meta.format in ("nrrd", "nhdr", "mha") and volume.meta.header else {}


@contextmanager
def written_beside(path: Path, extension: str, make_folder: bool = False) -> Iterator[Path]:
    """A temporary name in the folder of ``path`` that becomes ``path`` if all went well and else vanishes.

    Raises RefaceRiskError where it cannot be written, and for a missing folder unless ``make_folder``.
    """
    if not make_folder and not path.parent.is_dir():
        raise RefaceRiskError(f"the folder {path.parent} does not exist", "make it first", path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{extension}")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else _last_line(error)
        raise RefaceRiskError(f"cannot be written ({what})", "check the folder and its free space", path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _extension(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def to_sitk(volume: Volume | tuple[np.ndarray, np.ndarray], dtype=np.float32) -> sitk.Image:
    """A SimpleITK image (LPS) of a volume's intensities or an (array, affine); dtype None keeps the type."""
    array, affine = (volume.intensities, volume.affine) if isinstance(volume, Volume) else volume
    array = np.asarray(array)
    array = array.astype(np.uint8) if array.dtype == bool else array
    array = array.astype(np.float32) if array.dtype == np.float16 else array
    if dtype is not None:
        array = array.astype(dtype, copy=False)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    affine = LPS_FROM_RAS @ np.asarray(affine, float)
    spacing = spacing_of(affine)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return image


def from_sitk(image: sitk.Image) -> Volume:
    """The volume of a 3-D SimpleITK image; its metadata keys travel along."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    # Keys that are no UTF-8 cannot even be asked for.
    named = (k for k in image.GetMetaDataKeys() if not k.startswith(("NRRD_", "ITK_")) and _is_text(k))
    keys = {k: value for k in named if _is_text(value := image.GetMetaData(k))}
    voxels = sitk.GetArrayFromImage(image).T
    return Volume(voxels, LPS_FROM_RAS @ affine, Meta(format="nrrd", header=keys))


def _is_text(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


def reorient(volume: Volume, axcodes: str = "RAS") -> Volume:
    """The same voxels, axes flipped and permuted to point nearest to ``axcodes``; nothing is interpolated."""
    if sorted(axcodes.translate(str.maketrans("LPI", "RAS"))) != ["A", "R", "S"]:
        raise ValueError(f"{axcodes!r} does not name three axes")
    letters = ["LR", "PA", "IS"]
    target_world = [next(w for w in range(3) if letter in letters[w]) for letter in axcodes]
    target_signs = [1 if letter in "RAS" else -1 for letter in axcodes]
    world, signs = axes_of(volume.affine)
    voxels, change = volume.voxels, np.zeros((4, 4))
    change[3, 3] = 1
    order = [int(np.flatnonzero(world == w)[0]) for w in target_world]
    voxels = voxels.transpose(order)
    for new, old in enumerate(order):
        change[old, new] = sign = signs[old] * target_signs[new]
        if sign < 0:
            voxels = np.flip(voxels, new)
            change[old, 3] = voxels.shape[new] - 1
    return replace(volume, voxels=voxels, affine=volume.affine @ change)


def bounding_box(mask: np.ndarray, margin: int = 0) -> tuple[slice, slice, slice]:
    """The smallest three slices that hold a non-empty ``mask``, wider by ``margin`` voxels in the grid."""
    boxes = ndimage.find_objects(np.asarray(mask, bool).astype(np.uint8))
    if not boxes or boxes[0] is None:
        raise ValueError("an empty mask has no box")
    return tuple(
        slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(boxes[0], np.shape(mask), strict=True)
    )


def crop(volume: Volume, box: tuple[slice, slice, slice]) -> Volume:
    """The part of a volume inside three slices (step 1), at its place in space."""
    starts = [s.indices(n) for s, n in zip(box, volume.shape, strict=True)]
    if any(step != 1 or stop <= start for start, stop, step in starts):
        raise ValueError(f"the box {box} is empty or has steps")
    affine = np.array(volume.affine)
    affine[:3, 3] += affine[:3, :3] @ [start for start, _, _ in starts]
    return replace(volume, voxels=volume.voxels[tuple(slice(a, b) for a, b, _ in starts)], affine=affine)


def paste(small: Volume, into: Volume) -> Volume:
    """``into`` with the voxels of ``small``, which lies on the same lattice (see `crop`), at their place.

    What of ``small`` lies outside is left out. Stored numbers are copied where type and scaling agree, else
    converted.
    """
    change = np.linalg.inv(into.affine) @ small.affine
    offset = np.round(change[:3, 3]).astype(int)
    if not np.allclose(change[:3, :3], np.eye(3), atol=1e-4) or not np.allclose(change[:3, 3], offset, atol=1e-2):
        raise ValueError("the two volumes do not lie on the same lattice")
    here = [(max(0, o), min(n, o + m)) for o, n, m in zip(offset, into.shape, small.shape, strict=True)]
    target = tuple(slice(a, max(a, b)) for a, b in here)
    source = tuple(slice(a - o, max(a, b) - o) for (a, b), o in zip(here, offset, strict=True))
    stored = into.voxels.copy(order="K")
    same = small.voxels.dtype == into.voxels.dtype
    if same and (small.meta.slope, small.meta.intercept) == (into.meta.slope, into.meta.intercept):
        stored[target] = small.voxels[source]
    else:
        stored[target] = _stored(small.intensities[source], into.voxels.dtype, into.meta)
    return replace(into, voxels=stored)


def _check_geometry(volume: Volume, path: Path | None) -> None:
    affine = volume.affine
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3], tol=1e-12) < 3:
        raise RefaceRiskError(
            "the affine cannot be inverted",
            "restore the header's geometry (qform or sform) from the original",
            path,
        )
    spacing = volume.spacing
    if spacing.min() < 0.1 or spacing.max() > 20:
        sizes = " x ".join(f"{s:.3g}" for s in spacing)
        raise RefaceRiskError(
            f"voxels of {sizes} mm are not those of a head scan (0.1 to 20 mm)",
            "check the header's units",
            path,
        )
    if np.abs(affine[:3, 3]).max() > FARTHEST_MM:
        raise RefaceRiskError(
            f"the volume lies {np.abs(affine[:3, 3]).max():.3g} mm from the origin of its space",
            "restore the header's geometry from the original",
            path,
        )
    directions = affine[:3, :3] / spacing
    cosines = np.abs(directions.T @ directions)[np.triu_indices(3, 1)]
    if cosines.max() > 0.5:
        angle = np.degrees(np.arccos(min(1.0, cosines.max())))
        raise RefaceRiskError(
            f"the affine is sheared beyond sense (two axes are {angle:.0f} degrees apart, not 60 to 90)",
            "restore the header's geometry from the original",
            path,
        )


def _check_finite(volume: Volume, path: Path | None) -> None:
    voxels, floating = volume.voxels, np.issubdtype(volume.voxels.dtype, np.floating)
    bad = voxels.size - int(np.count_nonzero(np.isfinite(voxels))) if floating else 0
    if bad:
        hint = "replace them first" + (f": {_finite_command(path, volume.meta.format)}" if path else "")
        raise RefaceRiskError(f"{bad} voxels are NaN or infinite", hint, path)
    slope, intercept = float(volume.meta.slope), float(volume.meta.intercept)
    if not floating and voxels.dtype.itemsize < 4 and max(abs(slope), abs(intercept)) < 1e9:
        return  # cannot be reached: the usual scan is not searched for its extremes
    largest = abs(slope) * max(abs(float(voxels.min())), abs(float(voxels.max())))
    largest = max(largest + abs(intercept), abs(slope))
    if not largest <= LARGEST_INTENSITY:
        raise RefaceRiskError(
            f"its intensities reach {largest:.3g}, which no scanner makes", "check the header's intensity scaling", path
        )


def _finite_command(path: Path, kind: str) -> str:
    finite = "numpy.nan_to_num({}, nan=0, posinf=0, neginf=0)"
    if kind in ("nifti", "mgh"):
        read, array = (
            "import nibabel, numpy, sys; i = nibabel.load(sys.argv[1])",
            "i.get_fdata(dtype='float32')",
        )
        write = f"nibabel.save(type(i)({finite.format(array)}, i.affine, i.header), 'finite.nii.gz')"
    else:
        read, array = (
            "import SimpleITK as s, numpy, sys; i = s.ReadImage(sys.argv[1])",
            "s.GetArrayFromImage(i)",
        )
        made = f"o = s.GetImageFromArray({finite.format(array)}); o.CopyInformation(i)"
        write = f"{made}; s.WriteImage(o, 'finite.nrrd')"
    return f'python -c "{read}; {write}" {nifti.quoted(path)}'


def check_head(volume: Volume) -> None:
    """Raise `RefaceRiskError` unless the volume is sound and holds a body of the size of a head.

    A head is a connected foreground (Otsu's threshold on the image averaged to about 4 mm, opened by a 8 mm
    ball so that noise falls apart) that measures 100 to 350 mm along at least two axes and does not simply
    fill the field of view. A defaced head and a bare brain are heads; a head is not told from a trunk.
    """
    path = volume.meta.path
    _check_geometry(volume, path)
    _check_finite(volume, path)
    low, high = float(volume.intensities.min()), float(volume.intensities.max())
    if low == high:
        kind = "empty" if low == 0 else "constant"
        raise RefaceRiskError(f"the image is {kind} (all voxels are {low:g})", "give the original scan", path)
    view = volume.spacing * volume.shape
    if view.min() < THINNEST_MM:
        raise RefaceRiskError(
            f"no head in this volume (its field of view is {view.min():.0f} mm thick)", "give a whole-head scan", path
        )
    size = _foreground_size(volume)
    if np.count_nonzero((size >= 100) & (size <= 350)) < 2:
        extent = " x ".join(f"{s:.0f}" for s in size)
        seen = f"the largest body is {extent} mm" if size.any() else "no body stands out from the background"
        raise RefaceRiskError(f"no head in this volume ({seen})", "give a whole-head scan", path)


def _foreground_size(volume: Volume) -> np.ndarray:
    """Extent (3,) in mm along the voxel axes of the largest foreground body, zeros if there is none."""
    factors = np.maximum(1, np.round(4.0 / volume.spacing)).astype(int)
    blocks = _block_means(as_mri(volume.intensities), factors)
    spacing = volume.spacing * factors
    smooth = ndimage.gaussian_filter(blocks, 3.0 / spacing)
    low, high = np.percentile(smooth, [0.5, 99.5])
    if low == high:
        return np.zeros(3)
    smooth = np.clip(smooth, low, high)
    body = smooth > _otsu(smooth)
    body = np.pad(body, 4, mode="edge")
    body = _within(~_within(~body, spacing, 8.0), spacing, 8.0)[4:-4, 4:-4, 4:-4]
    labels, count = ndimage.label(body)
    if count == 0:
        return np.zeros(3)
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    faces = [np.take(largest, end, axis) for axis in range(3) for end in (0, -1)]
    if np.concatenate([f.ravel() for f in faces]).mean() > 0.45:
        return np.zeros(3)
    blocks = np.clip(blocks, *np.percentile(blocks, [0.5, 99.5]))
    share, step = largest.mean(), blocks[largest].mean() - blocks[~largest].mean()
    # The share of all variance that "body or not" explains: 0.60 or more in every head that was tried, 0.13
    # in noise that is brighter at one side.
    if share * (1 - share) * step**2 < 0.35 * blocks.var():
        return np.zeros(3)
    return np.array([s.stop - s.start for s in bounding_box(largest)]) * spacing


def _block_means(array: np.ndarray, factors: np.ndarray) -> np.ndarray:
    for axis in np.argsort(array.strides)[::-1]:  # whole slabs first, as they lie in memory
        size = array.shape[axis]
        factor = min(int(factors[axis]), size)
        whole = size // factor * factor
        slabs = np.moveaxis(array, axis, 0)
        total = sum((slabs[n:whole:factor] for n in range(1, factor)), start=slabs[:whole:factor].astype(np.float32))
        array = np.moveaxis(total, 0, axis) / factor
    return array


def _otsu(values: np.ndarray) -> float:
    """Threshold that parts a histogram best in two (Otsu 1979)."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    weight = np.cumsum(counts)
    total = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (total[-1] * weight / weight[-1] - total) ** 2 / (weight * (weight[-1] - weight))
    return float(edges[1 + np.nanargmax(between[:-1])])


def _within(mask: np.ndarray, spacing: np.ndarray, distance: float) -> np.ndarray:
    """Voxels at most ``distance`` mm from the mask."""
    return distance_to(mask, spacing) <= distance


def sidecar(path: str | os.PathLike, /, **record) -> Path:
    """Write the JSON record of an output beside it (``out.json`` beside ``out.nii.gz``), whole or not at all.

    The program's version comes first. numpy values, paths, dataclasses and volumes (as file name and sha256)
    are understood; NaN becomes null.
    """
    path = Path(path)
    target = path.with_name(path.name[: len(path.name) - len(_extension(path))] + ".json")
    text = json.dumps(_plain({"version": __version__, **record}), indent=2, allow_nan=False)
    with written_beside(target, ".json") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return target


def sha256_of(path: str | os.PathLike) -> str:
    """sha256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value):
    """``value`` in the words of JSON."""
    if isinstance(value, Volume):
        return {"file": value.meta.path.name if value.meta.path else None, "sha256": value.meta.sha256}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
