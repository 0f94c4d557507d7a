"""The one file that passes between the wings: whole, verified, or refused by name."""

import importlib.util
import io
import json
import re
import tomllib
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from andon import files
from andon.bundle import DIGITS, FORMAT, MEMBERS, REQUIRED, Bundle, Manifest, _seal
from andon.calibration import Calibration
from andon.engines import wire
from andon.engines.runtime import Runtime, reconstructor
from andon.errors import AndonError, BundleError
from andon.inspector import Inspector
from andon.recipe import Decision

DEFLATED = zipfile.ZIP_DEFLATED


def test_a_bundle_survives_being_written(bundle_file: Path, tmp_path: Path) -> None:
    first = Bundle.load(bundle_file)
    first.save(tmp_path / "teil größe 1.andon")
    second = Bundle.load(tmp_path / "teil größe 1.andon")
    assert (second.graph, second.recipe, second.calibration) == (first.graph, first.recipe, first.calibration)
    assert second.digest() == first.digest()


def test_a_bundle_is_shown_in_short(bundle_file: Path) -> None:
    inspector = Inspector.load(bundle_file)
    assert repr(inspector.bundle).startswith("<Bundle of ring: ") and len(repr(inspector.bundle)) < 100
    assert repr(inspector.bundle) in repr(inspector) and len(repr(inspector)) < 1000


def test_loading_asks_for_no_more_memory_than_a_bundle_needs(bundle_file: Path) -> None:
    tracemalloc.start()  # a computer with little memory refuses a large request, used or not
    try:
        Bundle.load(bundle_file)
        assert tracemalloc.get_traced_memory()[1] < 8 * bundle_file.stat().st_size + (16 << 20)
    finally:
        tracemalloc.stop()


def test_the_manifest_contains_the_provenance_of_a_bundle(bundle_file: Path) -> None:
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
        (
            lambda data: rewritten(data, lambda m: resealed(m, digests={}), True),
            "lists digests of no members; expected calibration.json",
        ),
        (
            lambda data: rewritten(data, bent_calibration, True),
            "40 parts, 40 scores and 0 peaks; expected the same number",
        ),
        (lambda data: rewritten(data, lambda m: None, True, zipfile.ZIP_LZMA), "another method than deflate"),
        (
            lambda data: rewritten(data, lambda m: m.update({"recipe.toml": bytes(17 << 20)}), True, DEFLATED),
            "expected at most 16 MiB",
        ),
    ],
)
def test_an_incomplete_bundle_is_refused_by_name(
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
    with pytest.raises(BundleError, match="exists and is not a bundle; it is not overwritten"):
        bundle.save(place)
    assert place.read_bytes() == there


def test_what_was_done_to_a_bundle_is_in_its_history(bundle_file: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(bundle_file)
    recipe = bundle.recipe.model_copy(update={"decision": Decision(review_rate=0.2)})
    bundle.revise("rates changed", recipe=recipe).save(tmp_path / "b.andon")
    again = Bundle.load(tmp_path / "b.andon")
    assert again.manifest.history == ["rates changed"]
    assert again.recipe.decision.review_rate == 0.2
    assert again.digest() != bundle.digest()


def test_a_bundle_is_written_through_a_link(bundle_file: Path, tmp_path: Path) -> None:
    file, link = tmp_path / "v3.andon", tmp_path / "current.andon"
    bundle = Bundle.load(bundle_file)
    bundle.save(file)
    file.chmod(0o660)
    link.symlink_to("v3.andon")
    bundle.revise("again").save(link)
    assert link.is_symlink() and file.stat().st_mode & 0o777 == 0o660
    assert Bundle.load(file).manifest.history == ["again"]


@pytest.mark.parametrize("name", ["a\0b.andon", "x" * 5000])
def test_a_name_that_can_be_no_bundle(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.load(tmp_path / name)


def test_a_device_without_an_end_is_not_read_to_its_end() -> None:
    with pytest.raises(BundleError, match="/dev/zero: not a bundle"):
        Bundle.load("/dev/zero")


@pytest.fixture(scope="module")
def members(bundle_file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(bundle_file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def sealed(members: dict[str, bytes], manifest: bytes | None = None) -> bytes:
    """Pack members as a bundle whose digests and seal are right, so that what is in them is looked at."""
    if manifest is None:
        values = json.loads(members["manifest.json"])
        values["digests"] = {name: files.digest(data) for name, data in members.items() if name != "manifest.json"}
        manifest = json.dumps(values).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = _seal(manifest)
        for name, content in {**members, "manifest.json": manifest}.items():
            archive.writestr(name, content)
    return buffer.getvalue()


DEEP = b"[" * 100_000
BENT = [
    b"",
    b"\xff\xfe\x00",
    DEEP,
    b'{"a":' * 100_000,
    b"a = " + DEEP,
    b"null",
    b"[]",
    b"5",
    b"NaN",
    b'"\\ud800"',
    b"1e999",
    b"9" * 5000,
    b"seed = " + b"9" * 5000,
    b"a = 0001-00-00",
    b"\0",
]


@pytest.mark.parametrize("name", ["manifest.json", "recipe.toml", "calibration.json", "curve.csv", "graph.onnx"])
@pytest.mark.parametrize("content", BENT, ids=range(len(BENT)))
def test_bent_contents_with_right_digests_are_refused(
    members: dict[str, bytes], tmp_path: Path, name: str, content: bytes
) -> None:
    bad = tmp_path / "bad.andon"
    bad.write_bytes(sealed({**members, name: content}, content if name == "manifest.json" else None))
    try:
        Bundle.load(bad)
    except BundleError as error:
        assert str(error).startswith(str(bad))
    else:
        assert name in ("curve.csv", "recipe.toml", "graph.onnx")  # in which some of it is allowed


@pytest.mark.parametrize("name", ["manifest.json", "calibration.json"])
@pytest.mark.parametrize(
    ("bend", "message"),
    [
        (lambda text: text[:-1] + b', "typical": 0.5, "seed": 3}', "occurs twice in one JSON object"),
        (lambda text: text[:-1] + b', "other": [1, {"a": 1, "a": 2}]}', "the name 'a' occurs twice"),
        (lambda text: text[:-1] + b', "other": NaN}', "NaN: expected a finite number"),
        (lambda text: text[:-1] + b', "other": -1e999}', "-1e999: expected a finite number"),
    ],
)
def test_json_is_read_strictly(
    members: dict[str, bytes], tmp_path: Path, name: str, bend: Callable[[bytes], bytes], message: str
) -> None:
    values = json.loads(members["manifest.json"])
    if name == "manifest.json":
        data = sealed(members, bend(json.dumps(values).replace('"typical"', '"seed"').encode()))
    else:
        data = sealed({**members, name: bend(members[name].strip())})
    (tmp_path / "bad.andon").write_bytes(data)
    with pytest.raises(BundleError, match=message):
        Bundle.load(tmp_path / "bad.andon")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([10**400, -1, "../../etc", "\ud800", "C:\\x", 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def places(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path to a value in JSON."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [path, *(place for key, inner in list(pairs)[:20] for place in places(inner, (*path, key)))]


def changed(values: Any, path: tuple[Any, ...], new: Any) -> Any:
    """JSON with another value at a path."""
    if not path:
        return new
    copy = dict(values) if isinstance(values, dict) else list(values)
    copy[path[0]] = changed(values[path[0]], path[1:], new)
    return copy


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_in_a_bundle_only_a_bundle_error_comes_out(
    members: dict[str, bytes], tmp_path: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["manifest.json", "calibration.json", "recipe.toml"]))
    small = {**members, "graph.onnx": b""}
    values = tomllib.loads(small[name].decode()) if name == "recipe.toml" else json.loads(small[name])
    bent = changed(values, data.draw(st.sampled_from(places(values))), data.draw(VALUES))
    if name == "recipe.toml":
        try:
            text = tomli_w.dumps(bent).encode(errors="surrogatepass")
        except (TypeError, AttributeError):  # TOML has no null, and is a table
            return
    else:
        text = json.dumps(bent).encode()
    file = tmp_path / "bad.andon"
    file.write_bytes(sealed({**small, name: text}, text if name == "manifest.json" else None))
    try:
        Bundle.load(file).digest()
    except BundleError as error:
        assert str(error).startswith(str(file))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_bytes_a_file_has_only_a_bundle_error_comes_out(
    members: dict[str, bytes], tmp_path: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([None, "manifest.json", "calibration.json", "recipe.toml", "graph.onnx"]))
    whole = sealed({**members, "graph.onnx": members["graph.onnx"][:2000]})
    found = whole if name is None else {**members, "graph.onnx": b""}[name]
    start = data.draw(st.integers(0, len(found)))
    end = data.draw(st.integers(start, min(len(found), start + 64)))
    found = found[:start] + data.draw(st.binary(max_size=64)) + found[end:]
    file = tmp_path / "bad.andon"
    if name is not None:
        found = sealed({**members, "graph.onnx": b"", name: found}, found if name == "manifest.json" else None)
    file.write_bytes(found)
    try:
        Bundle.load(file)
    except BundleError as error:
        assert str(error).startswith(str(file))


def elsewhere() -> onnx.TensorProto:
    """A tensor whose values are in another file."""
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    return tensor


def as_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(elsewhere())


def as_constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["w"], value=elsewhere()))


def in_a_branch(model: onnx.ModelProto) -> None:
    branch = onnx.helper.make_graph([], "branch", [], [], [elsewhere()])
    inner = onnx.helper.make_node("If", ["c"], ["x"], then_branch=branch, else_branch=onnx.GraphProto(name="none"))
    outer = onnx.helper.make_graph([inner], "outer", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["x"], then_branch=outer, else_branch=outer))


def in_a_function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f").node.append(onnx.helper.make_node("Constant", [], ["w"], value=elsewhere()))


def in_a_default(model: onnx.ModelProto) -> None:
    model.functions.add(name="f").attribute_proto.append(onnx.helper.make_attribute("value", elsewhere()))


def as_sparse_weight(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().indices.CopyFrom(elsewhere())


def as_one_of_many(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Many", [], ["w"], tensors=[onnx.TensorProto(), elsewhere()]))


def in_training(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.initializer.append(elsewhere())


def without_a_place(model: onnx.ModelProto) -> None:
    as_weight(model)
    del model.graph.initializer[-1].external_data[:]


@pytest.mark.parametrize(
    "refer",
    [
        as_weight,
        as_constant,
        in_a_branch,
        in_a_function,
        in_a_default,
        as_sparse_weight,
        as_one_of_many,
        in_training,
        without_a_place,
    ],
)
def test_a_graph_may_not_refer_to_other_files(
    members: dict[str, bytes], tmp_path: Path, refer: Callable[[onnx.ModelProto], None]
) -> None:
    model = onnx.load_model_from_string(members["graph.onnx"])
    refer(model)
    graph, file = model.SerializeToString(), tmp_path / "bad.andon"
    file.write_bytes(sealed({**members, "graph.onnx": graph}))
    with pytest.raises(BundleError, match=r"bad\.andon: the graph refers to data in other files"):
        Bundle.load(file)
    for start in (Runtime, reconstructor, lambda graph: Runtime(graph, "openvino")):
        if start in (Runtime, reconstructor) or importlib.util.find_spec("openvino"):
            with pytest.raises(BundleError, match="the graph refers to data in other files"):
                start(graph)


def test_a_weight_is_no_reference_whatever_its_bytes_are(members: dict[str, bytes]) -> None:
    model = onnx.load_model_from_string(members["graph.onnx"])
    name = "\n\x08location"
    model.graph.initializer.append(
        onnx.TensorProto(name=name, data_type=onnx.TensorProto.UINT8, dims=[400], raw_data=name.encode() * 40)
    )
    wire.check(model.SerializeToString())


def test_the_page_on_the_format_is_complete() -> None:
    page = (Path(__file__).parents[1] / "docs" / "bundle-format.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z.]+)` \| (yes|no) \| (\d+) (MiB|GiB) \|", page, re.MULTILINE)
    limits = {name: int(number) * 1024 ** (2 if unit == "MiB" else 3) for name, _, number, unit in rows}
    assert limits == MEMBERS
    assert sorted(name for name, needed, _, _ in rows if needed == "yes") == REQUIRED
    for field in (*Manifest.model_fields, *Calibration.model_fields):
        assert f"`{field}`" in page
    assert f"now {FORMAT}" in page and f"first {DIGITS} hexadecimal" in page
