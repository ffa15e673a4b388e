"""Registration checked by the brain that was found: two ways that know nothing of each other must agree.

Registration against a T1w template can settle on a wrong pose in T2w or PD images and still look good by its own
figures. The network's brain needs no template and no contrast.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..progress import OnProgress
from ..registration import Registration, carry, register
from ..template import Template
from ..volumes import Volume
from .inference import FAR_MM, FoundBrain

OK_AGREEMENT = 0.85
"""Overlap (Dice) of the two brains below which a person should look."""


def agreement(found: FoundBrain, template: Template, registration: Registration) -> float:
    """Dice of the brain that was found and the template's carried by a registration, 0..1."""
    here = Volume(np.zeros(found.grid.shape, np.uint8), found.grid.affine)
    carried = carry(template.brain_distance, template, registration, here, cval=FAR_MM) <= 0
    return float(2 * (carried & found.mask).sum() / max(carried.sum() + found.mask.sum(), 1))


def register_checked(
    head: Volume,
    template: Template,
    found: FoundBrain | None,
    deformable: bool = False,
    on_progress: OnProgress | None = None,
) -> Registration:
    """:func:`..registration.register`, its verdict at best ``check`` where its brain is not the one that was found.

    Without a found brain (None) nothing is checked.
    """
    done = register(head, template, deformable, on_progress=on_progress)
    if found is None or done.quality.verdict != "ok" or agreement(found, template, done) >= OK_AGREEMENT:
        return done
    reason = "the brain in the image is not where the registration puts it"
    return replace(done, quality=replace(done.quality, verdict="check", reason=reason))
