"""Permissions by key, and limits of request rates."""

import time
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from andon.station.http.problems import Problem
from andon.station.keys import Key, Role
from andon.station.station import Station

WRONG_KEYS_PER_S = 0.2
"""Maximum average rate of requests without a valid key from one address."""
WRONG_KEYS = 10
"""The same, in one burst."""
ADDRESSES = 10_000


class Bucket:
    """A token bucket: `per_s` on average, `most` in one burst."""

    def __init__(self, per_s: float, most: float) -> None:
        self._per_s, self._most = per_s, most
        self._left, self._at = most, time.monotonic()

    def take(self) -> bool:
        """Take a token; return whether there was one."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Access:
    """Keys of requests, and limits of their rates."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._rates: dict[str, Bucket] = {}
        self._wrong: dict[str, Bucket] = {}

    def key(self, address: str, text: str | None) -> Key:
        """Return the key of a request. Problem when it is missing or invalid, or when there are too many requests."""
        key = self._station.keys.find(text) if text else None
        if key is None:
            if len(self._wrong) >= ADDRESSES:
                self._wrong.clear()
            if not self._wrong.setdefault(address, Bucket(WRONG_KEYS_PER_S, WRONG_KEYS)).take():
                raise Problem(429, "Too many requests without a valid key from this address. Wait a minute.")
            found = "an unknown or revoked key" if text else "no key"
            raise Problem(401, f"The request has {found}; expected 'Authorization: Bearer andon_…' with a valid key.")
        rate = self._station.config.http.requests_per_s
        if not self._rates.setdefault(key.id, Bucket(rate, 2 * rate)).take():
            raise Problem(429, f"Key {key.id} ({key.name}) sends more than {rate:g} requests per second. Send fewer.")
        return key


def station(request: Request) -> Station:
    """Return the station of the application."""
    found: Station = request.app.state.station
    return found


_bearer = HTTPBearer(auto_error=False, description="A key. The station prints the first key at its first start.")


def _needs(role: Role) -> Callable[..., Key]:
    def known(request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None) -> Key:
        access: Access = request.app.state.access
        key = access.key(request.client.host if request.client else "", given.credentials if given else None)
        if key.rank < role:
            raise Problem(
                403,
                f"Key {key.id} ({key.name}) has the role {key.role}; expected {role.name.lower()}. Use another key.",
            )
        return key

    return known


Operator = Annotated[Key, Depends(_needs(Role.OPERATOR))]
Quality = Annotated[Key, Depends(_needs(Role.QUALITY))]
Engineer = Annotated[Key, Depends(_needs(Role.ENGINEER))]
The = Annotated[Station, Depends(station)]
