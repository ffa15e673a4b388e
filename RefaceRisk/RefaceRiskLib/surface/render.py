"""Pictures of heads, drawn without a display: the rows of faces that show what a defacer hides and what comes back.

Every head is turned to look straight ahead and drawn at one scale by one camera with three lights that travel
with it. Creases are darkened a little by their depth (a cheap ambient occlusion), which is what lets a plain
isosurface read as a face.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import vtk
from scipy.sparse import coo_matrix, diags
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from RefaceRiskLib.surface.extract import Surface

# Azimuth of the camera in degrees: 0 looks at the face, -90 at the head's left side.
VIEWS = {"left profile": -90.0, "left 3/4": -45.0, "front": 0.0, "right 3/4": 45.0, "right profile": 90.0}
HEIGHT_MM = 256.0  # of a picture, from above the crown to below the chin
ASPECT = 0.98  # width of a picture by its height
SCALE_MM = 5.0  # end of the colour scale
GREY = (222, 220, 217)
UNCOUNTED = (105, 105, 105)
TEXT, FAINT, ACCENT = (236, 236, 236), (150, 150, 150), (255, 190, 92)
# Least-squares polynomial of the perceptually uniform map viridis (van der Walt and Smith 2015), constant first.
VIRIDIS = np.array([
    (0.27773, 0.00541, 0.33410), (0.10509, 1.40461, 1.38459), (-0.33086, 0.21485, 0.09510),
    (-4.63423, -5.79910, -19.33244), (6.22827, 14.17993, 56.69055), (4.77638, -13.74515, -65.35303),
    (-5.43546, 4.64585, 26.31244)])  # fmt: skip


@dataclass(frozen=True, eq=False)
class FaceRow:
    """One row of grey faces: label at the left, `distance_text` (such as "0.36 mm") at the right.

    Set `synthetic` for every image that holds invented voxels; the row is then marked with the word.
    """

    label: str
    surface: Surface
    distance_text: str = ""
    synthetic: bool = False


@dataclass(frozen=True, eq=False)
class HeatRow:
    """One row of the original's surface coloured by `per_vertex` (N,) mm; grey outside `region` (N,) bool."""

    label: str
    surface: Surface
    per_vertex: np.ndarray
    region: np.ndarray | None = None


def viridis(values: np.ndarray) -> np.ndarray:
    """Colours (..., 3) uint8 of values from 0 to 1 (clipped); perceptually uniform, readable by the colour-blind."""
    powers = np.clip(np.asarray(values, float), 0, 1)[..., None, None] ** np.arange(len(VIRIDIS))[:, None]
    return np.clip(255 * (powers * VIRIDIS).sum(axis=-2), 0, 255).round().astype(np.uint8)


def faces_figure(
    rows: Sequence[FaceRow],
    path: str | os.PathLike,
    heat: Sequence[HeatRow] = (),
    frame: np.ndarray | None = None,
    height: int = 330,
) -> Path:
    """Write the picture of faces as a PNG, whole or not at all: grey rows, then rows coloured by distance.

    Five views a row (left profile to right profile). `frame` (4, 4) maps template RAS mm to the head's, so that
    its inverse turns the heads straight; only its rotation is used and sizes stay true. `height` is that of a
    row in pixels. The figure needs no display.
    """
    width = round(ASPECT * height)
    unit = height / 330
    left, right, top = round(200 * unit), round(210 * unit), round(56 * unit)
    total = len(rows) + len(heat)
    canvas = np.zeros((top + total * height + round(14 * unit), left + len(VIEWS) * width + right, 3), np.uint8)
    everything = [*rows, *heat]
    camera = _Camera.before(everything[0].surface, frame)
    for column, name in enumerate(VIEWS):
        write_line(canvas, name, left + (column + 0.5) * width, top * 0.62, round(19 * unit), FAINT, "centre")
    x = canvas.shape[1] - right + 20 * unit
    write_line(canvas, "mean distance", x, top * 0.62, round(19 * unit), FAINT)
    models: dict[int, _Model] = {}
    with _quiet_window(2 * width, 2 * height) as window:
        for place, row in enumerate(everything):
            if id(row.surface) not in models:
                models[id(row.surface)] = _Model.of(row.surface, camera)
            pictures = _drawn(window, models[id(row.surface)], VIEWS.values(), camera, row)
            start = top + place * height
            canvas[start : start + height, left : left + len(VIEWS) * width] = np.concatenate(pictures, axis=1)
            middle = start + height / 2
            synthetic = isinstance(row, FaceRow) and row.synthetic
            lines = _wrapped(row.label, 15)
            for number, line in enumerate(lines):
                y = middle + (number - (len(lines) - 1 + synthetic) / 2) * 30 * unit
                write_line(canvas, line, 24 * unit, y, round(24 * unit), TEXT)
            if synthetic:
                y = middle + len(lines) / 2 * 30 * unit
                write_line(canvas, "synthetic", 24 * unit, y, round(20 * unit), ACCENT)
            if isinstance(row, FaceRow):
                write_line(canvas, row.distance_text, x, middle, round(34 * unit), TEXT, bold=True)
    if heat:
        _scale_bar(canvas, top + len(rows) * height, height * len(heat), x, unit)
    return write_png(canvas, path)


def render_views(
    surface: Surface,
    views: Sequence[float] | None = None,
    height: int = 330,
    frame: np.ndarray | None = None,
    per_vertex: np.ndarray | None = None,
    supersample: int = 2,
    camera_of: Surface | None = None,
) -> np.ndarray:
    """Pictures (V, height, width, 3) uint8 of one surface, a view for each azimuth in degrees (default: five).

    `frame` as in `faces_figure`; `per_vertex` (N,) mm colours the surface. `camera_of` is the surface at which the
    camera was set up, where several are to be compared (default: this one). For a quick preview give one view, a
    small height and supersample=1.
    """
    views = list(VIEWS.values()) if views is None else list(views)
    row = FaceRow("", surface) if per_vertex is None else HeatRow("", surface, per_vertex)
    with _quiet_window(supersample * round(ASPECT * height), supersample * height) as window:
        camera = _Camera.before(surface if camera_of is None else camera_of, frame)
        pictures = _drawn(window, _Model.of(surface, camera), views, camera, row, supersample)
    return np.stack(pictures)


def write_png(picture: np.ndarray, path: str | os.PathLike) -> Path:
    """Write an (H, W, 3) uint8 picture; the file appears complete or not at all."""
    path = Path(path)
    image = vtk.vtkImageData()
    image.SetDimensions(picture.shape[1], picture.shape[0], 1)
    image.GetPointData().SetScalars(numpy_to_vtk(picture[::-1].reshape(-1, picture.shape[2]), deep=True))
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    os.close(handle)
    writer = vtk.vtkPNGWriter()
    writer.SetInputData(image)
    writer.SetFileName(temporary)
    writer.Write()
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
    return path


@dataclass(frozen=True, eq=False)
class _Camera:
    """Turns heads straight (`turn`, head RAS to upright RAS, rigid) and looks at `centre` (upright RAS mm)."""

    turn: np.ndarray
    centre: np.ndarray

    @classmethod
    def before(cls, surface: Surface, frame: np.ndarray | None) -> _Camera:
        turn = np.eye(4)
        if frame is not None:
            u, _, v = np.linalg.svd(np.asarray(frame, float)[:3, :3])
            turn[:3, :3] = (u @ v).T
        points = surface.points @ turn[:3, :3].T
        crown = np.percentile(points[:, 2], 99.95)
        shown = points[points[:, 2] > crown - 0.9 * HEIGHT_MM]
        centre = 0.5 * (shown.min(axis=0) + shown.max(axis=0))
        centre[2] = crown + 0.04 * HEIGHT_MM - 0.5 * HEIGHT_MM
        return cls(turn, centre)


def _colours(row: FaceRow | HeatRow) -> np.ndarray:
    if isinstance(row, FaceRow):
        return np.full((len(row.surface.points), 3), GREY, np.float32)
    colours = viridis(np.asarray(row.per_vertex) / SCALE_MM).astype(np.float32)
    if row.region is not None:
        colours[~np.asarray(row.region, bool)] = UNCOUNTED
    return colours


def _drawn(window, model: _Model, views, camera: _Camera, row: FaceRow | HeatRow, supersample: int = 2) -> list:
    """A picture (H, W, 3) uint8 for each azimuth, smoothed from the window's larger size."""
    renderer = vtk.vtkRenderer()
    renderer.SetBackground(0, 0, 0)
    renderer.AddActor(model.actor(_colours(row), even=isinstance(row, HeatRow)))
    _light(renderer)
    window.AddRenderer(renderer)
    eye = renderer.GetActiveCamera()
    eye.ParallelProjectionOn()
    eye.SetParallelScale(HEIGHT_MM / 2)
    pictures = []
    for azimuth in np.deg2rad(list(views)):
        eye.SetFocalPoint(*camera.centre)
        eye.SetPosition(*(camera.centre + 600 * np.array([np.sin(azimuth), np.cos(azimuth), 0.0])))
        eye.SetViewUp(0, 0, 1)
        renderer.ResetCameraClippingRange()
        window.Render()
        picture = _grab(window)
        height, width = (n // supersample for n in picture.shape[:2])
        blocks = picture.reshape(height, supersample, width, supersample, 3)
        picture = blocks.mean(axis=(1, 3))
        picture *= np.clip((height - np.arange(height)) / (0.12 * height), 0, 1)[:, None, None]  # the neck fades
        pictures.append(picture.round().astype(np.uint8))
    window.RemoveRenderer(renderer)
    return pictures


@dataclass(frozen=True, eq=False)
class _Model:
    """A surface made ready to be drawn: turned upright, with smooth normals and the shade (N,) of its creases."""

    surface: Surface
    normals: np.ndarray
    shade: np.ndarray

    @classmethod
    def of(cls, surface: Surface, camera: _Camera) -> _Model:
        surface = surface.transformed(camera.turn)
        neighbours = _averaging(surface)
        normals = surface.normals.astype(np.float32)
        for _ in range(4):
            normals = neighbours @ normals
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
        return cls(surface, normals, _crease_shade(surface, neighbours))

    def actor(self, colours: np.ndarray, even: bool):
        """The surface in its vertices' colours; `even` light keeps them near those of the colour scale."""
        polydata = self.surface.polydata()
        polydata.GetPointData().SetNormals(numpy_to_vtk(np.ascontiguousarray(self.normals), deep=True))
        tinted = np.clip(colours * self.shade[:, None], 0, 255).round().astype(np.uint8)
        polydata.GetPointData().SetScalars(numpy_to_vtk(tinted, deep=True))
        mapper = vtk.vtkPolyDataMapper()
        mapper.SetInputData(polydata)
        actor = vtk.vtkActor()
        actor.SetMapper(mapper)
        material = actor.GetProperty()
        material.SetInterpolationToPhong()
        material.SetAmbient(0.32 if even else 0.08)
        material.SetDiffuse(0.78 if even else 0.98)
        material.SetSpecular(0.08)
        material.SetSpecularPower(18)
        return actor


def _averaging(surface: Surface):
    """Sparse matrix that replaces each vertex's value by the mean over itself and its neighbours."""
    a, b, c = surface.triangles.T
    count = len(surface.points)
    pairs = np.concatenate([np.stack(p) for p in ((a, b), (b, c), (c, a))], axis=1)
    links = coo_matrix((np.ones(pairs.shape[1], np.float32), (pairs[0], pairs[1])), shape=(count, count)).tocsr()
    links = links + links.T + 2 * diags(np.ones(count, np.float32))
    return diags(1.0 / np.asarray(links.sum(axis=1)).ravel()).astype(np.float32) @ links


def _crease_shade(surface: Surface, neighbours, depth_mm: float = 1.2, rounds: int = 40) -> np.ndarray:
    """Darkening (N,) of vertices that lie below the smoothed surface, as the bottom of a crease does."""
    smooth = (surface.points - surface.points.mean(axis=0)).astype(np.float32)
    start = smooth
    for _ in range(rounds):
        smooth = neighbours @ smooth
    below = np.einsum("ij,ij->i", smooth - start, surface.normals)
    return (1.0 - 0.55 * np.clip(below / depth_mm, -0.12, 1.0)).astype(np.float32)


def _light(renderer) -> None:
    """Key from above left, fill from the right, a weak rim from behind: fixed to the camera in every view."""
    for place, strength in (((-0.5, 0.7, 1.0), 0.84), ((0.9, 0.0, 0.8), 0.30), ((0.2, 0.9, -0.9), 0.22)):
        light = vtk.vtkLight()
        light.SetLightTypeToCameraLight()
        light.SetPosition(*place)
        light.SetFocalPoint(0, 0, 0)
        light.SetIntensity(strength)
        renderer.AddLight(light)


@contextmanager
def _quiet_window(width: int, height: int) -> Iterator:
    """An off-screen window; VTK's notes on the search for a display are not shown."""
    shown = vtk.vtkObject.GetGlobalWarningDisplay()
    vtk.vtkObject.GlobalWarningDisplayOff()
    window = vtk.vtkRenderWindow()
    try:
        window.SetShowWindow(False)
        window.SetOffScreenRendering(1)
        window.SetMultiSamples(0)
        window.SetSize(width, height)
        yield window
    finally:
        window.Finalize()
        vtk.vtkObject.SetGlobalWarningDisplay(shown)


def _grab(window) -> np.ndarray:
    grabber = vtk.vtkWindowToImageFilter()
    grabber.SetInput(window)
    grabber.SetInputBufferTypeToRGB()
    grabber.ReadFrontBufferOff()
    grabber.ShouldRerenderOff()
    grabber.Update()
    image = grabber.GetOutput()
    width, height, _ = image.GetDimensions()
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, 3)[::-1].astype(np.float32)


def write_line(canvas, text: str, x: float, y: float, size: int, colour, align: str = "left", bold=False) -> None:
    """Write a line of text on the canvas, its middle at height `y`; shrunk where it would leave the canvas."""
    if not text:
        return
    letters = _letters(text, size, bold)
    if align == "left" and x + letters.shape[1] > canvas.shape[1]:
        size = max(8, int(size * (canvas.shape[1] - x) / letters.shape[1]))
        letters = _letters(text, size, bold)
    column = round(x - (letters.shape[1] / 2 if align == "centre" else 0))
    line = round(y - letters.shape[0] / 2)
    part = canvas[max(line, 0) : line + letters.shape[0], max(column, 0) : column + letters.shape[1]]
    letters = letters[max(-line, 0) :, max(-column, 0) :][: part.shape[0], : part.shape[1], None]
    part[...] = (part * (1 - letters) + np.array(colour) * letters).round().astype(np.uint8)


def _letters(text: str, size: int, bold: bool) -> np.ndarray:
    """Coverage (H, W) from 0 to 1 of a line of text; H depends on the size alone, so that lines stand level."""
    style = vtk.vtkTextProperty()
    style.SetFontFamilyToArial()
    style.SetFontSize(size)
    style.SetBold(bold)
    style.SetColor(1, 1, 1)
    style.UseTightBoundingBoxOff()
    image = vtk.vtkImageData()
    extent = [0, 0]
    vtk.vtkTextRenderer.GetInstance().RenderString(style, text, image, extent, 72)
    width, height, _ = image.GetDimensions()
    values = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)
    return values[: extent[1] or height, : extent[0] or width, 3][::-1] / 255.0


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        fits = len(lines[-1]) + len(word) < width
        lines[-1 if fits else len(lines) :] = [f"{lines[-1]} {word}".strip() if fits else word]
    return [line for line in lines if line]


def _scale_bar(canvas, top: int, height: int, x: float, unit: float) -> None:
    """Vertical colour scale beside the coloured rows, ticks in mm."""
    tall = round(min(height * 0.72, 420 * unit))
    start, x, wide = round(top + (height - tall) / 2), round(x), round(24 * unit)
    canvas[start : start + tall, x : x + wide] = viridis(np.linspace(1, 0, tall))[:, None]
    for value in range(int(SCALE_MM) + 1):
        y = start + (1 - value / SCALE_MM) * (tall - 1)
        row = round(y)
        canvas[row - 1 : row + 1, x + wide : x + wide + round(7 * unit)] = TEXT
        label = f"{value} mm" if value < SCALE_MM else f"≥ {value} mm"
        write_line(canvas, label, x + wide + 14 * unit, y, round(21 * unit), TEXT)
    write_line(canvas, "distance", x, start - 52 * unit, round(21 * unit), FAINT)
    write_line(canvas, "to the original", x, start - 26 * unit, round(21 * unit), FAINT)
