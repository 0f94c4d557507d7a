"""Handwritten digits as IDX files for the one-class protocol: python benchmarks/arrange_digits.py [folder]

The 1,797 pictures of 8 × 8 that scikit-learn carries in its wheel (the test half of UCI's "Optical Recognition of
Handwritten Digits", Alpaydin and Kaynak 1998; 13 writers), their 17 levels spread over 0 to 255. Who wrote which is not
told. The first two thirds in the order of the file are the training side and the rest the test side: neighbours in the
file, which may be of one writer, stay together better than in a draw.
Needs: pip install 'andon[train]'
"""

import struct
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

HERE = Path(__file__).resolve().parent
TRAIN = 1198  # pictures


def write(path: Path, values: np.ndarray) -> None:
    """Write bytes (n, …) as MNIST's files are: 0, 0, 8 for bytes, the number of dimensions, their lengths."""
    head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(head + values.astype(np.uint8).tobytes())


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "digits"
    folder.mkdir(parents=True, exist_ok=True)
    found = load_digits()
    pixels = np.round(found.images * (255 / 16))
    for prefix, side in (("train", slice(TRAIN)), ("t10k", slice(TRAIN, None))):
        write(folder / f"{prefix}-images-idx3-ubyte", pixels[side])
        write(folder / f"{prefix}-labels-idx1-ubyte", found.target[side])
    print(f"{folder}: {TRAIN} digits to learn from, {len(pixels) - TRAIN} to test")
