"""part.andon: one file with the graph, the recipe, the calibration and a manifest of digests. No pickle, ever.

A ZIP archive of named members, so that anybody can look inside; nothing in it is ever executed or unpacked to disk.
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
MEMBERS = {  # name: bytes it may unpack to
    "manifest.json": 16 * 1024**2,
    "graph.onnx": 2 * 1024**3,
    "recipe.toml": 16 * 1024**2,
    "calibration.json": 16 * 1024**2,
    "curve.csv": 16 * 1024**2,
    "reference.png": 2 * 1024**3,
    "highest.jpg": 16 * 1024**2,
}
NEEDED = sorted(set(MEMBERS) - {"curve.csv", "reference.png", "highest.jpg"})
LARGEST = sum(MEMBERS.values())  # bytes of a bundle
DIGITS = 16  # of an image's SHA-256 that name it in the manifest


class Manifest(BaseModel):
    """Where a bundle comes from, and the digest of everything in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    created: str  # ISO 8601, UTC
    seed: int
    detector: str
    input: Input
    versions: dict[str, str]  # andon, Python and the packages that made it
    machine: str
    data: dict[str, Any]  # counts, and the digest of all training images
    timings: dict[str, float]  # seconds each step took
    parity: dict[str, float]  # engine → largest difference from the fitted detector, as a share of the score range
    history: list[str] = []  # what was done to the bundle since it was trained
    learnt: list[str] = []  # the first DIGITS of the SHA-256 of each image file that was fitted on
    digests: dict[str, str] = {}  # member → SHA-256

    def learnt_from(self, digests: Iterable[str]) -> list[bool]:
        """Whether each image, by the SHA-256 of its file, was fitted on: its score is lower than that of a new part."""
        known = set(self.learnt)
        return [digest[:DIGITS] in known for digest in digests]


@dataclass(frozen=True, eq=False)
class Bundle:
    """What `part.andon` holds."""

    graph: bytes  # serialised ONNX
    recipe: Recipe
    calibration: Calibration
    manifest: Manifest
    curve: str = ""  # how the loss fell in training by gradient, as CSV
    reference: bytes = b""  # the picture that parts are registered to, as PNG, where the recipe asks for it
    sheet: bytes = b""  # JPEG: the held-out images with the highest scores, which set the thresholds

    def save(self, path: str | Path) -> None:
        """Write the bundle; the file appears whole or not at all. AndonError as `check_place`."""
        check_place(path)
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
        """Read and verify a bundle. BundleError says what is wrong with a file that is not one, or not whole."""
        path = Path(path)
        members = _unpack(_read(path), path)
        with _refusing(path):
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
            raise BundleError(f"{path}: its recipe and reference.png do not fit together. Train the bundle again.")
        sheet = members.get("highest.jpg", b"")
        return cls(members["graph.onnx"], recipe, calibration, manifest, curve, reference, sheet)

    def registered_to(self) -> Reference | None:
        """The reference that parts are registered to, ready; None where the recipe asks for none.

        Errors: BundleError when the picture is none that can be registered to.
        """
        settings = self.recipe.geometry.registration
        if settings is None:
            return None
        try:
            return Reference(self.reference, settings, "reference.png")
        except ImageError as error:
            raise BundleError(f"the bundle's reference cannot be used: {error} Train the bundle again.") from None

    def digest(self) -> str:
        """SHA-256 over the digests of graph, recipe, calibration and reference: names this decision-maker everywhere.

        Where its images lay is left out of the recipe: moving them changes no decision.
        """
        parts = [
            self.graph,
            self.recipe.anywhere().dump().encode(),
            self.calibration.model_dump_json(indent=1).encode(),
        ]
        if self.reference:
            parts.append(self.reference)
        return files.digest("".join(files.digest(part) for part in parts).encode())

    def changed(self, event: str, **parts: Any) -> "Bundle":
        """Return a bundle with other parts, and `event` in its history."""
        manifest = self.manifest.model_copy(update={"history": [*self.manifest.history, event]})
        return replace(self, manifest=manifest, **parts)


def check_place(path: str | Path) -> None:
    """Find out, before long work, whether a bundle may be written here: nowhere over anything but a bundle.

    Errors: BundleError when there is another file, AndonError as `files.writing`.
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
    if end and not end.startswith(_SEALED):  # an empty file is free to take
        raise BundleError(
            f"{path}: a file that is not a bundle exists here; it is not overwritten. Name another place."
        )


def _verify(manifest: Manifest, members: dict[str, bytes], path: Path) -> None:
    """Hold every member against its digest, before anything in it is looked at."""
    if set(manifest.digests) != set(members) - {"manifest.json"}:
        raise BundleError(f"{path}: manifest.json lacks the digest of a member, or has one too many; refused.")
    for name, digest in manifest.digests.items():
        if files.digest(members[name]) != digest:
            raise BundleError(f"{path}: {name} was altered after training. Use the original bundle.")


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn whatever a parser raises into a BundleError that names the file: it is given bytes from anywhere."""
    try:
        yield
    except (MemoryError, BundleError) as error:
        if isinstance(error, MemoryError) or str(error).startswith(str(path)):
            raise
        raise BundleError(f"{path}: {error}") from None
    except Exception as error:
        raise BundleError(
            f"{path}: its contents do not fit its format: {error or type(error).__name__}. "
            "Copy the bundle again, or train it again."
        ) from error


def _read(path: Path) -> bytes:
    """Read a file that begins as a bundle does, and is not larger than one can be."""
    try:
        with path.open("rb") as file:
            data = file.read(len(_START))
            if data == _START:
                data += file.read(LARGEST)
            size = os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
        reason = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"{path}: cannot be read ({reason}). Expected a bundle made by `andon train`.") from None
    if not data.startswith(_START) or len(data) > LARGEST:
        raise BundleError(f"{path}: not a bundle ({size} bytes). Expected a file made by `andon train`.")
    return data


def _unpack(data: bytes, path: Path) -> dict[str, bytes]:
    """Return the members of a bundle, none missing, none foreign, none too large, none damaged."""
    with _refusing(path):
        try:
            archive = zipfile.ZipFile(io.BytesIO(data))
            entries = {entry.filename: entry for entry in archive.infolist()}
            whole = set(NEEDED) <= set(entries) <= set(MEMBERS)
            if not whole or len(archive.infolist()) != len(entries):
                raise BundleError(
                    f"{path}: a ZIP file with {', '.join(sorted(entries)[:5])}; "
                    f"expected a bundle with {', '.join(NEEDED)}. Was it made by `andon train`?"
                )
            for name, entry in entries.items():
                if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise BundleError(
                        f"{path}: {name} is encrypted, or compressed by a method that bundles do not use; refused."
                    )
                if entry.file_size > MEMBERS[name]:
                    raise BundleError(f"{path}: {name} would unpack to more than {MEMBERS[name] >> 20} MiB; refused.")
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
    """What the archive's comment says of its manifest."""
    return _SEALED + hashlib.sha256(manifest).hexdigest().encode()


def _json(data: bytes) -> dict[str, Any]:
    """Read a JSON object in which no name comes twice and every number is finite. ValueError when it is not one."""
    found = json.loads(data, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
    if not isinstance(found, dict):
        raise ValueError(f"a JSON {type(found).__name__}; expected an object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = Counter(name for name, _ in pairs)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"the name '{twice[0]}' comes twice in one JSON object")
    return dict(pairs)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text}: expected a finite number")
    return value


def machine() -> str:
    """Name the kind of machine and its system."""
    return f"{platform.machine()} {platform.system()} {platform.release()}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what comes of a training."""
    packages = ("andon", "numpy", "onnx", "onnxruntime", "opencv-python-headless", "simplejpeg", "spox")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
