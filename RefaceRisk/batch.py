"""The command line inside Slicer, without a window.

    Slicer --no-main-window --python-script RefaceRisk/batch.py -- deface head.nii.gz defaced.nii.gz

takes the commands and options of `refacerisk` and ends with its exit status: 0 done, 2 something that the user can
mend (told in one line), 1 anything unexpected.
"""

import sys
from pathlib import Path


class batch:  # Slicer takes every Python file beside a module for a module and looks for a class of its name
    """Keeps this file out of Slicer's list of modules."""

    def __init__(self, parent):
        parent.title = "MRIRefaceRisk batch"
        parent.categories = ["Neuroimaging"]
        parent.hidden = True
        parent.helpText = __doc__


def run(argv: list[str]) -> int:
    """The exit status of `refacerisk` with the arguments after the script's name and an optional `--`."""
    folder = str(Path(globals().get("__file__") or argv[0]).resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    from RefaceRiskLib.cli import main

    arguments = argv[1:]
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    try:
        return main(arguments)
    except SystemExit as end:  # --help, and options that do not exist
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1


if __name__ == "__main__":
    import slicer

    status = run(sys.argv)
    sys.stdout.flush()
    slicer.util.exit(status)
