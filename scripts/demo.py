"""The demo: real solar cells from the PyPI package elpv-dataset, from a folder of pictures to a report.

    python scripts/demo.py demo

Electroluminescence pictures of monocrystalline cells, 300 × 300 pixels, gray, CC BY-NC-SA 4.0; Deitsch et al.,
"Automatic classification of defective photovoltaic module cells in electroluminescence images", Solar Energy 2019.
"""

import importlib.util
import random
import shutil
import subprocess
import sys
from pathlib import Path

DATA_SET = "solar-cells"
TEST_GOOD = 150


def arrange(target: Path) -> tuple[int, int, int]:
    """Copy the cells into train/good, test/good and test/defective; return the number of each."""
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("The pictures come from PyPI: pip install --no-deps elpv-dataset")
    source = Path(spec.submodule_search_locations[0]) / "data"
    good, defective = [], []
    for line in (source / "labels.csv").read_text().splitlines():
        name, probability, kind = line.split()
        if kind == "mono" and probability in ("0.0", "1.0"):
            (good if probability == "0.0" else defective).append(source / name)
    random.Random(0).shuffle(good)
    parts = {"train/good": good[TEST_GOOD:], "test/good": good[:TEST_GOOD], "test/defective": defective}
    for folder, pictures in parts.items():
        (target / folder).mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            shutil.copyfile(picture, target / folder / picture.name)
    return len(good) - TEST_GOOD, TEST_GOOD, len(defective)


def andon(*arguments: object) -> None:
    """Print a command and run it."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ andon {' '.join(words)}", flush=True)
    if subprocess.run([sys.executable, "-m", "andon", *words], check=False).returncode:
        sys.exit(1)


def main() -> None:
    """Run the demo."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    data, bundle = out / DATA_SET, out / f"{DATA_SET}.andon"
    train, good, defective = arrange(data)
    print(f"{train} good cells for training; for testing: {good} good, {defective} defective")
    andon("train", data, "-o", bundle)
    andon("evaluate", bundle, data, "--out", out / "report")
    andon("inspect", bundle, *sorted((data / "test/defective").iterdir())[:5], "--out", out / "results")
    print(f"\nThe report: {out / 'report' / 'report.html'}    Heat maps: {out / 'results' / 'overlays'}")


if __name__ == "__main__":
    main()
