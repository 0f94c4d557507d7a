"""Handwritten digits as IDX files for the one-class protocol: python benchmarks/arrange_digits.py [folder]

The 1,797 pictures of 8 × 8 pixels in the wheel of scikit-learn (the test half of UCI's "Optical Recognition of
Handwritten Digits", Alpaydin and Kaynak 1998; 13 writers), with 17 levels scaled to 0 to 255. The writer of each
picture is unknown. The first two thirds of the file are the training images, the rest the test images: neighbours in
the file may be of one writer, and a random split would separate more of them.
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
