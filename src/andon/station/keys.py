"""API keys with roles. The file holds their digests; a key itself is shown once, when it is made."""

import hmac
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path

from andon import files
from andon.station.entries import stamp
from andon.station.events import StationError

MOST = 1000


class Role(IntEnum):
    """Each may do what those before it may."""

    OPERATOR = 1
    """Inspect, look at records, confirm or override a verdict, run challenge parts, halt and reset the station."""
    QUALITY = 2
    """Release, activate and roll back bundles, set golden pictures and challenge parts."""
    ENGINEER = 3
    """Upload bundles, make and revoke keys."""


@dataclass(frozen=True)
class Key:
    id: str
    name: str
    """Who: it stands in the record of each decision and change."""
    role: str
    made: str
    """When, UTC."""
    digest: str
    """SHA-256 of the secret. It has 256 random bits, so that nobody can guess it from its digest."""

    @property
    def rank(self) -> Role:
        return Role[self.role.upper()]

    def shown(self) -> dict[str, str]:
        """All but the digest."""
        return {name: value for name, value in asdict(self).items() if name != "digest"}


class Keys:
    """The keys of a station, in a file that its owner alone can read.

    Args:
        path: of the file; made with the first key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._keys = self._read()

    def make(self, name: str, role: Role) -> tuple[Key, str]:
        """A new key, and its text, which is kept nowhere."""
        secret = secrets.token_urlsafe(32)
        key = Key(secrets.token_hex(4), name, role.name.lower(), stamp(time.time()), _digest(secret))
        with self._lock:
            if len(self._keys) >= MOST:
                raise StationError(f"{MOST} keys: expected fewer. Revoke those that nobody uses.")
            self._write({**self._keys, key.id: key})
        return key, f"andon_{key.id}_{secret}"

    def revoke(self, id: str) -> Key:
        """End a key; the last one of an engineer stays."""
        with self._lock:
            if id not in self._keys:
                raise StationError(f"key '{id[:20]}': there is none. List the keys to see their ids.")
            rest = {other: key for other, key in self._keys.items() if other != id}
            if not any(key.rank == Role.ENGINEER for key in rest.values()):
                raise StationError(f"key '{id}' is the last one of an engineer. Make another, then revoke this one.")
            gone = self._keys[id]
            self._write(rest)
        return gone

    def find(self, text: str) -> Key | None:
        """The key of a text; None when there is none."""
        head, _, rest = text.partition("_")
        id, _, secret = rest.partition("_")
        key = self._keys.get(id)
        known = hmac.compare_digest(_digest(secret), key.digest if key else _digest(""))
        return key if key and known and head == "andon" else None

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._keys.values()))

    def __len__(self) -> int:
        return len(self._keys)

    def _read(self) -> dict[str, Key]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise StationError(f"{self.path}: cannot be read: {error}. Allow reading it.") from None
        if not text:  # made, and never written
            return {}
        try:
            keys = [Key(**each) for each in json.loads(text)["keys"]]
            _ = [(key.rank, key.digest.encode("ascii")) for key in keys]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StationError(
                f"{self.path}: damaged: {error!r}. Restore it from a backup, or remove it: a first key is made anew."
            ) from None
        return {key.id: key for key in keys}

    def _write(self, keys: dict[str, Key]) -> None:
        if not self.path.exists():
            files.make_folder(self.path.parent)
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600))  # `files.write` keeps the permissions
        text = files.strict_json({"keys": [asdict(key) for key in keys.values()]}, indent=1)
        files.write(self.path, text.encode())
        self._keys = keys


def _digest(secret: str) -> str:
    return files.digest(secret.encode(errors="surrogateescape"))
