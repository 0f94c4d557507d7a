"""Solar cells as a product for the benchmark: python benchmarks/arrange_elpv.py [folder]

Pictures and split are those of scripts/demo.py: monocrystalline cells from the PyPI package
elpv-dataset, with the label good or defective at full certainty. Needs: pip install --no-deps elpv-dataset
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "scripts"))

from demo import arrange  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=HERE / "elpv")
    folder = parser.parse_args().folder
    train, good, defective = arrange(folder)
    print(f"{folder}: {train} good cells to learn from; to test: {good} good, {defective} defective")
