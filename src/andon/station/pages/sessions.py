"""Who is signed in at a browser: a table in memory, so that a restart of the station signs everybody out."""

import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

MOST = 1000


@dataclass
class Session:
    """One browser that is signed in."""

    token: str
    """In its cookie."""
    key: str
    """Id of the key."""
    csrf: str
    """What each request that changes something must bring."""
    used: float
    """When it last asked for something, by the clock of `Sessions`."""

    def permits(self, text: str) -> bool:
        """Whether a request brings the token of this session."""
        return hmac.compare_digest(text.encode(), self.csrf.encode())


class Sessions:
    """All sessions. Every call may come from any thread.

    Args:
        idle_s: a session that asks for nothing so long is over.
        clock: seconds.
    """

    def __init__(self, idle_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._idle_s, self._clock = idle_s, clock
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}

    def open(self, key: str) -> Session:
        """A new session; the one that was used least goes when there are too many."""
        session = Session(secrets.token_urlsafe(32), key, secrets.token_urlsafe(32), self._clock())
        with self._lock:
            if len(self._sessions) >= MOST:
                del self._sessions[min(self._sessions.values(), key=lambda each: each.used).token]
            self._sessions[session.token] = session
        return session

    def find(self, token: str, stays: Callable[[str], bool], acts: bool = True) -> Session | None:
        """The session of a token; None when there is none, or when it was idle too long.

        `stays`: whether a key stays signed in without end. `acts`: a person does something; a page that asks by itself
        for what is new does not prolong the session.
        """
        now = self._clock()
        with self._lock:
            session = self._sessions.get(token)
            if session is None:
                return None
            if now - session.used > self._idle_s and not stays(session.key):
                del self._sessions[token]
                return None
            if acts:
                session.used = now
            return session

    def close(self, token: str) -> None:
        with self._lock:
            self._sessions.pop(token, None)
