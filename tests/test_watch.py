"""`andon watch` as a user meets it: in a process of its own, with signals, pipes and a full output folder."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from conftest import part, save, scratched
from test_cli import run

POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGTERM to one child process")


def listen() -> None:
    """Take Ctrl-C as a terminal's program does; a shell lets what it runs in the background ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def watching(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], Iterator[dict[str, Any]]]]:
    """Run `andon watch --json` in a process; yield it, and the records that it prints."""
    call = [sys.executable, "-m", "andon", "watch", *map(str, arguments), "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(call, preexec_fn=listen if os.name != "nt" else None, **pipes) as process:  # type: ignore[call-overload]
        alarm = threading.Timer(120, process.kill)
        alarm.start()
        try:
            yield process, map(json.loads, process.stdout)
        finally:
            alarm.cancel()
            process.kill()


@POSIX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_was_taken(bundle_file: Path, tmp_path: Path, number: int) -> None:
    incoming, out = tmp_path / "in", tmp_path / "out"
    for seed in range(8):
        save(incoming / f"{seed}.png", scratched(seed)[0] if seed == 5 else part(seed))
    with watching(bundle_file, incoming, "--out", out, "--settle", 0) as (process, records):
        shown = [next(records)["source"] for _ in range(8)]
        save(incoming / "late.png", part(9))
        shown.append(next(records)["source"])
        process.send_signal(number)
        assert list(records) == []
        assert process.wait() == 0
        assert process.stderr.read() == ""  # type: ignore[union-attr]
    assert Path(shown[-1]).name == "late.png"
    written = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert [record["source"] for record in written] == shown
    assert [path.name for path in (out / "overlays").iterdir()] == ["5.png.png"]


@POSIX
def test_a_signal_in_the_middle_of_a_stream_loses_no_record(bundle_file: Path, parts: Path, tmp_path: Path) -> None:
    camera = f"simulated:{parts / 'train/good'}"
    with watching(bundle_file, camera, "--out", tmp_path / "out", "--pictures", "all") as (process, records):
        shown = [next(records) for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        shown += records
        assert process.wait() == 0
    written = [json.loads(line) for line in (tmp_path / "out/records.jsonl").read_text().splitlines()]
    assert [record["frame"] for record in written] == [record["frame"] for record in shown]
    assert [record["frame"] for record in shown] == list(range(1, len(shown) + 1))
    assert len(list((tmp_path / "out/overlays").iterdir())) == len(shown)


@POSIX
def test_the_second_signal_ends_at_once(bundle_file: Path) -> None:
    """The source hangs, so the first signal alone would have to wait for it."""
    code = f"""
import sys, threading
from andon import cli
from andon.streams import naming

class Hanging:
    def frames(self, control):
        print("ready", flush=True)
        control.stop.wait()
        print("stopping", flush=True)
        threading.Event().wait()
        yield

naming.named = lambda *given, **options: Hanging()
sys.argv = ["andon", "watch", {str(bundle_file)!r}, "camera", "-q"]
cli.main()
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], preexec_fn=listen, **pipes) as process:  # type: ignore[call-overload]
        for word in ("ready", "stopping"):
            assert process.stdout.readline() == f"{word}\n"
            process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert "interrupted" in process.stderr.read()


@POSIX
def test_signals_are_given_back() -> None:
    code = (
        "import os, signal; from andon.streams.stopping import stop_on_signals\n"
        "before = signal.getsignal(signal.SIGTERM)\n"
        "with stop_on_signals() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert stop.wait(30)\n"
        "assert signal.getsignal(signal.SIGTERM) is before"
    )
    # In a process of its own: one that pytest-xdist started has a life of its own to lose.
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@POSIX
def test_whoever_reads_no_more_ends_the_stream(bundle_file: Path, parts: Path) -> None:
    with watching(bundle_file, f"simulated:{parts / 'train/good'}") as (process, records):
        next(records)
        process.stdout.close()  # type: ignore[union-attr]
        assert process.wait() == 0


def test_a_camera_of_pictures(bundle_file: Path, parts: Path, tmp_path: Path, capsys: Any) -> None:
    camera = f"simulated:{parts / 'test/scratch'}"
    code, out, _ = run(capsys, "watch", bundle_file, camera, "--frames", 5, "--out", tmp_path / "out")
    assert code == 0
    assert out.splitlines()[-1] == "5 frames: 5 REJECT" and f"{camera}, frame 5" in out.splitlines()[4]
    assert run(capsys, "watch", bundle_file, camera, "--frames", 1, "--fail-on", "reject", "-q")[:2] == (1, "")
    assert (
        run(capsys, "watch", bundle_file, f"simulated:{parts / 'test/good'}", "--frames", 1, "--fail-on", "reject")[0]
        == 0
    )


def test_a_video_and_its_bad_frames(bundle_file: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 25, (96, 96))
    for pixels in (part(1), scratched(2)[0], part(3)):
        writer.write(np.ascontiguousarray(pixels[..., ::-1]))
    writer.release()
    code, out, _ = run(capsys, "watch", bundle_file, path, "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [record["verdict"] for record in records] == ["PASS", "REJECT", "PASS"]

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 25, (64, 64))
    writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    code, out, err = run(capsys, "watch", bundle_file, path)
    assert code == 1
    assert "1 frames: 1 INVALID; 1 could not be inspected" in out and "64 × 64 pixels" in err


def test_records_that_cannot_be_written_stop_the_line(
    bundle_file: Path, parts: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    camera, write, count = f"simulated:{parts / 'train/good'}", os.write, 0

    def full(descriptor: int, line: bytes) -> int:
        nonlocal count
        count += line.startswith(b'{"time"')
        return write(descriptor, line[:9] if count > 2 else line)

    monkeypatch.setattr(os, "write", full)
    code, _, err = run(capsys, "watch", bundle_file, camera, "--out", tmp_path / "out")
    assert code == 2
    assert "the sink failed at" in err and "frame 3" in err and "no space left" in err
    assert "inspected, but not handed to the sink" in err
    monkeypatch.undo()
    lines = (tmp_path / "out/records.jsonl").read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == [1, 2]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", "no such file or folder"),
        ("simulated:nowhere", "no such folder"),
        ("/dev/no such camera", "no camera at"),
    ],
)
def test_a_missing_source_is_an_error_of_the_call(bundle_file: Path, source: str, words: str, capsys: Any) -> None:
    code, _, err = run(capsys, "watch", bundle_file, source)
    assert code == 2 and words in err


def test_an_output_folder_that_cannot_be_made(bundle_file: Path, parts: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").touch()
    code, _, err = run(capsys, "watch", bundle_file, parts, "--out", tmp_path / "out")
    assert code == 2 and "a file of this name exists" in err
