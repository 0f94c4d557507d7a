"""What a process of its own does beside the line: bundles are opened and pictures drawn there, never in the service.

A file that crashes a decoder costs one answer; the process is made anew.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from andon.station.events import StationError

T = TypeVar("T")


class Aside:
    """One process, started when it is first needed.

    Args:
        timeout_s: a call that takes longer is given up, and the process ended.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of a function of a module, called with plain data. StationError when it ended the process."""
        with self._lock:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), follow)
            try:
                return self._pool.submit(function, *arguments).result(self.timeout_s)
            except (BrokenProcessPool, TimeoutError) as error:
                self._end()
                how = f"took longer than {self.timeout_s:g} s" if isinstance(error, TimeoutError) else "crashed"
                raise StationError(f"the process that opened the file {how}. Expected a sound file.") from None

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
    """End this process with the station, however that ends."""
    station = multiprocessing.parent_process()
    assert station

    def end() -> None:
        station.join()
        os._exit(0)

    threading.Thread(target=end, daemon=True).start()


def describe(path: str) -> dict[str, Any]:
    """What a bundle says of itself; AndonError when it is not one, or not whole."""
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
    """The calibration of a bundle as JSON."""
    from andon.bundle import Bundle

    return Bundle.load(path).calibration.model_dump_json()


def picture(path: str) -> bytes:
    """A picture as PNG of at most 8 bits a channel."""
    from andon import render
    from andon.pictures import image

    return render.encode(render.display(image.read(Path(path)).pixels), "png")


def shown(picture: str | bytes, side: int) -> bytes:
    """A picture, of a file or as its bytes, as JPEG of at most `side` pixels."""
    from andon import render
    from andon.pictures import image

    pixels = image.read(Path(picture) if isinstance(picture, str) else picture).pixels
    if max(pixels.shape[:2]) > side:
        pixels = render.scaled(pixels, side)
    return render.encode(render.display(pixels), "jpg")


def size(picture: str | bytes) -> tuple[int, int]:
    """Width and height of a picture, of a file or as its bytes, in pixels."""
    from andon.pictures import image

    height, width = image.read(Path(picture) if isinstance(picture, str) else picture).full
    return width, height


def layer(map: str | bytes, typical: float, threshold: float, side: int) -> bytes:
    """A heat map alone, of a file or as its bytes, as transparent PNG of at most `side` pixels."""
    from andon import render
    from andon.station.answers import Map

    found = Map.from_bytes(Path(map).read_bytes() if isinstance(map, str) else map).enlarge()
    return render.layer(found, render.Scale.of(typical, threshold), side)


def heat_map(path: str, map_path: str, typical: float, threshold: float) -> bytes:
    """A picture with its heat map, on the scale of its bundle, as PNG."""
    from andon import render
    from andon.pictures import image
    from andon.station.answers import Map

    pixels = image.read(Path(path)).pixels
    found = Map.from_bytes(Path(map_path).read_bytes()).enlarge()
    scale = render.Scale.of(typical, threshold)
    return render.encode(render.overlay(pixels, found, scale), "png")
