"""Where the time of a bundle's graph goes, by kind of node, on ONNX Runtime.

    python benchmarks/graph_profile.py part.andon --threads 1

Least time of each node over the runs, on a tile of noise: other programs can only make a run longer.
"""

import json
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import typer

from andon.bundle import Bundle

GROUPS = {"Conv": "convolutions", "MatMul": "searches", "ReduceMin": "searches"}


def main(
    bundle: Annotated[Path, typer.Argument(help="A bundle made by `andon train`.")],
    threads: Annotated[int, typer.Option(min=1)] = 1,
    runs: Annotated[int, typer.Option(min=2)] = 20,
) -> None:
    """Print milliseconds by kind of node, and what follows the convolutions."""
    loaded = Bundle.load(bundle)
    height, width = loaded.recipe.geometry.input
    channels, depth = loaded.manifest.input.channels, loaded.manifest.input.depth
    kind = np.uint8 if depth == 8 else np.uint16
    tile = np.random.default_rng(0).integers(0, 2**depth, (1, height, width, channels), dtype=kind)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = threads, True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(loaded.graph, options, providers=["CPUExecutionProvider"])
        for _ in range(runs + 2):
            session.run(None, {"tiles": tile})
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    laps: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in nodes[2 * len(nodes) // (runs + 2) :]:
        laps[event["args"]["op_name"], event["name"]].append(event["dur"] / 1000)
    by_kind: Counter[str] = Counter()
    for (operation, _), times in laps.items():
        by_kind[operation] += min(times)  # type: ignore[assignment]
    groups: Counter[str] = Counter()
    for operation, milliseconds in by_kind.most_common():
        print(f"{operation:16} {milliseconds:8.2f} ms")
        groups[GROUPS.get(operation, "all else")] += milliseconds
    print()
    for name, milliseconds in groups.most_common():
        print(f"{name:16} {milliseconds:8.2f} ms")
    print(f"what follows ÷ convolutions: {groups.total() / groups['convolutions'] - 1:.2f}")


if __name__ == "__main__":
    typer.run(main)
