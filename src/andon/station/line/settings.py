"""Settings of the line protocols: sections of `station.toml`. A protocol without a section is off."""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from andon.station.events import StationError

Port = Annotated[int, Field(ge=0, le=65535)]
Text = Annotated[str, Field(min_length=1, max_length=200)]
LEAST_SECRET = 16


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Modbus(_Section):
    """Modbus TCP server."""

    host: str = "127.0.0.1"
    """Address to listen on. Modbus has no keys: whoever reaches it can trigger and acknowledge."""
    port: Port = 502
    products: tuple[Text, ...] = Field(strict=False, min_length=1)
    """The products that the PLC can choose; the first has number 1."""


class Mqtt(_Section):
    """Messages to a broker."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 1883
    prefix: Annotated[str, Field(pattern=r"^[^+#/\x00]+(/[^+#/\x00]+)*$")] = "andon"
    """How topics begin."""
    tls: bool = False
    ca_file: Path | None = Field(default=None, strict=False)
    """Certificates of those who may vouch for the broker; none: those of the system."""
    user: str | None = None
    password_file: Path | None = Field(default=None, strict=False)
    """File that holds the password; the environment's ANDON_MQTT_PASSWORD comes first."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ca_file and not self.tls:
            raise ValueError("ca_file is given without tls; expected tls = true")
        return self

    def password(self) -> str | None:
        """None without a user."""
        return secret("ANDON_MQTT_PASSWORD", self.password_file, 1) if self.user else None


class Webhook(_Section):
    """Messages to an address by HTTP."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]{0,31}$")]
    url: Annotated[str, Field(pattern=r"^https?://[^\s@]+$")]
    """Where to; without a user or password in it."""
    secret_file: Path | None = Field(default=None, strict=False)
    """File that holds the secret; the environment's ANDON_WEBHOOK_SECRET_NAME, in capitals, comes first."""
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 10.0

    @property
    def target(self) -> str:
        """In the outbox."""
        return f"webhook:{self.name}"

    def secret(self) -> str:
        return secret(f"ANDON_WEBHOOK_SECRET_{self.name.upper()}", self.secret_file, LEAST_SECRET)


class Watched(_Section):
    """Pictures from a folder, results into a folder."""

    product: Text
    pictures: Path = Field(strict=False)
    """Each file is a part; its name without the suffix is the part's id."""
    results: Path = Field(strict=False)
    settle_s: Annotated[float, Field(ge=0, le=60)] = 0.5
    """A file is whole when it has not changed for so long."""


class OpcUa(_Section):
    """OPC UA server."""

    host: str = "127.0.0.1"
    """Address to listen on. Without security there are no keys: whoever reaches it can start jobs."""
    port: Port = 4840
    security: Literal["None", "Basic256Sha256"] = "None"
    """Basic256Sha256: connections are signed and encrypted, and a client gives an API key as its password."""
    certificate: Path | None = Field(default=None, strict=False)
    """The server's, PEM or DER; without one it makes its own in the folder of data."""
    private_key: Path | None = Field(default=None, strict=False)
    """Of the certificate, PEM or DER without a password."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("only one of certificate and private_key is given; expected both or none")
        if self.certificate and self.security == "None":
            raise ValueError('certificate is given without security; expected security = "Basic256Sha256"')
        return self


def secret(variable: str, file: Path | None, least: int) -> str:
    """A secret from the environment, or a file. StationError when there is none, or it is too short."""
    found = os.environ.get(variable, "")
    if not found and file:
        try:
            found = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise StationError(f"{file}: cannot be read: {error}. Expected a file that holds a secret.") from None
    if len(found) < least:
        place = f"{variable} or {file}" if file else f"{variable}, or a file that the settings name"
        raise StationError(f"{place}: {len(found)} characters, expected a secret of at least {least}. Put it there.")
    return found
