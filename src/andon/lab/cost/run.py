"""Measure the cost of detectors, bundles and the detectors of plans."""

import importlib.util
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import onnxruntime

from andon import detectors, files
from andon.bundle import Bundle
from andon.engines import clock
from andon.engines.clock import Timing, Trial
from andon.errors import AndonError, RecipeError, out_of_memory, unknown
from andon.inspection import Pixels
from andon.lab.bench import plan as plans
from andon.lab.bench.plan import Contender
from andon.lab.cost.count import count
from andon.lab.cost.learning import Learning, fit_on_noise
from andon.lab.cost.table import Row
from andon.progress import Progress, silent
from andon.recipe import Recipe, validate
from andon.training.train import construct

if TYPE_CHECKING:
    from andon.nn.learned import Network

SECONDS = 3.0  # duration of each time measurement


class Subject(NamedTuple):
    """The graph of a fitted detector."""

    name: str
    graph: bytes
    shape: tuple[int, int]  # of a tile, pixels
    channels: int
    depth: int  # bits
    learning: Learning | None  # None if it does not learn by gradient


def run(
    names: Sequence[str],
    *,
    size: int = 256,
    preset: str = "",
    threads: int = 0,
    seconds: float = SECONDS,
    progress: Progress = silent,
) -> tuple[list[Row], list[str]]:
    """Measure detectors by name, and bundles and benchmark plans by path; without names, all that have the preset.

    Returns the rows, and a sentence for each detector that could not be measured. AndonError, before anything is
    measured, for an unknown name, a damaged bundle, or an impossible size or preset.
    """
    failures: list[str] = []
    makers = [maker for name in names or _with_preset(preset, failures) for maker in _makers(name, size, preset)]
    rows: list[Row] = []
    for done, (name, make) in enumerate(makers):
        progress("cost", done, len(makers))
        try:
            rows += _measure(make(), threads, seconds)
        except (AndonError, ValueError) as error:  # some detectors cannot learn from random tiles
            failures.append(f"{name}: {error}")
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            failures.append(f"{name}: out of memory while it was fitted. Free memory, or use a smaller size.")
    progress("cost", len(makers), len(makers))
    return rows, failures


def _with_preset(preset: str, failures: list[str]) -> list[str]:
    """The detectors that have the preset; one that needs a package that is not installed is a failure."""
    presets: dict[str, Collection[str]] = {}
    for name in detectors.names():
        try:
            presets[name] = detectors.get(name).presets
        except AndonError as error:
            failures.append(str(error))
    names = [name for name, known in presets.items() if preset in ("", *known)]
    if not names:
        raise RecipeError(unknown("preset", preset, {each for known in presets.values() for each in known}))
    return names


def _makers(name: str, size: int, preset: str) -> list[tuple[str, Callable[[], Subject]]]:
    """Resolve a name or path: labels for the table, and functions that make the subjects."""
    if name in detectors.DETECTORS:
        return [_contender(Contender(name=name, preset=preset), size)]
    if name.endswith(".toml"):
        return [_contender(entry, size) for entry in plans.load(name).detectors]
    if not (files.is_file(name) or name.endswith(".andon") or os.sep in name):
        raise RecipeError(f"{unknown('detector', name, detectors.names())} There is no bundle with this name.")
    bundle = Bundle.load(name)
    return [(name, lambda: _from_bundle(name, bundle))]


def _contender(entry: Contender, size: int) -> tuple[str, Callable[[], Subject]]:
    values = {"geometry": {"size": size}, "detector": entry.model_dump(exclude={"label"})}
    recipe = construct(validate(Recipe, values, "cost"))[1]
    return entry.called, lambda: _from_detector(entry.called, recipe)


def _from_detector(name: str, recipe: Recipe) -> Subject:
    model, learning = fit_on_noise(recipe, 3, 8)
    return Subject(name, model.graph().SerializeToString(), recipe.geometry.input, 3, 8, learning)


def _from_bundle(name: str, bundle: Bundle) -> Subject:
    channels, depth = bundle.manifest.input.channels, bundle.manifest.input.depth
    learnable = bundle.curve and importlib.util.find_spec("torch")
    learning = fit_on_noise(bundle.recipe, channels, depth)[1] if learnable else None
    return Subject(name, bundle.graph, bundle.recipe.geometry.input, channels, depth, learning)


def _measure(subject: Subject, threads: int, seconds: float) -> Iterator[Row]:
    """Yield a row for each available device."""
    counts, learning, size = count(subject.graph), subject.learning, len(subject.graph)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.onnx"
        files.write(graph, subject.graph)
        trial = Trial(
            graph=graph,
            shape=subject.shape,
            channels=subject.channels,
            depth=subject.depth,
            threads=threads,
            seconds=seconds,
        )
        timings = {"cpu": clock.measure(subject.name, trial)}
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            timings["cuda"] = clock.measure(subject.name, trial.model_copy(update={"cuda": True}))
        elif learning and learning.network is not None and (timing := _measure_on_gpu(learning.network, trial)):
            timings["cuda (torch)"] = timing
    for device, timing in timings.items():
        yield Row(
            detector=subject.name,
            device=device,
            shape=subject.shape,
            parameters=counts.parameters,
            multiply_adds=counts.multiply_adds,
            forward_mb=None if counts.forward is None else counts.forward / 1e6,
            backward_mb=learning.backward / 1e6 if learning else None,
            model_mb=(learning.weights if learning else counts.constants) / 1e6,
            onnx_mb=size / 1e6,
            peak_mb=timing.peak_mb,
            p50_ms=timing.p50_ms,
            p95_ms=timing.p95_ms,
            throughput=timing.throughput,
        )


def _measure_on_gpu(network: "Network", trial: Trial, device: str = "cuda") -> Timing | None:
    """Time the network on the GPU with torch, when ONNX Runtime has no CUDA provider; None if there is no GPU."""
    import torch

    from andon.nn.data import floats

    if device == "cuda" and not torch.cuda.is_available():
        return None
    on_gpu = network.to(device).eval()

    def score(tiles: Pixels) -> list[Any]:
        with torch.no_grad():
            return [output.cpu() for output in on_gpu(floats(tiles, torch.device(device)))]

    def peak() -> float | None:
        return torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else None

    return clock.time_runs(score, trial, peak)
