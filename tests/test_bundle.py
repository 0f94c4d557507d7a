"""The one file that passes between the wings: whole, verified, or refused by name."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from andon import files
from andon.bundle import Bundle, _seal
from andon.errors import AndonError, BundleError
from andon.recipe import Decision

DEFLATED = zipfile.ZIP_DEFLATED


def test_a_bundle_survives_being_written(bundle_file: Path, tmp_path: Path) -> None:
    first = Bundle.load(bundle_file)
    first.save(tmp_path / "teil größe 1.andon")
    second = Bundle.load(tmp_path / "teil größe 1.andon")
    assert (second.graph, second.recipe, second.calibration) == (first.graph, first.recipe, first.calibration)
    assert second.digest() == first.digest()


def test_the_manifest_tells_where_a_bundle_comes_from(bundle_file: Path) -> None:
    manifest = Bundle.load(bundle_file).manifest
    assert manifest.detector == "memory-bank"
    assert manifest.data["fit"] == manifest.data["calibrate"] == manifest.data["images"] == 40
    assert manifest.input.size == (96, 96)
    assert set(manifest.digests) == {"graph.onnx", "recipe.toml", "calibration.json", "highest.jpg"}
    assert manifest.parity["onnxruntime"] < 1e-3
    assert {"andon", "numpy", "onnxruntime", "python"} <= set(manifest.versions)


def test_the_recipe_in_a_bundle_holds_every_setting(bundle_file: Path) -> None:
    settings = Bundle.load(bundle_file).recipe.detector.settings
    assert settings["bank"] == 200
    assert {"stages", "candidates", "memory_mb"} <= set(settings)


def rewritten(
    data: bytes, change: Callable[[dict[str, bytes]], None], reseal: bool = False, packing: int = zipfile.ZIP_STORED
) -> bytes:
    """Unpack a bundle, change its members, pack it again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
        comment = archive.comment
    change(members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        archive.comment = _seal(members["manifest.json"]) if reseal else comment
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def other_calibration(members: dict[str, bytes]) -> None:
    members["calibration.json"] = members["calibration.json"].replace(b'"typical": ', b'"typical": 1')


def other_digest(members: dict[str, bytes]) -> None:
    manifest = json.loads(members["manifest.json"])
    manifest["digests"]["recipe.toml"] = files.digest(members["recipe.toml"])
    members["manifest.json"] = json.dumps(manifest).encode()


def resealed(members: dict[str, bytes], **changes: Any) -> None:
    """Change the manifest; `packed` gives the archive a comment that fits it."""
    members["manifest.json"] = json.dumps({**json.loads(members["manifest.json"]), **changes}).encode()


def bent_calibration(members: dict[str, bytes]) -> None:
    values = {**json.loads(members["calibration.json"]), "peaks": []}
    members["calibration.json"] = json.dumps(values).encode()
    digests = json.loads(members["manifest.json"])["digests"]
    resealed(members, digests={**digests, "calibration.json": files.digest(members["calibration.json"])})


def foreign_member(members: dict[str, bytes]) -> None:
    members["../../evil.py"] = b"print('owned')"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: b"", "not a bundle (0 bytes)"),
        (lambda data: b"PK\x03\x04 hello", "truncated or damaged"),
        (lambda data: data[: len(data) // 2], "truncated or damaged"),
        (lambda data: data[:-1], "truncated or damaged"),
        (lambda data: data[:2000] + bytes(8) + data[2008:], "truncated or damaged"),
        (lambda data: b"\x89PNG" + data, "not a bundle"),
        (lambda data: rewritten(data, other_calibration), "calibration.json was altered after training"),
        (lambda data: rewritten(data, other_digest), "manifest.json was altered after training"),
        (lambda data: rewritten(data, foreign_member), "a ZIP file with ../../evil.py"),
        (lambda data: rewritten(data, lambda m: m.pop("graph.onnx") and None), "expected a bundle with"),
        (lambda data: rewritten(data, lambda m: resealed(m, format=99), True), "bundle format 99; this andon reads"),
        (lambda data: rewritten(data, lambda m: resealed(m, digests={}), True), "lacks the digest of a member"),
        (lambda data: rewritten(data, bent_calibration, True), "40 parts, 40 scores and 0 peaks; expected as many"),
        (lambda data: rewritten(data, lambda m: None, True, zipfile.ZIP_LZMA), "packed in a way no bundle is"),
        (
            lambda data: rewritten(data, lambda m: m.update({"recipe.toml": bytes(17 << 20)}), True, DEFLATED),
            "recipe.toml would unpack to more than 16 MiB",
        ),
    ],
)
def test_what_is_no_whole_bundle_is_refused_by_name(
    bundle_file: Path, tmp_path: Path, spoil: Callable[[bytes], bytes], message: str
) -> None:
    bad = tmp_path / "bad.andon"
    bad.write_bytes(spoil(bundle_file.read_bytes()))
    with pytest.raises(BundleError) as caught:
        Bundle.load(bad)
    assert str(caught.value).startswith(str(bad))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["missing.andon", "."])
def test_a_bundle_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.load(tmp_path / name)


def test_writing_into_a_missing_folder_leaves_nothing(bundle_file: Path, tmp_path: Path) -> None:
    with pytest.raises(AndonError, match="there is no folder"):
        Bundle.load(bundle_file).save(tmp_path / "nowhere" / "b.andon")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [b"photograph", b"PK\x03\x04 some archive", b"x" * 200])
def test_only_a_bundle_is_overwritten_by_one(bundle_file: Path, tmp_path: Path, there: bytes) -> None:
    place = tmp_path / "b.andon"
    bundle = Bundle.load(bundle_file)
    for _ in range(2):
        bundle.save(place)
    place.write_bytes(there)
    with pytest.raises(BundleError, match="no bundle; it is not overwritten"):
        bundle.save(place)
    assert place.read_bytes() == there


def test_what_was_done_to_a_bundle_is_in_its_history(bundle_file: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(bundle_file)
    recipe = bundle.recipe.model_copy(update={"decision": Decision(review_rate=0.2)})
    bundle.changed("rates changed", recipe=recipe).save(tmp_path / "b.andon")
    again = Bundle.load(tmp_path / "b.andon")
    assert again.manifest.history == ["rates changed"]
    assert again.recipe.decision.review_rate == 0.2
    assert again.digest() != bundle.digest()
