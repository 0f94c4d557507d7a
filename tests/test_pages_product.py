"""The pages of a product, of drift and of settings: roles, sessions, forms, and what a browser shows."""

import hashlib
import re
import shutil
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from andon.errors import StorageError
from andon.station import pages, statistics
from andon.station.config import Config
from andon.station.drift import Change
from andon.station.keys import Keys, Role
from andon.station.line.settings import Watched
from andon.station.pages import product as product_pages
from andon.station.pages.app import POLICY
from andon.station.pages.sessions import Sessions
from service import BESIDE_S, Service, config, served, until
from test_station_floor import decide
from test_station_service import bad, good

STATIC = Path(pages.__file__).parent / "static"


@pytest.fixture(scope="module")
def service(bundle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A station with some parts confirmed good, and some rejects."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copy(bundle_file, folder / "ring.andon")
    (folder / "ring.golden.png").write_bytes(good(600))
    (folder / "in").mkdir()
    watched = Watched(product="ring", pictures=folder / "in", results=folder / "out")
    settings = config(folder, pictures={"keep_one_in": 1}, pages={"zone": "Europe/Berlin"})
    with served(settings.model_copy(update={"folder": (watched,)})) as service:
        for seed in range(601, 607):
            decide(service, service.inspect(good(seed), f"part {seed}"), "PASS")
        for seed in range(620, 623):
            assert service.inspect(bad(seed), f"<b>{seed}</b>").json()["verdict"] == "REJECT"
        yield service


class Browser:
    """A person who is signed in."""

    def __init__(self, service: Service, role: Role) -> None:
        self.client = httpx.Client(base_url=service.url, timeout=60)
        answer = self.client.post("/sign-in", data={"key": service.keys[role], "back": "/products"})
        assert answer.status_code == 303 and answer.headers["location"] == "/products"

    def get(self, place: str, status: int = 200) -> str:
        answer = self.client.get(place, follow_redirects=True)
        assert answer.status_code == status, answer.text
        return answer.text

    def post(self, place: str, status: int = 303, **form: str) -> str:
        token = re.search(r'name="csrf" value="([^"]+)"', self.get("/products/ring"))
        assert token
        answer = self.client.post(place, data={"csrf": token[1], **form})
        assert answer.status_code == status, answer.text
        return answer.text


@pytest.fixture(scope="module")
def people(service: Service) -> Iterator[dict[Role, Browser]]:
    found = {role: Browser(service, role) for role in Role}
    yield found
    for each in found.values():
        each.client.close()


def test_every_page_has_a_strict_policy_and_asks_who_is_there(service: Service, people: dict[Role, Browser]) -> None:
    places = ["/products/ring", "/products/ring/drift", "/settings/keys", "/settings/log", "/products/ring/charts.json"]
    with httpx.Client(base_url=service.url) as nobody:
        for place in places:
            answer = nobody.get(place)
            assert answer.status_code == 303 and answer.headers["location"].startswith("/sign-in?back=/")
        assert nobody.get("/products/ring", headers={"HX-Request": "true"}).status_code == 401
        assert nobody.get("/events", headers={"Accept": "text/event-stream"}).status_code == 401
        wrong = nobody.post("/sign-in", data={"key": "andon_0_wrong", "back": "//evil.example"})
        assert wrong.status_code == 401 and "unknown or revoked" in wrong.text and "set-cookie" not in wrong.headers
        key = service.keys[Role.OPERATOR]
        right = nobody.post("/sign-in", data={"key": key, "back": "//evil.example"})
        assert right.headers["location"] == "/"
        assert "HttpOnly" in right.headers["set-cookie"] and "SameSite=strict" in right.headers["set-cookie"]
    for place in places:
        answer = people[Role.ENGINEER].client.get(place)
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<script>|<style| style=|\son\w+=", answer.text)


def test_roles_and_tokens_are_asked_for_each_change(service: Service, people: dict[Role, Browser]) -> None:
    operator, quality, engineer = (people[role] for role in Role)
    operator.get("/settings/keys", 403)
    first = operator.get("/settings")
    assert "Users and keys" not in first and '<a href="/settings" aria-current="page">' in first
    operator.post("/products/ring/rollback", 403, to="")
    operator.post("/products/ring/recalibration", 403, do="start")
    operator.post("/settings/records", 403, do="start")
    quality.post("/settings/backup", 403, do="start")
    quality.post("/settings/keys", 403, do="make", name="Eve", role="engineer")
    for form in ({"do": "make"}, {"csrf": "wrong", "do": "make"}):
        answer = engineer.client.post("/settings/keys", data={**form, "name": "Eve", "role": "engineer"})
        assert answer.status_code == 403 and "not of this session" in answer.text
    assert {key.name for key in service.station.keys} == {f"the {role.name.lower()}" for role in Role}


def test_the_text_of_a_key_is_shown_although_its_record_is_late(
    service: Service, people: dict[Role, Browser], monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*entries: Any) -> None:
        raise StorageError("cannot be written now")

    engineer = people[Role.ENGINEER]
    with monkeypatch.context() as locked:
        locked.setattr(service.station, "keep", late)
        shown = engineer.post("/settings/keys", 409, do="make", name="late", role="operator")
    text = re.search(r'value="(andon_[^"]+)"', shown)
    key = service.station.keys.find(text[1]) if text else None
    assert key and "cannot be written now" in shown  # it is valid, and shown nowhere else
    engineer.post("/settings/keys", do="revoke", id=key.id)


def test_a_key_is_shown_once_and_revoked_with_its_sessions(service: Service, people: dict[Role, Browser]) -> None:
    engineer = people[Role.ENGINEER]
    shown = engineer.post("/settings/keys", 200, do="make", name="Zoë <b>", role="operator")
    text = re.search(r'value="(andon_[^"]+)"', shown)
    assert text and "Zoë &lt;b&gt;" in shown and text[1] not in engineer.get("/settings/keys")
    key = service.station.keys.find(text[1])
    assert key and key.rank == Role.OPERATOR
    service.keys[Role.OPERATOR], before = text[1], service.keys[Role.OPERATOR]
    zoe = Browser(service, Role.OPERATOR)
    service.keys[Role.OPERATOR] = before
    zoe.get("/products/ring")
    engineer.post("/settings/keys", do="revoke", id=key.id)
    assert zoe.client.get("/products/ring").headers["location"].startswith("/sign-in")
    zoe.client.close()
    changes = [row.body["change"] for row in service.station.ledger.history(kind="change", limit=2)]
    assert changes == ["revoke key", "make key"]
    for form in ({"name": ""}, {"name": "x", "role": "king"}, {"name": "a\nb"}):
        assert "Expected" in engineer.post("/settings/keys", 409, do="make", **form).replace("expected", "Expected")


def test_a_product_shows_what_the_records_say(service: Service, people: dict[Role, Browser]) -> None:
    shown = people[Role.OPERATOR].get("/products/ring")
    rows = list(service.station.ledger.walk(product="ring", kind="inspection"))
    passed = sum(row.verdict == "PASS" for row in rows)
    assert f"<dd>{len(rows)}" in shown and f"{100 * passed / len(rows):.1f}\u00a0%" in shown
    assert "inspects now" in shown and ">Roll back" not in shown
    positions = people[Role.OPERATOR].get("/products/ring/positions?span=day")
    assert 'class="cell"' in positions and "/products/ring/golden.png" in positions
    numbers = people[Role.OPERATOR].client.get("/products/ring/charts.json?span=week").json()
    assert sorted(numbers["dots"]["records"]) == [row.sequence for row in rows]
    assert sum(numbers["p_chart"]["judged"]) == len(rows)
    assert sum(numbers["p_chart"]["rejects"]) == sum(row.verdict == "REJECT" for row in rows)
    (threshold,) = numbers["thresholds"]
    assert threshold["review"] == rows[0].body["thresholds"]["review"]
    golden = people[Role.OPERATOR].client.get("/products/ring/golden.png")
    assert golden.content.startswith(b"\x89PNG")
    people[Role.OPERATOR].get("/products/rong", 404)
    drift = people[Role.OPERATOR].client.get("/products/ring/drift.json").json()
    assert drift["score"]["values"] == [row.score for row in rows]


def test_a_product_is_recalibrated_and_rolled_back_by_forms(service: Service, people: dict[Role, Browser]) -> None:
    quality, station = people[Role.QUALITY], service.station
    place, before = "/products/ring/recalibration", station.products.catalogue.product("ring").active
    assert "6 pictures of parts confirmed good" in quality.get("/products/ring/confirmed")
    assert "no recalibration has succeeded" in quality.post(place, 409, do="adopt")
    assert "such as 2026-11-26T06:00" in quality.post(place, 409, do="start", since="yesterday")
    quality.post(place, do="start", since="2020-01-01T06:00")
    assert "Cancel" in quality.get(place) or "before and after" in quality.get(place)
    until(lambda: "before and after" in quality.get(place), "the recalibration does not end", BESIDE_S)
    shown = quality.get("/products/ring/drift")
    work = station.upkeep.recalibration("ring")
    assert work and work.who == "the quality"
    for side in ("before", "after"):
        assert f"{work.result[side]['review']:.4g}" in shown
    drifted = station.loaded["ring"]
    drifted.drift.change = Change("score", "higher", 30, 12)
    drifted.keep()
    for do in ("adopt", "release", "activate"):
        quality.post(place, do=do)
    after = station.products.catalogue.product("ring").active
    assert after == work.result["after"]["digest"] != before
    versions = people[Role.OPERATOR].get("/products/ring")
    assert (
        "thresholds.review" in versions
        and after[:12] in versions
        and "<button" not in versions.split('id="versions"')[1]
    )
    assert "was changed meanwhile" in quality.post("/products/ring/rollback", 409, to=after)
    quality.post("/products/ring/rollback", to=before)
    assert station.products.catalogue.product("ring").active == before
    assert station.loaded["ring"] is not drifted and station.loaded["ring"].drift.change is None
    assert "no bundle was active before" in quality.post("/products/ring/rollback", 409, to=before)
    quality.post(place, do="dismiss")
    assert "Only parts inspected since" in quality.get(place)
    assert station.ledger.history(kind="change", product="ring", limit=1)[0].body["who"] == "the quality"


def test_the_quality_ends_a_drift_whose_cause_is_removed(service: Service, people: dict[Role, Browser]) -> None:
    operator, quality, place = people[Role.OPERATOR], people[Role.QUALITY], "/products/ring/drift"
    assert "No drift found" in quality.get(place)
    service.station.loaded["ring"].drift.change = Change("sharpness", "lower", 30, 12)
    assert "Drift found" in operator.get(place) and "The cause is removed" not in operator.get(place)
    loaded = service.station.loaded["ring"]
    service.station._drifted(loaded, loaded.drift.change)
    until(lambda: [m for m in statistics.marks(service.station.ledger, "ring") if m.kind == "drift"], "no record of it")
    page, shown = SimpleNamespace(station=service.station), service.station.products.catalogue.product("ring")
    begun = product_pages._since(page, shown)
    for seed in range(20):  # the time of the beginning stays while parts follow
        service.inspect(good(seed), f"after {seed}")
    assert begun and product_pages._since(page, shown) == begun
    operator.post(place, 403)
    assert "The cause is removed" in quality.get(place) and "12 parts before it was found" in quality.get(place)
    quality.post(place)
    assert "No drift found" in quality.get(place) and "The cause is removed" not in quality.get(place)
    assert "no drift was found" in quality.post(place, 409)


def test_settings_verify_and_back_up(service: Service, people: dict[Role, Browser]) -> None:
    engineer = people[Role.ENGINEER]
    engineer.post("/settings/records", do="start")
    engineer.post("/settings/backup", do="start")
    until(lambda: "Note this in another place" in engineer.get("/settings/records/now"), "it does not verify", BESIDE_S)
    until(lambda: "Download" in engineer.get("/settings/backup/now"), "it does not back up", BESIDE_S)
    (found,) = service.station.upkeep.backups()
    data = engineer.client.get(f"/settings/backup/{found.name}.tar")
    assert data.headers["content-disposition"] == f'attachment; filename="station-{found.name}.tar"'
    assert len(data.content) > found.size
    engineer.get("/settings/backup/20200101-000000.tar", 409)
    engineer.post("/settings/backup", do="remove", name=found.name)
    assert service.station.upkeep.backups() == []
    engineer.post("/settings/backup", 422, do="explode")
    for section, words in {"storage": "all are kept", "log": "listening", "software": "onnxruntime"}.items():
        service.station.tell("listening to the line")
        assert words in engineer.get(f"/settings/{section}")
    lines = re.search("<pre><code>(.*?)</code>", engineer.get("/settings/storage"), re.DOTALL)
    assert lines and tomllib.loads(lines[1]) == {"pictures": service.station.config.pictures.model_dump()}
    begun = next(row for row in service.station.ledger.walk(kind="event") if row.body["event"] == "started")
    assert begun.body["pictures"]["keep_one_in"] == 1
    protocols = engineer.get("/settings/protocols/now")
    assert "Folder" in protocols and f"<code>{service.station.config.data.parent / 'in'}</code>" in protocols


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.QUALITY])
@pytest.mark.parametrize("stay", [False, True])
def test_an_idle_session_is_over_unless_an_operator_may_stay(tmp_path: Path, role: Role, stay: bool) -> None:
    now, keys = 0.0, Keys(tmp_path / "keys.json")
    keys.make("an engineer", Role.ENGINEER)
    key, _ = keys.make("a person", role)
    settings = config(tmp_path, pages={"idle_minutes": 1.0, "stay_signed_in": stay})
    sessions = Sessions(keys, settings, lambda: now)
    token = sessions.begin(key)
    now = 50
    assert sessions.find(token, by_person=False)
    now = 61  # what a page fetches by itself is nothing that a person does
    stays = stay and role == Role.OPERATOR
    assert (sessions.find(token) is not None) == stays
    again = sessions.begin(key)
    keys.revoke(key.id)
    assert sessions.find(again) is None and sessions.find("") is None


def test_what_is_refused_is_told_in_english_in_a_frame_of_the_language(people: dict[Role, Browser]) -> None:
    german = {"Accept-Language": "de", "Accept": "text/html"}
    client = people[Role.OPERATOR].client
    page = client.get("/history?low=<b>", headers=german)
    assert page.status_code == 409
    assert '■ Nicht möglich: <span lang="en">score &#39;&lt;b&gt;&#39;: expected a number' in page.text
    page = client.get("/history/part/nobody", headers=german)
    assert "<h1>Nicht möglich</h1>" in page.text and '<span lang="en">There is no record of part' in page.text


def test_a_time_zone_must_be_known(tmp_path: Path) -> None:
    assert config(tmp_path, pages={"zone": "Asia/Kathmandu"}).pages.zone
    with pytest.raises(ValueError, match="is not a time zone"):
        Config.model_validate({"pages": {"zone": "Mars/Olympus"}})


@pytest.mark.parametrize(
    ("now", "began"),
    [
        ("2026-11-26T05:59:59+01:00", "2026-11-25T22:00:00+01:00"),
        ("2026-11-26T06:00:00+01:00", "2026-11-26T06:00:00+01:00"),
        ("2026-10-25T05:59:00+01:00", "2026-10-24T22:00:00+02:00"),  # nine hours: the clock was put back
        ("2026-10-25T06:00:00+01:00", "2026-10-25T06:00:00+01:00"),
        ("2026-03-29T05:59:00+02:00", "2026-03-28T22:00:00+01:00"),  # seven hours
    ],
)
def test_a_shift_begins_by_the_clock_of_the_plant(now: str, began: str) -> None:
    pages = Config.model_validate({"pages": {"zone": "Europe/Berlin"}}).pages
    assert pages.shift(datetime.fromisoformat(now).astimezone(UTC)) == datetime.fromisoformat(began)


def test_a_single_shift_lasts_a_day_in_any_order_of_clocks() -> None:
    moment = datetime(2026, 11, 26, 5, 59, tzinfo=UTC)
    one = Config.model_validate({"pages": {"zone": "UTC", "shifts": ["06:00"]}}).pages
    late_first = Config.model_validate({"pages": {"zone": "UTC", "shifts": ["22:00", "05:30"]}}).pages
    assert one.shift(moment) == moment - timedelta(hours=23, minutes=59)
    assert late_first.shift(moment) == moment - timedelta(minutes=29)


def test_a_style_that_a_browser_has_is_not_sent_again(people: dict[Role, Browser]) -> None:
    client = people[Role.OPERATOR].client
    first = client.get("/static/andon.css")
    again = client.get("/static/andon.css", headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, first.content) == (200, (STATIC / "andon.css").read_bytes())
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/static/andon.css", headers={"If-None-Match": '"other"'}).status_code == 200
    named = re.findall(r'/static/[\w.]+\?v=[^"]+', people[Role.OPERATOR].get("/products/ring"))
    assert len(named) == 8  # what a page loads is asked for once: another version has another address
    for place in named:
        assert "immutable" in client.get(place).headers["cache-control"]
    assert client.get("/static/andon.css?v=other").headers["cache-control"] == "no-cache"


def test_what_others_made_is_as_they_made_it() -> None:
    listed = tomllib.loads((STATIC / "VENDORED.toml").read_text())
    assert {"htmx.min.js", "uPlot.iife.min.js", "uPlot.min.css"} <= set(listed)
    for name, about in listed.items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == about["sha256"], name


def signed_in(browser: Browser, service: Service, role: Role, faults: list[str], **settings: Any) -> Any:
    """A page of a browser; what it complains about goes into `faults`."""
    page = browser.new_context(**settings).new_page()
    page.set_default_timeout(120_000)  # on a machine with other work
    page.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(f"{service.url}/sign-in?back=/products/ring")
    page.wait_for_selector("[name=key]:focus")  # by itself, but not before the page is drawn
    page.keyboard.type(service.keys[role])
    page.keyboard.press("Enter")
    page.wait_for_url(f"{service.url}/products/ring")  # not only the address of signing in, which ends with it
    page.wait_for_load_state("networkidle")
    return page


PLACES = (
    *("/live", "/review", "/history", "/history/part/part%20601", "/products/ring", "/products/ring/drift"),
    *(f"/settings/{name}" for name in ("keys", "backup", "records")),
)


@pytest.mark.parametrize("look", ["light", "dark"])
def test_pages_can_be_used_by_all_and_are_drawn_without_complaint(
    service: Service, browser: Browser, axe: str, look: str
) -> None:
    faults: list[str] = []
    size = {"width": 1024, "height": 600} if look == "light" else {"width": 390, "height": 844}
    page = signed_in(browser, service, Role.ENGINEER, faults, color_scheme=look, viewport=size)
    for place in PLACES:
        page.goto(service.url + place)
        charts = page.locator("figure[data-chart]").count()
        page.wait_for_function("n => document.querySelectorAll('.uplot canvas').length === n", arg=charts)
        page.wait_for_function("() => !document.querySelector('[hx-trigger^=painted] > .quiet:only-child')")
        assert charts == {"/products/ring": 2, "/products/ring/drift": 3}.get(place, 0), place
        assert page.evaluate("document.documentElement.scrollWidth") == size["width"], place
        if place == "/products/ring":
            shown = "[1, 2, 3].flatMap(i => document.querySelectorAll('figure')[1].chart.data[i])"
            scored = service.station.ledger.history("ring", kind="inspection", limit=1000)
            assert page.evaluate(f"{shown}.filter(value => value != null).length") == len(scored)
        page.evaluate(axe)
        found = page.evaluate("axe.run({resultTypes: ['violations']})")
        serious = [
            (each["id"], [node["html"][:200] for node in each["nodes"]])
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == [], place
    assert faults == []
    page.context.close()


def test_records_are_verified_with_the_keyboard_alone(service: Service, browser: Browser) -> None:
    faults: list[str] = []
    page = signed_in(browser, service, Role.QUALITY, faults)
    page.goto(f"{service.url}/settings/records")
    button = page.get_by_role("button", name="Verify")
    while not button.evaluate("each => each === document.activeElement"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text("Note this in another place").wait_for(timeout=60_000)
    assert f"{service.station.ledger.head()[0]}:" in page.content() and faults == []
    page.context.close()
