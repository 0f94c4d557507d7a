"""part.andon: one ZIP archive with the graph, the recipe, the calibration and a manifest of digests.

It contains no pickle. Nothing in it is executed or unpacked to disk.
"""

import hashlib
import io
import json
import math
import os
import platform
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from andon import files
from andon.calibration import Calibration
from andon.engines import wire
from andon.errors import BundleError, ImageError
from andon.geometry.registration import Reference
from andon.pictures.image import Input
from andon.recipe import Recipe

FORMAT = 1
MEMBERS = {  # name: largest unpacked size in bytes
    "manifest.json": 16 * 1024**2,
    "graph.onnx": 2 * 1024**3,
    "recipe.toml": 16 * 1024**2,
    "calibration.json": 16 * 1024**2,
    "curve.csv": 16 * 1024**2,
    "reference.png": 2 * 1024**3,
    "highest.jpg": 16 * 1024**2,
}
REQUIRED = sorted(set(MEMBERS) - {"curve.csv", "reference.png", "highest.jpg"})
MAX_BYTES = sum(MEMBERS.values())  # of a bundle
DIGITS = 16  # leading digits of an image's SHA-256 that identify it in the manifest


class Manifest(BaseModel):
    """Provenance of a bundle, and the digests of its members."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    created: str  # ISO 8601, UTC
    seed: int
    detector: str
    input: Input
    versions: dict[str, str]  # package → version, of andon, Python and the packages used in training
    machine: str
    data: dict[str, Any]  # counts, and the digest of all training images
    timings: dict[str, float]  # step → seconds
    parity: dict[str, float]  # engine → largest difference from the fitted detector, as a share of the score range
    history: list[str] = []  # changes since training
    learnt: list[str] = []  # the first DIGITS of the SHA-256 of each training image
    digests: dict[str, str] = {}  # member → SHA-256

    def learnt_from(self, digests: Iterable[str]) -> list[bool]:
        """For each SHA-256 of an image file: whether it is a training image, so that its score is too low."""
        training = set(self.learnt)
        return [digest[:DIGITS] in training for digest in digests]


@dataclass(frozen=True, eq=False)
class Bundle:
    """The contents of `part.andon`."""

    graph: bytes  # serialised ONNX
    recipe: Recipe
    calibration: Calibration
    manifest: Manifest
    curve: str = ""  # CSV: the loss of each step of gradient training
    reference: bytes = b""  # PNG: the reference picture, if the recipe uses registration
    sheet: bytes = b""  # JPEG: the held-out images with the highest scores, which set the thresholds

    def __repr__(self) -> str:
        """Name product and detector; the contents are megabytes."""
        return f"<Bundle of {self.recipe.product or 'a product'}: {self.manifest.detector}, {len(self.graph)} bytes>"

    def save(self, path: str | Path) -> None:
        """Write the bundle, completely or not at all. AndonError as `check_writable`."""
        check_writable(path)
        members = {
            "graph.onnx": self.graph,
            "recipe.toml": self.recipe.dump().encode(),
            "calibration.json": self.calibration.model_dump_json(indent=1).encode(),
        }
        if self.curve:
            members["curve.csv"] = self.curve.encode()
        if self.reference:
            members["reference.png"] = self.reference
        if self.sheet:
            members["highest.jpg"] = self.sheet
        digests = {name: files.digest(data) for name, data in members.items()}
        manifest = self.manifest.model_copy(update={"digests": digests}).model_dump_json(indent=1).encode()
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.comment = _seal(manifest)
            for name, data in {"manifest.json": manifest, **members}.items():
                # Weights hardly shrink, and a start would wait for them.
                kind = zipfile.ZIP_STORED if name == "graph.onnx" else zipfile.ZIP_DEFLATED
                archive.writestr(zipfile.ZipInfo(name), data, kind)
        files.write(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "Bundle":
        """Read and verify a bundle. BundleError when the file is no bundle, or is damaged."""
        path = Path(path)
        members = _unpack(_read(path), path)
        with _parser_errors(path):
            version = _json(members["manifest.json"]).get("format")
            if version != FORMAT:
                raise BundleError(
                    f"{path}: bundle format {version}; this andon reads format {FORMAT}. "
                    "Update andon, or train the bundle again."
                )
            manifest = Manifest.model_validate_json(members["manifest.json"])
            _verify(manifest, members, path)
            recipe = Recipe.parse(members["recipe.toml"].decode(), "recipe.toml")
            _json(members["calibration.json"])
            calibration = Calibration.model_validate_json(members["calibration.json"])
            curve = members.get("curve.csv", b"").decode()
            wire.check(members["graph.onnx"])
        reference = members.get("reference.png", b"")
        if bool(reference) != (recipe.geometry.registration is not None):
            raise BundleError(
                f"{path}: {'contains a' if reference else 'lacks its'} reference.png, although its recipe "
                f"{'uses no' if reference else 'uses'} registration. Train the bundle again."
            )
        sheet = members.get("highest.jpg", b"")
        return cls(members["graph.onnx"], recipe, calibration, manifest, curve, reference, sheet)

    def load_reference(self) -> Reference | None:
        """Prepare the reference of the registration; None if the recipe uses none.

        Errors: BundleError when parts cannot be registered to the picture.
        """
        settings = self.recipe.geometry.registration
        if settings is None:
            return None
        try:
            return Reference(self.reference, settings, "reference.png")
        except ImageError as error:
            raise BundleError(f"the bundle's reference is not usable: {error} Train the bundle again.") from None

    def digest(self) -> str:
        """SHA-256 over the digests of graph, recipe, calibration and reference; it identifies the bundle in records.

        Paths of images in the recipe are excluded, because they change no decision.
        """
        parts = [
            self.graph,
            self.recipe.without_paths().dump().encode(),
            self.calibration.model_dump_json(indent=1).encode(),
        ]
        if self.reference:
            parts.append(self.reference)
        return files.digest("".join(files.digest(part) for part in parts).encode())

    def revise(self, event: str, **parts: Any) -> "Bundle":
        """Return a copy with these fields replaced and `event` added to its history."""
        manifest = self.manifest.model_copy(update={"history": [*self.manifest.history, event]})
        return replace(self, manifest=manifest, **parts)


def check_writable(path: str | Path) -> None:
    """Check, before long work, that a bundle can be written here. Only bundles and empty files are overwritten.

    Errors: BundleError when another file exists here; AndonError as `files.writing`.
    """
    path = Path(path)
    files.check_writable(path)
    if not path.exists():
        return
    end = b"a device"
    if files.is_file(path):
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, io.SEEK_END) - len(_seal(b""))))
            end = file.read()
    if end and not end.startswith(_SEALED):
        raise BundleError(f"{path}: this file exists and is not a bundle; it is not overwritten. Choose another path.")


def _verify(manifest: Manifest, members: dict[str, bytes], path: Path) -> None:
    """Compare every member with its digest, before it is parsed."""
    if set(manifest.digests) != set(members) - {"manifest.json"}:
        raise BundleError(
            f"{path}: manifest.json lists digests of {', '.join(sorted(manifest.digests)) or 'no members'}; expected "
            f"{', '.join(sorted(set(members) - {'manifest.json'}))}. Use the original bundle."
        )
    for name, digest in manifest.digests.items():
        if files.digest(members[name]) != digest:
            raise BundleError(f"{path}: {name} was altered after training. Use the original bundle.")


@contextmanager
def _parser_errors(path: Path) -> Iterator[None]:
    """Convert every error of a parser into a BundleError that names the file: the bytes are not trusted."""
    try:
        yield
    except (MemoryError, BundleError) as error:
        if isinstance(error, MemoryError) or str(error).startswith(str(path)):
            raise
        raise BundleError(f"{path}: {error}") from None
    except Exception as error:
        raise BundleError(
            f"{path}: damaged or not a bundle: {error or type(error).__name__}. "
            "Copy the bundle again, or train it again."
        ) from error


def _read(path: Path) -> bytes:
    """Read a file, if it starts like a bundle and is at most MAX_BYTES long."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(len(_START))
            if data == _START and size <= MAX_BYTES:
                data += file.read(size)  # not MAX_BYTES: `read` allocates as much at once
    except (OSError, ValueError) as error:  # ValueError: an invalid file name
        reason = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"{path}: cannot be read ({reason}). Expected a bundle made by `andon train`.") from None
    if not data.startswith(_START) or size > MAX_BYTES:
        raise BundleError(f"{path}: not a bundle ({size} bytes). Expected a file made by `andon train`.")
    return data


def _unpack(data: bytes, path: Path) -> dict[str, bytes]:
    """Return the members of a bundle. BundleError when one is missing, unknown, too large or damaged."""
    with _parser_errors(path):
        try:
            archive = zipfile.ZipFile(io.BytesIO(data))
            entries = {entry.filename: entry for entry in archive.infolist()}
            expected = set(REQUIRED) <= set(entries) <= set(MEMBERS)
            if not expected or len(archive.infolist()) != len(entries):
                raise BundleError(
                    f"{path}: a ZIP file with {', '.join(sorted(entries)[:5])}; "
                    f"expected a bundle with {', '.join(REQUIRED)}. Use a file made by `andon train`."
                )
            for name, entry in entries.items():
                if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise BundleError(
                        f"{path}: {name} is encrypted, or compressed by another method than deflate. "
                        "Use the original bundle."
                    )
                if entry.file_size > MEMBERS[name]:
                    raise BundleError(
                        f"{path}: {name} unpacks to {entry.file_size} bytes; expected at most "
                        f"{MEMBERS[name] >> 20} MiB. Use the original bundle."
                    )
            members = {name: archive.read(entry) for name, entry in entries.items()}
        except (zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise BundleError(
                f"{path}: truncated or damaged ({error}). Copy the bundle again, or train it again."
            ) from None
    if len(archive.comment) != len(_seal(b"")):
        raise BundleError(f"{path}: truncated or damaged at its end. Copy the bundle again, or train it again.")
    if archive.comment != _seal(members["manifest.json"]):
        raise BundleError(f"{path}: manifest.json was altered after training. Use the original bundle.")
    return members


_START = b"PK\x03\x04"
_SEALED = b"andon "


def _seal(manifest: bytes) -> bytes:
    """Return the archive's comment: the SHA-256 of its manifest."""
    return _SEALED + hashlib.sha256(manifest).hexdigest().encode()


def _json(data: bytes) -> dict[str, Any]:
    """Read a JSON object. ValueError when it is none, repeats a name, or contains a number that is not finite."""
    value = json.loads(data, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}; expected an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = Counter(name for name, _ in pairs)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"the name '{repeated[0]}' occurs twice in one JSON object")
    return dict(pairs)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text}: expected a finite number")
    return value


def machine() -> str:
    """Return processor architecture, operating system and its release."""
    return f"{platform.machine()} {platform.system()} {platform.release()}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the result of a training."""
    packages = ("andon", "numpy", "onnx", "onnxruntime", "opencv-python-headless", "simplejpeg", "spox")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
