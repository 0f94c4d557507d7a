"""A scorer for several threads: calls that wait for the engine are combined into one batch."""

import threading
from collections import deque
from concurrent.futures import Future

import numpy as np

from andon.geometry.tiling import PIXELS_AT_ONCE
from andon.inspection import Pixels, Scorer, Scores


class Batching:
    """Runs one batch at a time; the running thread includes the tiles of waiting threads.

    A batch has at most `PIXELS_AT_ONCE` pixels, or is a single call. When a batch of several calls fails, each call is
    run alone, so that one bad call does not affect the others.
    """

    def __init__(self, scorer: Scorer) -> None:
        """Wrap a scorer."""
        self._scorer = scorer
        self._engine = threading.Lock()
        self._waiting: deque[tuple[Pixels, Future[Scores]]] = deque()  # append and popleft are atomic

    def score(self, tiles: Pixels) -> Scores:
        """Score tiles (n, t, t, c), possibly in one batch with those of other threads."""
        promise: Future[Scores] = Future()
        self._waiting.append((tiles, promise))
        with self._engine:
            while not promise.done():
                self._serve()
        return promise.result()

    def _serve(self) -> None:
        """Run the oldest call, and the following ones that fit into its batch."""
        batch = [self._waiting.popleft()]
        first = batch[0][0]
        room = PIXELS_AT_ONCE // (first.shape[1] * first.shape[2]) - len(first)
        while self._waiting:
            tiles = self._waiting[0][0]
            if tiles.shape[1:] != first.shape[1:] or tiles.dtype != first.dtype or len(tiles) > room:
                break
            room -= len(tiles)
            batch.append(self._waiting.popleft())
        try:
            scores = self._scorer.score(np.concatenate([tiles for tiles, _ in batch]))
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:
                for call in batch:
                    self._alone(*call)
            return
        at = np.cumsum([len(tiles) for tiles, _ in batch])[:-1]
        parts = zip(np.split(scores.image, at), np.split(scores.pixel, at), strict=True)
        for (_, promise), (image, pixel) in zip(batch, parts, strict=True):
            promise.set_result(Scores(image, pixel))

    def _alone(self, tiles: Pixels, promise: "Future[Scores]") -> None:
        try:
            promise.set_result(self._scorer.score(tiles))
        except Exception as error:
            promise.set_exception(error)
