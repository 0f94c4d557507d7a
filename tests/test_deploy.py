"""The files in deploy/: nginx with TLS before a real station, and the systemd unit."""

import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from andon.station.keys import Role
from service import Service, config, served, until
from test_station_ledger import with_next_version
from test_station_service import good

DEPLOY = Path(__file__).parents[1] / "deploy"


@pytest.fixture(scope="module")
def service(bundle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("station")
    shutil.copy(bundle_file, folder / "ring.andon")
    with served(config(folder)) as made:
        yield made


@pytest.fixture(scope="module")
def proxy(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, ssl.SSLContext]]:
    """nginx with deploy/nginx.conf, of which only the port, the certificate and the station's address are changed."""
    if not shutil.which("nginx") or not shutil.which("openssl"):
        pytest.skip("nginx and openssl are not installed (Debian: apt-get install nginx-light openssl)")
    folder = tmp_path_factory.mktemp("nginx")
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    files = ("-keyout", folder / "key.pem", "-out", folder / "cert.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *name, *files], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    site = (DEPLOY / "nginx.conf").read_text()
    for old, new in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("http://127.0.0.1:8420", service.url),
        ("/etc/ssl/station.crt", f"{folder}/cert.pem"),
        ("/etc/ssl/private/station.key", f"{folder}/key.pem"),
    ):
        assert old in site
        site = site.replace(old, new)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off;\n{paths}{site} }}\n"
    )
    process = subprocess.Popen(["nginx", "-p", folder, "-e", folder / "error.log", "-c", folder / "nginx.conf"])
    try:

        def listens() -> bool:
            assert process.poll() is None, (folder / "error.log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        until(listens, "nginx does not listen")
        yield port, ssl.create_default_context(cafile=str(folder / "cert.pem"))
    finally:
        process.terminate()
        process.wait(30)


def test_verdicts_and_events_pass_the_proxy_at_once(service: Service, proxy: tuple[int, ssl.SSLContext]) -> None:
    port, context = proxy
    headers = {"Authorization": service.operator.headers["Authorization"], "Content-Type": "image/png"}
    with httpx.Client(base_url=f"https://localhost:{port}", headers=headers, verify=context, timeout=30) as client:
        assert client.get("/readyz").status_code == 200
        with client.stream("GET", "/v1/events") as events:
            lines = events.iter_lines()
            assert next(line for line in lines if line) == "event: state"
            answer = client.post("/v1/products/ring/inspections", params={"part": "behind"}, content=good(1))
            assert answer.status_code == 201
            told = (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))
            assert any(each.get("part") == "behind" for each in told)


def test_a_browser_signs_in_through_the_proxy_with_a_secure_cookie(
    service: Service, proxy: tuple[int, ssl.SSLContext]
) -> None:
    port, context = proxy
    form = {"key": service.keys[Role.OPERATOR]}
    with httpx.Client(base_url=f"https://localhost:{port}", verify=context, timeout=30) as browser:
        answer = browser.post("/sign-in", data=form, headers={"Origin": f"https://localhost:{port}"})
        assert answer.status_code == 303 and "; Secure" in answer.headers["set-cookie"]
        assert browser.get("/live").status_code == 200
        for stranger in ("https://localhost", "https://evil.example", "null", "https://["):
            assert browser.post("/sign-in", data=form, headers={"Origin": stranger}).status_code == 403
    direct = httpx.post(f"{service.url}/sign-in", data=form, headers={"Origin": service.url})
    assert direct.status_code == 303 and "; Secure" not in direct.headers["set-cookie"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/products/ring/inspections", 413),  # of nginx
        ("/v1/products/ring/bundles", 403),  # of the station: a bundle may be so large, but an operator sends none
    ],
)
def test_only_bundles_may_be_large(service: Service, proxy: tuple[int, ssl.SSLContext], path: str, status: int) -> None:
    port, context = proxy
    connection = HTTPSConnection("localhost", port, context=context, timeout=30)
    connection.putrequest("POST", path)
    connection.putheader("Authorization", service.operator.headers["Authorization"])
    connection.putheader("Content-Type", "application/octet-stream")
    connection.putheader("Content-Length", str(65 << 20))
    connection.endheaders()  # and no body: the answer comes without it
    assert connection.getresponse().status == status
    connection.close()


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    program = "/opt/andon/bin/andon"
    text = (DEPLOY / "andon-station.service").read_text()
    assert f"ExecStart={program} serve" in text
    unit = tmp_path / "andon-station.service"
    unit.write_text(text.replace(f"={program}", f"={shutil.which('true')}"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_newer_andon_brings_the_records_of_a_station_up_to_date_at_its_start(
    bundle_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(bundle_file, tmp_path / "ring.andon")
    with served(config(tmp_path)) as older:
        before = older.inspect(good(1), "before").json()
    with_next_version(tmp_path / "migrations", monkeypatch)
    with served(config(tmp_path)) as newer:
        row = newer.operator.get(f"/v1/records/{before['record']}").json()
        assert (row["part"], row["verdict"]) == ("before", before["verdict"])
        assert newer.inspect(good(2), "after").status_code == 201
        with newer.station.ledger.engine.connect() as connection:
            assert sa.inspect(connection).has_table("more")
        assert newer.station.ledger.verify() == []
