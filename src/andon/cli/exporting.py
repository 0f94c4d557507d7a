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
        Path, typer.Argument(help="A new or empty folder, or that of an earlier export.", show_default=False)
    ],
    size: Annotated[
        str,
        typer.Option(help="Size of the pictures as WIDTHxHEIGHT, for a bundle that takes any.", show_default=False),
    ] = "",
    quiet: Quiet = False,
) -> None:
    """Write a bundle for a program that is not Python: graph.onnx, spec.json, examples in C++ and JavaScript.

    The graph takes the camera's picture and gives score, p-value, verdict and map. Crop, region of interest, resizing
    and thresholds are in it. Export again after `andon calibrate`.
    """
    from andon.bundle import Bundle
    from andon.export.exporting import export

    found = re.fullmatch(r"(\d{1,6})[x×](\d{1,6})", size.strip().lower())
    if size and not found:
        raise AndonError(f"--size {size}: expected width and height in pixels, as 1920x1080.")
    loaded, tell = Bundle.load(bundle), printer(quiet)
    export(loaded, folder, (int(found[1]), int(found[2])) if found else None)
    if (by := loaded.manifest.input.reduced) > 1:
        tell(
            f"for this bundle, andon decodes JPEG files at 1/{by} of their sides; the graph takes whole pictures. "
            "Scores of JPEG files differ slightly between the two, those of arrays and other files do not."
        )
    tell(f"wrote {folder}")
