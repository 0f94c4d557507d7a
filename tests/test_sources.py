"""Sources: files that grow, move and vanish; real videos; cameras that are lost, stall and skip frames."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from andon.errors import AndonError
from andon.inspection import Pixels
from andon.pictures import image
from andon.streams import cameras, naming
from andon.streams.cameras import CameraLost, Live, OpenCV, Shot
from andon.streams.folder import Folder
from andon.streams.frames import Control, Frame, Report, Source
from andon.streams.simulated import Simulated
from andon.streams.sources import Iterated, Limited, Video
from conftest import part, save


class Taker:
    """Takes the frames of a source in a thread, and waits for what is expected."""

    def __init__(self, source: Source) -> None:
        self.report, self.stop, self.told = Report(), threading.Event(), list[str]()
        self.frames: list[Frame] = []
        self.error: Exception | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._take, args=(source,))
        self._thread.start()

    def _tell(self, sentence: str) -> None:
        with self._changed:
            self.told.append(sentence)
            self._changed.notify()

    def _take(self, source: Source) -> None:
        try:
            for frame in source.frames(Control(self.report, self.stop, self._tell)):
                with self._changed:
                    self.frames.append(frame)
                    self._changed.notify()
        except Exception as error:
            self.error = error

    def until(self, done: Callable[["Taker"], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: done(self), 30), (self.names, self.told)

    @property
    def names(self) -> list[str]:
        return [frame.label for frame in self.frames]

    def __enter__(self) -> "Taker":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


def take(source: Source) -> Taker:
    """All frames of a source that ends."""
    taker = Taker(source)
    taker._thread.join(60)
    assert not taker._thread.is_alive()
    return taker


def png(seed: int) -> bytes:
    return image.png(part(seed))


def files(taker: Taker) -> list[str]:
    return [Path(name).name for name in taker.names]


def watched(folder: Path, **options: Any) -> Folder:
    return Folder(folder, watch=True, look=0.01, **{"settle": 0.05, **options})


def listing(folder: Folder) -> threading.Event:
    """An event that is set when the folder has been listed and has pictures."""
    listed, lister = threading.Event(), folder._list

    def listing(control: Control) -> Any:
        found = lister(control)
        if found:
            listed.set()
        return found

    folder._list = listing  # type: ignore[method-assign]
    return listed


def test_a_folder_gives_its_pictures_by_time(tmp_path: Path) -> None:
    for place, age in (("b.png", 30), ("day 2/a.png", 20), ("c.jpg", 10)):
        path = save(tmp_path / place, part(age))
        os.utime(path, (1e9 - age, 1e9 - age))
    for name in ("note.txt", ".hidden.png", "~tmp.png", "@eaDir/b.png"):
        save(tmp_path / name, part(1)) if name.endswith("png") else (tmp_path / name).write_text("x")
    taken = take(Folder(tmp_path))
    assert files(taken) == ["b.png", "a.png", "c.jpg"]
    assert [frame.part for frame in taken.frames] == ["b", "a", "c"]
    assert taken.frames[0].time.timestamp() == 1e9 - 30


class Script(threading.Event):
    """An event that asks to stop, and a clock: each pause runs one step and takes 0.1 s."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: list[Callable[[], object]]) -> None:
        super().__init__()
        self.steps = steps
        self.pauses = 0
        monkeypatch.setattr("andon.streams.folder.time", SimpleNamespace(monotonic=lambda: self.pauses / 10))

    def wait(self, timeout: float | None = None) -> bool:
        if self.pauses < len(self.steps):
            self.steps[self.pauses]()
        else:
            self.set()
        self.pauses += 1
        return self.is_set()


def test_a_file_counts_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is written in pieces, one stays empty, one is renamed into place, one keeps the name of a temporary file."""
    data, slow = png(1), tmp_path / "slow.png"
    size = -(-len(data) // 9)

    def append(start: int) -> None:
        with slow.open("ab") as file:
            file.write(data[start : start + size])

    def others() -> None:
        (tmp_path / "empty.png").touch()
        (tmp_path / "upload.png.tmp").write_bytes(png(3))
        (tmp_path / ".part").write_bytes(png(2))

    steps: list[Callable[[], object]] = [partial(append, start) for start in range(0, len(data), size)]
    steps += [others, lambda: (tmp_path / ".part").rename(tmp_path / "renamed.png"), *[lambda: None] * 6]
    script, told, found = Script(monkeypatch, steps), list[str](), {}
    for frame in Folder(tmp_path, watch=True, settle=0.25).frames(Control(Report(), script, told.append)):
        found[Path(frame.label).name] = script.pauses, image.read(frame.content).pixels.tobytes()
    written, renamed = steps.index(others), steps.index(others) + 2
    assert found == {
        "slow.png": (written + 3, part(1).tobytes()),  # three looks of 0.1 s after the last piece
        "renamed.png": (renamed + 3, part(2).tobytes()),
    }
    assert told == []


def test_a_renamed_file_is_not_a_new_picture_but_a_rewritten_one_is(tmp_path: Path) -> None:
    save(tmp_path / "a.png", part(1))
    with Taker(watched(tmp_path)) as taker:
        taker.until(lambda t: len(t.frames) == 1)
        (tmp_path / "a.png").rename(tmp_path / "done a.png")
        save(tmp_path / "b.png", part(2))
        taker.until(lambda t: len(t.frames) == 2)
        (tmp_path / "b.png").unlink()
        save(tmp_path / "done a.png", part(3))
        taker.until(lambda t: len(t.frames) == 3)
    assert files(taker) == ["a.png", "b.png", "done a.png"]


def test_a_file_that_a_list_misses_while_it_is_renamed_is_not_a_new_picture(tmp_path: Path) -> None:
    save(tmp_path / "a.png", part(1))
    folder = watched(tmp_path)
    missing, lister = threading.Event(), folder._list

    def between(control: Control) -> Any:  # the old name is gone, and the new one was not there when it was listed
        found = lister(control)
        if missing.is_set():
            missing.clear()
            (tmp_path / "a.png").rename(tmp_path / "done a.png")
            return {}
        return found

    folder._list = between  # type: ignore[method-assign]
    with Taker(folder) as taker:
        taker.until(lambda t: len(t.frames) == 1)
        missing.set()
        while missing.is_set():
            time.sleep(0.01)
        save(tmp_path / "b.png", part(2))
        taker.until(lambda t: len(t.frames) == 2)
    assert files(taker) == ["a.png", "b.png"]


def test_a_file_deleted_before_it_is_complete_is_reported(tmp_path: Path) -> None:
    folder = watched(tmp_path, settle=60)
    listed = listing(folder)
    save(tmp_path / "a.png", part(1))
    with Taker(folder) as taker:
        assert listed.wait(30)
        (tmp_path / "a.png").unlink()
        taker.until(lambda t: len(t.told) == 1)
    assert taker.told[0].endswith("a.png: deleted before it was complete; it was not inspected") and taker.frames == []


def test_what_is_there_already_can_be_left_out_and_so_can_the_results(tmp_path: Path) -> None:
    save(tmp_path / "old.png", part(1))
    save(tmp_path / "out/overlays/x.png", part(2))
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier/records.jsonl").touch()
    folder = watched(tmp_path, existing=False, skip=tmp_path / "out/overlays")
    listed = listing(folder)
    with Taker(folder) as taker:
        assert listed.wait(30)
        save(tmp_path / "out/overlays/y.png", part(3))
        save(tmp_path / "earlier/overlays/z.png", part(3))
        save(tmp_path / "new.png", part(4))
        taker.until(lambda t: len(t.frames) == 1)
        save(tmp_path / "newer.png", part(5))
        taker.until(lambda t: len(t.frames) == 2)
    assert files(taker) == ["new.png", "newer.png"]


def test_a_share_that_goes_and_comes_back(tmp_path: Path) -> None:
    share = tmp_path / "share"
    save(share / "a.png", part(1))
    with Taker(watched(share)) as taker:
        taker.until(lambda t: len(t.frames) == 1)
        share.rename(tmp_path / "away")
        taker.until(lambda t: len(t.told) == 1)
        (tmp_path / "away").rename(share)
        save(share / "b.png", part(2))
        taker.until(lambda t: len(t.frames) == 2)
    assert "cannot be read: no such file" in taker.told[0] and taker.told[1].endswith("can be read again")
    assert files(taker) == ["a.png", "b.png"]


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AndonError, match="no such folder"):
        Folder(tmp_path / "nowhere")
    with pytest.raises(AndonError, match="expected numbers above 0"):
        Folder(tmp_path, settle=-1)


@pytest.fixture(params=[("a.avi", "FFV1"), ("a.mp4", "mp4v"), ("a.mkv", "FFV1")], ids=lambda each: each[0])
def video(request: Any, tmp_path: Path) -> Path:
    """Ten frames, lossless where the codec is; the brightness of each is 20 times its number."""
    name, codec = request.param
    writer = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter.fourcc(*codec), 25, (96, 64))
    assert writer.isOpened()
    for number in range(10):
        bgr = np.zeros((64, 96, 3), np.uint8)
        bgr[..., 2] = 20 * number  # red
        writer.write(bgr)
    writer.release()
    return tmp_path / name


def mean_colour(frame: Frame) -> Any:
    return np.asarray(frame.content).mean(axis=(0, 1))


def test_a_video_gives_its_frames_in_rgb(video: Path) -> None:
    taken = take(Video(video))
    red, others = zip(*((mean[0], mean[1:].max()) for mean in map(mean_colour, taken.frames)), strict=True)
    assert red == pytest.approx([20 * number for number in range(10)], abs=9) and max(others) < 9
    assert len(taken.frames) == 10 and taken.told == []
    assert taken.frames[9].label == f"{video.as_posix()}, frame 10"
    assert (taken.frames[5].time - taken.frames[0].time).total_seconds() == pytest.approx(0.2)


def test_gray_videos_are_gray_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "gray.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 25, (96, 64))
    writer.write(np.full((64, 96, 3), 90, np.uint8))
    writer.release()
    assert take(Video(path)).frames[0].content.shape == (64, 96, 3)  # type: ignore[union-attr]
    assert take(Video(path, channels=1)).frames[0].content.shape == (64, 96, 1)  # type: ignore[union-attr]


def test_a_cut_video_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "cut.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (96, 96))
    for seed in range(30):
        writer.write(part(seed))
    writer.release()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    taken = take(Video(path))
    assert 0 < len(taken.frames) < 30
    assert taken.report.lost == 30 - len(taken.frames)
    assert f"ended after {len(taken.frames)} of 30 frames" in taken.told[0]


def test_a_file_that_is_not_a_video_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video" * 100)
    taken = take(Video(tmp_path / "a.mp4"))
    assert isinstance(taken.error, AndonError) and "no frame can be decoded" in str(taken.error)
    with pytest.raises(AndonError, match="no such file"):
        Video(tmp_path / "b.mp4")


def shown() -> list[Pixels]:
    return [part(seed) for seed in range(3)]


def test_a_simulated_camera_shows_its_pictures_over_and_over(tmp_path: Path) -> None:
    for seed in range(2):
        save(tmp_path / f"{seed}.png", part(seed))
    taken = take(Limited(Live(Simulated(tmp_path, rate=1000), "camera 1"), 5))
    assert [image.read(frame.content).digest for frame in taken.frames] == [
        image.read(part(seed)).digest for seed in (0, 1, 0, 1, 0)
    ]
    assert taken.names[4] == "camera 1, frame 5" and taken.told == []
    times = [frame.time for frame in taken.frames]
    assert times == sorted(times)


def test_a_lost_camera_is_reconnected(tmp_path: Path) -> None:
    live = Live(Simulated(shown(), 1000, {3: "lost"}), "camera 1", first=0.01, longest=0.02)
    taken = take(Limited(live, 4))
    assert len(taken.frames) == 4
    assert taken.told[0] == "camera 1: the simulated cable was unplugged."
    assert taken.told[1].startswith("camera 1: still not connected: ")
    assert taken.told[-1].startswith("camera 1: reconnected after ")


def test_the_pause_before_a_reconnection_grows_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(Simulated):
        FAILURES = 6

    pauses: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0)
            return False

    told: list[str] = []
    live = Live(Gone(shown(), 1000, {2: "lost"}), first=1.0, longest=8.0)
    control = Control(Report(), Stop(), told.append)
    frames = live.frames(control)
    assert [next(frames).name, next(frames).name] == ["camera, frame 1", "camera, frame 2"]
    frames.close()  # type: ignore[attr-defined]
    assert pauses == [1, 2, 4, 8, 8, 8, 8]
    assert len([sentence for sentence in told if "still not connected" in sentence]) == 3


def test_frames_that_a_camera_lost_are_counted() -> None:
    taken = take(Limited(Live(Simulated(shown(), 1000, {3: "skipped"}), "camera 1"), 4))
    assert taken.report.lost == 1
    assert taken.told == ["camera 1: 1 frames were lost before frame 4"]


def test_a_camera_that_stalls_goes_on() -> None:
    taken = take(Limited(Live(Simulated(shown(), 100, {2: "stalled"})), 3))
    assert len(taken.frames) == 3 and taken.report.lost == 0


def test_a_camera_that_is_not_there_at_the_start_is_an_error() -> None:
    taken = take(Live(OpenCV("/dev/no such camera")))
    assert isinstance(taken.error, CameraLost) and "no camera at /dev/no such camera" in str(taken.error)


def test_a_camera_through_opencv_is_lost_when_its_pictures_end(tmp_path: Path) -> None:
    """OpenCV reads a numbered series of files as it reads a camera."""
    for number in range(3):
        save(tmp_path / f"{number}.png", part(number))
    camera = OpenCV(str(tmp_path / "%d.png"))
    taker = Taker(Live(camera, "camera 1", first=0.01))
    with taker:
        taker.until(lambda t: len(t.frames) >= 5)
    assert [image.read(frame.content).digest for frame in taker.frames[:5]] == [
        image.read(part(seed)).digest for seed in (0, 1, 2, 0, 1)
    ]
    assert "gives no more pictures" in taker.told[0] and "reconnected" in taker.told[1]


def test_passwords_of_cameras_are_not_shown() -> None:
    assert cameras.public("rtsp://user:secret@10.0.0.7/1") == "rtsp://10.0.0.7/1"


@pytest.mark.parametrize("pictures", [[], Path("nowhere")])
def test_a_simulated_camera_without_pictures_is_refused(pictures: Any) -> None:
    with pytest.raises(AndonError, match=r"no pictures|no such folder"):
        Simulated(pictures)


def test_texts_name_sources(tmp_path: Path) -> None:
    save(tmp_path / "a.png", part(1))
    (tmp_path / "a.mp4").touch()
    kinds = {
        str(tmp_path): Folder,
        str(tmp_path / "a.mp4"): Video,
        f"simulated:{tmp_path}": Live,
        "0": Live,
        "rtsp://10.0.0.7/1": Live,
        "/dev/video0": Live,
    }
    assert {text: type(naming.named(text)) for text in kinds} == kinds
    assert isinstance(naming.of([part(1)]), Iterated)
    image = str(tmp_path / "a.png")
    for text, words in ((image, "one picture"), (__file__, "not a video file"), ("x", "no such file")):
        with pytest.raises(AndonError, match=words):
            naming.named(text)


def test_genicam_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "viva_genicam", None)
    with pytest.raises(AndonError, match=r"pip install 'andon\[genicam\]'"):
        naming.named("genicam:")


@pytest.fixture
def gige() -> Iterator[Any]:
    """A GigE Vision camera of the library, over real sockets on loopback; frame 3 loses a packet."""
    pytest.importorskip("viva_genicam", reason="needs the extra genicam")
    from viva_genicam.testing import FakeGigeCamera

    made = [FakeGigeCamera(96, 64, 100, pixel_format="Mono12", packet_resend=False, drop_packets=[(3, 1)])]
    made[0].start()
    yield made
    made[0].stop()


def test_a_genicam_camera_over_the_wire(gige: list[Any]) -> None:
    taken = take(Limited(naming.named("genicam:127.0.0.1"), 4))
    assert [frame.content.shape for frame in taken.frames] == [(64, 96)] * 4  # type: ignore[union-attr]
    assert taken.frames[0].content.dtype == np.uint16  # type: ignore[union-attr]
    assert taken.report.lost == 1 and "1 frames were lost before frame 4" in taken.told[0]
    missing = take(naming.named("genicam:10.9.8.7"))
    assert isinstance(missing.error, CameraLost) and "127.0.0.1" in str(missing.error)


def test_a_genicam_camera_that_loses_power_and_returns(gige: list[Any]) -> None:
    from viva_genicam.testing import FakeGigeCamera

    with Taker(Live(naming.GenICam("127.0.0.1"), "camera 1", first=0.1)) as taker:
        taker.until(lambda t: len(t.frames) >= 2)
        gige[0].stop()
        taker.until(lambda t: any("does not answer" in sentence for sentence in t.told))
        taker.until(lambda t: any("still not connected" in sentence for sentence in t.told))
        gige[0] = FakeGigeCamera(96, 64, 100, pixel_format="Mono8")
        gige[0].start()
        before = len(taker.frames)
        taker.until(lambda t: len(t.frames) > before)
    assert any("reconnected" in sentence for sentence in taker.told)


def test_a_camera_of_a_program_needs_three_methods() -> None:
    class Mine:
        def open(self) -> None: ...

        def grab(self, seconds: float) -> Shot | None:
            return Shot(part(1))

        def close(self) -> None: ...

    assert len(take(Limited(Live(Mine()), 2)).frames) == 2
