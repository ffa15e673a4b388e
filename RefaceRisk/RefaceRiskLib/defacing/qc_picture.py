"""Pictures that let a person judge a defacing at a glance: a page for one head, a table of methods, a sheet of many.

Slices are cut through the upright head at true size; the removed region is tinted and outlined in red, the brain mask
in blue. Renderings before and after share one camera. Drawn with VTK alone, without a display.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from ..errors import RefaceRiskError
from ..geometry import gaussian, sample
from ..surface.extract import ANTIALIAS_VOXELS, Surface, extract_skin, isosurface, skin_level
from ..surface.render import ASPECT, FAINT, HEIGHT_MM, TEXT, render_views, write_line, write_png
from ..volumes import Volume
from .base import Defaced, Quality
from .compare import Comparison

COLOURS = {"ok": (112, 196, 120), "check": (255, 190, 92), "failed": (240, 104, 92)}
UNKNOWN = (150, 150, 150)
REMOVED, BRAIN = np.array((240, 84, 72)), np.array((92, 176, 255))
VIEWS = {"front": 0.0, "3/4": 45.0, "profile": 90.0}
# Planes through the upright head by name: (axis across, position in template mm, axis to the right, axis upwards).
PLANES = {
    "sagittal": (0, 0.0, 1, 2),
    "axial, through the eyes": (2, 26.0, 0, 1),
    "coronal, through the eyes": (1, 64.0, 0, 2),
}
EDGE = 24


def qc_page(original: Volume, defaced: Defaced, path: str | os.PathLike, title: str = "") -> Path:
    """One page (PNG) on one defacing: slices with the removed region and the brain, renderings before and after,
    the verdict and its figures in words. Shows the true face: keep it as private as the head itself."""
    height = 380
    _check_png(path)
    slices = [_slice(original, defaced, plane, height) for plane in PLANES.values()]
    level = skin_level(original)
    before, after = extract_skin(original, level), _skin(defaced.volume, level)
    frame = defaced.registration.matrix
    rows = [
        render_views(surface, VIEWS.values(), height, frame, camera_of=before) if surface is not None else None
        for surface in (before, after)
    ]
    cell = max(picture.shape[1] for picture in slices)
    words = _sentences(original, defaced)
    page = np.zeros((150 + 3 * (height + 40) + EDGE, 2 * EDGE + 150 + 3 * cell + 2 * 12 + 430, 3), np.uint8)
    _headline(page, title or _name_of(original), f"defaced by {defaced.method}", defaced.quality)
    for number, (label, pictures, names) in enumerate(
        (
            ("what goes", slices, PLANES),
            ("before", rows[0], VIEWS),
            ("after", rows[1], VIEWS),
        )
    ):
        top = 172 + number * (height + 40)
        write_line(page, label, EDGE, top + height / 2, 24, TEXT, bold=True)
        if number == 2 and defaced.options.get("fill") == "average":
            write_line(page, "synthetic", EDGE, top + height / 2 + 28, 19, COLOURS["check"])
        for place, name in enumerate(names):
            left = EDGE + 150 + place * (cell + 12)
            write_line(page, name, left + cell / 2, top - 14, 17, FAINT, "centre")
            if pictures is None:
                write_line(page, "no skin is left", left + cell / 2, top + height / 2, 18, FAINT, "centre")
                continue
            _put(page, pictures[place], top, left, cell)
    _words(page, words, EDGE + 150 + 3 * (cell + 12) + 20, 184)
    return write_png(page, path)


def comparison_picture(comparison: Comparison, path: str | os.PathLike, title: str = "") -> Path:
    """A row for the head and one for each defacer (PNG): the sagittal slice with what goes, and three views, all by one
    camera, with the figures of the table in words."""
    _check_png(path)
    original, height = comparison.head.volume, 300
    level, frame = skin_level(original), comparison.head.registration.matrix
    before = extract_skin(original, level)
    plane = PLANES["sagittal"]
    plain = _slice(original, None, plane, height, comparison.head.registration.matrix)
    rows = [("original", None, plain, render_views(before, VIEWS.values(), height, frame))]
    for name, result in comparison.results.items():
        after = _skin(result.volume, level)
        views = None if after is None else render_views(after, VIEWS.values(), height, frame, camera_of=before)
        rows.append((name, result, _slice(original, result, plane, height), views))
    cell, label, words = plain.shape[1], 190, 400
    page = np.zeros((96 + len(rows) * (height + 10) + EDGE, label + 4 * (cell + 10) + words, 3), np.uint8)
    write_line(page, title or _name_of(original), EDGE, 34, 30, TEXT, bold=True)
    for place, name in enumerate(("what goes", *VIEWS)):
        write_line(page, name, label + place * (cell + 10) + cell / 2, 76, 18, FAINT, "centre")
    for number, (name, result, cut, views) in enumerate(rows):
        top = 92 + number * (height + 10)
        middle = top + height / 2
        write_line(page, name, EDGE, middle - (14 if result is not None else 0), 22, TEXT, bold=True)
        _put(page, cut, top, label, cell)
        for place in range(len(VIEWS)):
            left = label + (place + 1) * (cell + 10)
            if views is None:
                write_line(page, "no skin is left", left + cell / 2, middle, 17, FAINT, "centre")
            else:
                _put(page, views[place], top, left, cell)
        if result is not None:
            write_line(page, result.quality.verdict, EDGE, middle + 18, 21, _colour(result.quality.verdict), bold=True)
            if result.options.get("fill") == "average":
                write_line(page, "synthetic", EDGE, middle + 46, 18, COLOURS["check"])
            lines = _figures(original, result)
            x = label + 4 * (cell + 10) + 14
            _words(page, lines, x, top + height / 2 - 13 * len(lines), size=18, step=27)
    return write_png(page, path)


@dataclass(frozen=True)
class Tile:
    """One subject of a montage: a defaced head and, where known, its verdict and reason."""

    label: str
    volume: Volume
    verdict: str = ""
    reason: str = ""


def montage(tiles: Sequence[Tile], path: str | os.PathLike, columns: int = 0, height: int = 210) -> Path:
    """Many defaced heads on one sheet (PNG), for eyeballing: two views and the sagittal slice of each, framed in the
    colour of its verdict; what is not ``ok`` comes first. ``columns``: 0 makes the sheet about as wide as high."""
    _check_png(path)
    if not tiles:
        raise RefaceRiskError("no defaced heads for a montage", "give volumes, or a folder that holds some")
    severity = {"failed": 0, "check": 1, "": 2, "ok": 3}
    ordered = sorted(tiles, key=lambda tile: (severity.get(tile.verdict, 2), tile.label))
    drawn = [_tile(tile, height) for tile in ordered]
    tall, wide = drawn[0].shape[:2]
    columns = columns or max(1, min(len(tiles), round(np.sqrt(len(tiles) * tall / wide * 1.6))))
    lines = -(-len(drawn) // columns)
    gap = 14
    page = np.zeros((64 + lines * (tall + gap) + gap, columns * (wide + gap) + gap, 3), np.uint8)
    counts = [f"{sum(t.verdict == v for t in tiles)} {v}" for v in ("ok", "check", "failed")]
    unknown = sum(t.verdict not in COLOURS for t in tiles)
    told = ", ".join(counts + ([f"{unknown} without a verdict"] if unknown else []))
    heads = "1 defaced head" if len(tiles) == 1 else f"{len(tiles)} defaced heads"
    write_line(page, f"{heads}: {told}", gap, 34, 24, TEXT, bold=True)
    for number, picture in enumerate(drawn):
        top = 64 + number // columns * (tall + gap)
        left = gap + number % columns * (wide + gap)
        page[top : top + tall, left : left + wide] = picture
    return write_png(page, path)


# --- what they share -----------------------------------------------------------------------------------------------


def _tile(tile: Tile, height: int) -> np.ndarray:
    level = skin_level(tile.volume)
    skin = _skin(tile.volume, level)
    width = round(0.98 * height)
    cut = _slice(tile.volume, None, PLANES["sagittal"], height, _upright(tile.volume))
    canvas = np.zeros((height + 40, 2 * width + cut.shape[1] + 8, 3), np.uint8)
    if skin is not None:
        for place, view in enumerate(render_views(skin, (0.0, 50.0), height)):
            canvas[36 : 36 + height, 4 + place * width : 4 + (place + 1) * width] = view
    canvas[36 : 36 + height, 4 + 2 * width : 4 + 2 * width + cut.shape[1]] = cut
    colour = _colour(tile.verdict)
    for edge in (np.s_[:3], np.s_[-3:], np.s_[:, :3], np.s_[:, -3:]):
        canvas[edge] = colour
    write_line(canvas, tile.verdict or "no verdict", 12, 20, 17, colour, bold=True)
    write_line(canvas, ": ".join(filter(None, (tile.label, tile.reason))), 84 if tile.verdict else 120, 20, 15, TEXT)
    return canvas


def _upright(volume: Volume) -> np.ndarray:
    """A frame (4, 4) for a head that was not registered: its centre of tissue, RAS axes."""
    bright = volume.intensities > skin_level(volume)
    centre = np.array(ndimage.center_of_mass(bright))
    frame = np.eye(4)
    frame[:3, 3] = volume.affine[:3, :3] @ centre + volume.affine[:3, 3] - np.array([0.0, 0.0, -8.0])
    return frame


def _slice(original: Volume, defaced: Defaced | None, plane, height: int, frame: np.ndarray | None = None):
    """A slice (H, W, 3) uint8 of the upright head; with ``defaced`` its removed region and brain drawn in."""
    across, place, right, up = plane
    frame = defaced.registration.matrix if frame is None else frame
    u, _, v = np.linalg.svd(frame[:3, :3])
    axes = u @ v
    # The middle of the average head from crown to neck, from the back of the head to the tip of the nose.
    middle = np.array([0.0, 3.0, -11.0])
    middle[across] = place
    centre = frame[:3, :3] @ middle + frame[:3, 3]
    width, pixel = round(ASPECT * height), HEIGHT_MM / height
    x = (np.arange(width) - (width - 1) / 2) * pixel
    y = ((height - 1) / 2 - np.arange(height)) * pixel
    points = centre + x[None, :, None] * axes[:, right] + y[:, None, None] * axes[:, up]
    points = points.reshape(-1, 3)
    grey = sample(original.intensities, original.affine, points, cval=float(original.intensities.min()))
    dark, bright = np.percentile(original.intensities[:: max(1, original.shape[0] // 60)], (1, 99.7))
    grey = np.clip((grey - dark) / max(bright - dark, 1e-6), 0, 1).reshape(height, width) ** 0.8
    picture = np.repeat(235 * grey[..., None], 3, axis=2)
    if defaced is not None:
        gone = sample(defaced.removed.astype(np.float32), original.affine, points).reshape(height, width) > 0.5
        brain = sample(defaced.brain.astype(np.float32), original.affine, points).reshape(height, width) > 0.5
        picture[gone] = 0.72 * picture[gone] + 0.28 * REMOVED
        for mask, colour in ((gone, REMOVED), (brain, BRAIN)):
            picture[mask & ~ndimage.binary_erosion(mask, iterations=2, border_value=1)] = colour
    return picture.round().astype(np.uint8)


def _skin(volume: Volume, level: float) -> Surface | None:
    """The surface of a defaced head with every hollow that a cut has opened; None where nothing is above the level."""
    field = gaussian(volume.intensities, ANTIALIAS_VOXELS, mode="nearest", truncate=3.0)
    try:
        return isosurface(field, np.asarray(volume.affine, float), level)
    except RefaceRiskError:
        return None


def _headline(page: np.ndarray, title: str, how: str, quality: Quality) -> None:
    colour = _colour(quality.verdict)
    page[:8] = colour
    write_line(page, title, EDGE, 44, 34, TEXT, bold=True)
    write_line(page, how, EDGE, 84, 22, FAINT)
    told = f"{quality.verdict}: {quality.reason}" if quality.reason else quality.verdict
    write_line(page, told, EDGE, 114, 24, colour, bold=True)


def _sentences(original: Volume, defaced: Defaced) -> list:
    quality = defaced.quality
    spacing = " x ".join(f"{size:.2g}" for size in original.spacing)
    unused = {"zero": ("seed", "blur_mm"), "average": ("seed", "blur_mm"), "noise": ("blur_mm",), "blur": ("seed",)}
    unused = unused.get(str(defaced.options.get("fill")), ())
    options = [f"{name} {value}" for name, value in defaced.options.items() if value is not None and name not in unused]
    return [
        *_figures(original, defaced),
        "",
        ("Registration", TEXT),
        f"overlap of the heads {quality.overlap:.3f}",
        f"local correlation {quality.correlation:.2f}",
        f"skin off the template's by {quality.disagreement_mm:.0f} mm at most",
        "(medians of forehead, crown, back, sides)",
        "",
        ("Head", TEXT),
        f"{' x '.join(map(str, original.shape))} voxels, {original.axcodes}",
        f"{spacing} mm",
        "",
        ("Options", TEXT),
        *options,
        "",
        ("removed region", tuple(REMOVED)),
        ("brain mask, with its safety margin", tuple(BRAIN)),
    ]


def _figures(original: Volume, defaced: Defaced) -> list:
    quality = defaced.quality
    touched = quality.brain_voxels_touched
    millilitres = defaced.removed.sum() * abs(np.linalg.det(original.affine[:3, :3])) / 1000
    left = ", ".join(f"{name} {100 * share:.0f} %" for name, share in quality.left.items() if share >= 0.005)
    return [
        (
            f"{touched or 'no'} brain voxel{'' if touched == 1 else 's'} touched",
            TEXT if not touched else COLOURS["failed"],
        ),
        f"{100 * quality.face_surface_removed:.0f} % of the face surface removed",
        "skin still to be seen:",
        f"    {left or 'none of eyes, nose, mouth, chin'}",
        f"{millilitres:.0f} ml cut away",
    ]


def _words(page: np.ndarray, lines: Sequence, x: float, top: float, size: int = 18, step: int = 28) -> None:
    for number, line in enumerate(lines):
        text, colour = line if isinstance(line, tuple) else (line, FAINT)
        write_line(page, text, x, top + number * step, size, colour)


def _put(page: np.ndarray, picture: np.ndarray, top: int, left: int, cell: int) -> None:
    left += (cell - picture.shape[1]) // 2
    page[top : top + picture.shape[0], left : left + picture.shape[1]] = picture


def _colour(verdict: str) -> tuple[int, int, int]:
    return COLOURS.get(verdict, UNKNOWN)


def _name_of(volume: Volume) -> str:
    return volume.meta.path.name if volume.meta.path else "head"


def _check_png(path: str | os.PathLike) -> None:
    if Path(path).suffix.lower() != ".png":
        raise RefaceRiskError("the picture is a PNG", "name the file .png", path)


def tile_of(label: str, volume: Volume, record: Mapping) -> Tile:
    """A tile from a defaced volume and the JSON record beside it, as `refacerisk deface` writes it."""
    quality = record.get("quality") if isinstance(record.get("quality"), Mapping) else {}
    return Tile(label, volume, str(quality.get("verdict", "")), str(quality.get("reason", "")))
