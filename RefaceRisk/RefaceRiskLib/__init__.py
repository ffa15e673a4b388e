"""What does defacing hide in a head MRI, what can a diffusion model bring back, and what does it cost?

The core shared by the three Slicer modules; it runs without Slicer too. Importing the package imports nothing
heavy.
"""

__version__ = "0.1.0"
