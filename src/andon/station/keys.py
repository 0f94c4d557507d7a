"""API keys with roles. The file contains only their digests; a key is shown once, when it is created."""

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
    """Roles of keys. Each role includes the permissions of the previous ones."""

    OPERATOR = 1
    """Inspect, look at records, confirm or override a verdict, run challenge parts, halt and reset the station."""
    QUALITY = 2
    """Release, activate and roll back bundles, set golden pictures and challenge parts."""
    ENGINEER = 3
    """Upload bundles, create and revoke keys."""


@dataclass(frozen=True)
class Key:
    id: str
    name: str
    """Name of the person or program, which is noted in the record of each decision and change."""
    role: str
    made: str
    """Time of creation, UTC."""
    digest: str
    """SHA-256 of the secret. The secret has 256 random bits, so it cannot be found from its digest."""

    @property
    def rank(self) -> Role:
        return Role[self.role.upper()]

    def shown(self) -> dict[str, str]:
        """Return all fields except the digest."""
        return {name: value for name, value in asdict(self).items() if name != "digest"}


class Keys:
    """The keys of a station, in a file that only its owner can read.

    Args:
        path: path of the file; it is created with the first key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._keys = self._read()

    def make(self, name: str, role: Role) -> tuple[Key, str]:
        """Create a key; return it and its text, which is not stored."""
        secret = secrets.token_urlsafe(32)
        key = Key(secrets.token_hex(4), name, role.name.lower(), stamp(time.time()), _digest(secret))
        with self._lock:
            if len(self._keys) >= MOST:
                raise StationError(f"{MOST} keys, the maximum. Revoke keys that are no longer used.")
            self._write({**self._keys, key.id: key})
        return key, f"andon_{key.id}_{secret}"

    def revoke(self, id: str) -> Key:
        """Revoke a key. StationError for the last key of an engineer."""
        with self._lock:
            if id not in self._keys:
                raise StationError(f"key '{id[:20]}': no such key. List the keys to see their ids.")
            rest = {other: key for other, key in self._keys.items() if other != id}
            if not any(key.rank == Role.ENGINEER for key in rest.values()):
                raise StationError(f"key '{id}' is the last key of an engineer. Create another first.")
            gone = self._keys[id]
            self._write(rest)
        return gone

    def find(self, text: str) -> Key | None:
        """Return the key with a text; None if there is none."""
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
        if not text:  # the process ended before it wrote the first key
            return {}
        try:
            keys = [Key(**each) for each in json.loads(text)["keys"]]
            _ = [(key.rank, key.digest.encode("ascii")) for key in keys]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StationError(
                f"{self.path}: damaged: {error!r}. Restore it from a backup, or remove it: then a first key is created."
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
