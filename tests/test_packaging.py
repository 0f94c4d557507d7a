"""What users get: the sdist and the wheel as `python -m build` makes them, installed in an environment of their own."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest

import andon

ROOT = Path(__file__).parents[1]
CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def call(*arguments: object, folder: Path) -> str:
    """Run a program outside of the source tree; return its standard output."""
    command = [str(argument) for argument in arguments]
    done = subprocess.run(command, cwd=folder, env=CLEAN, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source, folder=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"andon-{andon.__version__}-py3-none-any.whl"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    source = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src/andon").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"andon/py.typed", "andon/weights/efficientnet_lite0.onnx", "andon/templates/report.html"} <= source
    metadata = f"andon-{andon.__version__}.dist-info/"
    assert {name for name in held if not name.startswith(metadata)} == source
    assert {metadata + "licenses/LICENSE", metadata + "licenses/NOTICE"} <= held


def test_what_the_wheel_says_of_itself(wheel: Path) -> None:
    metadata = f"andon-{andon.__version__}.dist-info/"
    with zipfile.ZipFile(wheel) as archive:
        header: Any = message_from_bytes(archive.read(metadata + "METADATA"))
        assert archive.read(metadata + "entry_points.txt").decode().split() == [
            *("[console_scripts]", "andon", "=", "andon.cli:main")
        ]
    assert (header["Name"], header["Version"]) == ("andon", andon.__version__)
    assert header["License-Expression"] == "Apache-2.0"
    assert header.get_payload().startswith("# andon")
    needed = [line for line in header.get_all("Requires-Dist") if "extra ==" not in line]
    assert not [line for line in needed if line.startswith("torch")]


def test_the_sdist_holds_what_the_wheel_is_built_from(built: Path) -> None:
    name = f"andon-{andon.__version__}"
    with tarfile.open(built / f"{name}.tar.gz") as archive:
        held = set(archive.getnames())
    files = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "src/andon/py.typed", "src/andon/cli/__init__.py")
    assert {f"{name}/{file}" for file in files} <= held


@pytest.mark.parametrize(
    "dependencies", ["of this environment", pytest.param("of the registry", marks=pytest.mark.slow)]
)
def test_the_wheel_works_in_a_clean_environment(wheel: Path, parts: Path, tmp_path: Path, dependencies: str) -> None:
    home = tmp_path / "environment"
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    places = {key: Path(sysconfig.get_path(key, "venv", {"base": str(home)})) for key in ("scripts", "purelib")}
    python, command = places["scripts"] / "python", places["scripts"] / "andon"
    reuse = dependencies == "of this environment"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "-q")
    call(*pip, *(("--no-deps", "--no-index") if reuse else ()), wheel, folder=tmp_path)
    if reuse:  # a .pth in a folder that a .pth adds is not read: an editable andon stays out
        folders = (path for path in sys.path if Path(path).name in ("site-packages", "dist-packages"))
        (places["purelib"] / "dependencies.pth").write_text("\n".join(folders))
    where = call(python, "-c", "import andon; print(andon.__file__)", folder=tmp_path)
    assert Path(where.strip()) == places["purelib"] / "andon/__init__.py"

    assert call(command, "--version", folder=tmp_path) == f"andon {andon.__version__}\n"
    call(command, "train", parts / "train/good", "-o", "ring.andon", "--size", 96, "-q", folder=tmp_path)
    record = json.loads(
        call(command, "inspect", "ring.andon", parts / "test/scratch/200.png", "--json", folder=tmp_path)
    )
    assert record["verdict"] == "REVIEW" and record["score"] > record["thresholds"]["review"]
    call(command, "evaluate", "ring.andon", parts, "--out", "report", "-q", folder=tmp_path)
    assert "<html" in (tmp_path / "report/report.html").read_text()
