"""A separate process that opens bundles and draws pictures, so that the service does neither.

If a file crashes a decoder, one call fails, and a new process is started.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from andon.station.events import StationError

T = TypeVar("T")


class Aside:
    """One process, started at the first call.

    Args:
        timeout_s: a call that takes longer fails, and its process is killed.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a module's function with plain data; return its result. StationError if the process crashes."""
        with self._lock:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), follow)
            try:
                return self._pool.submit(function, *arguments).result(self.timeout_s)
            except (BrokenProcessPool, TimeoutError) as error:
                self._end()
                how = f"took longer than {self.timeout_s:g} s" if isinstance(error, TimeoutError) else "crashed"
                raise StationError(f"the process that opened the file {how}. Check the file.") from None

    def close(self) -> None:
        with self._lock:
            self._end()

    def _end(self) -> None:
        pool, self._pool = self._pool, None
        if pool:
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(cancel_futures=True)


def follow() -> None:
    """End this process with the station, even if the station is killed, and not by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    station = multiprocessing.parent_process()
    assert station

    def end() -> None:
        station.join()
        os._exit(0)

    threading.Thread(target=end, daemon=True).start()


def describe(path: str) -> dict[str, Any]:
    """Return the digest and a description of a bundle. AndonError when it is not a bundle, or damaged."""
    from andon import files
    from andon.bundle import Bundle

    bundle = Bundle.load(path)
    decision = bundle.recipe.decision
    about = {
        "detector": bundle.manifest.detector,
        "trained": bundle.manifest.created,
        "input": bundle.manifest.input.model_dump(mode="json"),
        "thresholds": bundle.calibration.thresholds(decision)._asdict(),
        "typical": bundle.calibration.typical,
        "calibrated": {"images": bundle.calibration.images, "parts": bundle.calibration.parts},
        "recipe": bundle.recipe.model_dump(mode="json", exclude={"data"}),
        "promises": bundle.calibration.describe(decision),
        "history": bundle.manifest.history,
        "deadline_ms": bundle.recipe.deadline_ms,
    }
    return {"digest": bundle.digest(), "about": files.finite(about)}


def calibration(path: str) -> str:
    """Return the calibration of a bundle as JSON."""
    from andon.bundle import Bundle

    return Bundle.load(path).calibration.model_dump_json()


def picture(path: str) -> bytes:
    """Return a picture as PNG with 8 bits per channel."""
    from andon import render
    from andon.pictures import image

    return render.encode(render.display(image.read(Path(path)).pixels), "png")


def shown(picture: str | bytes, side: int) -> bytes:
    """Return a picture, given as a path or as bytes, as JPEG with at most `side` pixels per side."""
    from andon import render
    from andon.pictures import image

    pixels = image.read(Path(picture) if isinstance(picture, str) else picture).pixels
    if max(pixels.shape[:2]) > side:
        pixels = render.scaled(pixels, side)
    return render.encode(render.display(pixels), "jpg")


def size(picture: str | bytes) -> tuple[int, int]:
    """Return width and height in pixels of a picture, given as a path or as bytes."""
    from andon.pictures import image

    height, width = image.read(Path(picture) if isinstance(picture, str) else picture).full
    return width, height


def layer(map: str | bytes, typical: float, threshold: float, side: int) -> bytes:
    """Return a heat map, given as a path or as bytes, as transparent PNG with at most `side` pixels per side."""
    from andon import render
    from andon.station.answers import Map

    found = Map.from_bytes(Path(map).read_bytes() if isinstance(map, str) else map).enlarge()
    return render.layer(found, render.Scale.of(typical, threshold), side)


def heat_map(path: str, map_path: str, typical: float, threshold: float) -> bytes:
    """Return a picture with its heat map, in the scale of its bundle, as PNG."""
    from andon import render
    from andon.pictures import image
    from andon.station.answers import Map

    pixels = image.read(Path(path)).pixels
    found = Map.from_bytes(Path(map_path).read_bytes()).enlarge()
    scale = render.Scale.of(typical, threshold)
    return render.encode(render.overlay(pixels, found, scale), "png")
