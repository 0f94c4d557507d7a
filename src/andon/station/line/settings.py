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
    """Address to listen on. Modbus has no authentication: any program that can connect can trigger and acknowledge."""
    port: Port = 502
    products: tuple[Text, ...] = Field(strict=False, min_length=1)
    """The products that the PLC can choose; the first has number 1."""


class Mqtt(_Section):
    """Messages to a broker."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 1883
    prefix: Annotated[str, Field(pattern=r"^[^+#/\x00]+(/[^+#/\x00]+)*$")] = "andon"
    """First part of all topics."""
    tls: bool = False
    ca_file: Path | None = Field(default=None, strict=False)
    """CA certificates to verify the broker; default: those of the system."""
    user: str | None = None
    password_file: Path | None = Field(default=None, strict=False)
    """File that contains the password; the environment variable ANDON_MQTT_PASSWORD overrides it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ca_file and not self.tls:
            raise ValueError("ca_file is set without tls; expected tls = true")
        return self

    def password(self) -> str | None:
        """Return the password; None without a user."""
        return secret("ANDON_MQTT_PASSWORD", self.password_file, 1) if self.user else None


class Webhook(_Section):
    """Messages to an address by HTTP."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]{0,31}$")]
    url: Annotated[str, Field(pattern=r"^https?://[^\s@]+$")]
    """Address that receives the records; without user and password."""
    secret_file: Path | None = Field(default=None, strict=False)
    """File that contains the secret; the environment variable ANDON_WEBHOOK_SECRET_NAME, in capitals, overrides it."""
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 10.0

    @property
    def target(self) -> str:
        """Name in the outbox."""
        return f"webhook:{self.name}"

    def secret(self) -> str:
        return secret(f"ANDON_WEBHOOK_SECRET_{self.name.upper()}", self.secret_file, LEAST_SECRET)


class Watched(_Section):
    """Pictures from a folder, results into a folder."""

    product: Text
    pictures: Path = Field(strict=False)
    """Folder of the pictures. Each file is a part; its name without the suffix is the part's id."""
    results: Path = Field(strict=False)
    settle_s: Annotated[float, Field(ge=0, le=60)] = 0.5
    """Time without a change after which a file counts as complete."""


class OpcUa(_Section):
    """OPC UA server."""

    host: str = "127.0.0.1"
    """Address to listen on. Without security, every program that can connect can start jobs."""
    port: Port = 4840
    security: Literal["None", "Basic256Sha256"] = "None"
    """Basic256Sha256: connections are signed and encrypted, and a client needs an API key as its password."""
    certificate: Path | None = Field(default=None, strict=False)
    """Certificate of the server, PEM or DER; default: a self-signed one, created in the folder `data`."""
    private_key: Path | None = Field(default=None, strict=False)
    """Private key of the certificate, PEM or DER without a password."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("only one of certificate and private_key is set; expected both or neither")
        if self.certificate and self.security == "None":
            raise ValueError('certificate is set without security; expected security = "Basic256Sha256"')
        return self


def secret(variable: str, file: Path | None, least: int) -> str:
    """Return a secret from the environment or a file. StationError when it is missing or too short."""
    found = os.environ.get(variable, "")
    if not found and file:
        try:
            found = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise StationError(f"{file}: cannot be read: {error}. Expected a file that contains a secret.") from None
    if len(found) < least:
        place = f"{variable} or {file}" if file else f"{variable}, or a file that the settings name"
        raise StationError(f"{place}: {len(found)} characters; expected a secret of at least {least}. Put it there.")
    return found
