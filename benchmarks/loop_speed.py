"""Cost of the data pipeline: steps of the training loop on all tiles, compared with steps on one prepared batch.

    python benchmarks/loop_speed.py [--size 256] [--rounds 100]

Both run the same steps of the preset `cpu` of autoencoder and alternate, so that other load affects both equally. The
share is the median over the rounds. Augmentation is measured separately.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from andon.detector import Run
from andon.detectors.autoencoder import Autoencoder, AutoencoderNetwork, Settings
from andon.lab.cost.learning import RandomTiles
from andon.nn.data import Feed
from andon.nn.loop import Loop
from andon.recipe import Augment

ALL = Augment(flip=True, quarter_turns=True, rotate=5.0, brightness=0.1)


def main() -> None:
    """Print milliseconds a step, and the share of the speed that is kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--tiles", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    config = Settings(**Autoencoder.presets["cpu"])
    net = AutoencoderNetwork(options.size, 3, config)
    loop = Loop(net, net.loss, config, 0, Run())
    shape = (options.size, options.size)
    tiles = RandomTiles(options.tiles, shape)
    rows = np.arange(options.tiles)
    plain = Feed(tiles, rows, config.batch, 0, Augment(), loop.device)
    varied = Feed(tiles, rows, config.batch, 0, ALL, loop.device)
    ready = plain(0)
    feeds: dict[str, Callable[[int], torch.Tensor]] = {
        "one batch, ready": lambda step: ready,
        "all tiles": plain,
        "all tiles, every augmentation": varied,
    }
    spent: dict[str, list[float]] = {name: [] for name in feeds}
    for _ in range(options.rounds):
        for name, feed in feeds.items():
            start = time.perf_counter()
            loop._step(feed)
            if loop.device.type == "cuda":
                torch.cuda.synchronize()
            loop.state.step += 1
            spent[name].append(time.perf_counter() - start)
    base = np.array(spent["one batch, ready"])
    print(f"{options.size}², batch {config.batch}, {loop.device}, {torch.get_num_threads()} threads")
    for name, seconds in spent.items():
        share = np.median(base / seconds)
        print(f"{name:32} {1000 * np.median(seconds):8.1f} ms a step  {100 * share:6.1f} %")


if __name__ == "__main__":
    main()
