"""MQTT: each record is published at least once; the state of the station is a retained message."""

import ssl
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from andon import files
from andon.errors import AndonError
from andon.station.entries import Row
from andon.station.line.outbox import Outbox, Undelivered, payload
from andon.station.line.running import Running
from andon.station.line.settings import Mqtt as Settings
from andon.station.line.shown import Shown, Value
from andon.station.station import Station

KEEPALIVE_S = 15
LOOK_S = 0.25
CLOSE_S = 1.0


class Mqtt(Running):
    """A connection to a broker, which reconnects automatically.

    Args:
        station: station whose records and state are published.
        settings: settings of the broker.
    """

    def __init__(self, station: Station, settings: Settings) -> None:
        super().__init__(station, "mqtt state")
        self._settings = settings
        self.topic = f"{settings.prefix}/{quote(station.config.name, safe='')}"
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"andon-{files.digest(self.topic.encode())[:16]}",
            reconnect_on_failure=True,
        )
        self.client.reconnect_delay_set(1, 30)
        self.client.will_set(f"{self.topic}/state", files.strict_json({"online": False}), qos=1, retain=True)
        if settings.user:
            self.client.username_pw_set(settings.user, settings.password())
        if settings.tls:
            try:
                self.client.tls_set(str(settings.ca_file) if settings.ca_file else None)
            except (OSError, ssl.SSLError) as error:
                raise AndonError(f"{settings.ca_file}: not certificates: {error}. Expected a PEM file.") from None
        self.client.on_connect, self.client.on_disconnect = self._connected, self._gone
        self._up = False
        self._shown: dict[str, Any] | None = None
        self._feed = station.subscribe()
        self._records = _Records(station, self)

    def status(self) -> Shown:
        settings, topic, shown = self._settings, self.topic, self._shown or {}
        fault = "" if self.client.is_connected() else "there is no connection to the broker."
        state = [Value(f"{topic}/state", name, files.strict_json(value)) for name, value in shown.items()]
        values = [*state, *self._records.values()]
        return Shown("MQTT", f"{settings.host}:{settings.port}", fault or self._records.fault, values)

    def start(self) -> None:
        """Start. The broker need not be reachable yet."""
        self.client.connect_async(self._settings.host, self._settings.port, KEEPALIVE_S)
        self.client.loop_start()
        super().start()
        self._records.start()

    def close(self) -> None:
        """Publish that the station is offline, and disconnect."""
        self._records.close()
        super().close()
        self._station.unsubscribe(self._feed)
        if self.client.is_connected():
            last = self.client.publish(f"{self.topic}/state", files.strict_json({"online": False}), 1, True)
            with suppress(RuntimeError, ValueError):  # connection lost: the broker publishes the last will
                last.wait_for_publish(CLOSE_S)
        self.client.disconnect()
        self.client.loop_stop()

    def _connected(self, client: Any, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            self._say(False, f"the broker refuses the connection: {reason}.")
            return
        self._shown = None
        self._say(True, f"connected to {self._settings.host}:{self._settings.port}")

    def _gone(self, client: Any, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if not self._stop.is_set():
            self._say(False, f"the connection is lost: {reason}.")

    def _say(self, up: bool, sentence: str) -> None:
        if up != self._up or not up:
            self._station.tell(f"mqtt: {sentence}")
        self._up = up

    def _run(self) -> None:
        """Publish the state after each change."""
        while not self._stop.is_set():
            if self._feed.get(LOOK_S):
                while self._feed.get():
                    pass
            now = self._state()
            if now != self._shown and self.client.is_connected():
                self._shown = now
                self.client.publish(f"{self.topic}/state", files.strict_json(now), qos=1, retain=True)

    def _state(self) -> dict[str, Any]:
        with self._station.lock:
            machine = self._station.machine
            return {
                "online": True,
                "state": machine.state,
                "ready": machine.ready,
                "alarms": sorted(machine.memory.errors),
                "products": {name: each.digest for name, each in machine.memory.products.items()},
                "missed": machine.memory.missed,
            }


class _Records(Outbox):
    """Publishes the records in order."""

    def __init__(self, station: Station, mqtt: Mqtt) -> None:
        super().__init__(station, "mqtt")
        self._mqtt = mqtt

    def _send(self, row: Row) -> None:
        client = self._mqtt.client
        if not client.is_connected():
            raise Undelivered("there is no connection to the broker.")
        try:
            sent = client.publish(f"{self._mqtt.topic}/records/{row.kind}", payload(row), qos=1)
            while not sent.is_published():  # the client repeats it after a reconnection
                if self._stop.is_set():
                    raise Undelivered("the station is stopping.")
                sent.wait_for_publish(LOOK_S)
                self._wait(0)
        except (RuntimeError, ValueError) as error:
            raise Undelivered(f"{error}.") from None
