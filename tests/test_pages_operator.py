"""The pages of the operator in a real browser: the line, doubtful parts, the record."""

import csv
import io
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from andon.station.config import Pages
from andon.station.entries import Entry
from andon.station.keys import Role
from service import Service, config, served, until
from test_station_service import bad, good

LONG_MS = 60_000  # on a machine with other work
ODD = "部品 <b>7</b>/é"  # the id of a part


@pytest.fixture
def service(bundle_file: Path, tmp_path: Path) -> Iterator[Service]:
    shutil.copy(bundle_file, tmp_path / "ring.andon")
    began = f"{datetime.now(UTC) - timedelta(hours=1):%H:%M}"  # no other shift begins during the test
    pages = {"zone": "UTC", "shifts": [began]}
    with served(config(tmp_path, pictures={"keep_one_in": 1000}, pages=pages)) as found:
        yield found


@pytest.fixture
def person(browser: Browser, service: Service) -> Iterator[Page]:
    """A browser that is signed in as an operator; what it complains of is an error."""
    faults: list[str] = []
    page = browser.new_context(base_url=service.url, viewport={"width": 1024, "height": 600}).new_page()
    page.set_default_timeout(LONG_MS)
    expect.set_options(timeout=LONG_MS)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.goto("/")
    page.get_by_label("Key").fill(service.keys[Role.OPERATOR])
    page.keyboard.press("Enter")
    page.wait_for_url(f"{service.url}/live")
    yield page
    page.context.close()
    assert [fault for fault in faults if "Failed to load resource" not in fault] == []


def loaded(page: Page, selector: str) -> None:
    """Wait until a picture is drawn."""
    page.wait_for_function(
        "selector => { const found = document.querySelector(selector); return found?.complete && found.naturalWidth }",
        arg=selector,
    )


def test_from_the_line_to_a_decision_and_into_the_record(service: Service, person: Page) -> None:
    expect(person.get_by_text("No part was inspected yet.")).to_be_visible()
    assert service.inspect(good(500), "first").json()["verdict"] == "PASS"
    expect(person.locator(".verdict.big")).to_have_text("PASS")  # told by the stream of events
    loaded(person, ".photo")  # the last part has a picture although it is not kept
    loaded(person, ".strip img")
    assert service.inspect(bad(501), ODD).json()["verdict"] == "REJECT"
    expect(person.locator(".verdict.big")).to_have_text("REJECT")
    expect(person.locator(".part .which strong")).to_have_text(ODD)
    loaded(person, ".layer")
    person.locator("[data-opacity]").fill("20")
    assert person.locator(".layer").evaluate("layer => layer.style.opacity") == "0.2"
    expect(person.locator(".strip li")).to_have_count(2)
    loaded(person, ".strip li:last-child img")  # of the part before, which is in no archive
    expect(person.locator(".counts .reject dd")).to_have_text("1")

    person.get_by_role("button", name=f"Dispute the verdict of {ODD}").click()
    expect(person.get_by_text(f"Disputed: {ODD}.")).to_be_visible()
    person.goto("/review")
    expect(person.get_by_text("1 part waits")).to_be_visible()
    expect(person.get_by_text("Disputed by the operator.")).to_be_visible()
    loaded(person, ".photo")
    person.get_by_role("button", name="Draw a box").click()
    frame = person.locator("[data-frame]").first.bounding_box()
    photo = person.locator(".photo").first.bounding_box()
    assert frame and photo
    side = min(photo["width"], photo["height"])  # the picture is square, in the middle of its stage
    left, top = photo["x"] + (photo["width"] - side) / 2, photo["y"] + (photo["height"] - side) / 2
    person.mouse.move(left + side / 4, top + side / 4)
    person.mouse.down()
    person.mouse.move(left + side / 2, top + 3 * side / 4, steps=3)
    person.mouse.up()
    person.get_by_label("Kind of defect").fill("scratch")
    person.get_by_role("heading", name="Review").click()
    expect(person.get_by_role("button", name="Defect")).to_be_enabled()
    person.keyboard.press("d")
    expect(person.get_by_text("Nothing waits.")).to_be_visible()
    (decision,) = (row for row in service.station.ledger.history(kind="decision") if row.verdict)
    body = decision.body
    assert (body["decision"], body["who"], body["defect"]) == ("confirm", "the operator", "scratch")
    assert body["box"] == pytest.approx([24, 24, 24, 48], abs=3)  # of 96 pixels

    person.goto("/history")
    person.get_by_label("Verdict").select_option("REJECT")
    person.get_by_role("button", name="Show").click()
    expect(person.locator("tbody tr")).to_have_count(1)
    with person.expect_download() as download:
        person.get_by_role("link", name="Export as CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8-sig"))))
    assert [row["part"] for row in rows] == [ODD]
    person.get_by_role("link", name=ODD).click()
    expect(person.locator(".story > li")).to_have_count(3)  # inspected, disputed, confirmed
    expect(person.get_by_text("digest fits")).to_have_count(3)
    person.goto("/history?low=many")
    expect(person.get_by_role("alert").filter(has_text="expected a number")).to_be_visible()


def test_the_counts_are_those_of_the_shift(service: Service, person: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    assert service.inspect(good(506), "before").status_code == 201
    expect(person.get_by_role("heading", name=f"Shift since {service.station.config.pages.shifts[0]}")).to_be_visible()
    expect(person.locator(".counts .pass dd")).to_have_text("1")
    monkeypatch.setattr(Pages, "shift", lambda pages, now: now)  # another shift begins
    person.reload()
    expect(person.locator(".counts .pass dd")).to_have_text("0")
    expect(person.locator(".strip li")).to_have_count(1)


def test_a_good_part_is_confirmed_with_the_keyboard(service: Service, person: Page) -> None:
    assert service.inspect(bad(502), "doubtful").json()["verdict"] == "REJECT"
    answer = service.operator.post(f"/v1/records/{last(service)}/decisions", json={"decision": "dispute"})
    assert answer.status_code == 201 and answer.json()["verdict"] is None
    person.goto("/review")
    person.get_by_label("Remark").fill("dust")
    person.keyboard.press("Enter")  # in a field, it decides nothing
    expect(person.get_by_role("button", name="Good")).to_be_enabled()
    person.get_by_role("button", name="Good").focus()
    person.keyboard.press("Enter")
    expect(person.get_by_text("Nothing waits.")).to_be_visible()
    decision = service.station.ledger.history(kind="decision", limit=1)[0]
    assert decision.verdict == "PASS" and decision.body["reason"] == "dust" and decision.body["was"] == "REJECT"


def test_the_box_of_a_defect_is_drawn_with_the_keyboard(service: Service, person: Page, axe: str) -> None:
    assert service.inspect(bad(509), "scratched").json()["verdict"] == "REJECT"
    decisions = f"/v1/records/{last(service)}/decisions"
    assert service.operator.post(decisions, json={"decision": "dispute"}).status_code == 201
    person.goto("/review")
    loaded(person, ".photo")
    picture, said, box = (
        person.get_by_role("application"),
        person.locator("[data-said]"),
        person.locator(".drawn").first,
    )
    expect(box).to_be_hidden()
    person.keyboard.press("b")
    expect(picture).to_be_focused()
    expect(said).to_have_text("Box: left 40 %, top 40 %, width 20 %, height 20 %")  # in the middle
    for key, count in {"ArrowLeft": 50, "ArrowDown": 5, "Shift+ArrowRight": 10, "Shift+ArrowUp": 8}.items():
        for _ in range(count):
            person.keyboard.press(key)
    expect(said).to_have_text("Box: left 0 %, top 45 %, width 30 %, height 12 %")  # it does not leave the picture
    person.evaluate(axe)
    found = person.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
    person.keyboard.press("Escape")
    expect(said).to_have_text("No box.")
    expect(box).to_be_hidden()

    button = person.get_by_role("button", name="Draw a box")
    button.press("Enter")
    for key in ("Shift+ArrowRight", "ArrowUp", "+", "ArrowUp", "Enter", "ArrowUp"):
        person.keyboard.press(key)  # the second step is smaller in a larger picture, the last one moves the picture
    expect(said).to_have_text("The box is kept.")
    expect(button).to_have_attribute("aria-pressed", "false")
    person.keyboard.press("d")
    expect(person.get_by_text("Nothing waits.")).to_be_visible()
    body = service.station.ledger.history(kind="decision", limit=1)[0].body
    share = [0.4, 0.4 - 0.01 - 0.01 / 1.4, 0.21, 0.2]
    assert body["box"] == [round(96 * each) for each in share]  # pixels
    person.goto("/history/part/scratched")
    x, y, width, height = body["box"]
    expect(person.get_by_text(f"box: x {x}, y {y}, {width} × {height} pixels")).to_be_visible()


def queue(service: Service, *parts: str) -> None:
    """Let parts wait for a decision, in this order."""
    for number, part in enumerate(parts):
        assert service.inspect(bad(520 + number), part).json()["verdict"] == "REJECT"
        decisions = f"/v1/records/{last(service)}/decisions"
        assert service.operator.post(decisions, json={"decision": "dispute"}).status_code == 201


def test_nobody_decides_on_a_part_that_is_not_seen_yet(service: Service, person: Page) -> None:
    queue(service, "older", "newer")
    person.goto("/review")
    loaded(person, ".photo")
    good_one = person.get_by_role("button", name="Good")
    expect(good_one).to_be_enabled()
    held: list[Route] = []
    person.route("**/picture.jpg*", lambda route: held.append(route))
    person.keyboard.down("g")  # and held
    expect(person.get_by_role("link", name="older")).to_be_visible()
    person.keyboard.down("g")  # the system repeats a key that is held
    until(lambda: person.evaluate("1") and held, "the picture is not asked for")
    expect(good_one).to_be_disabled()
    person.keyboard.up("g")
    person.keyboard.press("g")
    for route in held:
        route.continue_()
    expect(good_one).to_be_enabled()
    expect(person.get_by_text("1 part waits")).to_be_visible()
    assert [row.part for row in service.station.ledger.history(kind="decision") if row.verdict] == ["newer"]


def test_a_part_that_was_skipped_comes_after_the_older_ones(service: Service, person: Page) -> None:
    queue(service, "first", "second", "third")
    person.goto("/review")
    expect(person.get_by_role("link", name="third")).to_be_visible()
    person.get_by_role("link", name="Skip").click()
    expect(person.get_by_role("link", name="second")).to_be_visible()
    person.get_by_role("button", name="Good").click()
    expect(person.get_by_role("link", name="first")).to_be_visible()
    person.get_by_text("the operator", exact=True).click()
    person.get_by_role("button", name="Deutsch").click()  # the same part, not the first that waits
    expect(person.get_by_role("heading", name="Nachprüfen")).to_be_visible()
    expect(person.get_by_role("link", name="first")).to_be_visible()
    person.get_by_role("button", name="Gut").click()
    expect(person.get_by_role("link", name="third")).to_be_visible()


def test_who_decides_second_is_told_and_may_decide_again(service: Service, person: Page) -> None:
    assert service.inspect(bad(505), "twice").json()["verdict"] == "REJECT"
    decisions = f"/v1/records/{last(service)}/decisions"
    assert service.operator.post(decisions, json={"decision": "dispute"}).status_code == 201
    person.goto("/review")
    expect(person.get_by_text("1 part waits")).to_be_visible()
    assert service.quality.post(decisions, json={"decision": "confirm"}).status_code == 201
    person.get_by_role("button", name="Good").click()
    expect(person.get_by_role("alert")).to_contain_text("part 'twice': the quality has decided on it meanwhile: REJECT")
    expect(person.get_by_text("the quality has decided: REJECT.")).to_be_visible()
    assert [row.verdict for row in service.station.ledger.history(kind="decision")] == ["REJECT", None]
    person.goto("/history/part/twice")
    person.get_by_role("link", name="Decide on this part").click()
    expect(person.get_by_text("the quality has decided: REJECT.")).to_be_visible()
    person.get_by_role("button", name="Good").click()
    expect(person.get_by_text("Nothing waits.")).to_be_visible()
    assert service.station.ledger.history(kind="decision", limit=1)[0].verdict == "PASS"


def test_what_happens_is_told_only_as_long_as_the_session_stands(service: Service, person: Page) -> None:
    answer = service.engineer.get("/v1/keys").json()
    (key,) = (each["id"] for each in answer if each["role"] == "operator")
    with service.operator.stream("GET", "/v1/events") as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: state"
        assert service.engineer.delete(f"/v1/keys/{key}").status_code == 200
        assert service.engineer.post("/v1/station/halt").status_code == 200
        assert "event: " not in "".join(lines)  # and it ends
    person.wait_for_url("**/sign-in?back=/live")


def test_the_page_at_the_line_signs_in_again_after_the_station_was_restarted(service: Service, person: Page) -> None:
    person.context.set_offline(True)
    expect(person.locator("[data-lost-banner]")).to_be_visible()
    person.context.clear_cookies()  # sessions end with the station, so after a restart nobody knows this one
    person.context.set_offline(False)
    person.wait_for_url("**/sign-in?back=/live")


def test_a_lost_connection_is_told_and_the_page_comes_back(service: Service, person: Page) -> None:
    banner = person.locator("[data-lost-banner]")
    expect(banner).to_be_hidden()
    person.context.set_offline(True)
    expect(banner).to_be_visible()
    person.context.set_offline(False)
    expect(banner).to_be_hidden()
    assert service.inspect(good(503), "after").status_code == 201
    expect(person.locator(".part .which strong")).to_have_text("after")


def test_a_verdict_is_not_shown_as_current_when_the_station_does_not_answer(service: Service, person: Page) -> None:
    assert service.inspect(good(530), "one").status_code == 201
    expect(person.locator(".verdict.big")).to_have_text("PASS")
    expect(person.get_by_text("Not current")).to_be_hidden()
    person.route("**/state", lambda route: None)  # a cable is pulled: no answer, and no error either
    expect(person.locator("[data-lost-banner]")).to_be_visible()
    expect(person.get_by_text("Not current")).to_be_visible()
    person.unroute("**/state")
    expect(person.get_by_text("Not current")).to_be_hidden()
    person.route("**/live/now", lambda route: route.fulfill(status=503))  # the records cannot be read
    assert service.inspect(good(531), "two").status_code == 201
    expect(person.get_by_text("Not current")).to_be_visible()
    person.unroute("**/live/now")
    expect(person.locator(".part .which strong")).to_have_text("two")
    expect(person.get_by_text("Not current")).to_be_hidden()


def test_the_pages_show_the_outcome_that_the_line_was_told(service: Service, person: Page) -> None:
    for number, part in enumerate(("late", "in time")):
        assert service.inspect(good(540 + number), part).json()["verdict"] == "PASS"
    row = service.station.ledger.history(part="late")[0]
    told = {"event": "superseded", "record": row.sequence, "recorded": "PASS"}
    service.station.ledger.append([Entry("event", row.job, row.product, row.part, verdict="LATE", body=told)])
    person.goto("/live")
    expect(person.locator(".strip li")).to_have_text(["in timePASS", "lateLATE"])
    person.goto("/history")
    expect(person.locator("tbody .verdict")).to_have_text(["PASS", "LATE"])
    person.goto("/history?verdict=LATE")
    expect(person.locator("tbody .verdict")).to_have_text(["LATE"])
    with person.expect_download() as download:
        person.get_by_role("link", name="Export as CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8-sig"))))
    assert [(each["kind"], each["verdict"]) for each in rows] == [("inspection", "PASS"), ("event", "LATE")]
    person.goto("/history?verdict=PASS")
    expect(person.locator("tbody tr")).to_have_count(1)


def test_the_station_is_halted_and_begins_again(service: Service, person: Page) -> None:
    person.get_by_role("button", name="Halt").click()
    expect(person.get_by_text("The station is halted. Press Reset to go on.")).to_be_visible()
    expect(person.locator(".state")).to_contain_text("Not ready")
    person.get_by_role("button", name="Reset").click()
    expect(person.get_by_text("Parts are inspected.")).to_be_visible()
    end = time.monotonic() + 30
    while not service.station.ready and time.monotonic() < end:
        time.sleep(0.1)
    assert service.inspect(good(504), "again").status_code == 201
    events = [row.body for row in service.station.ledger.history(kind="event") if row.body["event"] == "method"]
    assert [event["method"] for event in events] == ["reset", "halt"]
    assert {event["who"] for event in events} == {"the operator"}


def test_a_control_at_the_line_is_not_lost_to_the_next_part(service: Service, person: Page) -> None:
    assert service.inspect(good(506), "one").status_code == 201
    expect(person.locator(".part .which strong")).to_have_text("one")
    halt = person.get_by_role("button", name="Halt")
    halt.focus()
    assert service.inspect(good(507), "two").status_code == 201
    expect(person.locator(".part .which strong")).to_have_text("two")
    expect(halt).to_be_focused()
    # A press that was meant for one part must not be taken for the next.
    person.get_by_role("button", name="Dispute the verdict of two").focus()
    assert service.inspect(good(517), "between").status_code == 201
    expect(person.get_by_role("button", name="Dispute the verdict of between")).not_to_be_focused()

    held: list[Route] = []  # the page is drawn anew between the two halves of a press
    person.route("**/live/now", lambda route: held.append(route))
    assert service.inspect(good(508), "three").status_code == 201
    until(lambda: person.evaluate("1") and held, "the page does not ask for what is new")
    halt.hover()
    person.mouse.down()
    with person.expect_response("**/live/now"):
        held[0].continue_()
    person.mouse.up()
    person.unroute("**/live/now")
    expect(person.get_by_text("The station is halted. Press Reset to go on.")).to_be_visible()


def last(service: Service) -> Any:
    """The number of the last inspection."""
    return service.station.ledger.history(kind="inspection", limit=1)[0].sequence
