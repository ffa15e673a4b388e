"""CT-like slices of abdomen, thighs and shins of which the muscle is known: its place, its HU, the fat in it.

Shapes are drawn at a third of a voxel and averaged, so that edges are shared between tissues as in a scan; noise is
correlated over 1 mm as a reconstruction filter leaves it. The person lies on a table, in clothes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..volumes import Volume
from .ct import MUSCLE_HU

AIR, FAT, ORGAN, SKIN, MARROW, CORTEX, SPONGY, TABLE, CLOTH = -1000, -100, 40, 30, -30, 1100, 190, 150, -600
SITES = ("abdomen", "thigh", "shin")
_FINER = 3


@dataclass(frozen=True, eq=False)
class Phantom:
    """`ct` (I, J, K) int16 HU. muscle (I, J, K) bool: voxels that are muscle by half or more; left: those of the left
    half. area_mm2 : exact area of a slice. clean_hu : mean of the noise-free CT over those voxels of `muscle` that are
    not denser than any muscle: edges shared with fat count, those shared with bone do not. hu : of the muscle itself,
    with the fat in it."""

    ct: Volume
    muscle: np.ndarray
    left: np.ndarray
    area_mm2: float
    clean_hu: float
    hu: float


def phantom(
    site: str,
    hu: float = 50.0,
    infiltration: float = 0.1,
    noise: float = 10.0,
    seed: int = 0,
    spacing: float = 1.0,
    slices: int = 5,
    size: float = 1.0,
) -> Phantom:
    """Draw a site. hu : of lean muscle. infiltration : share of fat within the bundles, more in some than in others
    (each per cent takes 1.5 HU off). noise : standard deviation in HU. size : of the person, 1 for the average."""
    if site not in SITES:
        raise ValueError(f"unknown site {site!r}: {', '.join(SITES)}")
    rng = np.random.default_rng(seed)
    half = np.array([210.0, 160.0] if site == "abdomen" else [200.0, 110.0]) * max(1.0, size)
    fine = spacing / _FINER
    count = (2 * half / spacing).astype(int) * _FINER
    axes = [(np.arange(n) - (n - 1) / 2) * fine for n in count]
    x, y = np.meshgrid(*axes, indexing="ij")
    canvas = _Canvas(x, y)
    {"abdomen": _abdomen, "thigh": _thighs, "shin": _shins}[site](canvas, size)
    # Fat within the bundles varies over some 20 mm, by half of its mean.
    texture = ndimage.gaussian_filter(rng.standard_normal(x.shape), 8 / fine)
    share = np.clip(infiltration * (1 + 0.5 * texture / (texture[canvas.muscle].std() or 1)), 0, 0.9)
    image = canvas.image
    image[canvas.muscle] = (hu + share * (FAT - hu))[canvas.muscle]
    true_hu = float(image[canvas.muscle].mean())
    clean, muscle = _coarser(image), _coarser(canvas.muscle.astype(np.float32)) >= 0.5
    picture = ndimage.gaussian_filter(rng.standard_normal((*clean.shape, slices)), (0.6 / spacing, 0.6 / spacing, 0))
    ct = clean[:, :, None] + noise * picture / picture.std()
    affine = np.diag([spacing, spacing, 5.0, 1.0])
    affine[:2, 3] = -half
    whole = np.repeat(muscle[:, :, None], slices, axis=2)
    volume = Volume(np.rint(np.clip(ct, -1024, 3071)).astype(np.int16), affine)
    left = whole & (np.arange(whole.shape[0]) < whole.shape[0] / 2)[:, None, None]
    window = clean[muscle & (clean <= MUSCLE_HU[1])]
    return Phantom(volume, whole, left, float(canvas.muscle.sum() * fine**2), float(window.mean()), true_hu)


def _coarser(fine: np.ndarray) -> np.ndarray:
    i, j = fine.shape
    return fine.reshape(i // _FINER, _FINER, j // _FINER, _FINER).mean(axis=(1, 3))


class _Canvas:
    """HU on a fine grid, x to the right of the person and y to the front, in mm; what is drawn later covers."""

    def __init__(self, x: np.ndarray, y: np.ndarray):
        self._x, self._y = x, y
        self.image = np.full(x.shape, float(AIR))
        self.muscle = np.zeros(x.shape, bool)

    def ellipse(self, x: float, y: float, a: float, b: float) -> np.ndarray:
        return ((self._x - x) / a) ** 2 + ((self._y - y) / b) ** 2 <= 1

    def stripe(self, x: float, y: float, degrees: float, width: float) -> np.ndarray:
        turn = np.radians(degrees)
        return np.abs((self._x - x) * np.sin(turn) - (self._y - y) * np.cos(turn)) <= width / 2

    def fill(self, where: np.ndarray, hu: float) -> None:
        self.image[where] = hu
        self.muscle[where] = False

    def put_muscle(self, where: np.ndarray) -> None:
        self.muscle |= where

    def bed(self, below: float) -> None:
        """A curved table under the person."""
        depth = self._y - (below - 6 + self._x**2 / 900)
        self.fill((np.abs(depth) < 2) & (np.abs(self._x) < 190), TABLE)


def _limb(canvas: _Canvas, x: float, a: float, b: float, fat: float) -> np.ndarray:
    """Clothes, skin and fat of a limb; returns what its fascia encloses."""
    canvas.fill(canvas.ellipse(x, 0, a + 3, b + 3) & ~canvas.ellipse(x, 0, a + 2, b + 2), CLOTH)
    canvas.fill(canvas.ellipse(x, 0, a, b), SKIN)
    canvas.fill(canvas.ellipse(x, 0, a - 2, b - 2), FAT)
    return canvas.ellipse(x, 0, a - 2 - fat, b - 2 - fat)


def _bone(canvas: _Canvas, x: float, y: float, radius: float, cortex: float) -> None:
    canvas.fill(canvas.ellipse(x, y, radius, radius), CORTEX)
    canvas.fill(canvas.ellipse(x, y, radius - cortex, radius - cortex), MARROW)


def _thighs(canvas: _Canvas, size: float) -> None:
    canvas.bed(-85 * size)
    for side in (-1, 1):
        x = 96 * side * size
        inside = _limb(canvas, x, 82 * size, 80 * size, 12 * size)
        canvas.put_muscle(inside)
        for degrees in (20, 95, 160):  # fat between the compartments
            canvas.fill(inside & canvas.stripe(x, 5, degrees * side, 5.0), FAT)
        _bone(canvas, x, 8, 14 * size, 5)


def _shins(canvas: _Canvas, size: float) -> None:
    canvas.bed(-65 * size)
    for side in (-1, 1):
        x = 70 * side * size
        inside = _limb(canvas, x, 56 * size, 58 * size, 7 * size)
        canvas.put_muscle(inside)
        canvas.fill(inside & canvas.stripe(x, -6, 8.0 * side, 5.0), FAT)
        _bone(canvas, x - 12 * side, 24 * size, 15 * size, 5)
        _bone(canvas, x + 26 * side * size, 6, 7 * size, 2.5)


def _abdomen(canvas: _Canvas, size: float) -> None:
    canvas.bed(-112 * size)
    inside = _limb(canvas, 0, 175 * size, 110 * size, 20 * size)
    cavity = canvas.ellipse(0, 4 * size, 139 * size, 74 * size)
    canvas.put_muscle(inside)
    canvas.fill(cavity, FAT)
    canvas.fill(canvas.ellipse(88 * size, 28 * size, 54 * size, 36 * size) & cavity, ORGAN)  # liver, against the wall
    canvas.fill(canvas.ellipse(-62 * size, 15 * size, 30 * size, 26 * size) & cavity, ORGAN)  # bowel
    for side in (-1, 1):
        canvas.fill(canvas.ellipse(78 * side * size, -20 * size, 19 * size, 22 * size) & cavity, ORGAN)  # kidney
        back = canvas.ellipse(34 * side * size, -62 * size, 33 * size, 22 * size)
        canvas.put_muscle(back & inside)
        canvas.image[back & inside] = 0.0
        canvas.put_muscle(canvas.ellipse(36 * side * size, -26 * size, 13 * size, 17 * size))  # psoas
    canvas.fill(canvas.ellipse(0, -20 * size, 23 * size, 19 * size), CORTEX)
    canvas.fill(canvas.ellipse(0, -20 * size, 20 * size, 16 * size), SPONGY)
    spinous = canvas.ellipse(0, -58 * size, 5 * size, 24 * size)
    canvas.fill(spinous, CORTEX)
