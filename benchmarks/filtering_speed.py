"""Time of the graph of filtering-autoencoder, compared with its convolutions alone; and time of a training step.

    python benchmarks/filtering_speed.py [--width 0.25] [--sizes 256 512] [--threads 2] [--steps 5]

Each convolution of the graph runs alone in ONNX Runtime, on zeros of its input size in the network, and the times are
added. A training step runs on the best available device; with --peak, the peak of the device in 10^12 operations per
second, its utilisation is printed.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from andon.detector import Run
from andon.detectors.filtering_autoencoder import FilteringAutoencoder, Settings, cost, layers
from andon.engines import runtime
from andon.inspection import Pixels
from andon.nn.loop import Loop, choose


class Noise:
    """Tiles of noise."""

    def __init__(self, side: int, count: int) -> None:
        """Make them, each as a part of its own."""
        self.shape, self.side, self.channels, self.depth = (side, side), side, 3, 8
        self.groups, self.defects = range(count), None
        self._tiles = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._tiles)

    def __getitem__(self, rows: Sequence[int]) -> Pixels:
        """Some of them."""
        return self._tiles[list(rows)]

    def __iter__(self) -> Iterator[Pixels]:
        """One batch."""
        yield self._tiles


def main() -> None:
    """Print a line a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--kernel", type=int, default=3, choices=(3, 5))
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5, help="training steps to time; 0: none")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--peak", type=float, default=0.0, help="of the training device, 10^12 operations a second")
    options = parser.parse_args()
    for side in options.sizes:
        found = cost(side, 3, options.width, options.kernel)
        print(
            f"{side}², width {options.width:g}, f = {options.kernel}: {found.parameters:,} parameters, "
            f"{found.multiply_adds / 1e9:.2f} G multiply-adds"
        )
        settings = Settings(width=options.width, kernel=options.kernel, steps=1, batch=1, hold_out=0, grow_from=1.0)
        graph = FilteringAutoencoder(settings, 0).fit(Noise(side, 1), Run(device="cpu")).graph()
        session = runtime.session(graph, options.threads)
        tile = np.zeros((1, side, side, 3), np.uint8)
        whole = shortest(partial(session.run, ["score", "map"], {"tiles": tile}), options.rounds)
        bare = convolutions(side, options.width, options.kernel, options.threads, options.rounds)
        print(f"  graph        {1000 * whole:8.1f} ms  {1 / whole:8.1f} images/s on {options.threads} threads")
        print(
            f"  convolutions {1000 * bare:8.1f} ms  {1 / bare:8.1f} images/s  ({100 * bare / whole:.0f} % of the graph)"
        )
        if torch.cuda.is_available():
            print(f"  on CUDA      {1000 * on_cuda(side, options.width, options.kernel, options.rounds):8.1f} ms")
        if options.steps:
            training(side, options, found.multiply_adds)


def shortest(action: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest round; what else the machine does only ever adds time."""
    action()
    spent = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        spent.append(time.perf_counter() - start)
    return min(spent)


def convolutions(side: int, width: float, kernel: int, threads: int, rounds: int) -> float:
    """Seconds of all convolutions of the network, each by itself."""
    found: list[tuple[nn.Module, tuple[int, ...]]] = []
    with torch.device("meta"):
        network = layers(3, width, kernel).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.register_forward_hook(lambda module, given, out: found.append((module, tuple(given[0].shape))))
        network(torch.empty(1, 3, side, side))
    total = 0.0
    for module, shape in found:
        session, given = runtime.session(single(module, shape), threads), np.zeros(shape, np.float32)
        total += shortest(partial(session.run, None, {"x": given}), rounds)
    return total


def single(module: nn.Module, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Build a graph of one convolution."""
    weights = np.zeros(tuple(module.weight.shape), np.float32)
    transposed = isinstance(module, nn.ConvTranspose2d)
    extra = {"output_padding": list(module.output_padding)} if transposed else {}
    node = helper.make_node(
        "ConvTranspose" if transposed else "Conv",
        ["x", "w"],
        ["y"],
        strides=list(module.stride),
        dilations=list(module.dilation),
        pads=[*module.padding, *module.padding],
        **extra,
    )
    graph = helper.make_graph(
        [node],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def on_cuda(side: int, width: float, kernel: int, rounds: int) -> float:
    """Seconds of the network for one picture on CUDA, in bfloat16 and channels-last."""
    network = layers(3, width, kernel).eval().cuda().to(memory_format=torch.channels_last)
    x = torch.zeros(1, 3, side, side, device="cuda").contiguous(memory_format=torch.channels_last)

    def once() -> None:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            network(x)
        torch.cuda.synchronize()

    return shortest(once, rounds)


def training(side: int, options: argparse.Namespace, multiply_adds: int) -> None:
    """Print what a training step takes, with and without the corruption."""
    settings = Settings(
        width=options.width, kernel=options.kernel, steps=1000, batch=options.batch, hold_out=0, grow_from=1.0
    )
    device = choose("")
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    network = FilteringAutoencoder(settings, 0).network(side, 3)
    loop = Loop(network, network.loss, settings, 0, Run())
    batch = torch.rand(options.batch, 3, side, side, device=device)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def step() -> None:
        loop._step(lambda step: batch)
        loop.state.step += 1
        wait()

    def damage() -> None:
        network.corruption(batch, torch.Generator(device).manual_seed(0))
        wait()

    whole, part = shortest(step, options.steps), shortest(damage, options.steps)
    done = 3 * 2 * multiply_adds * options.batch / whole / 1e12  # forward, and twice as much backward
    share = f", {100 * done / options.peak:.0f} % of the peak" if options.peak else ""
    print(
        f"  training step of {options.batch} on {device}: {1000 * whole:.1f} ms, of which corruption "
        f"{1000 * part:.1f} ms; {options.batch / whole:.1f} tiles/s, {done:.3f} T operations/s{share}"
    )


if __name__ == "__main__":
    main()
