"""The rules of the house: imports run downwards, labels stay where they belong, no torch on the way to a verdict."""

import ast
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "andon"

ROOMS = [  # a module imports only from rooms before its own, and from its own
    "errors",
    "files",
    "binomial",
    "progress",
    "inspection",
    "pictures",
    "geometry",
    "recipe",
    "calibration",
    "engines",
    "bundle",
    "render",
    "records",
    "streams",
    "inspector",
    "pages",
    "detector",
    "graphs",
    "data",
    "evaluate",
    "proof",
    "nn",
    "detectors",
    "training",
    "station",
    "export",
    "fleet",
    "lab",
    "cli",
    "__main__",
]
# crude tells whether light or focus alone separate good from defective test images, so it ranks them by their labels.
NEEDS_LABELS = {
    "evaluate.metrics",
    "evaluate.control",
    "evaluate.crude",
    "evaluate.evaluating",
    "evaluate.report",
    "evaluate.compare",
    "evaluate.compare_page",
    "lab.bench.cell",
    "fleet.product",
    "cli.judging",
}


def modules() -> dict[str, Path]:
    found = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")
        if name:
            found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Every module of andon that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "andon":
            inner = node.module.removeprefix("andon").removeprefix(".")
            for alias in node.names:
                full = f"{inner}.{alias.name}".removeprefix(".")
                found.add(full if full in modules() else inner)
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("andon.") for a in node.names if a.name.startswith("andon.")}
    return found - {""}


def room(name: str) -> str:
    return name.partition(".")[0]


def test_every_module_is_in_a_room() -> None:
    assert {room(name) for name in modules()} == set(ROOMS)


@pytest.mark.parametrize("name", modules())
def test_imports_run_downwards(name: str) -> None:
    assert {room(other) for other in imports(modules()[name])} <= set(ROOMS[: ROOMS.index(room(name)) + 1])


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {name: imports(path) for name, path in modules().items()}
    list(TopologicalSorter(graph).static_order())


def test_the_laboratory_is_imported_by_commands_only() -> None:
    users = {room(name) for name, path in modules().items() if "lab" in {room(other) for other in imports(path)}}
    assert users == {"lab", "cli"}


def test_no_module_is_longer_than_400_lines() -> None:
    assert [name for name, path in modules().items() if len(path.read_text().splitlines()) > 400] == []


@pytest.mark.parametrize("name", [name for name in modules() if name not in NEEDS_LABELS])
def test_labels_are_seen_by_evaluation_only(name: str) -> None:
    assert not imports(modules()[name]) & {"evaluate.metrics", "evaluate.evaluating"}


def test_all_json_is_strict() -> None:
    """`files.strict_json` alone writes JSON: null in place of NaN and infinity, which no strict parser takes."""
    writers = {name for name, path in modules().items() if re.search(r"\bjson\.dumps?\(", path.read_text())}
    assert writers == {"files"}


def loaded(code: str, *arguments: str) -> set[str]:
    """Run code in a fresh interpreter and return the top-level packages it loaded."""
    report = f"{code}\nimport sys; print('LOADED', *sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", report, *arguments], capture_output=True, text=True, check=True)
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


def command(*arguments: object) -> str:
    return f"""
import sys
from andon import cli
sys.argv = ["andon", *{[str(a) for a in arguments]!r}]
try:
    cli.main()
except SystemExit as done:
    assert not done.code, done.code
"""


def test_importing_andon_loads_next_to_nothing() -> None:
    assert not loaded("import andon") & {"torch", "numpy", "cv2", "onnxruntime", "pydantic", "typer"}


def test_help_loads_neither_torch_nor_the_engine() -> None:
    assert not loaded(command("inspect", "--help")) & {"torch", "cv2", "onnxruntime", "onnx", "numpy", "ray"}


def test_help_of_the_fleet_loads_no_ray() -> None:
    for arguments in (["--help"], ["fleet", "--help"], ["fleet", "inspect", "--help"]):
        assert not loaded(command(*arguments)) & {"ray", "pyarrow", "numpy"}


def test_listing_the_detectors_loads_none_of_them() -> None:
    assert not loaded(command("detectors")) & {"torch", "cv2", "onnxruntime", "onnx", "numpy"}


def test_inspecting_loads_neither_torch_nor_what_only_training_needs(parts: Path, bundle_file: Path) -> None:
    image = parts / "test/good/100.png"
    assert not loaded(command("inspect", bundle_file, image, "-q")) & {"torch", "onnx", "spox", "sklearn"}


def test_training_the_default_detector_loads_no_torch(parts: Path, tmp_path: Path) -> None:
    found = loaded(command("train", parts, "-o", tmp_path / "b.andon", "--size", 96, "-q"))
    assert not found & {"torch", "sklearn"}
    assert (tmp_path / "b.andon").is_file()


def test_the_engine_writes_and_sends_no_telemetry(tmp_path: Path) -> None:
    settings = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    command = [sys.executable, "-c", "import andon.engines.runtime"]
    subprocess.run(command, env={**settings, "HOME": str(tmp_path), "XDG_CACHE_HOME": ""}, check=True)
    assert not list(tmp_path.rglob("*onnxruntime*"))  # where it keeps what it will send, and the id of the device


def test_the_tests_that_the_page_on_trust_names_exist() -> None:
    page = (SOURCE.parents[1] / "docs" / "trust.md").read_text()
    named, file = [], ""
    for cell in re.findall(r"`(test_\w+\.py)?(?:::(test_\w+))?`", page):
        file = cell[0] or file
        if file:
            named.append((file, cell[1]))
    assert len(named) > 80
    texts = {file: (Path(__file__).parent / file).read_text() for file, _ in named}
    assert [f"{file}::{test}" for file, test in named if test and f"def {test}(" not in texts[file]] == []
