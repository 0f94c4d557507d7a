"""part.andon: one file with the graph, the recipe, the calibration and a manifest of digests. No pickle, ever.

A ZIP archive of named members, so that anybody can look inside; nothing in it is ever executed or unpacked to disk.
"""

import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from andon import files
from andon.calibration import Calibration
from andon.errors import BundleError
from andon.image import Input
from andon.recipe import Recipe

FORMAT = 1
LIMIT = 2 * 1024**3  # bytes one member may unpack to
MEMBERS = {"manifest.json", "graph.onnx", "recipe.toml", "calibration.json"}


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
    digests: dict[str, str] = {}  # member → SHA-256


@dataclass(frozen=True, eq=False)
class Bundle:
    """What `part.andon` holds."""

    graph: bytes  # serialised ONNX
    recipe: Recipe
    calibration: Calibration
    manifest: Manifest

    def save(self, path: str | Path) -> None:
        """Write the bundle; the file appears whole or not at all."""
        members = {
            "graph.onnx": self.graph,
            "recipe.toml": self.recipe.dump().encode(),
            "calibration.json": self.calibration.model_dump_json(indent=1).encode(),
        }
        digests = {name: files.digest(data) for name, data in members.items()}
        manifest = self.manifest.model_copy(update={"digests": digests}).model_dump_json(indent=1).encode()
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.comment = _seal(manifest)
            for name, data in {"manifest.json": manifest, **members}.items():
                archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        files.write(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "Bundle":
        """Read and verify a bundle. BundleError says what is wrong with a file that is not one, or not whole."""
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(
                f"{path}: cannot be read ({error.strerror}). Expected a bundle made by `andon train`."
            ) from None
        members = _unpack(data, path)
        try:
            manifest = Manifest.model_validate_json(members["manifest.json"])
            recipe = Recipe.parse(members["recipe.toml"].decode(), f"{path}/recipe.toml")
            calibration = Calibration.model_validate_json(members["calibration.json"])
        except (ValidationError, UnicodeDecodeError) as error:
            version = _version(members["manifest.json"])
            if version not in (None, FORMAT):
                raise BundleError(
                    f"{path}: bundle format {version}; this andon reads format {FORMAT}. "
                    "Update andon, or train the bundle again."
                ) from None
            raise BundleError(f"{path}: a bundle whose contents do not fit its format: {error}") from None
        for name, digest in manifest.digests.items():
            if name not in members or files.digest(members[name]) != digest:
                raise BundleError(f"{path}: {name} was altered after training. Use the original bundle.")
        return cls(members["graph.onnx"], recipe, calibration, manifest)

    def digest(self) -> str:
        """SHA-256 over the digests of graph, recipe and calibration: names this decision-maker in every record."""
        parts = (self.graph, self.recipe.dump().encode(), self.calibration.model_dump_json(indent=1).encode())
        return files.digest("".join(files.digest(part) for part in parts).encode())

    def changed(self, event: str, **parts: Any) -> "Bundle":
        """Return a bundle with other parts, and `event` in its history."""
        manifest = self.manifest.model_copy(update={"history": [*self.manifest.history, event]})
        return replace(self, manifest=manifest, **parts)


def _unpack(data: bytes, path: Path) -> dict[str, bytes]:
    """Return the members of a bundle, none missing, none foreign, none too large, none damaged."""
    if not data.startswith(b"PK\x03\x04"):
        raise BundleError(f"{path}: not a bundle ({len(data)} bytes). Expected a file made by `andon train`.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if set(entries) != MEMBERS or len(archive.infolist()) != len(MEMBERS):
                raise BundleError(
                    f"{path}: a ZIP file with {', '.join(sorted(entries)[:5])}; "
                    f"expected a bundle with {', '.join(sorted(MEMBERS))}. Was it made by `andon train`?"
                )
            large = [name for name, entry in entries.items() if entry.file_size > LIMIT]
            if large:
                raise BundleError(f"{path}: {large[0]} would unpack to more than {LIMIT >> 30} GiB; refused.")
            members = {name: archive.read(entry) for name, entry in entries.items()}
            seal = archive.comment
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, zlib.error) as error:
        raise BundleError(
            f"{path}: truncated or damaged ({error}). Copy the bundle again, or train it again."
        ) from None
    if len(seal) != len(_seal(b"")):
        raise BundleError(f"{path}: truncated or damaged at its end. Copy the bundle again, or train it again.")
    if seal != _seal(members["manifest.json"]):
        raise BundleError(f"{path}: manifest.json was altered after training. Use the original bundle.")
    return members


def _seal(manifest: bytes) -> bytes:
    """What the archive's comment says of its manifest."""
    return b"andon " + hashlib.sha256(manifest).hexdigest().encode()


def _version(manifest: bytes) -> Any:
    """Read the format's number from a manifest that may be of another format."""
    try:
        return json.loads(manifest).get("format")
    except (ValueError, AttributeError):
        return None
