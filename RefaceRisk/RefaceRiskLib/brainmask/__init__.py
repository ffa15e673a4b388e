"""A brain mask from a small 3-D network that was trained on images of any contrast.

Trained on nothing but label maps painted at random, so that it holds for T1w, T2w, PD, FLAIR and CT alike (the idea of
SynthSeg, Billot et al. 2023, and SynthStrip, Hoopes et al. 2022). Nothing is imported here and no module needs torch
or MONAI before its functions run: without them the mask is the template's, see :mod:`..tissue`.

=============  ============================================================================================
``frame``      the box that the network sees, and how intensities are brought to it
``contrasts``  images from label maps: typical and random contrasts, bias, blur, noise; the true brain
``examples``   training examples: label heads moved, bent, painted, defaced and cut
``network``    MONAI's U-Net on 4 mm blocks of 2 mm voxels; gives the signed distance to the brain
``inference``  the brain found in a head
``agreement``  registration checked by the brain that was found
``training``   ``python -m RefaceRiskLib.brainmask.training --labels DIR --out DIR``
=============  ============================================================================================
"""
