"""The elements of a DICOM file, walked over before GDCM reads it: each must end within the file.

GDCM takes memory for whatever length an element tells, and follows sequences as deep as they go. Values are not
judged here, but for positions and directions that ITK could not take apart. Format: DICOM PS3.5, chapter 7.
"""

from __future__ import annotations

import struct
from pathlib import Path

from .errors import RefaceRiskError

_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_SHORT = {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL",
          b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}  # fmt: skip
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_PIXELS = (0x7FE0, 0x0010)
_DEEPEST = 32
_IMPLICIT = "1.2.840.10008.1.2"
_UNWALKED = ("1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")  # big-endian (retired), deflated
_SAMPLES, _FRAMES, _ROWS, _COLUMNS, _BITS = ((0x28, n) for n in (0x02, 0x08, 0x10, 0x11, 0x100))
_GEOMETRY = ((0x20, 0x32), (0x20, 0x37), (0x28, 0x30), (0x18, 0x50), (0x18, 0x88))
_FARTHEST = 1e9  # mm; ITK does not come back from every matrix of numbers near the largest
_MUCH, _BEST_COMPRESSION = 1 << 30, 1000


def check(file: Path, path: Path) -> None:
    """Raise `RefaceRiskError` (naming ``path``, where the series is) unless the lengths in ``file`` can be true."""
    data = file.read_bytes()
    begun = data[128:132] == b"DICM"
    try:
        values, pixels = _walked(data, 132 if begun else 0)
        promised = _promised(values)
    except (ValueError, struct.error) as error:
        raise RefaceRiskError(
            f"the DICOM file {file.name} cannot be read ({error})", "copy or export it again", path
        ) from error
    told, native = pixels
    if promised > told if native else promised > max(_MUCH, _BEST_COMPRESSION * told):
        raise RefaceRiskError(
            f"the DICOM file {file.name} cannot be read ({told} bytes cannot hold the {promised} of its pixels)",
            "copy or export it again",
            path,
        )


def _walked(data: bytes, at: int) -> tuple[dict[tuple[int, int], bytes], tuple[int, bool]]:
    """What the outermost elements tell of the image, and bytes of pixels and whether these are not compressed."""
    values: dict[tuple[int, int], bytes] = {}
    syntax = ""
    ends: list[int] = []  # of the sequences and items that we are in; _UNDEFINED: at a delimiter
    while at + 8 <= len(data):
        while ends and ends[-1] != _UNDEFINED and at >= ends[-1]:
            ends.pop()
        tag = struct.unpack_from("<HH", data, at)
        vr, length, start = _told(data, at, syntax == _IMPLICIT and tag[0] != 0x02)
        if tag in (_ITEM_END, _SEQUENCE_END):
            if ends:
                ends.pop()
            at = start
            continue
        if length != _UNDEFINED and start + length > len(data):
            raise ValueError(f"an element of {length} bytes, {max(0, len(data) - start)} follow")
        if tag == _PIXELS and not ends:
            return values, (length, True) if length != _UNDEFINED else (_fragments(data, start), False)
        if tag == _ITEM or vr == b"SQ" or length == _UNDEFINED:
            ends.append(_UNDEFINED if length == _UNDEFINED else start + length)
            if len(ends) > _DEEPEST:
                raise ValueError("its sequences lie too deep in each other")
            at = start
            continue
        if tag in _GEOMETRY:
            _check_numbers(data[start : start + length])
        if not ends and tag[0] in (0x02, 0x28):
            values[tag] = data[start : start + length]
            if tag == (0x02, 0x10):
                syntax = values[tag].rstrip(b"\0 ").decode("ascii", "replace")
            if syntax in _UNWALKED:
                return {}, (0, False)
        at = start + length
    return values, (0, False)


def _check_numbers(value: bytes) -> None:
    for word in value.decode("ascii", "replace").strip("\0 ").split("\\"):
        try:
            number = float(word)
        except ValueError:
            continue  # told later, with the name of what is missing
        if not abs(number) <= _FARTHEST:
            raise ValueError(f"{word[:20]} mm")


def _told(data: bytes, at: int, implicit: bool) -> tuple[bytes, int, int]:
    """Value representation (empty if implicit), length, and where the value starts.

    Some scanners write single elements, or all, in the other way than the file says.
    """
    vr = data[at + 4 : at + 6]
    if implicit or vr not in _LONG | _SHORT:
        return b"", struct.unpack_from("<I", data, at + 4)[0], at + 8
    if vr in _LONG:
        return vr, struct.unpack_from("<I", data, at + 8)[0], at + 12
    return vr, struct.unpack_from("<H", data, at + 6)[0], at + 8


def _fragments(data: bytes, at: int) -> int:
    """Bytes of compressed pixels."""
    total = 0
    while at + 8 <= len(data) and struct.unpack_from("<HH", data, at) == _ITEM:
        length = struct.unpack_from("<I", data, at + 4)[0]
        if at + 8 + length > len(data):
            raise ValueError(f"a fragment of {length} bytes, {len(data) - at - 8} follow")
        total += length
        at += 8 + length
    if at + 8 <= len(data) and struct.unpack_from("<HH", data, at) != _SEQUENCE_END:
        raise ValueError("its compressed pixels have no end")
    return total


def _promised(values: dict[tuple[int, int], bytes]) -> int:
    """Bytes of the image, as its sizes tell."""
    frames = values.get(_FRAMES, b"").strip(b"\0 ") or b"1"
    if not frames.lstrip(b"+").isdigit():
        raise ValueError(f"its number of frames is {frames[:20].decode('ascii', 'replace')}")
    numbers = [
        int.from_bytes(values.get(tag, b"")[:2], "little") or least
        for tag, least in ((_ROWS, 0), (_COLUMNS, 0), (_SAMPLES, 1), (_BITS, 1))
    ]
    rows, columns, samples, bits = numbers
    return int(frames) * rows * columns * samples * bits // 8
