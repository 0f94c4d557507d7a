"""The line: order, bounds, drops, faults, stopping, and that it says what `inspect` says."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from andon import Inspector, Verdict
from andon.errors import AndonError, ImageError
from andon.geometry.views import Geometry
from andon.inspection import Pixels, Scores
from andon.pictures import image
from andon.records import Records
from andon.streams import line, sinks
from andon.streams.frames import Control, Frame, Outcome
from andon.streams.line import Settings
from andon.streams.sources import Iterated
from conftest import part, save, scratched
from fake_inspector import FakeInspector


@pytest.fixture(scope="module")
def inspector(bundle_file: Path) -> Inspector:
    return Inspector.load(bundle_file)


def pictures(count: int) -> list[Pixels]:
    return [scratched(seed)[0] if seed % 3 == 2 else part(seed) for seed in range(count)]


def run(inspector: Inspector, source: Any, sink: Any = None, **settings: Any) -> tuple[list[Outcome], Any, list[str]]:
    """Stream; return what the sink got, the report, and what was told."""
    outcomes: list[Outcome] = []
    told: list[str] = []
    report = inspector.stream(source, sink or outcomes.append, Settings(**settings), tell=told.append)
    return outcomes, report, told


def test_a_stream_says_what_inspect_says_in_order(inspector: Inspector) -> None:
    shown = pictures(12)
    outcomes, report, told = run(inspector, shown, workers=4)
    assert [outcome.frame.number for outcome in outcomes] == list(range(1, 13))
    for outcome, pixels in zip(outcomes, shown, strict=True):
        alone, found = inspector.inspect(pixels), outcome.inspection
        assert found and (found.verdict, found.digest, found.decision) == (alone.verdict, alone.digest, alone.decision)
        assert found.score == pytest.approx(alone.score, rel=1e-4)
        np.testing.assert_allclose(found.anomaly_map, alone.anomaly_map, rtol=1e-3, atol=1e-3)
    assert (report.frames, report.failed, report.dropped, told) == (12, 0, 0, [])
    assert sum(report.verdicts.values()) == 12 and report.verdicts[Verdict.REJECT] == 4
    assert not report.stopped and report.whole


def test_tiles_of_large_pictures_go_the_same_way(inspector: Inspector) -> None:
    geometry = Geometry(size=96, tiles=True, overlap=16)
    bundle = replace(inspector.bundle, recipe=inspector.recipe.model_copy(update={"geometry": geometry}))
    open_size = bundle.manifest.input.model_copy(update={"size": None})
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"input": open_size}))
    tiled = replace(inspector, bundle=bundle)
    shown = [part(1, 200), scratched(2, 200)[0], part(3, 200)]
    outcomes, _, _ = run(tiled, shown, workers=3)
    alone = [tiled.inspect(pixels).score for pixels in shown]
    assert [each.inspection.score for each in outcomes if each.inspection] == pytest.approx(alone, rel=1e-4)


def test_one_bad_frame_is_one_invalid(inspector: Inspector, tmp_path: Path) -> None:
    good = save(tmp_path / "good.png", part(1))
    (tmp_path / "torn.png").write_bytes(good.read_bytes()[:400])
    source = [good, tmp_path / "torn.png", b"", tmp_path / "gone.png", part(2, 64), part(3)]
    outcomes, report, _ = run(inspector, source)
    assert [outcome.verdict is Verdict.INVALID for outcome in outcomes] == [False, True, True, True, True, False]
    assert all(isinstance(outcome.fault, ImageError) for outcome in outcomes[1:5])
    assert "truncated or damaged" in outcomes[1].error and "no such file" in outcomes[3].error
    assert (report.frames, report.failed, report.whole) == (6, 4, False)
    assert "4 could not be inspected" in report.sentence()


def test_an_error_of_the_engine_is_invalid_with_its_name(inspector: Inspector) -> None:
    class Broken:
        def score(self, tiles: Pixels) -> Scores:
            raise RuntimeError("the engine is broken")

    outcomes, report, _ = run(replace(inspector, scorer=Broken()), [part(1), part(2)])
    assert [outcome.verdict for outcome in outcomes] == [Verdict.INVALID] * 2
    assert outcomes[1].error == "frame 2: error in the inspection: RuntimeError: the engine is broken"
    assert report.failed == 2


class Held:
    """An inspector that waits until it is let go, and counts how many frames it has been given."""

    def __init__(self) -> None:
        self.inner, self.go, self.given = FakeInspector(), threading.Event(), 0

    def read(self, source: Any, name: str | None = None) -> image.Image:
        self.given += 1
        self.go.wait()
        return self.inner.read(source, name)

    def inspect(self, source: Any, name: str | None = None) -> Any:
        return self.inner.inspect(source, name)


class Counted:
    """A source of gray pictures that says how many frames were taken, and when `at` of them were."""

    def __init__(self, count: int, at: int, then: threading.Event) -> None:
        self.taken, self._count, self._at, self._then = 0, count, at, then

    def frames(self, control: Control) -> Iterator[Frame]:
        for index in range(self._count):
            self.taken += 1
            if self.taken == self._at:
                self._then.set()
            yield Frame(np.full((16, 16), index % 200, np.uint8))


def test_a_full_line_makes_the_source_wait() -> None:
    held = Held()
    source = Counted(50, 99, held.go)
    outcomes: list[Outcome] = []
    settings = Settings(workers=2, queue=3)
    running = threading.Thread(target=lambda: line.stream(held, source, outcomes.append, settings))
    running.start()
    while source.taken < 5:  # three wait, the sink waits for one, and one waits for a place
        threading.Event().wait(0.001)
    threading.Event().wait(0.05)
    assert source.taken == 5
    held.go.set()
    running.join()
    assert len(outcomes) == source.taken == 50


def test_a_full_line_drops_and_counts() -> None:
    held = Held()
    source = Counted(50, 50, held.go)  # let go when the last frame is taken
    outcomes: list[Outcome] = []
    told: list[str] = []
    settings = Settings("drop", workers=2, queue=3)
    report = line.stream(held, source, outcomes.append, settings, tell=told.append)
    assert report.frames + report.dropped == 50 and report.frames == len(outcomes)
    assert 45 <= report.dropped <= 47
    numbers = [outcome.frame.number for outcome in outcomes]
    gaps = [after - before - 1 for before, after in zip([0, *numbers], numbers, strict=False)]
    assert [outcome.dropped for outcome in outcomes] == gaps
    assert any("dropped, because the line is full" in sentence for sentence in told)
    assert not report.whole and f"{report.dropped} dropped" in report.sentence()


def test_a_stop_finishes_the_frames_on_the_line(inspector: Inspector) -> None:
    stop = threading.Event()
    outcomes: list[Outcome] = []

    def endless() -> Iterator[Pixels]:
        seed = 0
        while True:
            yield part(seed)
            seed += 1

    def sink(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 3:
            stop.set()

    report = inspector.stream(endless(), sink, Settings(workers=2, queue=4), stop=stop)
    assert report.stopped and report.frames == len(outcomes)
    assert [outcome.frame.number for outcome in outcomes] == list(range(1, len(outcomes) + 1))
    assert 3 <= len(outcomes) <= 9


def test_a_blocked_source_is_abandoned_after_a_stop(inspector: Inspector, monkeypatch: Any) -> None:
    monkeypatch.setattr(line, "GRACE", 0.2)
    stop, never = threading.Event(), threading.Event()

    def hanging() -> Iterator[Pixels]:
        yield part(1)
        never.wait()

    outcomes: list[Outcome] = []
    told: list[str] = []
    report = inspector.stream(
        hanging(), lambda outcome: (outcomes.append(outcome), stop.set())[0], stop=stop, tell=told.append
    )
    never.set()
    assert report.stopped and len(outcomes) == 1
    assert any("did not stop within" in sentence for sentence in told)


def test_a_source_that_fails_gives_its_frames_first(inspector: Inspector) -> None:
    def failing() -> Iterator[Pixels]:
        yield from (part(1), part(2))
        raise AndonError("the lamp is out")

    outcomes: list[Outcome] = []
    with pytest.raises(AndonError, match="the lamp is out"):
        inspector.stream(failing(), outcomes.append)
    assert len(outcomes) == 2


@pytest.mark.parametrize("error", [AndonError("the disk is full"), ValueError("a mistake in the program")])
def test_a_failing_sink_reports_every_undelivered_frame(inspector: Inspector, error: Exception) -> None:
    outcomes: list[Outcome] = []

    def sink(outcome: Outcome) -> None:
        if len(outcomes) == 2:
            raise error
        outcomes.append(outcome)

    frames = [Frame(part(seed), f"part {seed}") for seed in range(20)]
    with pytest.raises(
        AndonError, match=r"(?s)the sink failed at part 2: .*inspected, but not handed to the sink: part 2, part 3"
    ) as caught:
        inspector.stream(frames, sink, Settings(workers=1, queue=2))
    assert str(error) in str(caught.value) and caught.value.__cause__ is error
    assert [outcome.frame.name for outcome in outcomes] == ["part 0", "part 1"]


def test_a_slow_sink_loses_nothing(inspector: Inspector) -> None:
    wait = threading.Event()
    outcomes: list[Outcome] = []

    def slow(outcome: Outcome) -> None:
        wait.wait(0.02)
        outcomes.append(outcome)

    run(inspector, pictures(10), slow, workers=3, queue=2)
    assert [outcome.frame.number for outcome in outcomes] == list(range(1, 11))


def test_repeats_and_a_change_of_size_are_reported(inspector: Inspector) -> None:
    open_size = inspector.manifest.input.model_copy(update={"size": None})
    manifest = inspector.manifest.model_copy(update={"input": open_size})
    anywhere = replace(inspector, bundle=replace(inspector.bundle, manifest=manifest))
    outcomes, report, told = run(anywhere, [part(1), part(1), part(1), part(2), part(3, 128)])
    assert [outcome.repeats for outcome in outcomes] == [0, 1, 2, 0, 0] and report.repeated == 2
    assert "is the camera frozen" in outcomes[2].record()["notes"][-1]
    assert [sentence for sentence in told if "frozen" in sentence] == [told[0]]
    assert "frame 5: 128 × 128 pixels; previous frames had 96 × 96" in told


def test_a_stall_and_its_end_are_reported_once(inspector: Inspector) -> None:
    again = threading.Event()
    told: list[str] = []

    def tell(sentence: str) -> None:
        told.append(sentence)
        again.set()

    def stalling() -> Iterator[Pixels]:
        yield part(1)
        again.wait()
        yield part(2)

    report = inspector.stream(stalling(), lambda outcome: None, Settings(stall=1), tell=tell)
    assert told == ["no frame for 1 s. Check trigger, light and cable.", "frame 2: frames arrive again"]
    assert report.stalls == 1


def test_an_array_may_be_used_again(inspector: Inspector) -> None:
    def reused() -> Iterator[Pixels]:
        buffer = np.empty((96, 96, 3), np.uint8)
        for seed in range(6):
            buffer[:] = part(seed)
            yield buffer
        buffer[:] = 0

    outcomes, _, _ = run(inspector, reused(), workers=1, queue=4)
    expected = [image.read(part(seed)).digest for seed in range(6)]
    assert [outcome.picture.digest for outcome in outcomes if outcome.picture] == expected


def test_records_and_heat_maps_of_frames(inspector: Inspector, tmp_path: Path) -> None:
    import json

    told: list[str] = []
    maps = sinks.HeatMaps(tmp_path / "overlays", inspector.scale, inspector.calibration, told.append)
    frames = [
        Frame(part(1), "camera", part="A/7"),
        Frame(scratched(2)[0], "camera", part="A/8"),
        Frame(b"no picture", "camera", part="A/9"),
    ]
    seen: list[str] = []
    with Records(tmp_path / "records.jsonl") as records:
        sink = sinks.each(sinks.recorded(records), maps, lambda outcome: seen.append(outcome.frame.part))
        inspector.stream(frames, sink, draw=maps.draw)
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [(line["part"], line["frame"], line["verdict"]) for line in lines] == [
        ("A/7", 1, "PASS"),
        ("A/8", 2, "REJECT"),
        ("A/9", 3, "INVALID"),
    ]
    assert lines[1]["captured"] == frames[1].time.isoformat(timespec="milliseconds")
    assert lines[2]["error"].startswith("camera: ") and seen == ["A/7", "A/8", "A/9"]
    (drawn,) = (tmp_path / "overlays").iterdir()
    assert drawn.name.endswith(" 000002 A_8.png") and image.read(drawn).pixels.shape[1] > 96
    assert (tmp_path / "records.csv").read_text().count("INVALID") == 1


def test_a_heat_map_that_cannot_be_written_is_reported(inspector: Inspector, tmp_path: Path) -> None:
    told: list[str] = []
    maps = sinks.HeatMaps(tmp_path, inspector.scale, inspector.calibration, told.append, "all")
    (tmp_path / "a.png.png").mkdir()
    outcomes: list[Outcome] = []
    source = [save(tmp_path / "in" / "a.png", part(1)), save(tmp_path / "in" / "b.png", part(2))]
    inspector.stream(source, sinks.each(maps, outcomes.append), draw=maps.draw)
    assert len(told) == 1 and "without a heat map" in told[0] and "a.png.png" in told[0]
    assert len(outcomes) == 2 and (tmp_path / "b.png.png").is_file()


def test_every_sink_gets_an_outcome_that_one_refuses() -> None:
    got: list[int] = []

    def refuse(outcome: Outcome) -> None:
        raise AndonError("no")

    with pytest.raises(AndonError, match="no"):
        sinks.each(refuse, lambda outcome: got.append(outcome.frame.number))(Outcome(Frame(b"", number=4)))
    assert got == [4]


@pytest.mark.parametrize(
    ("source", "words"),
    [(b"data", "one bytes"), (np.zeros((9, 9)), "one ndarray"), (7, "a int"), ("nowhere", "no such file or folder")],
)
def test_an_invalid_source_is_refused(inspector: Inspector, source: Any, words: str) -> None:
    with pytest.raises(AndonError, match=words):
        inspector.stream(source, lambda outcome: None)


@pytest.mark.parametrize("settings", [{"policy": "wait"}, {"workers": -1}, {"queue": -1}, {"stall": float("nan")}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(AndonError, match="expected"):
        Settings(**settings)


def test_frames_keep_their_time_and_part() -> None:
    frame = Frame(np.zeros((9, 9), np.uint8), "camera", "part 7")
    (copy,) = Iterated([frame]).frames(None)  # type: ignore[arg-type]
    assert (copy.name, copy.part, copy.time) == ("camera", "part 7", frame.time)
    assert copy.content is not frame.content


@pytest.mark.parametrize("workers", [1, 3])
def test_pictures_that_are_there_get_what_inspect_says(inspector: Inspector, workers: int, tmp_path: Path) -> None:
    paths: list[image.Source] = [save(tmp_path / f"{seed}.png", part(seed)) for seed in range(5)]
    paths.insert(2, tmp_path / "gone.png")
    found = list(line.pictures(inspector, paths, workers))
    assert [outcome.frame.number for outcome in found] == [1, 2, 3, 4, 5, 6]
    assert [outcome.frame.content for outcome in found] == paths
    assert [type(outcome.fault) for outcome in found if outcome.fault] == [ImageError]
    for outcome in found:
        if outcome.inspection:
            alone = replace(inspector.inspect(outcome.frame.content), milliseconds=0.0)
            assert replace(outcome.inspection, milliseconds=0.0).record() == alone.record()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_fault_of_no_picture_is_raised(inspector: Inspector, workers: int) -> None:
    class Broken:
        def score(self, tiles: Pixels) -> Scores:
            raise RuntimeError("the engine is broken")

    with pytest.raises(RuntimeError, match="the engine is broken"):
        list(line.pictures(replace(inspector, scorer=Broken()), [part(1), part(2)], workers))
