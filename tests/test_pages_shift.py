"""One whole shift in a browser, from an empty station to an export: with the mouse, and with the keyboard alone."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from andon.files import digest
from andon.station.keys import Role
from service import Service, config, served
from test_pages_teach import LONG_MS, drag
from test_station_service import png

TAUGHT, PARTS, SIDE = 20, 60, 300  # pictures to learn from; parts of the shift; pixels
CONTROLS = 120  # more than one page has
FOCUSED = "control => control === document.activeElement"
NAMES = {"score": "Score", "brightness": "Brightness", "sharpness": "Sharpness"}


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> tuple[list[bytes], list[bytes]]:
    """Real bottles, good and broken ones, as a small camera would show them."""
    folder = shared_data / "mvtec_ad" / "bottle"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")

    def some(kind: str, count: int) -> list[bytes]:
        pictures = [cv2.imread(str(path))[..., ::-1] for path in sorted((folder / kind).iterdir())[:count]]
        return [png(cv2.resize(each, (SIDE, SIDE), interpolation=cv2.INTER_AREA)) for each in pictures]

    return some("train/good", TAUGHT + PARTS), some("test/broken_large", PARTS // 10 + 1)


def dimmed(picture: bytes, share: float) -> bytes:
    """The same part under a weaker lamp."""
    return png((cv2.imdecode(np.frombuffer(picture, np.uint8), 1)[..., ::-1] * share).astype(np.uint8))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A station without a product, which keeps all pictures; no shift begins in the hours of the test."""
    begin = f"{datetime.now(UTC) - timedelta(hours=6):%H:%M}"
    pages = {"zone": "UTC", "shifts": [begin]}
    settings = config(tmp_path, pictures={"keep_one_in": 1}, http={"draw_timeout_s": 120.0}, pages=pages)
    with served(settings, ready=False) as station:
        yield station


class Hand:
    """A person who uses a page as it is shown: with the mouse, or with the keyboard alone."""

    def __init__(self, page: Page, keyboard: bool) -> None:
        self.page, self.keyboard = page, keyboard

    def press(self, control: Locator, key: str = "Enter") -> None:
        """Click, or come to a control by the tab key and press a key."""
        expect(control).to_be_visible()
        if not self.keyboard:
            return control.click()
        for _ in range(CONTROLS):
            if control.evaluate(FOCUSED):
                return self.page.keyboard.press(key) if key else None
            self.page.keyboard.press("Tab")
        raise AssertionError(f"{control} is not reached by the tab key")

    def follow(self, control: Locator) -> None:
        """Press what leads to a page."""
        expect(control).to_be_visible()
        with self.page.expect_navigation():
            self.press(control)

    def button(self, name: str | re.Pattern[str]) -> None:
        self.follow(self.page.get_by_role("button", name=name, exact=True))

    def link(self, *names: str) -> None:
        for name in names:
            self.follow(self.page.get_by_role("link", name=name, exact=True))

    def write(self, label: str, text: str) -> None:
        self.press(self.page.get_by_label(label, exact=True), "")
        self.page.keyboard.type(text)

    def slide(self, name: str, step: int, last: int, shown: str) -> None:
        """Put a slider on one of its steps."""
        slider = self.page.get_by_role("slider", name=name)
        if self.keyboard:
            self.press(slider, "End")
            for _ in range(last - step):
                self.page.keyboard.press("ArrowLeft")
        else:
            box = slider.bounding_box()
            assert box
            inside = box["width"] - box["height"]  # the thumb is about as wide as the slider is high
            slider.click(position={"x": box["height"] / 2 + inside * step / last, "y": box["height"] / 2})
        expect(slider).to_have_attribute("aria-valuetext", shown)

    def draw(self) -> None:
        """Draw a rectangle that leaves out a twentieth at each side, which is a step of the keyboard with Shift."""
        if not self.keyboard:
            drag(self.page, (0.05, 0.05), (0.95, 0.95))
            return
        self.press(self.page.get_by_role("application", name="Picture to draw on"), "")
        for count, keys in ((9, ("ArrowLeft", "ArrowUp")), (18, ("ArrowRight", "ArrowDown"))):
            for key in count * keys:
                self.page.keyboard.press(f"Shift+{key}")
            self.page.keyboard.press("Enter")

    def choose_fast(self) -> None:
        """Choose the preset; another one is chosen."""
        wanted = self.page.get_by_label(re.compile("^fast"))
        self.press(self.page.get_by_label(re.compile("^standard")) if self.keyboard else wanted, "ArrowRight")
        expect(wanted).to_be_checked()


@pytest.fixture(params=[pytest.param("mouse", marks=pytest.mark.slow), "keyboard"])
def hand(request: pytest.FixtureRequest, browser: Browser, service: Service) -> Iterator[Hand]:
    """A quality engineer; what the browser complains of is an error."""
    size: Any = {"width": 1024, "height": 600}
    context = browser.new_context(base_url=service.url, viewport=size, reduced_motion="reduce")
    page, faults = context.new_page(), list[str]()
    page.set_default_timeout(LONG_MS)
    expect.set_options(timeout=LONG_MS)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    hand = Hand(page, request.param == "keyboard")
    page.goto("/")
    hand.write("Key", service.keys[Role.QUALITY])
    hand.button("Sign in")
    yield hand
    context.close()
    assert faults == []


def teach(hand: Hand, service: Service, pictures: list[bytes]) -> None:
    """From a name to a bundle that inspects. The first picture is odd, and left out."""
    page = hand.page
    expect(page.get_by_text("There is no project yet.")).to_be_visible()  # an empty station begins here
    hand.write("Name of the project", "Night shift")
    hand.write("Name of the product at the station", "bottle")
    hand.button("Begin")
    names = ["odd.png", *(f"{number:02}.png" for number in range(len(pictures) - 1))]
    with page.expect_navigation():  # the page loads again when all are taken
        with page.expect_file_chooser() as chooser:
            hand.press(page.get_by_label("Choose pictures or a ZIP"))
        named = zip(names, pictures, strict=True)
        chooser.value.set_files([{"name": name, "mimeType": "image/png", "buffer": data} for name, data in named])
    expect(page.get_by_text(f"{len(pictures)} pictures of good parts")).to_be_visible()
    hand.link("Next: check")
    hand.button("Check the pictures")
    strange = page.locator("section", has=page.get_by_role("heading", name="Pictures least like the others"))
    expect(strange.locator("label").first).to_contain_text("odd.png")
    hand.press(strange.get_by_label("odd.png"), "Space")
    hand.button("Leave out what is marked")
    expect(page.get_by_text("have changed since this check")).to_be_visible()
    hand.link("Next: region")
    hand.draw()
    hand.button("Save the regions")
    expect(page.get_by_role("list", name="What is drawn").get_by_role("listitem")).to_have_count(1)
    hand.link("Next: train")
    hand.choose_fast()
    hand.follow(page.locator("form", has=page.get_by_label("Light")).get_by_role("button", name="Save"))
    project = service.station.teaching.projects.get("Night shift")
    small = {"geometry": {"size": 128}, "detector": {"settings": {"bank": 200}}}  # keeps the test short
    service.station.teaching.recipe(project, project.revision, "Ada", small)
    hand.button("Train")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    hand.link("Next: result")
    expect(page.get_by_role("heading", name="What so many pictures can promise")).to_be_visible()
    hand.slide("Good parts that may get REVIEW or worse", 11, 11, "20 %")
    hand.slide("Good parts that may get REJECT", 9, 11, "10 %")
    hand.button("Save these rates")
    hand.link("Next: release")
    hand.button("Release")
    hand.button("Activate")
    expect(page.get_by_text("It inspects now.")).to_be_visible()
    hand.link("Watch the line")
    service.ready()


def decide(hand: Hand, parts: list[str]) -> None:
    """Find parts that wait good, the newest first."""
    hand.link("Review")
    for part in parts:
        expect(hand.page.locator(".which strong")).to_have_text(part)
        expect(hand.page.get_by_role("button", name="Good")).to_be_enabled()
        with hand.page.expect_navigation():
            if hand.keyboard:
                hand.page.keyboard.press("g")
            else:
                hand.page.get_by_role("button", name="Good").click()


def test_a_whole_shift_from_teaching_to_the_export(
    hand: Hand, service: Service, photographs: tuple[list[bytes], list[bytes]]
) -> None:
    page, (good, broken) = hand.page, photographs
    teach(hand, service, [broken[0], *good[:TAUGHT]])
    sent: dict[str, tuple[str, bytes]] = {}  # part → verdict and picture

    def send(part: str, picture: bytes) -> str:
        answer = service.inspect(picture, part, "bottle", lot="night")
        assert answer.status_code == 201, answer.text
        sent[part] = answer.json()["verdict"], picture
        return sent[part][0]

    def seen() -> None:
        part, (verdict, _) = list(sent.items())[-1]
        expect(page.locator(".part .which strong")).to_have_text(part)
        expect(page.locator(".verdict.big")).to_have_text(verdict)

    def first(name: str, verdict: str) -> bytes:
        return next(data for part, (found, data) in sent.items() if part.startswith(name) and found == verdict)

    def challenge() -> None:
        expect(page.get_by_text("Challenge parts are due: present those of bottle.")).to_be_visible()
        for name, data in {"broken": first("broken", "REJECT"), "golden": first("bottle", "PASS")}.items():
            place, kind = f"/v1/products/bottle/challenge/parts/{name}", {"Content-Type": "image/png"}
            answer = service.operator.post(place, content=data, headers=kind)
            assert answer.status_code == 200 and answer.json()["right"], answer.text
        expect(page.get_by_text("Parts are inspected.")).to_be_visible()

    # Sixty parts are watched at the line, and counted there. One in ten is broken.
    expect(page.get_by_text("Parts are inspected.")).to_be_visible()
    for number in range(PARTS):
        tenth, last = divmod(number, 10)
        name, picture = ("bottle", good[TAUGHT + number]) if last < 9 else ("broken", broken[1 + tenth])
        assert send(f"{name} {number:02}", picture) != "PASS" or name == "bottle"
    seen()
    expect(page.get_by_role("list", name="Last parts, the newest first").get_by_role("listitem")).to_have_count(20)
    for verdict, count in Counter(verdict for verdict, _ in sent.values()).items():
        expect(page.locator(f".counts .{verdict.lower()} dd")).to_have_text(str(count))

    # A REVIEW is decided, and stands in the story of the part.
    doubtful = [part for part, (verdict, _) in sent.items() if verdict == "REVIEW"]
    assert doubtful[-1].startswith("bottle")
    decide(hand, doubtful[-1:])
    expect(page.get_by_text(f"{len(doubtful) - 1} part")).to_be_visible()
    hand.link("History")
    hand.write("Part", doubtful[-1])
    hand.button("Show")
    hand.link(doubtful[-1])
    expect(page.get_by_text("the quality: overrode (REVIEW) · looked at: good")).to_be_visible()

    # Challenge parts are due: the line stands until they have passed.
    expires = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    expected = {"golden": "PASS", "broken": "REJECT"}
    parts = [{"name": name, "expected": verdict, "expires": expires} for name, verdict in expected.items()]
    assert service.quality.put("/v1/products/bottle/challenge", json={"parts": parts}).status_code == 200
    hand.link("Live")
    challenge()

    # The lamp grows weaker, part by part. Good parts are rejected, and disputed; then the page tells of a drift.
    usual, weak = first("bottle", "PASS"), list[str]()
    while not service.station.loaded["bottle"].drift.change:
        assert len(weak) < 40, "no drift is found"
        weak.insert(0, f"weak {len(weak):02}")
        verdict = send(weak[0], dimmed(usual, 0.924 - 0.004 * len(weak)))
        seen()
        if verdict != "REVIEW":
            hand.button(re.compile("^Dispute the verdict of"))
    hand.link("Drift of bottle: look at it")
    change = service.operator.get("/v1/products/bottle/drift").json()["change"]
    told = f"Drift found {NAMES[change['measure']]}: {change['kind']}."
    expect(page.locator(".notice.drift")).to_contain_text(told)

    # Recalibration: the parts are confirmed good, compared, released and activated.
    decide(hand, weak)
    hand.link("Products", "Look at drift")
    confirmed = re.compile(f"({len(weak)}|{len(weak) + 1}) pictures of parts confirmed good")
    expect(page.locator("#confirmed strong")).to_have_text(confirmed)
    hand.button("Recalibrate")
    hand.button("Take it over as a new version")
    expect(page.get_by_text(re.compile("The same .* good parts, before and after."))).to_be_visible()
    hand.button("Release")
    hand.button("Activate")
    expect(page.get_by_text("inspects now")).to_be_visible()
    expect(page.get_by_text("No drift found")).to_be_visible()
    hand.link("Live")
    challenge()
    assert send("after", dimmed(usual, 0.9)) == "PASS"
    seen()

    # The export holds what was sent.
    hand.link("History")
    expect(page.locator("tbody tr")).to_have_count(50)
    hand.link("Older")
    expect(page.locator("tbody tr")).to_have_count(len(sent) - 50)
    with page.expect_download() as download:
        hand.press(page.get_by_role("link", name="Export as CSV"))
    rows = csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8-sig")))
    found = [(row["part"], row["verdict"], row["picture"], row["product"], row["lot"]) for row in rows]
    assert found == [(part, verdict, digest(data), "bottle", "night") for part, (verdict, data) in sent.items()]
