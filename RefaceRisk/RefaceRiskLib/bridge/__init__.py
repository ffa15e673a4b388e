"""The only code that imports slicer, MRML, qt or ctk: it joins the core to a running 3D Slicer."""
