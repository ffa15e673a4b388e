"""Refacing: the removed face completed by the linear model, by the average face, or by the diffusion cascade.

One object for all models: ``Refacer.load("reference").reface(defaced)``. The cascade starts from the linear model's
signed-distance map, diffuses the residual at 4 mm on the whole head, then the detail at 2 mm and 1 mm in the face box,
and draws the result into the head's own voxels. torch is imported only when a diffusion model runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import ndimage

from ..defacing.average_face import matched_tissue, replace_face
from ..errors import RefaceRiskError
from ..progress import OnProgress, report
from ..registration import Registration, carry, deformed_beside_face, register, to_head, to_template
from ..resources import model_folder
from ..surface.draw import draw_face, sample_finest
from ..surface.extract import Surface, isosurface
from ..template import Grid, Template, load_template
from ..volumes import Volume, check_head
from .following import FollowedSkin
from .layers import Face, Layer, mean_face
from .linear import LinearFace, Seen, anchored, load_linear
from .space import COARSE_MM, FINE_MM, CanonicalHead, View, bend_of, canonical, cropped, face_grid, halved, upsampled

BUILT_IN = ("reference", "linear", "average")
DEFAULT_STEPS = 8
# A completed face is bent onto the known skin over this distance from the seam.
SEAM_MM = 14.0
# Brain units: no tissue of a face is darker.
DARKEST = 0.1


@dataclass(frozen=True, eq=False)
class Refaced:
    """A refaced head.

    volume : the mean of the samples, drawn into the removed voxels (a single sample is its own mean).
    samples : one Volume per sample. uncertainty : (I, J, K) float32, standard deviation of the signed distance over
    samples in mm, 0 where nothing was removed; None for a single sample.
    """

    volume: Volume
    samples: list[Volume]
    uncertainty: np.ndarray | None
    removed: np.ndarray
    registration: Registration

    def uncertainty_at(self, points: np.ndarray) -> np.ndarray:
        """The uncertainty at RAS points (N, 3), such as the vertices of the refaced skin: (N,) float32, mm.

        Raises RefaceRiskError for a single sample, which tells nothing of it.
        """
        if self.uncertainty is None:
            raise RefaceRiskError("one sample has no uncertainty", "draw several: samples=8")
        grow = ndimage.grey_dilation(self.uncertainty, size=3)  # half a vertex's voxels are known, and certain
        known = self.uncertainty == 0
        index = np.linalg.inv(self.volume.affine)
        index = (points @ index[:3, :3].T + index[:3, 3]).T
        return ndimage.map_coordinates(np.where(known, grow, self.uncertainty), index, order=1, mode="nearest")


@dataclass(frozen=True, eq=False)
class Refacer:
    """A loaded model. ``name`` as given to :meth:`load`; ``weights`` maps file names to sha256."""

    name: str
    linear: LinearFace | None = None
    stages: dict = field(default_factory=dict)
    weights: dict = field(default_factory=dict)

    @classmethod
    def load(cls, name_or_folder: str | Path = "reference") -> Refacer:
        """Load ``reference`` (cascade), ``linear``, ``average``, or a folder written by training.

        Raises RefaceRiskError for an unknown name, a missing or damaged file.
        """
        name = str(name_or_folder)
        if name == "average":
            return cls(name)
        folder = model_folder("reference") if name in BUILT_IN else Path(name_or_folder)
        linear, digest = load_linear(folder / "linear")
        weights = {"linear/modes.npz": digest}
        if name == "linear":
            return cls(name, linear, weights=weights)
        from .denoisers import load_stage

        stages = {}
        for stage in ("coarse", "middle", "fine"):
            if stage == "fine" and not (folder / stage).is_dir():
                continue  # a model trained on heads of 2 mm ends there
            stages[stage], weights[f"{stage}/weights.safetensors"] = load_stage(folder / stage, stage)
        return cls(name, linear, stages, weights)

    def reface(
        self,
        defaced: Volume,
        removed: np.ndarray | None = None,
        samples: int = 1,
        steps: int | None = None,
        seed: int = 0,
        device: str = "auto",
        temperature: float | None = None,
        registration: Registration | None = None,
        on_progress: OnProgress | None = None,
    ) -> Refaced:
        """Complete the face of a defaced head.

        Parameters
        ----------
        removed : (I, J, K) bool; estimated from the image when None.
        samples : faces to draw; with more than one, ``volume`` is their mean. steps : network calls a stage.
        temperature : 0, the default for one sample, gives the expected face: the mean of the model's distribution,
            by one denoising step from each of ``steps`` noises. 1, the default for several, draws faces from the
            distribution with DPM-Solver++(2M); values between weaken the noise that sampling starts from.
        registration : of this defaced head with the template, if already known.

        Returns a :class:`Refaced`; voxels outside ``removed`` stay bit for bit.
        Raises RefaceRiskError when the volume is no head or nothing was removed, Cancelled when asked to stop.
        """
        check_head(defaced)
        template = load_template()
        registration = registration or register(defaced, template, on_progress=on_progress)
        if registration.quality.verdict == "failed":
            raise RefaceRiskError(registration.quality.reason, "check that it is a whole head", defaced.meta.path)
        removed = estimate_removed(defaced, registration, template) if removed is None else np.asarray(removed, bool)
        if removed.shape != defaced.shape:
            raise RefaceRiskError(
                f"the mask's shape {removed.shape} is not the volume's {defaced.shape}", "pass its own mask"
            )
        if not removed.any():
            raise RefaceRiskError(
                "nothing was removed from this head", "pass a defaced head or its mask", defaced.meta.path
            )
        if self.name == "average":
            report(on_progress, "average face", 0, 1)
            volume = replace_face(defaced, removed, registration, template)
            report(on_progress, "average face", 1, 1)
            return Refaced(volume, [volume], None, removed, registration)
        report(on_progress, "prepare", 0, 1)
        task = self.prepared(defaced, removed, registration, template)
        report(on_progress, "prepare", 1, 1)
        return self.completed(task, samples, steps, seed, device, temperature, on_progress)

    def prepared(self, defaced, removed, registration: Registration, template: Template) -> _Task:
        """What the linear model and the cascade of one folder need to know of a defaced head; made once for both.

        A displacement that comes with ``registration`` (see ``deformed_beside_face``) is kept.
        """
        if registration.displacement is None:
            registration = deformed_beside_face(defaced, template, registration)
        return _Task.of(self, defaced, removed, registration, template)

    def completed(
        self,
        task: _Task,
        samples: int = 1,
        steps: int | None = None,
        seed: int = 0,
        device: str = "auto",
        temperature: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Refaced:
        """The face of a head that was :meth:`prepared`; parameters as those of :meth:`reface`."""
        if not self.stages:
            faces = [task.linear_face()]
            report(on_progress, "linear model", 1, 1, preview=lambda: task.skin(faces[0][-1]))
        else:
            from .denoisers import sample_cascade

            strength = (0.0 if samples == 1 else 1.0) if temperature is None else temperature
            faces = sample_cascade(self, task, samples, steps or DEFAULT_STEPS, seed, device, strength, on_progress)
        removed, registration = task.removed, task.registration
        volumes = [task.draw(face) for face in faces]
        if len(faces) == 1:
            return Refaced(volumes[0], volumes, None, removed, registration)
        return Refaced(task.draw(mean_face(faces)), volumes, task.spread(faces), removed, registration)


@dataclass(frozen=True, eq=False)
class _Task:
    """One defaced head, prepared: everything that its samples share."""

    defaced: Volume
    removed: np.ndarray
    registration: Registration
    template: Template
    head: CanonicalHead
    coarse: View
    average: FollowedSkin
    start: np.ndarray

    @classmethod
    def of(cls, model: Refacer, defaced, removed, registration, template) -> _Task:
        head = canonical(defaced, removed, registration, template)
        coarse = head.view.halved()
        average = FollowedSkin.of(template, coarse.image, coarse.missing, coarse.removed)
        bend = bend_of(registration)
        seen = Seen(coarse.distance, coarse.known, coarse.removed, coarse.image, ~coarse.missing, bend)
        start = anchored(model.linear.complete(average.coarse, seen), coarse.distance, coarse.known, COARSE_MM)
        return cls(defaced, removed, registration, template, head, coarse, average, start)

    @cached_property
    def middle(self) -> View:
        return self.head.view.boxed(face_grid(self.template))

    @cached_property
    def fine(self) -> View:
        return self.head.closer(face_grid(self.template, FINE_MM))

    @cached_property
    def tissue(self) -> np.ndarray:
        """The average head's tissue in this head's intensities (brain units), on the template's grid."""
        view = self.head.view
        return matched_tissue(
            self.template.tissue, view.image, view.inside & ~view.removed, self.head.level / self.head.scale
        )

    def linear_face(self) -> Face:
        coarse = Layer(self.coarse.grid, self.start, halved(self.tissue))
        box = self.middle.grid
        distance = self.seamless(self.closer(coarse, box), self.middle)
        return [coarse, Layer(box, distance, cropped(self.tissue, self.head.view.grid, box))]

    def closer(self, layer: Layer, grid: Grid) -> np.ndarray:
        """The distance of a layer on a finer grid."""
        if layer.grid.spacing == COARSE_MM:
            return self.average.detailed(layer.distance, grid)
        return upsampled(layer.distance, layer.grid, grid)

    @staticmethod
    def seamless(distance: np.ndarray, view: View) -> np.ndarray:
        """A distance on the grid of ``view``, bent onto the known skin around the hole."""
        return anchored(distance, view.distance, view.known, view.grid.spacing, SEAM_MM)

    def skin(self, face: Layer) -> Surface | None:
        """The skin in the face box at 2 mm, RAS mm of the head, where a layer puts it, if anywhere.

        Quick to make and as quick to show: what is watched while the face forms.
        """
        view, box = self.middle, self.middle.grid
        fine = face.grid.spacing < box.spacing
        distance = halved(face.distance) if fine else self.closer(face, box)
        try:
            surface = isosurface(-np.where(view.known, view.distance, distance), box.affine, 0)
        except RefaceRiskError:
            return None
        index = (surface.points - box.affine[:3, 3]) / box.spacing
        inside = np.all((index > 0.5) & (index < np.array(box.shape) - 1.5), axis=1)  # the box's own walls are no skin
        shown = surface.triangles[inside[surface.triangles].all(axis=1)]
        points = to_head(surface.points, self.template, self.registration)
        return Surface(points, shown) if len(shown) else None

    def draw(self, face: Face) -> Volume:
        distance = [(layer.distance, layer.grid) for layer in face]
        tissue = [(np.maximum(layer.tissue, DARKEST) * self.head.scale, layer.grid) for layer in face]
        return draw_face(
            self.defaced, self.removed, self.registration, self.template, distance, tissue, self.head.level
        )

    def spread(self, faces: list[Face]) -> np.ndarray:
        """Standard deviation of the signed distance over several faces, (I, J, K) float32, mm; 0 where none is."""
        layers = [(np.std([one.distance for one in same], axis=0), same[0].grid) for same in zip(*faces, strict=True)]
        points = np.argwhere(self.removed) @ self.defaced.affine[:3, :3].T + self.defaced.affine[:3, 3]
        out = np.zeros(self.defaced.shape, np.float32)
        out[self.removed] = sample_finest(layers, to_template(points, self.template, self.registration), 1, 0.0)
        return out


def estimate_removed(defaced: Volume, registration: Registration, template: Template) -> np.ndarray:
    """Guess the removed voxels of a defaced head, (I, J, K) bool: the constant region in front of what is left.

    Defacers leave one exact value. Voxels of that value that a face could fill (up to 30 mm before the average skin of
    the anterior head) and that touch the outside count as removed.
    """
    values, counts = np.unique(defaced.voxels, return_counts=True)
    constant = defaced.voxels == values[np.argmax(counts)]
    could_be_face = template.region("removable") | template.face_mask | template.ears
    could_be_face |= template.surface_region & (np.abs(template.skin_distance) < 30) & (template.brain_distance > 4)
    place = carry(could_be_face, template, Registration(registration.matrix), defaced) > 0.5
    candidate = constant & place
    solid = ndimage.binary_opening(candidate, iterations=2 if min(defaced.spacing) < 1.5 else 1)
    return candidate & ndimage.binary_dilation(solid, iterations=2)
