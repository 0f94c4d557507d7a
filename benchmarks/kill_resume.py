"""Kill a training at random times with kill -9, restart it, and compare the bundle with that of an undisturbed
training.

    python benchmarks/kill_resume.py [--kills 10] [--seed 0]

Times are drawn over the whole life of the process: while it imports, reads images, trains, exports or calibrates.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from andon.bundle import Bundle

TRAIN = """
import sys
from andon.training.train import train
settings = {"width": 8, "widest": 32, "latent": 8, "steps": 3000, "evaluate": 100, "checkpoint": 0.5}
train(
    sys.argv[1], sys.argv[2], detector="autoencoder", settings=settings, size=64, device="cpu",
    tell=lambda sentence: print("   ", sentence) if sentence.startswith("going on") else None,
)
"""


def draw_parts(folder: Path, count: int = 40) -> None:
    """Write pictures of a bright ring that differ in place, brightness and noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for i in range(count):
        cx, cy = 32 + 3 * rng.standard_normal(2)
        ring = np.abs(np.hypot(x - cx, y - cy) - 18) < 5
        value = 60 + 120 * ring + 10 * rng.standard_normal() + 4 * rng.standard_normal((64, 64))
        cv2.imwrite(str(folder / f"{i:03}.png"), np.clip(value, 0, 255).astype(np.uint8))


def start(images: Path, out: Path) -> "subprocess.Popen[bytes]":
    """Start a training as a process of its own."""
    return subprocess.Popen([sys.executable, "-c", TRAIN, str(images), str(out)])


def main() -> None:
    """Train once undisturbed, then once with kills, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        draw_parts(root / "ring")
        began = time.monotonic()
        if start(root / "ring", root / "whole.andon").wait():
            sys.exit("the undisturbed training failed")
        whole, expected = time.monotonic() - began, Bundle.load(root / "whole.andon").digest()
        print(f"undisturbed: {whole:.1f} s, bundle {expected[:12]}")
        out, kills, same = root / "killed.andon", 0, True
        while True:
            process, began = start(root / "ring", out), time.monotonic()
            if kills < options.kills:
                moment = rng.uniform(0, whole)
                try:
                    process.wait(moment)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    kills += 1
                    left = sorted(path.name for path in root.glob("killed.andon.training/*"))
                    print(f"kill {kills} after {moment:.1f} s; left: {', '.join(left) or 'nothing'}", flush=True)
                    continue
            if process.wait():
                sys.exit("a training that was started again failed")
            found = Bundle.load(out).digest()
            same &= found == expected
            print(f"after {kills} kills: bundle {found[:12]}, {'identical' if found == expected else 'DIFFERENT'}")
            if kills == options.kills:
                break
            out.unlink()  # it ended before its kill: the next one starts anew
            whole = min(whole, time.monotonic() - began)
        left = [path.name for path in root.glob("*.training")]
        sys.exit(None if same and not left else f"differs, or left behind: {left}")


if __name__ == "__main__":
    main()
