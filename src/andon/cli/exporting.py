"""The command that writes a bundle for other programs."""

import re
from pathlib import Path
from typing import Annotated

import typer

from andon.cli.options import BundleFile, Quiet, printer
from andon.errors import AndonError


def export(
    bundle: BundleFile,
    folder: Annotated[
        Path, typer.Argument(help="The folder to write: new, empty, or that of an earlier export.", show_default=False)
    ],
    size: Annotated[
        str,
        typer.Option(
            help="Size of the pictures, WIDTHxHEIGHT; required if the bundle takes any size.", show_default=False
        ),
    ] = "",
    quiet: Quiet = False,
) -> None:
    """Write a bundle for programs in other languages: graph.onnx, spec.json, examples in C++ and JavaScript.

    The input of the graph is a picture of the camera, its outputs are score, p-value, verdict and map. It contains
    crop, region of interest, resizing and thresholds. Export again after `andon calibrate`.
    """
    from andon.bundle import Bundle
    from andon.export.exporting import export

    match = re.fullmatch(r"(\d{1,6})[x×](\d{1,6})", size.strip().lower())
    if size and not match:
        raise AndonError(f"--size {size}: expected width and height in pixels, such as 1920x1080. Correct it.")
    loaded, tell = Bundle.load(bundle), printer(quiet)
    export(loaded, folder, (int(match[1]), int(match[2])) if match else None)
    if (by := loaded.manifest.input.reduced) > 1:
        tell(
            f"for this bundle, andon decodes JPEG files at 1/{by} of their sides; the graph takes pictures of full "
            "size. So andon and the graph give slightly different scores for JPEG files, and equal ones for all others."
        )
    tell(f"wrote {folder}")
