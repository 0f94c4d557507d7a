"""A scorer for several threads: calls that wait for the engine are put together into one batch."""

import threading
from collections import deque
from concurrent.futures import Future

import numpy as np

from andon.geometry.tiling import PIXELS_AT_ONCE
from andon.inspection import Pixels, Scorer, Scores


class Batching:
    """Gives the engine one batch at a time; the thread whose turn it is takes along what others wait for.

    A batch is at most `PIXELS_AT_ONCE` pixels, or one call. When a batch of several calls fails, each is tried alone,
    so that one bad call spoils no other.
    """

    def __init__(self, scorer: Scorer) -> None:
        """Wrap a scorer; its threads and options stay as they are."""
        self._scorer = scorer
        self._engine = threading.Lock()
        self._waiting: deque[tuple[Pixels, Future[Scores]]] = deque()  # append and popleft are atomic

    def score(self, tiles: Pixels) -> Scores:
        """Score tiles (n, t, t, c), perhaps together with those of other threads."""
        promise: Future[Scores] = Future()
        self._waiting.append((tiles, promise))
        with self._engine:
            while not promise.done():
                self._serve()
        return promise.result()

    def _serve(self) -> None:
        """Run the oldest call, and those after it that fit in with it."""
        together = [self._waiting.popleft()]
        first = together[0][0]
        room = PIXELS_AT_ONCE // (first.shape[1] * first.shape[2]) - len(first)
        while self._waiting:
            tiles = self._waiting[0][0]
            if tiles.shape[1:] != first.shape[1:] or tiles.dtype != first.dtype or len(tiles) > room:
                break
            room -= len(tiles)
            together.append(self._waiting.popleft())
        try:
            scores = self._scorer.score(np.concatenate([tiles for tiles, _ in together]))
        except Exception as error:
            if len(together) == 1:
                together[0][1].set_exception(error)
            else:
                for call in together:
                    self._alone(*call)
            return
        at = np.cumsum([len(tiles) for tiles, _ in together])[:-1]
        parts = zip(np.split(scores.image, at), np.split(scores.pixel, at), strict=True)
        for (_, promise), (image, pixel) in zip(together, parts, strict=True):
            promise.set_result(Scores(image, pixel))

    def _alone(self, tiles: Pixels, promise: "Future[Scores]") -> None:
        try:
            promise.set_result(self._scorer.score(tiles))
        except Exception as error:
            promise.set_exception(error)
