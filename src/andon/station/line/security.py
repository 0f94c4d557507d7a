"""Encryption and users of the OPC UA server: Basic256Sha256, and API keys as passwords."""

import os
import socket
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncua import ua
from asyncua.crypto.cert_gen import (
    dump_private_key_as_pem,
    generate_private_key,
    generate_self_signed_app_certificate,
)
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.internal_server import InternalServer
from asyncua.server.internal_session import InternalSession
from asyncua.server.server import Server
from asyncua.server.user_managers import UserManager
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from andon import files
from andon.errors import AndonError
from andon.station.events import StationError
from andon.station.keys import Key, Keys, Role
from andon.station.line.settings import OpcUa as Settings

DAYS = 3650
ANONYMOUS = "OPC UA"
"""Name of callers in records when there is no authentication."""
ROLES = {"PrepareRecipe with InternalIdIn": Role.QUALITY}
"""Actions that need a higher role than operator."""


@dataclass
class Holder(User):
    """An authenticated client with its key."""

    key: Key | None = None


_caller: ContextVar[User | None] = ContextVar("caller", default=None)


class Internal(InternalServer):
    """A server that makes the caller known to methods."""

    def create_session(self, name: str, user: User = User(), external: bool = False) -> InternalSession:  # noqa: B008
        return _Session(self, self.aspace, self.subscription_service, name, user=user, external=external)


class _Session(InternalSession):
    async def call(self, params: list[ua.CallMethodRequest]) -> list[ua.CallMethodResult]:
        token = _caller.set(self.user)
        try:
            return await super().call(params)
        finally:
            _caller.reset(token)


class Users(UserManager):
    """Admits clients with a valid key of the station as password. The user name is ignored."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def get_user(
        self, iserver: Any, username: str | None = None, password: str | None = None, certificate: Any = None
    ) -> User | None:
        key = self._keys.find(password or "")
        return Holder(UserRole.User, key.name, key) if key else None


class Permission:
    """Permissions of the calling client.

    Args:
        keys: keys of the station; None: no authentication.
    """

    def __init__(self, keys: Keys | None) -> None:
        self._keys = keys

    def who(self) -> str:
        """Return the name of the caller's key."""
        caller = _caller.get()
        return caller.key.name if isinstance(caller, Holder) and caller.key else ANONYMOUS

    def check(self, action: str) -> None:
        """Check that the caller's key is still valid and its role allows the action. StationError otherwise."""
        if self._keys is None:
            return
        caller = _caller.get()
        key = caller.key if isinstance(caller, Holder) else None
        needed = ROLES.get(action, Role.OPERATOR)
        if key is None or all(each != key for each in self._keys) or key.rank < needed:
            raise StationError(f"{action}: expected a valid key of the role {needed.name.lower()}. Use another key.")


async def secure(server: Server, settings: Settings, keys: Keys, data: Path, uri: str) -> None:
    """Allow only encrypted connections of clients with a key. AndonError when a certificate cannot be used.

    `uri` identifies the server, also in a self-signed certificate.
    """
    certificate, private = settings.certificate, settings.private_key
    if certificate is None or private is None:
        certificate, private = data / "opcua.der", data / "opcua.pem"
        if not (files.is_file(certificate) and files.is_file(private)):
            _make(certificate, private, uri)
    for load, path in ((server.load_certificate, certificate), (server.load_private_key, private)):
        await _load(load, path)
    server.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt])
    server.set_identity_tokens([ua.UserNameIdentityToken])
    server.iserver.set_user_manager(Users(keys))


async def _load(load: Callable[[Path], Any], path: Path) -> None:
    try:
        await load(path)
    except (OSError, ValueError, TypeError) as error:
        raise AndonError(
            f"{path}: cannot be used: {error}. Expected a certificate, or a private key without a password, as PEM or "
            "DER. See opcua.certificate and opcua.private_key."
        ) from None


def _make(certificate: Path, private: Path, uri: str) -> None:
    """Create a private key that only its owner can read, and a self-signed certificate."""
    key, host = generate_private_key(), socket.gethostname()
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri), x509.DNSName(host)]
    made = generate_self_signed_app_certificate(
        key, f"andon@{host}"[:64], {}, names, [ExtendedKeyUsageOID.SERVER_AUTH], DAYS
    )
    files.make_folder(private.parent)
    os.close(os.open(private, os.O_WRONLY | os.O_CREAT, 0o600))  # `files.write` keeps the permissions
    files.write(private, dump_private_key_as_pem(key))
    files.write(certificate, made.public_bytes(Encoding.DER))
