"""Who is signed in: sessions in memory, found by a random token that the browser keeps in a cookie."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from andon.station.config import Config
from andon.station.keys import Key, Keys, Role

COOKIE = "andon_session"
MOST = 1000  # sessions at once; the one that was idle longest ends


@dataclass
class Session:
    """One browser that is signed in."""

    key: Key
    csrf: str
    """In each form; another site cannot know it."""
    seen: float
    """Seconds of the clock at its last request by a person."""


class Sessions:
    """All sessions of a station. They end with it.

    Args:
        keys: of the station; a session ends when its key is revoked.
        config: of the station.
        clock: in seconds.
    """

    def __init__(self, keys: Keys, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys, self._settings, self._clock = keys, config.pages, clock
        self._lock = threading.Lock()
        self._open: dict[str, Session] = {}

    def begin(self, key: Key) -> str:
        """Sign in; returns the token."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            if len(self._open) >= MOST:
                del self._open[min(self._open, key=lambda each: self._open[each].seen)]
            self._open[token] = Session(key, secrets.token_urlsafe(32), self._clock())
        return token

    def find(self, token: str, by_person: bool = True) -> Session | None:
        """The session of a token; None when there is none, or it was idle too long, or its key was revoked.

        by_person: it is not idle now. False for what a page fetches by itself.
        """
        with self._lock:
            session = self._open.get(token)
            if session is None:
                return None
            idle = self._clock() - session.seen > 60 * self._settings.idle_minutes
            stays = self._settings.stay_signed_in and session.key.rank == Role.OPERATOR
            if (idle and not stays) or all(key.id != session.key.id for key in self._keys):
                del self._open[token]
                return None
            if by_person:
                session.seen = self._clock()
            return session

    def end(self, token: str) -> None:
        """Sign out."""
        with self._lock:
            self._open.pop(token, None)
