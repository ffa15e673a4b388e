"""Muscle radiodensity: what a CT says about muscle, and how much of it a head MRI tells."""
