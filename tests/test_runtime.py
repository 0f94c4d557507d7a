"""An engine, and what it stands on, can be shared by threads and sent to other processes."""

import importlib.util
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from andon.bundle import Bundle
from andon.engines.runtime import Engine, Runtime
from andon.errors import BundleError
from andon.geometry.registration import SPECTRA, NotFound, Reference, Register
from andon.inspection import Registration
from andon.pictures.image import Image
from conftest import noise, part

ENGINES = [
    pytest.param(engine, marks=pytest.mark.skipif(not importlib.util.find_spec(engine), reason=f"needs {engine}"))
    for engine in get_args(Engine)
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("engine", ENGINES)
def test_threads_share_one_engine(bundle_file: Path, engine: Engine, threads: int) -> None:
    scorer = Runtime(Bundle.load(bundle_file).graph, engine, threads)
    batches = [noise(1 + seed % 3, 96, seed=seed) for seed in range(12)]
    alone = [scorer.score(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(scorer.score, batches * 4))
    for found, expected in zip(together, alone * 4, strict=True):
        np.testing.assert_allclose(found.image, expected.image, rtol=1e-5)
        np.testing.assert_allclose(found.pixel, expected.pixel, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_goes_to_another_process(bundle_file: Path, engine: Engine) -> None:
    scorer, tiles = Runtime(Bundle.load(bundle_file).graph, engine, threads=1), noise(2, 96)
    copy = pickle.loads(pickle.dumps(scorer))
    assert (copy.engine, copy.tiles) == (scorer.engine, scorer.tiles)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(scorer.score, tiles).result()
    np.testing.assert_allclose(found.image, scorer.score(tiles).image, rtol=1e-5)


def reference(**settings: object) -> Reference:
    picture = Image(part(0), "reference.png", ())
    return Reference.of(picture, Register.model_validate({"max_rotation": 10.0, **settings}))


def test_a_reference_goes_to_another_process_and_is_shared_by_threads() -> None:
    here, pixels = reference(), np.roll(part(0), (3, 5), (0, 1))
    expected, pose = here.find(pixels, "moved.png")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(here.find, pixels, "moved.png").result()
    np.testing.assert_allclose(there[0], expected, atol=1e-3)
    with ThreadPoolExecutor(4) as pool:
        for matrix, found in pool.map(lambda _: here.find(pixels, "moved.png"), range(8)):
            np.testing.assert_allclose(matrix, expected, atol=1e-3)
            assert found.shift == pytest.approx(pose.shift, abs=1e-2)


def test_a_reference_keeps_what_it_needs_for_few_sizes_of_pictures() -> None:
    here = reference(max_rotation=0.0)
    for side in range(60, 60 + 8 * (SPECTRA + 3), 8):
        with suppress(NotFound):
            here.find(part(0, side), "other.png")
    assert here._spectra.cache_info().currsize == SPECTRA


def test_a_part_that_is_not_found_is_reported_across_processes() -> None:
    pose = Registration(0.1, 0.0, (0.0, 0.0), 1.0, 1.0, 2.0)
    copy = pickle.loads(pickle.dumps(NotFound("a.png: not found", pose)))
    assert (str(copy), copy.registration) == ("a.png: not found", pose)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("graph", [b"\x3a\xff\xff\xff\xff\x7f", b"\x08", b"\x0b", b"\xff" * 20])
def test_a_graph_that_is_damaged_is_refused(engine: Engine, graph: bytes) -> None:
    with pytest.raises(BundleError, match="the graph is damaged or not ONNX"):
        Runtime(graph, engine)
