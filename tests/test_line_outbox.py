"""MQTT against Debian's mosquitto, and webhooks against a server, on loopback: nothing is lost, order is kept."""

import base64
import hashlib
import hmac
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from andon.station.entries import Entry
from andon.station.events import StationError
from andon.station.line.settings import Mqtt as Settings
from andon.station.station import Station
from service import config, lined, until

pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed: pip install 'andon[line]'")
import paho.mqtt.client as paho

from andon.station.line.mqtt import Mqtt

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
SECRET = "correct horse battery"


class Broker:
    """A mosquitto that keeps what a subscriber has not got yet; a user must have its password."""

    def __init__(self, folder: Path) -> None:
        if MOSQUITTO is None:
            pytest.skip("mosquitto is not installed: apt-get install mosquitto")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        passwords = folder / "passwords"
        subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "line", "secret"], check=True, capture_output=True)
        passwords.chmod(0o644)
        folder.chmod(0o755)
        self._settings = folder / "mosquitto.conf"
        self._settings.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\nuser root\n"
            f"persistence true\npersistence_location {folder}/\n"
        )

    def start(self) -> None:
        self._process = subprocess.Popen([str(MOSQUITTO), "-c", self._settings], stderr=subprocess.DEVNULL)
        until(self._listens, "mosquitto does not start")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return True


class Reader:
    """A subscriber of all topics of the station, which comes back by itself; the broker keeps what it missed."""

    def __init__(self, port: int, name: str = "reader") -> None:
        self.messages: list[tuple[str, dict[str, Any], bool]] = []
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, name, clean_session=False)
        self._client.username_pw_set("line", "secret")
        self._client.reconnect_delay_set(1, 1)
        self.subscribed = False
        self._client.on_connect = lambda client, *_: client.subscribe("works/line%2F1/#", qos=1)
        self._client.on_subscribe = lambda *_: setattr(self, "subscribed", True)
        self._client.on_message = lambda client, data, m: self.messages.append(
            (m.topic.removeprefix("works/line%2F1/"), json.loads(m.payload), m.retain)
        )
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        until(lambda: self.subscribed, "the broker does not take the subscription")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def numbers(self) -> list[int]:
        """The numbers of our records in the order in which each came first."""
        found = [
            text["body"]["n"] for topic, text, _ in self.messages if topic == "records/event" and "n" in text["body"]
        ]
        return list(dict.fromkeys(found))

    def states(self) -> list[tuple[bool, bool]]:
        return [(text["online"], retained) for topic, text, retained in self.messages if topic == "state"]


@contextmanager
def line(folder: Path, told: list[str] | None = None, **settings: Any) -> Iterator[Station]:
    """A station without products."""
    (folder / "bundles").mkdir(parents=True, exist_ok=True)
    with lined(config(folder / "bundles", name="line/1", **settings), told) as (station, _):
        yield station


def note(station: Station, *numbers: int) -> None:
    station.keep(*(Entry("event", body={"event": "test", "n": n}) for n in numbers))


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    monkeypatch.setenv("ANDON_MQTT_PASSWORD", "secret")
    broker = Broker(tmp_path)
    broker.start()
    yield broker
    broker.stop()


def test_a_broker_that_goes_and_comes_back_gets_every_record_in_order(broker: Broker, tmp_path: Path) -> None:
    mqtt = {"port": broker.port, "prefix": "works", "user": "line"}
    reader = Reader(broker.port)
    with line(tmp_path, mqtt=mqtt) as station:
        note(station, 1, 2)
        until(lambda: reader.numbers() == [1, 2], "records do not come")
        broker.stop()
        note(station, 3)
        until(lambda: station.ledger.backlog().get("mqtt"), "nothing waits")
        note(station, 4, 5)
        broker.start()
        until(lambda: reader.numbers()[-1] == 5, "records do not come again")
        until(lambda: not station.ledger.backlog(), "the outbox is not emptied")
    reader.close()
    assert reader.numbers() == [1, 2, 3, 4, 5]


def test_the_state_is_retained_and_the_end_is_told(broker: Broker, tmp_path: Path) -> None:
    mqtt = {"port": broker.port, "prefix": "works", "user": "line"}
    reader = Reader(broker.port)
    with line(tmp_path, mqtt=mqtt) as station:
        until(lambda: (True, False) in reader.states(), "no state comes")
        station.call("halt")
        until(
            lambda: any(text.get("state") == "Halted" for _, text, _ in reader.messages), "the new state does not come"
        )
        late = Reader(broker.port, "late")
        until(lambda: late.states() == [(True, True)], "the state is not retained")
        late.close()
    until(lambda: reader.states()[-1] == (False, False), "the end is not told")
    reader.close()


def test_the_last_will_tells_that_a_station_broke_off(broker: Broker, tmp_path: Path) -> None:
    reader = Reader(broker.port)
    with line(tmp_path) as station:
        mqtt = Mqtt(station, Settings(port=broker.port, prefix="works", user="line"))
        mqtt.start()
        until(lambda: reader.states() == [(True, False)], "no state comes")
        shown = mqtt.status()
        assert (shown.fault, shown.place) == ("", f"127.0.0.1:{broker.port}")
        values = {(value.place, value.name): value.value for value in shown.values}
        assert values[("works/line%2F1/state", "online")] == "true" and values[("outbox", "waiting")] == "0"
        mqtt.client.loop_stop()
        connection = mqtt.client.socket()
        assert connection
        connection.close()
        until(lambda: reader.states() == [(True, False), (False, False)], "the last will does not come")
        mqtt.close()
    reader.close()


def test_records_that_were_not_delivered_before_the_end_are_delivered_after_the_next_start(
    broker: Broker, tmp_path: Path
) -> None:
    mqtt = {"port": broker.port, "prefix": "works", "user": "line"}
    broker.stop()
    with line(tmp_path, mqtt=mqtt) as station:
        note(station, 1, 2)
        key = station.ledger.history(kind="event", limit=1)[0].key
    broker.start()
    reader = Reader(broker.port)
    with line(tmp_path, mqtt=mqtt):
        until(lambda: reader.numbers() == [1, 2], f"records do not come: {reader.numbers()}")
    assert key in [text["key"] for topic, text, _ in reader.messages if topic == "records/event"]
    reader.close()


def test_a_wrong_password_is_said(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDON_MQTT_PASSWORD", "wrong")
    told: list[str] = []
    with line(tmp_path, told, mqtt={"port": broker.port, "user": "line"}):
        until(lambda: any("refuses the connection" in each for each in told), f"it is not said: {told}")


class Receiver:
    """A server that takes posts; it answers each with the next of `answers`, then with 204."""

    def __init__(self, answers: list[int]) -> None:
        taken: list[tuple[dict[str, str], bytes]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                code = answers.pop(0) if answers else 204
                if code < 300:
                    taken.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(code)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.taken = taken
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/andon"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def numbers(self) -> list[int]:
        return [n for _, body in self.taken if (n := json.loads(body)["body"].get("n"))]


def test_a_webhook_is_signed_and_sent_again_until_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDON_WEBHOOK_SECRET_ERP", SECRET)
    receiver, told = Receiver([500, 302]), list[str]()
    with line(tmp_path, told, webhook=[{"name": "erp", "url": receiver.url}]) as station:
        note(station, 1, 2, 3)
        until(lambda: receiver.numbers() == [1, 2, 3], f"not taken: {told}")
        until(lambda: not station.ledger.backlog(), "the outbox is not emptied")
    receiver.close()
    assert sum("answered 500" in each for each in told) == 1
    for headers, body in receiver.taken:
        assert json.loads(body)["key"] == headers["webhook-id"]
        text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        wanted = base64.b64encode(hmac.new(SECRET.encode(), text, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{wanted}"


def test_a_webhook_that_is_away_stops_neither_the_station_nor_other_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANDON_WEBHOOK_SECRET_ERP", SECRET)
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    gone, here = Receiver([]), Receiver([])
    gone.close()
    hooks = [
        {"name": "erp", "url": gone.url},
        {"name": "mes", "url": here.url, "secret_file": str(tmp_path / "secret")},
    ]
    (tmp_path / "bundles").mkdir()
    with lined(config(tmp_path / "bundles", webhook=hooks)) as (station, lines):
        note(station, 1, 2)
        until(lambda: here.numbers() == [1, 2], "not taken")
        until(lambda: set(station.ledger.backlog()) == {"webhook:erp"}, "the outbox is not kept")
        until(lambda: lines.status()[0].fault, "it is not shown")
        erp, mes = lines.status()
        assert erp.fault.startswith(f"{gone.url} cannot be reached") and erp.place == gone.url and not mes.fault
        waiting, sent = erp.values
        assert int(waiting.value) >= 2 and sent.value == "none since the start"
        assert mes.values[0].value == "0" and ", record " in mes.values[1].value
    here.close()


@pytest.mark.parametrize("text", ["", "short"])
def test_a_webhook_needs_a_secret(tmp_path: Path, text: str) -> None:
    (tmp_path / "secret").write_text(text)
    hook = {"name": "erp", "url": "http://127.0.0.1:1/", "secret_file": str(tmp_path / "secret")}
    with pytest.raises(StationError, match="expected a secret of at least 16"), line(tmp_path, webhook=[hook]):
        pass
