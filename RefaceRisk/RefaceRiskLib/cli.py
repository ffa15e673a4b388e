"""The command line, `refacerisk`: parses, shows progress and says in one line what went wrong.

The work itself is in `jobs` and `demo`; nothing heavier than argparse is imported before the arguments are
parsed, so that `refacerisk --help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from .errors import RefaceRiskError
from .progress import Cancelled

SUCCESS, UNEXPECTED, WRONG, INTERRUPTED = 0, 1, 2, 130

_DESCRIPTION = """What does defacing hide in a head MRI, and what can a diffusion model bring back?
Distances are in millimetres, volumes are NIfTI, NRRD, MGZ or a DICOM folder."""

_EPILOG = """examples:
  refacerisk demo
  refacerisk deface head.nii.gz defaced.nii.gz --method mri_deface --mask-out removed.nii.gz
  refacerisk reface defaced.nii.gz refaced.nii.gz --mask removed.nii.gz
  refacerisk measure head.nii.gz defaced.nii.gz refaced.nii.gz --picture faces.png

exit status: 0 done, 1 unexpected, 2 something is wrong with the input or the options, 130 cancelled"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status is 0 done, 1 unexpected, 2 the user can mend it, 130 cancelled."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
        return SUCCESS
    except RefaceRiskError as error:
        return _fail(f"refacerisk: {error}", WRONG, arguments)
    except (KeyboardInterrupt, Cancelled):
        return _fail("refacerisk: cancelled; nothing half-written was left", INTERRUPTED, arguments)
    except BrokenPipeError:
        # The reader (`| head`) has gone; Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNEXPECTED
    except Exception as error:
        line = f"refacerisk: unexpected {type(error).__name__}: {error}; --debug shows the traceback"
        return _fail(line, UNEXPECTED, arguments)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="refacerisk",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    first = (_add_deface, _add_compare, _add_montage, _add_reface, _add_measure)
    for add in (*first, _add_muscle, _add_study, _add_train, _add_demo):
        add(commands)
    return parser


# --- commands -----------------------------------------------------------------------------------------------


def _add_deface(commands) -> None:
    command = _command(
        commands,
        "deface",
        _deface,
        "remove the face from a head MRI",
        "Writes the head without its face. Every voxel outside the removed region is kept bit for bit\n"
        "and no brain voxel is touched; the verdict (ok, check or failed) and its reason are printed.",
        "refacerisk deface head.nii.gz defaced.nii.gz --method pydeface --mask-out removed.nii.gz",
        parser_class=_ListsMethods,
    )
    command.add_argument("source", metavar="IN", help="whole-head volume (file or DICOM folder)")
    command.add_argument(
        "out", metavar="OUT", help="defaced volume to write, e.g. defaced.nii.gz; for a DICOM folder also a new folder"
    )
    command.add_argument(
        "--method", default="mri_deface", metavar="M", help="defacer (default: %(default)s), see below"
    )
    command.add_argument(
        "--engine",
        default="builtin",
        choices=("builtin", "original"),
        help="our re-implementation, or the original program where it is on PATH (default: %(default)s)",
    )
    command.add_argument("--mask-out", metavar="F", help="write the removed region (1 = removed)")
    command.add_argument("--quality-out", metavar="F.json", help="write the quality figures")
    command.add_argument(
        "--picture",
        metavar="F.png",
        help="draw a page to judge it by: slices, before and after; shows the true face too",
    )
    command.add_argument(
        "--force", action="store_true", help="write the result even if brain is touched or the registration failed"
    )
    command.add_argument(
        "--apply-to",
        metavar="OTHER",
        nargs="+",
        default=[],
        help="other images of this head (T2w, FLAIR, CT): the same tissue is removed, on their own grids",
    )
    command.add_argument(
        "--apply-out", metavar="DIR", help="folder for OTHER's results, <name>_defaced.nii.gz (default: that of OUT)"
    )
    options = command.add_argument_group("options that a method may take (it says which when given another)")
    options.add_argument("--mask", metavar="F", help="interactive: what is to go (1), on the grid of IN")
    options.add_argument("--margin-mm", metavar="MM", help="distance that is kept from the brain")
    options.add_argument(
        "--fill", metavar="WHAT", help="zero, noise (as in the head's air), blur or average face (default: zero)"
    )
    options.add_argument("--blur-mm", metavar="MM", help="sigma of the blur")
    options.add_argument("--seed", type=int, metavar="N", help="seed of the noise")
    options.add_argument("--templates", metavar="DIR", help="original mri_deface: folder of its two .gca atlases")
    options.add_argument("--image-type", metavar="T", help="original mri_reface: T1, T2, FLAIR, CT ...")


_DEFACE_OPTIONS = ("margin_mm", "fill", "blur_mm", "seed", "templates", "image_type")


def _deface(arguments: argparse.Namespace) -> None:
    from . import jobs

    given = {name: getattr(arguments, name) for name in _DEFACE_OPTIONS}
    with _progress(arguments) as on_progress:
        done = jobs.deface(
            arguments.source,
            arguments.out,
            method=arguments.method,
            engine=arguments.engine,
            mask_out=arguments.mask_out,
            quality_out=arguments.quality_out,
            mask=arguments.mask,
            options={name: value for name, value in given.items() if value is not None},
            picture=arguments.picture,
            force=arguments.force,
            apply_to=arguments.apply_to,
            apply_out=arguments.apply_out,
            on_progress=on_progress,
        )
    _say(arguments, _verdict(done.record["quality"]))
    for name, record in done.record.get("carried", {}).items():
        overlap, sharpness = (record["options"][f"rigid_{figure}"] for figure in ("overlap", "sharpness"))
        rigid = f"aligned with overlap {overlap:.3f}, sharpness {sharpness:.2f}"
        _say(arguments, f"{name}: {_verdict(record['quality'])}; {rigid}")
    _say_paths(arguments, done)


def _verdict(quality: dict) -> str:
    told = f"{quality['verdict']}: {quality['reason']}" if quality["reason"] else quality["verdict"]
    share = 100 * quality["face_surface_removed"]
    return f"{told} ({share:.0f} % of the face surface gone, brain voxels touched: {quality['brain_voxels_touched']})"


def _add_compare(commands) -> None:
    command = _command(
        commands,
        "compare",
        _compare,
        "run several defacers on one head, side by side",
        "Registers the head once, runs every method on it and writes to OUT_DIR the defaced volumes, their\n"
        "masks, comparison.tsv and .json, and comparison.png (which shows the true face too).",
        "refacerisk compare head.nii.gz comparison/ --methods pydeface quickshear fsl_deface",
        parser_class=_ListsMethods,
    )
    command.add_argument("source", metavar="IN", help="whole-head volume (file or DICOM folder)")
    command.add_argument("out", metavar="OUT_DIR", help="folder for all that is written")
    command.add_argument(
        "--methods", metavar="M", nargs="+", help="defacers (default: all that need no mask), see below"
    )
    command.add_argument("--fill", metavar="F", help="zero, noise, blur or average, for all methods alike")
    command.add_argument("--no-picture", action="store_true", help="do not draw comparison.png")


def _compare(arguments: argparse.Namespace) -> None:
    from . import jobs

    with _progress(arguments) as on_progress:
        done = jobs.compare(
            arguments.source,
            arguments.out,
            methods=arguments.methods,
            picture=not arguments.no_picture,
            fill=arguments.fill,
            on_progress=on_progress,
        )
    print(jobs.comparison_table(done.record["rows"]))
    _say_paths(arguments, done)


def _add_montage(commands) -> None:
    command = _command(
        commands,
        "montage",
        _montage,
        "one sheet of many defaced heads, to look them over",
        "Draws each defaced head with the verdict that `refacerisk deface` left in the JSON file beside it;\n"
        "what is not ok comes first.",
        "refacerisk montage defaced/ --out montage.png",
    )
    command.add_argument("sources", metavar="DIR|FILE", nargs="+", help="defaced volumes, or folders that hold them")
    command.add_argument("--out", required=True, metavar="F.png", help="the sheet to write")


def _montage(arguments: argparse.Namespace) -> None:
    from . import jobs

    with _progress(arguments) as on_progress:
        done = jobs.montage(arguments.sources, arguments.out, on_progress=on_progress)
    _say_paths(arguments, done)


def _add_reface(commands) -> None:
    command = _command(
        commands,
        "reface",
        _reface,
        "put a synthetic face on a defaced head MRI",
        "Fills the removed region by a model. The result is SYNTHETIC and marked so in its header and its\n"
        "JSON sidecar. Without --mask the removed region is estimated from the defaced image.",
        "refacerisk reface defaced.nii.gz refaced.nii.gz --mask removed.nii.gz",
    )
    command.add_argument("source", metavar="DEFACED", help="defaced volume")
    command.add_argument("out", metavar="OUT", help="refaced volume to write")
    command.add_argument("--mask", metavar="F", help="region to fill (1 = removed), on the grid of DEFACED")
    command.add_argument(
        "--model",
        default="reference",
        metavar="NAME|FOLDER",
        help="reference (diffusion), linear, average, or a folder of weights (default: %(default)s)",
    )
    command.add_argument(
        "--samples", type=_positive, default=1, metavar="N", help="faces to draw (default: %(default)s)"
    )
    command.add_argument("--samples-out", metavar="DIR", help="write every drawn face and their spread there")
    command.add_argument("--steps", type=_positive, metavar="N", help="denoising steps a stage (default: the model's)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draw (default: %(default)s)")
    command.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, mps (default: auto)")


def _reface(arguments: argparse.Namespace) -> None:
    from . import jobs

    with _progress(arguments) as on_progress:
        done = jobs.reface(
            arguments.source,
            arguments.out,
            mask=arguments.mask,
            model=arguments.model,
            samples=arguments.samples,
            steps=arguments.steps,
            seed=arguments.seed,
            device=arguments.device,
            samples_out=arguments.samples_out,
            on_progress=on_progress,
        )
    _say_paths(arguments, done)


def _add_measure(commands) -> None:
    command = _command(
        commands,
        "measure",
        _measure,
        "distance between the true face and other versions of it",
        "Distance in mm from the skin of ORIGINAL to the skin of each OTHER, over the face (front half of\n"
        "the head, crown to chin); with --removed also over what the defacer took alone.",
        "refacerisk measure head.nii.gz refaced.nii.gz --out distances.tsv --picture faces.png",
    )
    command.add_argument("original", metavar="ORIGINAL", help="whole-head volume with its true face")
    command.add_argument("others", metavar="OTHER", nargs="+", help="defaced or refaced versions of it")
    command.add_argument("--out", metavar="F", help="write the distances: .json or .tsv")
    command.add_argument("--picture", metavar="F.png", help="draw the faces, five views each; shows the true face too")
    command.add_argument("--removed", metavar="MASK", help="removed region (1 = removed), on the grid of ORIGINAL")


def _measure(arguments: argparse.Namespace) -> None:
    from . import jobs

    with _progress(arguments) as on_progress:
        done = jobs.measure(
            arguments.original,
            arguments.others,
            out=arguments.out,
            picture=arguments.picture,
            removed=arguments.removed,
            on_progress=on_progress,
        )
    rows = done.record["rows"]
    print(jobs.table([row for row in rows if row["region"] == "face"]))
    taken = [row for row in rows if row["region"] == "removed"]
    if taken:
        print("\nin the removed region alone:\n" + jobs.table(taken))
    _say_paths(arguments, done)


def _add_study(commands) -> None:
    command = _command(
        commands,
        "study",
        _study,
        "deface, reface and measure a whole cohort, and link the faces",
        "Runs every defacer on every head of IN, puts faces back by diffusion and by the average face, measures\n"
        "all against the original and ranks every processed face among the originals of this cohort. Writes\n"
        "distances.tsv, linkage.tsv, tests.tsv, summary.json, report.html and the volumes (BIDS derivatives).\n"
        "Where the table has muscle (hu_SITE or ct_SITE, with age and sex), predicts it from each kind of image.\n"
        "Given again, it goes on where it stopped and computes only what has changed.",
        "refacerisk study my-bids-folder results --methods all --workers 4",
        parser_class=_ListsMethods,
    )
    command.add_argument("source", metavar="IN", help="BIDS data set, or a table (TSV: participant_id, head)")
    command.add_argument("out", metavar="OUT", help="folder for the results")
    command.add_argument(
        "--methods", metavar="M", nargs="+", default=["all"], help="defacers (default: all but interactive), see below"
    )
    command.add_argument(
        "--models",
        metavar="NAME|FOLDER",
        nargs="+",
        default=["reference", "average"],
        help="refacers: reference (diffusion), average, linear, folders of weights (default: reference average)",
    )
    command.add_argument("--steps", type=_positive, metavar="N", help="denoising steps a stage (default: 4)")
    command.add_argument(
        "--samples", type=_positive, default=1, metavar="N", help="faces to draw and average (default: %(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws (default: %(default)s)")
    command.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--workers",
        type=_not_negative,
        metavar="N",
        help="processes (default: as many as cores and memory allow); 0: no cluster, all in this process",
    )
    where.add_argument("--scheduler", metavar="ADDRESS", help="use the dask cluster of this scheduler, tcp://host:8786")
    command.add_argument("--no-linkage", action="store_true", help="do not rank faces among the originals")
    command.add_argument("--no-muscle", action="store_true", help="do not predict muscle, though the table has it")
    command.add_argument(
        "--pictures", metavar="ID", nargs="+", default=[], help="draw the faces of these participants; shows true faces"
    )
    command.add_argument("--verify", action="store_true", help="hash all files of earlier runs, trust no times")
    command.add_argument("--strict", action="store_true", help="exit with 2 if any participant failed")


def _study(arguments: argparse.Namespace) -> None:
    from .study.run import run_study

    with _progress(arguments) as on_progress:
        done = run_study(
            arguments.source,
            arguments.out,
            methods=arguments.methods,
            models=arguments.models,
            steps=arguments.steps,
            samples=arguments.samples,
            seed=arguments.seed,
            device=arguments.device,
            workers=arguments.workers,
            scheduler=arguments.scheduler,
            linkage=not arguments.no_linkage,
            muscle=not arguments.no_muscle,
            pictures=arguments.pictures,
            verify=arguments.verify,
            strict=arguments.strict,
            on_note=None if arguments.quiet else lambda line: print(line, file=sys.stderr),
            on_progress=on_progress,
        )
    for row in done.record["failed"]:
        _say(arguments, f"failed: {row['participant_id']}: {row['reason']}")
    print(done.record["answer"])
    for line in done.record.get("muscle", {}).get("in_words", []):
        print(line)
    _say_paths(arguments, done)


def _add_muscle(commands) -> None:
    commands._parser_class = argparse.ArgumentParser
    group = commands.add_parser(
        "muscle",
        help="muscle in a CT, and how much of it the head tells",
        description="Measures the radiodensity of muscle in CTs, and how well images of the head predict it.",
    )
    kinds = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_muscle_measure(kinds)
    _add_muscle_fit(kinds)


def _add_muscle_measure(commands) -> None:
    command = _command(
        commands,
        "measure",
        _muscle_measure,
        "radiodensity of muscles in a CT",
        "Mean, median and SD in HU, area, and the share of low attenuation of muscles: those of a label map, or the\n"
        "muscle of a site, found without a network in one axial slice. The CT has to be in Hounsfield units.",
        "refacerisk muscle measure ct.nii.gz --site thigh --out thigh.json --picture thigh.png",
    )
    command.add_argument("source", metavar="CT", help="folder of DICOM slices, or a file in HU")
    command.add_argument("--labels", metavar="F", help="label map of the CT, as TotalSegmentator writes")
    command.add_argument(
        "--label", metavar="N", nargs="+", help="labels to measure, numbers or names (default: the muscles among them)"
    )
    command.add_argument("--site", metavar="S", help="abdomen, thigh or shin: find the muscle without a label map")
    command.add_argument("--slice", type=int, metavar="N", help="axial slice, from 0 (default: the middle one)")
    command.add_argument("--roi", metavar="F", help="mask or label map whose middle names the slice")
    command.add_argument("--slab", type=float, default=0.0, metavar="MM", help="measure so much around that slice")
    command.add_argument("--out", metavar="F.json", help="write the figures")
    command.add_argument("--picture", metavar="F.png", help="draw the slice and what was taken for muscle")


def _muscle_measure(arguments: argparse.Namespace) -> None:
    from . import jobs

    with _progress(arguments) as on_progress:
        done = jobs.muscle_measure(
            arguments.source,
            out=arguments.out,
            labels=arguments.labels,
            wanted=arguments.label,
            site=arguments.site,
            slice_number=arguments.slice,
            roi=arguments.roi,
            slab_mm=arguments.slab,
            picture=arguments.picture,
            on_progress=on_progress,
        )
    for row in done.record["rows"]:
        print(
            f"{row['site'] or row['label']}: mean {row['mean_hu']:.1f} HU, median {row['median_hu']:.1f}, "
            f"SD {row['sd_hu']:.1f}, {row['area_mm2']:.0f} mm2, low attenuation {row['low_attenuation_share']:.0%}"
        )
    tilt = done.record["gantry_tilt_degrees"]
    if tilt > 1:
        _say(arguments, f"the gantry was tilted by {tilt:.1f} degrees: areas are those of the tilted slices")
    _say_paths(arguments, done)


def _add_muscle_fit(commands) -> None:
    command = _command(
        commands,
        "fit",
        _muscle_fit,
        "predict muscle from the head, for each kind of image",
        "Makes the image types of every head (original, defaced, skull-stripped, refaced, average face), predicts\n"
        "muscle HU from each out of fold, age and sex regressed out, and writes tables, figure.png and report.html.\n"
        "An interrupted run goes on where it stopped. Rows that cannot be used are listed in excluded.tsv.",
        "refacerisk muscle fit participants.tsv --out study/",
    )
    command.add_argument(
        "source", metavar="PARTICIPANTS.tsv", help="participant_id, head, age, sex, and hu_SITE or ct_SITE columns"
    )
    command.add_argument("--out", required=True, metavar="DIR", help="folder for all that is written")
    command.add_argument("--target", metavar="COLUMN", nargs="+", help="columns to predict (default: hu_* and ct_*)")
    command.add_argument("--types", metavar="T", nargs="+", help="image types (default: all)")
    command.add_argument("--images", metavar="DIR", help="folder that keeps the images (default: below --out)")
    command.add_argument("--predictor", default="light", metavar="P", help="light or resnet (default: %(default)s)")
    for name, default, what in (
        ("folds", 5, "folds of a repeat"),
        ("repeats", 10, "repeats of the validation"),
        ("resamples", 1000, "bootstrap resamples"),
    ):
        command.add_argument(f"--{name}", type=_positive, default=default, metavar="N", help=f"{what} (%(default)s)")
    command.add_argument(
        "--permutations", type=int, default=999, metavar="N", help="shuffled targets, light only (%(default)s)"
    )
    command.add_argument("--interval", default="percentile", metavar="I", help="percentile or bca (%(default)s)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of folds and resamples (%(default)s)")
    command.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda (default: auto)")


_FIT_OPTIONS = ("predictor", "folds", "repeats", "resamples", "permutations", "interval", "seed", "device")


def _muscle_fit(arguments: argparse.Namespace) -> None:
    from . import jobs

    options = {name: getattr(arguments, name) for name in _FIT_OPTIONS} | {"targets": arguments.target}
    options |= {} if arguments.types is None else {"types": arguments.types}
    with _progress(arguments) as on_progress:
        done = jobs.muscle_fit(
            arguments.source, arguments.out, images=arguments.images, on_progress=on_progress, **options
        )
    for row in done.record["correlations"]:
        interval = f"[{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
        print(f"{row['target']:<12} {row['image']:<13} n = {row['n']}  rho {row['rho']:.2f} {interval}")
    for line in done.record["in_words"]:
        print(line)
    for line in done.record["left_out"]:
        print(f"left out: {line}")
    _say_paths(arguments, done)


def _add_train(commands) -> None:
    command = _command(
        commands,
        "train",
        _train,
        "train one stage of the refacing model",
        "Trains on whole heads with their faces; interrupted runs go on with --resume, and end with the same weights.\n"
        "Start it under torchrun to use several GPUs: torchrun --nproc-per-node 4 -m RefaceRiskLib.cli train ...\n"
        "TensorBoard, where installed, shows losses and pictures: tensorboard --logdir OUT.",
        "refacerisk train coarse --data heads/ --out weights/",
    )
    command.add_argument("stage", metavar="STAGE", help="linear, then coarse, middle and fine (for heads of 1 mm)")
    command.add_argument("--data", required=True, metavar="DIR_OR_TSV", help="whole heads: folder, BIDS or a table")
    command.add_argument("--out", required=True, metavar="DIR", help="folder for weights, checkpoints and losses")
    command.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    command.add_argument("--steps", type=_positive, default=4000, metavar="N", help="in all (default: %(default)s)")
    command.add_argument("--batch", type=_positive, default=1, metavar="N", help="heads a step and process (default 1)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: %(default)s)")
    command.add_argument("--minutes", type=float, metavar="N", help="end earlier: after so many minutes")


def _train(arguments: argparse.Namespace) -> None:
    from . import jobs

    names = ("resume", "steps", "batch", "seed", "minutes")
    options = {name: getattr(arguments, name) for name in names}
    with _progress(arguments) as on_progress:
        done = jobs.train(arguments.stage, arguments.data, arguments.out, on_progress=on_progress, **options)
    _say_paths(arguments, done)


def _add_demo(commands) -> None:
    command = _command(
        commands,
        "demo",
        _demo,
        "deface, reface and measure a real head, with a report",
        "Fetches a public 1 mm head through pip (20 MB, once; kept in the user's cache folder), defaces it,\n"
        "refaces it by diffusion and by the average face, and writes distances.tsv, faces.png, report.html\n"
        "and the volumes. About 3 minutes on 2 cores.",
        "refacerisk demo my-report --input head.nii.gz",
    )
    command.add_argument(
        "out", metavar="OUT", nargs="?", default="refacerisk-demo", help="folder (default: %(default)s)"
    )
    command.add_argument("--input", metavar="F", help="your own whole-head volume instead of the public one")
    command.add_argument("--method", default="mri_deface", metavar="M", help="defacer (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draw (default: %(default)s)")
    command.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, mps (default: auto)")


def _demo(arguments: argparse.Namespace) -> None:
    from . import demo, jobs

    with _progress(arguments) as on_progress:
        done = demo.run_demo(
            arguments.out,
            input=arguments.input,
            method=arguments.method,
            seed=arguments.seed,
            device=arguments.device,
            on_progress=on_progress,
        )
    print(jobs.table([row for row in done.record["rows"] if row["region"] == "face"]))
    _say(arguments, "\n" + done.record["answer"] + "\n")
    _say_paths(arguments, done)


# --- what they share ----------------------------------------------------------------------------------------


def _command(
    commands,
    name: str,
    run: Callable,
    summary: str,
    description: str,
    example: str,
    parser_class=argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    commands._parser_class = parser_class  # the class that `add_parser` makes; argparse has no public way to say it
    command = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    shown = command.add_argument_group("what is shown")
    shown.add_argument("--quiet", action="store_true", help="no progress and no notes; results and errors only")
    shown.add_argument("--json-progress", action="store_true", help="progress as JSON lines on stderr instead of a bar")
    shown.add_argument("--debug", action="store_true", help="show the traceback when something unexpected happens")
    return command


class _ListsMethods(argparse.ArgumentParser):
    """Adds the registry of defacers to its help; reading that imports the imaging libraries, so only now."""

    def format_help(self) -> str:
        import textwrap

        from .jobs import defacing_methods, original_programs

        def listed(rows: dict[str, str]) -> str:
            return "\n".join(
                textwrap.fill(f"{name:<14} {summary}", 100, initial_indent="  ", subsequent_indent=" " * 17)
                for name, summary in rows.items()
            )

        return (
            f"{super().format_help().rstrip()}\n\nmethods (for M):\n{listed(defacing_methods())}\n"
            f"\nprograms that --engine original runs, where they are on PATH:\n{listed(original_programs())}\n"
        )


class _Version(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        from . import __version__

        print(f"refacerisk {__version__}")
        parser.exit()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return number


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0")
    return number


@contextlib.contextmanager
def _progress(arguments: argparse.Namespace) -> Iterator[Callable | None]:
    """The callback for progress, on stderr: JSON lines, nothing, or a bar with the time left."""
    from . import progress

    if arguments.json_progress:
        yield progress.json_lines(sys.stderr)
    elif arguments.quiet:
        yield None
    else:
        with progress.terminal_bar() as bar:
            yield bar


def _say(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.quiet:
        print(text)


def _say_paths(arguments: argparse.Namespace, done) -> None:
    for name, path in done.outputs.items():
        _say(arguments, f"{name}: {path}")


def _fail(line: str, status: int, arguments: argparse.Namespace) -> int:
    if arguments.debug and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    print(" ".join(line.split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
