"""A conditional diffusion cascade that puts a face back on a defaced head.

``linear`` needs numpy only; the other modules need torch (and ``network`` MONAI), so nothing is imported here:
the rest of the core runs in a stock Slicer without either.

=============  ============================================================================================
``wavelets``   orthonormal 3-D Haar bands: half the size on each axis, eight times the channels
``schedule``   noise levels as log signal-to-noise ratio: schedules, sampling grids, training draws, weights
``sampler``    few-step samplers, each a short function of (denoise, x, log_snrs)
``network``    the U-Net of MONAI, preconditioned to predict the clean image
``weights``    safetensors files with a checked sha256, averaged weights, checkpoints to resume from
=============  ============================================================================================
"""
