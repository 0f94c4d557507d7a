"""The environments of the peers: one virtual environment each, in a folder outside the repository."""

import os
import subprocess
import sys
from pathlib import Path

from process import Failure

HERE = Path(__file__).parent
MARK = "requirements.installed"  # the requirements that an environment was finished with


def python(folder: Path, name: str, build: bool = True) -> Path:
    """Return the interpreter of an environment; build it if it is missing or was built from other requirements.

    pip is that of andon's own environment. Failure, with the last line of pip, when that is impossible.
    """
    place = folder / name
    executable, mark = place / "bin" / "python", place / MARK
    wanted = (HERE / "requirements" / f"{name}.txt").read_text()
    if mark.exists() and mark.read_text() == wanted and executable.exists():
        return executable
    if not build:
        raise Failure("not installed", f"there is no finished environment {name}, and it was not to be built")
    place.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", "--without-pip", place])
    pip = [sys.executable, "-m", "pip", "--python", executable, "install", "-q", "--disable-pip-version-check"]
    _run([*pip, "-r", HERE / "requirements" / f"{name}.txt"])
    mark.write_text(wanted)
    return executable


def _run(command: list[str | Path]) -> None:
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, capture_output=True, text=True, env=inherited)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise Failure("not installed", errors[-1] if errors else f"{command[0]} failed")
