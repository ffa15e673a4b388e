"""NRRD and MetaImage headers, looked at before ITK's readers are let near the file.

Those readers believe what a header says: MetaIO writes beyond its arrays when it names too many axes, both allocate
whatever sizes are told, a data file may be a device or a pipe that never ends, and ITK's own decomposition of a matrix
does not end for numbers near the largest. Only what decides about memory, time and other files is judged here;
everything else is left to ITK, which says itself what it does not like. Formats:
https://teem.sourceforge.net/nrrd/format.html and https://itk.org/Wiki/MetaIO/Documentation.
"""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

from .errors import RefaceRiskError

DEFLATE_RATIO = 1032  # no deflate stream grows by more
_LONGEST_HEADER = 1 << 20
_LONGEST_LINE = 8000  # MetaIO holds a value in 32 kB and does not count
_MOST_FILES = 10_000
# Where ITK takes a matrix of numbers beyond these apart, it does not come back.
_SMALLEST, _LARGEST = 1e-300, 1e9
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_NRRD_SIZES = {
    1: "signed char, int8, int8_t, uchar, unsigned char, uint8, uint8_t",
    2: "short, short int, signed short, signed short int, int16, int16_t, ushort, unsigned short, "
    "unsigned short int, uint16, uint16_t",
    4: "int, signed int, int32, int32_t, uint, unsigned int, uint32, uint32_t, float",
    8: "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t, ulonglong, "
    "unsigned long long, unsigned long long int, uint64, uint64_t, double",
}
_NRRD_TYPES = {name: size for size, names in _NRRD_SIZES.items() for name in names.split(", ")}
_META_TYPES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_LONG": 4,
    "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip
# How many numbers follow a key; n stands for the number of axes.
_META_COUNTS = {
    "NDims": "1", "DimSize": "n", "ElementSpacing": "n", "ElementSize": "n", "Offset": "n", "Position": "n",
    "Origin": "n", "CenterOfRotation": "n", "TransformMatrix": "nn", "Rotation": "nn", "Orientation": "nn",
    "Color": "4", "SequenceID": "4", "ID": "1", "ParentID": "1", "ElementNumberOfChannels": "1", "ElementNBits": "1",
    "HeaderSize": "1", "CompressedDataSize": "1", "ElementMin": "1", "ElementMax": "1",
    "ElementToIntensityFunctionSlope": "1", "ElementToIntensityFunctionOffset": "1",
}  # fmt: skip
_META_WORDS = ("ObjectType", "ObjectSubType", "TransformType", "Name", "Comment", "AcquisitionDate", "Modality",
               "DistanceUnits", "ElementType", "BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB",
               "CompressedData", "AnatomicalOrientation")  # fmt: skip


def check_nrrd(data: bytes, path: Path) -> None:
    """Raise `RefaceRiskError` unless the voxels that a NRRD header promises can be there.

    ``data`` is the file ``path`` itself; where its header names data files these must be regular files.
    """
    if not data.startswith(b"NRRD"):
        raise _corrupt(path, "it does not begin as a NRRD file does")
    end = re.search(rb"\r?\n\r?\n", data[:_LONGEST_HEADER])
    lines = (data[: end.start()] if end else data[:_LONGEST_HEADER]).decode("utf-8", "replace").split("\n")
    fields: dict[str, str] = {}
    listed: list[str] = []
    for number, line in enumerate(lines[1:], start=2):
        name, found, value = line.rstrip("\r").partition(": ")
        if not found or line.startswith("#") or ":=" in name:
            continue
        fields[name.strip().lower().replace(" ", "")] = value.strip()
        if name.strip().lower() in ("data file", "datafile") and value.strip().startswith("LIST"):
            listed = [line.strip() for line in lines[number:] if line.strip()]
            break
    sizes = _integers(fields.get("sizes", ""), path, "sizes")
    dimension = _integers(fields.get("dimension", ""), path, "dimension")
    if dimension != [len(sizes)] or not 1 <= len(sizes) <= 16:
        raise _corrupt(path, f"it has {len(sizes)} sizes and the dimension {_short(fields.get('dimension', ''))}")
    for name in ("spacedirections", "spaceorigin", "spacings", "measurementframe", "thicknesses"):
        words = re.split(r"[\s(),]+", fields.get(name, ""))
        if not all(word in ("", "none") or word.lower() == "nan" or _is_sane(word) for word in words):
            raise _corrupt(path, f"its {name}: {_short(fields[name])}")
    kind = fields.get("type", "").lower()
    if kind not in _NRRD_TYPES:
        raise _corrupt(path, f"the data type {_short(kind)} is not known")
    there = len(data) - end.end() if end else 0
    if "datafile" in fields:
        there = sum(_size_of(name, path) for name in _data_files(fields["datafile"], listed, path))
    encoding = fields.get("encoding", "").lower()
    count = prod(sizes)
    least = {"raw": count * _NRRD_TYPES[kind], "hex": 2 * count * _NRRD_TYPES[kind]}.get(encoding)
    if encoding in ("txt", "text", "ascii"):
        least = 2 * count - 1
    elif least is None:
        least = -(-count * _NRRD_TYPES[kind] // DEFLATE_RATIO)
    _check_there(there, least, count, path)


def check_meta(data: bytes, path: Path) -> None:
    """Raise `RefaceRiskError` unless a MetaImage (.mha, its bytes ``data``) says what MetaIO reads without harm."""
    fields: dict[str, str] = {}
    at = 0
    while "ElementDataFile" not in fields:
        end = data.find(b"\n", at, at + _LONGEST_LINE)
        if end < 0 or at > _LONGEST_HEADER:
            raise _corrupt(path, "it does not begin as a MetaImage does")
        name, found, value = data[at:end].decode("utf-8", "replace").partition("=")
        name, value = name.strip(), value.strip()
        if not found or not name:
            raise _corrupt(path, f"the line {_short(data[at:end].decode('utf-8', 'replace'))} is none of a header")
        if name in fields:
            raise _corrupt(path, f"{_short(name)} is there twice")
        fields[name] = value
        # Arrays are as long as the axes that were told before them.
        if name in _META_COUNTS:
            _check_count(name, value, fields, path)
        elif name in _META_WORDS and len(value) > (250 if name != "AnatomicalOrientation" else 9):
            raise _corrupt(path, f"{name} has {len(value)} letters")
        at = end + 1
    if fields["ElementDataFile"] != "LOCAL":
        raise RefaceRiskError("a header whose voxels lie in another file", "save it as .nii.gz", path)
    sizes = _integers(fields.get("DimSize", ""), path, "DimSize")
    [channels] = _integers(fields.get("ElementNumberOfChannels", "1"), path, "ElementNumberOfChannels")
    if not sizes or channels > 2**15:
        raise _corrupt(path, f"its sizes are {_short(fields.get('DimSize', ''))} of {channels} values")
    if fields.get("HeaderSize", "0") not in ("0", "-1"):
        raise _corrupt(path, f"its voxels start at byte {_short(fields['HeaderSize'])}")
    kind = fields.get("ElementType", "")
    if kind not in _META_TYPES:
        raise _corrupt(path, f"the data type {_short(kind)} is not known")
    count = prod(sizes) * channels
    least = count * _META_TYPES[kind]
    if fields.get("CompressedData", "").lower() in ("true", "1", "t", "y", "yes"):
        least = -(-least // DEFLATE_RATIO)
    elif fields.get("BinaryData", "").lower() not in ("true", "1", "t", "y", "yes"):
        least = 2 * count - 1
    _check_there(len(data) - at, least, count, path)


def _check_count(name: str, value: str, fields: dict[str, str], path: Path) -> None:
    axes = int(fields["NDims"]) if re.fullmatch(r"[1-9]", fields.get("NDims", "")) else 0
    if not axes:
        raise _corrupt(path, f"the number of its axes is {_short(fields.get('NDims', '')) or 'missing'}")
    wanted = {"n": axes, "nn": axes**2}.get(_META_COUNTS[name]) or int(_META_COUNTS[name])
    if len(value.split()) != wanted:
        raise _corrupt(path, f"{name} has {len(value.split())} numbers for {wanted}")
    if not all(_is_sane(word) for word in value.split()):
        raise _corrupt(path, f"its {name}: {_short(value)}")


def _is_sane(word: str) -> bool:
    return bool(_NUMBER.fullmatch(word)) and (float(word) == 0 or _SMALLEST <= abs(float(word)) <= _LARGEST)


def _integers(text: str, path: Path, name: str) -> list[int]:
    words = text.split()
    if not words or not all(re.fullmatch(r"[0-9]{1,18}", word) and int(word) for word in words):
        raise _corrupt(path, f"its {name}: {_short(text) or 'missing'}")
    return [int(word) for word in words]


def _data_files(text: str, listed: list[str], path: Path) -> list[str]:
    """Names of the data files: one, a list, or a numbered pattern as ``slice%03d.raw 1 60 1``."""
    if text.startswith("LIST"):
        names = listed
    elif (numbered := re.fullmatch(r"(\S*)\s+(-?\d{1,9})\s+(-?\d{1,9})\s+(-?\d{1,9})(?:\s+\d{1,2})?", text)) is None:
        names = [text]
    else:
        pattern, (first, last, step) = numbered[1], map(int, numbered.groups()[1:])
        # The reader hands the pattern to C's printf: nothing else than one number may stand in it.
        if not re.fullmatch(r"[^%]*%0?\d{0,2}d[^%]*", pattern) or step == 0:
            raise _corrupt(path, f"its data files are {_short(text)}")
        names = [pattern % n for n in range(first, last + (1 if step > 0 else -1), step)[: _MOST_FILES + 1]]
    if not names or len(names) > _MOST_FILES:
        raise _corrupt(path, f"it names {len(names) or 'no'} data files")
    return names


def _size_of(name: str, path: Path) -> int:
    """Bytes of a data file; one that is missing, a device or a pipe is refused."""
    try:
        file = path.parent / name
        if file.is_file():
            return file.stat().st_size
    except (OSError, ValueError):  # a name that no file can have
        pass
    raise RefaceRiskError(
        f"the file is corrupt or cut off (its data file {_short(name)} is missing or is no file)",
        "keep header and data file together",
        path,
    )


def _check_there(there: int, least: int, count: int, path: Path) -> None:
    if there < least:
        raise RefaceRiskError(
            f"the file is corrupt or cut off ({there} bytes of voxels cannot hold the {count} values of its header)",
            "copy, download or export it again",
            path,
        )


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _corrupt(path: Path, what: str) -> RefaceRiskError:
    return RefaceRiskError(f"the header is corrupt ({what})", "copy, download or export it again", path)
