"""A bundle as a folder for other programs: the graph of pictures of one size, what it stands for, two examples."""

import json
import shutil
from importlib.resources import files as resources
from os import path as paths
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np

import andon
from andon import files
from andon.bundle import Bundle
from andon.engines import runtime
from andon.errors import AndonError, BundleError
from andon.export.graph import PICTURE, VERDICTS, picture_graph
from andon.export.resampling import resampling
from andon.geometry import tiling, views
from andon.geometry.regions import MOST
from andon.geometry.tiling import Place, ViewMap
from andon.geometry.views import View
from andon.inspection import Pixels
from andon.inspector import Inspector

KIND, VERSION = "andon export", 1
GRAPH, SPEC = "graph.onnx", "spec.json"
EXAMPLES = ("example.mjs", "example.cpp")
TOLERANCE = 1e-3  # of the score: so much may the graph differ from `Inspector`


def export(bundle: Bundle, folder: str | Path, size: tuple[int, int] | None = None) -> None:
    """Write graph.onnx, spec.json and the examples into a folder, all or none.

    `size` is width and height of the pictures, for a bundle that takes any size. The same bundle gives the same bytes.

    Errors: BundleError when the bundle does what the graph cannot say; AndonError when the folder is another's or
    cannot be written, and when the graph does not say what `Inspector` says; ImageError when pictures of this size
    do not hold the crop.
    """
    _check_place(Path(folder))
    width, height = _size(bundle, size)
    kind = np.uint8 if bundle.manifest.input.depth == 8 else np.uint16
    geometry = bundle.recipe.geometry
    blank = np.zeros((height, width, bundle.manifest.input.channels), kind)
    view = views.align(blank, geometry, f"a picture of {width}×{height}")
    (place,) = tiling.places(view, geometry)
    joined = tiling.collect(view, [(place, np.zeros(geometry.input, np.float32))])
    graph = picture_graph(bundle, view, place, joined).SerializeToString(deterministic=True)
    inspector = Inspector(bundle)
    _compare(graph, inspector, blank)
    members = {GRAPH: graph}
    members |= {name: resources("andon").joinpath("templates", name).read_bytes() for name in EXAMPLES}
    spec = _spec(inspector, view, place, joined)
    spec["graph"]["sha256"] = files.digest(graph)
    _write(Path(folder), members | {SPEC: (files.strict_json(spec, indent=1) + "\n").encode()})


def _size(bundle: Bundle, size: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height of the pictures. BundleError when the bundle cannot be exported."""
    recipe, taken = bundle.recipe, bundle.manifest.input
    reasons = {
        "the picture is cut into tiles (geometry.tiles)": recipe.geometry.tiles,
        "parts are registered to a reference (geometry.registration)": recipe.geometry.registration is not None,
        f"the illumination is corrected (input.light = '{recipe.input.light}')": taken.light is not None,
        "unusual pictures are INVALID (input.unusual = 'invalid')": recipe.input.unusual == "invalid",
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise BundleError(
            f"this bundle cannot be exported: {'; '.join(found)}. The exported graph is one tile of a picture that is "
            "cropped, painted and resized. Inspect with andon (`andon inspect`, `andon watch`, or Inspector in a "
            "program), or train without this setting."
        )
    if taken.size and size not in (None, taken.size):
        raise BundleError(
            f"pictures of {size[0]} × {size[1]} pixels were asked for; this bundle takes {taken.size[0]} × "
            f"{taken.size[1]} only. Leave the size out."
        )
    if not (found_size := taken.size or size):
        raise BundleError(
            "this bundle takes pictures of any size; the exported graph takes one. Name the size of the camera's "
            "pictures: --size WIDTHxHEIGHT."
        )
    return found_size


def _compare(graph: bytes, inspector: Inspector, blank: Pixels) -> None:
    """Hold the graph against `Inspector` on pictures of noise, fine and coarse. AndonError when they differ."""
    top = inspector.manifest.input.maximum or np.iinfo(blank.dtype).max
    rng = np.random.default_rng(0)
    height, width, channels = blank.shape
    fine = rng.integers(0, top + 1, blank.shape)
    coarse = rng.integers(0, top + 1, (8, 8, channels))[np.arange(height) * 8 // height][
        :, np.arange(width) * 8 // width
    ]
    session = runtime.session(graph)
    for pixels in (fine.astype(blank.dtype), coarse.astype(blank.dtype)):
        score, verdict = session.run(["score", "verdict"], {PICTURE: pixels})
        inspection = inspector.inspect(pixels)
        allowed = TOLERANCE * max(abs(inspection.score), abs(inspection.thresholds.review))
        alike = abs(float(score) - inspection.score) <= allowed or np.isnan([score, inspection.score]).all()
        if not alike or VERDICTS[int(verdict)] is not inspection.verdict:
            raise AndonError(
                f"the exported graph gives a trial picture {float(score):.6g}, {VERDICTS[int(verdict)]}; expected "
                f"{inspection.score:.6g}, {inspection.verdict}, as andon gives. Nothing was written. Inspect with "
                "andon, and report this as a bug, with the versions of OpenCV and ONNX Runtime."
            )


def _spec(inspector: Inspector, view: View, place: Place, joined: ViewMap) -> dict[str, Any]:
    """What the graph takes, does and gives, as plain data; docs/graph-elsewhere.md says what each field means."""
    taken, calibration, thresholds = inspector.manifest.input, inspector.calibration, inspector.thresholds
    (height, width), (x, y) = view.frame, view.origin
    left, top, w, h = place.inner
    tall, wide = inspector.recipe.geometry.input
    to, full = resampling(view.shape, (h, w)), int(np.iinfo(view.pixels.dtype).max)
    values, weights = calibration.units(calibration.scores, inspector.decision.per)
    usual = calibration.appearance
    return {
        "kind": KIND,
        "version": VERSION,
        "andon": andon.__version__,
        "product": inspector.recipe.product,
        "detector": inspector.manifest.detector,
        "bundle": inspector.digest,
        "decision": inspector.decision_digest,
        "graph": {"file": GRAPH, "outputs": ["score", "p_value", "verdict", "map"]},
        "input": {
            "name": PICTURE,
            "type": str(view.pixels.dtype),
            "shape": [height, width, taken.channels],
            "axes": ["row", "column", "channel"],
            "channels": "RGB" if taken.channels == 3 else "gray",
            "maximum": taken.maximum or full,
            "jpeg_reduced": taken.reduced,
        },
        "geometry": {
            "crop": [x, y, view.shape[1], view.shape[0]],
            "region": None if view.roi is None else {"inspected": view.share, "painted": full // 2},
            "resampling": {
                "method": to.method,
                "from": list(view.shape),
                "to": [h, w],
                "halves": "up" if to.half_up else "even",
                "repeated_edge": {"top": top, "bottom": tall - top - h, "left": left, "right": wide - left - w},
            },
            "map": {"shape": list(joined.raw.shape), "to_picture": joined.matrix.tolist()},
        },
        "thresholds": thresholds._asdict(),
        "verdict": {
            "values": [str(verdict) for verdict in VERDICTS],
            "rules": [
                "REJECT if the score or a value of the map is not a finite number; score is NaN then",
                "REJECT if score > thresholds.reject; null is no threshold",
                "REVIEW if score > thresholds.review",
                "PASS otherwise",
            ],
        },
        "p_value": {
            "rule": "(1 + sum of weights[i] where scores[i] >= score) / (1 + parts)",
            "parts": calibration.parts,
            "per": inspector.decision.per,
            "scores": values.tolist(),
            "weights": weights.tolist(),
        },
        "regions": {
            "rule": "connected areas of the map above the threshold, by their highest value; NaN is not above",
            "threshold": thresholds.pixel,
            "neighbours": 8,
            "min_area": inspector.min_area(view.frame),
            "most": MOST,
        },
        "refused": [
            f"pictures of another size, channel count or depth than {[height, width, taken.channels]}, "
            f"{view.pixels.dtype}",
            *([f"samples above {taken.maximum}"] if taken.maximum else []),
        ],
        "unusual": usual
        and {
            "rule": "noted by andon, not by the graph: a picture is unusual where a statistic is outside its range",
            "ranges": {
                name: [getattr(usual, name).least, getattr(usual, name).most]
                for name in ("mean", "contrast", "saturated", "dark")
            },
        },
    }


def _check_place(folder: Path) -> None:
    """Refuse a folder that holds anything but an export. AndonError."""
    try:
        if folder.exists() and not folder.is_dir():
            raise AndonError(f"{folder}: a file is in the place of the folder. Name another folder.")
        held = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
        spec = json.loads((folder / SPEC).read_bytes()) if SPEC in held else None
    except (OSError, ValueError) as error:
        reason = files.reason(error) if isinstance(error, OSError) else f"{SPEC} is not JSON"
        raise AndonError(f"{folder}: cannot be read: {reason}. Name an empty or a new folder.") from None
    if held and not (isinstance(spec, dict) and spec.get("kind") == KIND):
        raise AndonError(
            f"{folder}: contains {sorted(held)[0]} and is not an export; it is not overwritten. Name an empty or a new "
            "folder, or that of an earlier export."
        )


def _write(folder: Path, members: dict[str, bytes]) -> None:
    """Write a new folder, or the files of an earlier export, when all are on the disk; other files in it stay."""
    place = Path(paths.realpath(folder))
    files.make_folder(place.parent)
    temporary = place.with_name(f".{place.name[:40]}.{token_hex(4)}.part")
    try:
        temporary.mkdir()
        for name, data in members.items():
            files.write(temporary / name, data)
        if place.exists():
            for name in members:
                (temporary / name).replace(place / name)
        else:
            temporary.rename(place)
    except OSError as error:
        raise AndonError(
            f"{folder}: the export cannot be written: {files.reason(error)}. Free space or allow writing in "
            f"{place.parent}, or name another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
