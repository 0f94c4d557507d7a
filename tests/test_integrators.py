"""The programs of docs/integrators.md run as they are printed."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "integrators.md"


def test_the_programs_of_the_page_run(bundle_file: Path, parts: Path, tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    shared, order, latency = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "bottle.andon").write_bytes(bundle_file.read_bytes())
    for name in "123":
        (tmp_path / f"{name}.png").write_bytes((parts / f"test/scratch/20{name}.png").read_bytes())
    (tmp_path / "first.py").write_text(shared + order + "print(inspection.source, inspection.score)\n")
    first = run(tmp_path, "first.py")
    assert first[:3] == [f"{name}.png REJECT" for name in "123"]
    assert first[3].startswith("camera 1, part 17 ")
    (tmp_path / "latency.py").write_text(latency)
    (line,) = run(tmp_path, "latency.py", "bottle.andon", "1.png")
    assert re.fullmatch(r"\[ *[\d.]+ +[\d.]+ *\]", line)


def run(folder: Path, *arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
