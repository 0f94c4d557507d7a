"""One whole shift in a browser, from an empty station to an export: with the mouse, and with the keyboard alone."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, FileChooser, Locator, Page, expect

from andon.files import digest
from andon.station.keys import Role
from service import Service, config, served
from test_station_service import png

TAUGHT, GOOD, DEFECTIVE, SIDE = 24, 54, 6, 300  # pictures to learn from; parts of the shift; pixels
LONG_MS = 120_000  # for what runs beside the line, on a machine with other work
CONTROLS = 120  # more than one page has
FOCUSED = "control => control === document.activeElement"
MEASURES = {"score": "Score", "brightness": "Brightness", "sharpness": "Sharpness"}


class Photographs(NamedTuple):
    """Real bottles, as the camera of a small station would show them: the bytes of PNG files."""

    taught: list[bytes]
    odd: bytes
    good: list[bytes]
    defective: list[bytes]


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> Photographs:
    folder = shared_data / "mvtec_ad" / "bottle"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    good = [photograph(path) for path in sorted((folder / "train/good").iterdir())[: TAUGHT + GOOD]]
    broken = [photograph(path) for path in sorted((folder / "test/broken_large").iterdir())[: 1 + DEFECTIVE]]
    return Photographs(good[:TAUGHT], broken[0], good[TAUGHT:], broken[1:])


def photograph(path: Path) -> bytes:
    pixels = cv2.resize(cv2.imread(str(path)), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return png(pixels[..., ::-1])


def dimmed(picture: bytes, share: float) -> bytes:
    """The same part under a weaker lamp."""
    pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    return png((pixels[..., ::-1] * share).astype(np.uint8))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A station without a product, which keeps all pictures."""
    settings = config(tmp_path, pictures={"keep_one_in": 1}, http={"draw_timeout_s": 120.0})
    with served(settings, ready=False) as station:
        yield station


class Hand:
    """A person who uses a page as it is shown: with the mouse, or with the keyboard alone."""

    def __init__(self, page: Page, keyboard: bool) -> None:
        self.page, self.keyboard = page, keyboard

    def reach(self, control: Locator) -> Locator:
        """Come to a control by the tab key."""
        expect(control).to_be_visible()
        for _ in range(CONTROLS):
            if control.evaluate(FOCUSED):
                return control
            self.page.keyboard.press("Tab")
        raise AssertionError(f"{control} is not reached by the tab key")

    def press(self, control: Locator, key: str = "Enter") -> None:
        if self.keyboard:
            self.reach(control)
            self.page.keyboard.press(key)
        else:
            control.click()

    def follow(self, control: Locator) -> None:
        """Press what leads to a page."""
        expect(control).to_be_visible()
        with self.page.expect_navigation():
            self.press(control)

    def button(self, name: str) -> None:
        self.follow(self.page.get_by_role("button", name=name, exact=True))

    def link(self, name: str) -> None:
        self.follow(self.page.get_by_role("link", name=name, exact=True))

    def write(self, label: str, text: str) -> None:
        field = self.page.get_by_label(label, exact=True)
        if self.keyboard:
            self.reach(field)
        else:
            field.click()
        self.page.keyboard.type(text)

    def bring(self, name: str, files: list[Any]) -> None:
        """Choose files to be sent; the page loads again when all are taken."""
        field = self.page.get_by_label(name)
        with self.page.expect_navigation():
            with self.page.expect_file_chooser() as chooser:
                self.press(field)
            choice: FileChooser = chooser.value
            choice.set_files(files)

    def choose(self, label: str | re.Pattern[str], beside: str | re.Pattern[str]) -> None:
        """Choose one of several; `beside` is chosen until then."""
        wanted = self.page.get_by_label(label)
        if self.keyboard:
            self.reach(self.page.get_by_label(beside))
            for _ in range(CONTROLS):
                if wanted.is_checked():
                    break
                self.page.keyboard.press("ArrowRight")
        else:
            wanted.check()
        expect(wanted).to_be_checked()

    def slide(self, name: str, step: int, last: int, shown: str) -> None:
        """Put a slider on one of its steps."""
        slider = self.page.get_by_role("slider", name=name)
        if self.keyboard:
            self.reach(slider)
            for key in ("End", *["ArrowLeft"] * (last - step)):
                self.page.keyboard.press(key)
        else:
            slider.scroll_into_view_if_needed()
            box = slider.bounding_box()
            assert box
            inside = box["width"] - box["height"]  # the thumb is about as wide as the slider is high
            slider.click(position={"x": box["height"] / 2 + inside * step / last, "y": box["height"] / 2})
        expect(slider).to_have_attribute("aria-valuetext", shown)

    def draw(self, margin: float) -> None:
        """Draw a rectangle that leaves out a margin, as a share of the picture."""
        if self.keyboard:
            self.reach(self.page.get_by_role("application", name="Picture to draw on"))
            steps = round((0.5 - margin) * 20)  # from the middle; with Shift a step is a twentieth
            for count, keys in ((steps, ("ArrowLeft", "ArrowUp")), (2 * steps, ("ArrowRight", "ArrowDown"))):
                for key in keys:
                    for _ in range(count):
                        self.page.keyboard.press(f"Shift+{key}")
                self.page.keyboard.press("Enter")
        else:
            picture = self.page.locator("[data-part=svg]")
            picture.scroll_into_view_if_needed()
            box = picture.bounding_box()
            assert box
            corners = [(box["x"] + s * box["width"], box["y"] + s * box["height"]) for s in (margin, 1 - margin)]
            self.page.mouse.move(*corners[0])
            self.page.mouse.down()
            self.page.mouse.move(*corners[1], steps=4)
            self.page.mouse.up()


@pytest.fixture(params=["mouse", "keyboard"])
def hand(request: pytest.FixtureRequest, browser: Browser, service: Service) -> Iterator[Hand]:
    """A quality engineer; what the browser complains of is an error."""
    context = browser.new_context(
        base_url=service.url, viewport={"width": 1024, "height": 600}, reduced_motion="reduce"
    )
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


class Line:
    """The line before the camera: what was sent, and what the station answered."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.sent: dict[str, tuple[str, bytes]] = {}
        """Part → verdict and picture, in the order of the line."""

    def send(self, part: str, picture: bytes) -> str:
        answer = self._service.inspect(picture, part, "bottle", lot="night")
        assert answer.status_code == 201, answer.text
        verdict = str(answer.json()["verdict"])
        self.sent[part] = (verdict, picture)
        return verdict

    def first(self, name: str, verdict: str) -> bytes:
        """The picture of the first part of a name that got a verdict."""
        return next(data for part, (given, data) in self.sent.items() if part.startswith(name) and given == verdict)

    def challenge(self) -> list[str]:
        """Present both challenge parts, which look like parts of production; where the product stands after each."""
        stands = []
        for name, data in (("broken", self.first("broken", "REJECT")), ("golden", self.first("bottle", "PASS"))):
            place, kind = f"/v1/products/bottle/challenge/parts/{name}", {"Content-Type": "image/png"}
            answer = self._service.operator.post(place, content=data, headers=kind)
            assert answer.status_code == 200 and answer.json()["right"], answer.text
            stands.append(answer.json()["stands"])
        return stands


def teach(hand: Hand, service: Service, photographs: Photographs) -> None:
    """From a name to a bundle that inspects."""
    page = hand.page
    expect(page.get_by_text("There is no project yet.")).to_be_visible()  # an empty station begins here
    hand.write("Name of the project", "Night shift")
    hand.write("Name of the product at the station", "bottle")
    hand.button("Begin")

    taught = [(f"{number:02}.png", data) for number, data in enumerate(photographs.taught)] + [
        ("odd.png", photographs.odd)
    ]
    hand.bring(
        "Choose pictures or a ZIP", [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in taught]
    )
    expect(page.get_by_text(f"{TAUGHT + 1} pictures of good parts")).to_be_visible()
    hand.link("Next: check")
    hand.button("Check the pictures")
    strange = page.locator("section", has=page.get_by_role("heading", name="Pictures least like the others"))
    expect(strange.locator("label").first).to_contain_text("odd.png")
    hand.press(strange.get_by_label("odd.png"), "Space")
    hand.button("Leave out what is marked")
    expect(page.get_by_text("have changed since this check")).to_be_visible()

    hand.link("Next: region")
    hand.draw(margin=0.05)
    hand.button("Save the regions")
    expect(page.get_by_role("list", name="What is drawn").get_by_role("listitem")).to_have_count(1)

    hand.link("Next: train")
    hand.choose(re.compile("^fast"), re.compile("^standard"))
    hand.follow(page.locator("form", has=page.get_by_label("Light")).get_by_role("button", name="Save"))
    teaching = service.station.teaching
    project = teaching.projects.get("Night shift")
    small = {"geometry": {"size": 128}, "detector": {"settings": {"bank": 200}}}  # keeps the test short
    teaching.recipe(project, project.revision, "Ada", small)
    hand.button("Train")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    hand.link("Next: result")
    expect(page.get_by_role("heading", name="What so many pictures can promise")).to_be_visible()
    hand.slide("Good parts that may get REVIEW or worse", 11, 11, "20 %")
    hand.slide("Good parts that may get REJECT", 9, 11, "10 %")
    hand.button("Save these rates")
    expect(page.get_by_role("slider", name="Good parts that may get REJECT")).to_have_attribute(
        "aria-valuetext", "10 %"
    )
    hand.link("Next: release")
    hand.button("Release")
    hand.button("Activate")
    expect(page.get_by_text("It inspects now.")).to_be_visible()
    hand.link("Watch the line")
    service.ready()
    expect(page.get_by_text("Parts are inspected.")).to_be_visible()


def produce(hand: Hand, line: Line, photographs: Photographs) -> None:
    """Sixty parts, watched at the line; the page counts what was answered."""
    defective, good = iter(photographs.defective), iter(photographs.good)
    for number in range(GOOD + DEFECTIVE):
        broken = number % 10 == 9
        verdict = line.send(f"{'broken' if broken else 'bottle'} {number:02}", next(defective if broken else good))
        assert verdict != "PASS" or not broken
    part, (verdict, _) = list(line.sent.items())[-1]
    expect(hand.page.locator(".part .which strong")).to_have_text(part)
    expect(hand.page.locator(".verdict.big")).to_have_text(verdict)
    expect(hand.page.get_by_role("list", name="Last parts, the newest first").get_by_role("listitem")).to_have_count(20)
    counts = Counter(verdict for verdict, _ in line.sent.values())
    for verdict in ("PASS", "REVIEW", "REJECT"):
        assert counts[verdict], "the rates that were chosen give each verdict"
        expect(hand.page.locator(f".counts .{verdict.lower()} dd")).to_have_text(str(counts[verdict]))


def decide(hand: Hand, parts: list[str]) -> None:
    """Find the parts that wait good, the newest first; others wait for somebody else."""
    hand.link("Review")
    for part in parts:
        expect(hand.page.locator(".which strong")).to_have_text(part)
        with hand.page.expect_navigation():
            if hand.keyboard:
                hand.page.keyboard.press("g")
            else:
                hand.page.get_by_role("button", name="Good").click()
    expect(hand.page.get_by_role("alert").filter(has_text="■")).to_have_count(0)


def test_a_whole_shift_from_teaching_to_the_export(hand: Hand, service: Service, photographs: Photographs) -> None:
    page, line = hand.page, Line(service)
    teach(hand, service, photographs)
    produce(hand, line, photographs)

    # A REVIEW is decided, and stands in the story of the part.
    doubtful = [part for part, (verdict, _) in line.sent.items() if verdict == "REVIEW"][::-1]
    assert doubtful[0].startswith("bottle")
    decide(hand, doubtful[:1])
    expect(page.get_by_text(f"{len(doubtful) - 1} part")).to_be_visible()
    hand.link("History")
    hand.write("Part", doubtful[0])
    hand.button("Show")
    hand.link(doubtful[0])
    expect(page.get_by_text("the quality: overrode (REVIEW) · looked at: good")).to_be_visible()

    # Challenge parts are due: the line stands until they have passed.
    expires = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    expected = {"golden": "PASS", "broken": "REJECT"}
    parts = [{"name": name, "expected": verdict, "expires": expires} for name, verdict in expected.items()]
    assert service.quality.put("/v1/products/bottle/challenge", json={"parts": parts}).status_code == 200
    hand.link("Live")
    expect(page.get_by_text("Challenge parts are due: present those of bottle.")).to_be_visible()
    assert line.challenge() == ["DUE", "PASSED"]
    expect(page.get_by_text("Parts are inspected.")).to_be_visible()

    # The lamp grows weaker, part by part. Good parts are rejected, and disputed; then the page tells of a drift.
    usual, weak = line.first("bottle", "PASS"), list[str]()
    drift = page.get_by_role("link", name="Drift of bottle: look at it")
    while not service.station.loaded["bottle"].drift.change:
        assert len(weak) < 40, "no drift is found"
        part = f"weak {len(weak):02}"
        verdict = line.send(part, dimmed(usual, 0.92 - 0.004 * len(weak)))
        expect(page.locator(".part .which strong")).to_have_text(part)
        if verdict != "REVIEW":
            hand.button("Dispute the last verdict")
        weak.insert(0, part)
    hand.follow(drift)
    change = service.operator.get("/v1/products/bottle/drift").json()["change"]
    notice = page.locator(".notice.drift")
    expect(notice).to_contain_text(f"Drift found {MEASURES[change['measure']]}: {change['kind']}.")

    # Recalibration: the parts are confirmed good, compared, released and activated.
    decide(hand, weak)
    hand.link("Products")
    hand.link("Look at drift")
    confirmed = page.locator("#confirmed strong")
    expect(confirmed).to_have_text(re.compile(f"({len(weak)}|{len(weak) + 1}) pictures of parts confirmed good"))
    hand.button("Recalibrate")
    adopt = page.get_by_role("button", name="Take it over as a new version")
    expect(adopt).to_be_visible()
    expect(page.get_by_text(re.compile("The same .* good parts, before and after."))).to_be_visible()
    hand.follow(adopt)
    hand.button("Release")
    hand.button("Activate")
    expect(page.get_by_text("inspects now")).to_be_visible()
    expect(page.get_by_text("No drift found")).to_be_visible()
    hand.link("Live")
    expect(page.get_by_text("Challenge parts are due: present those of bottle.")).to_be_visible()
    assert line.challenge() == ["DUE", "PASSED"]
    service.ready()
    assert line.send("after", dimmed(usual, 0.9)) == "PASS"
    expect(page.locator(".part .which strong")).to_have_text("after")

    # The export holds what was sent.
    hand.link("History")
    hand.button("Show")
    expect(page.locator("tbody tr")).to_have_count(50)
    hand.link("Older")
    expect(page.locator("tbody tr")).to_have_count(len(line.sent) - 50)
    with page.expect_download() as download:
        hand.press(page.get_by_role("link", name="Export as CSV"))
    text = download.value.path().read_text(encoding="utf-8-sig")
    rows = [
        (row["part"], row["verdict"], row["picture"], row["product"], row["lot"])
        for row in csv.DictReader(io.StringIO(text))
    ]
    assert rows == [
        (part, verdict, digest(picture), "bottle", "night") for part, (verdict, picture) in line.sent.items()
    ]
