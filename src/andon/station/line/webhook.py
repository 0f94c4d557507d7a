"""Webhooks: each record is posted as JSON with a signature after Standard Webhooks."""

import base64
import hashlib
import hmac
import http.client
import time
import urllib.error
import urllib.request
from typing import IO, Any

from andon.station.entries import Row
from andon.station.line.outbox import Outbox, Undelivered, payload
from andon.station.line.settings import Webhook as Settings
from andon.station.line.shown import Shown
from andon.station.station import Station


class Webhook(Outbox):
    """Posts records to one address. Only an answer 2xx means that a record was accepted.

    Args:
        station: station whose records are posted.
        settings: settings of the address.
    """

    def __init__(self, station: Station, settings: Settings) -> None:
        self._settings, self._secret = settings, settings.secret().encode()
        self._opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
        super().__init__(station, settings.target)

    def status(self) -> Shown:
        return Shown(f"Webhook {self._settings.name}", self._settings.url, self.fault, self.values())

    def _send(self, row: Row) -> None:
        body, moment = payload(row), str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "andon",
            "webhook-id": row.key,
            "webhook-timestamp": moment,
            "webhook-signature": signature(self._secret, row.key, moment, body),
        }
        request = urllib.request.Request(self._settings.url, body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._settings.timeout_s):
                pass
        except urllib.error.HTTPError as error:
            error.close()
            raise Undelivered(f"{self._settings.url} answered {error.code}; expected 200 to 299.") from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", None) or error
            raise Undelivered(f"{self._settings.url} cannot be reached: {cause}.") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, so that records are sent only to the address in the settings."""

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def signature(secret: bytes, key: str, moment: str, body: bytes) -> str:
    """Return `v1,` and the Base64 text of the HMAC-SHA256 of key, time and body, joined by dots."""
    signed = hmac.new(secret, f"{key}.{moment}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(signed).decode()}"
