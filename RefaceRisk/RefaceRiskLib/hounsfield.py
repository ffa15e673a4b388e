"""CT among MRI: is an image in Hounsfield units, where its skin begins, and how it looks to methods made for MRI.

Air is -1000 HU and water 0 by definition, so what must be found from the image in MRI is known in CT.
"""

from __future__ import annotations

import numpy as np

AIR_HU = -1000.0
SKIN_HU = -300.0  # between air and the skin's fat (-100), where partial volume puts the boundary
# Brightness of a T1-weighted image at these densities: air and bone dark, fluid half as bright as brain. Fat is no
# brighter than brain, or every boundary between air and tissue would get a bright rim.
_AS_MR_HU = (-400.0, -200.0, -30.0, 5.0, 35.0, 60.0, 150.0, 400.0)
_AS_MR = (0.0, 0.75, 0.7, 0.35, 0.75, 0.75, 0.6, 0.1)


def is_hounsfield(intensities: np.ndarray) -> bool:
    """Whether an image (any shape) is a CT in Hounsfield units: air near -1000 and soft tissue near 0, a good share of
    both. MRI has no such negative numbers, whatever its scaling, unless somebody shifted it to look like a CT."""
    values = np.asarray(intensities).ravel(order="K")  # as it lies in memory: no copy
    values = values[:: max(1, values.size // 200_000)]
    if values.size == 0 or values.min() > -700:
        return False
    air = np.mean((values > -1100) & (values < -850))
    soft = np.mean((values > -200) & (values < 200))
    return bool(air > 0.02 and soft > 0.02)


def as_mri(intensities: np.ndarray) -> np.ndarray:
    """A CT with the contrast of a T1-weighted MRI, float32 in 0..1; any other image as it is.

    For registration and for telling head from background; not for measuring.
    """
    if not is_hounsfield(intensities):
        return intensities
    return np.interp(intensities, _AS_MR_HU, _AS_MR).astype(np.float32)
