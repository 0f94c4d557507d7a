"""The gradient loop: the same every time, from wherever it was interrupted."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Stack, noise

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from andon.detector import Run  # noqa: E402
from andon.errors import AndonError, TrainingError  # noqa: E402
from andon.nn import checkpoint  # noqa: E402
from andon.nn.loop import Loop, Schedule, choose  # noqa: E402
from andon.recipe import Augment  # noqa: E402

VARIED = Augment(flip=True, quarter_turns=True, rotate=5.0, brightness=0.1)


class Noise(Stack):
    """Tiles of noise."""

    def __init__(self, count: int = 30, seed: int = 0, side: int = 8) -> None:
        super().__init__(noise(count, side, 1, seed), batch=7)


class Small(nn.Module):
    """A network with dropout, and a loss that draws noise: both kinds of randomness a detector can have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.Dropout(0.2), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1)
        )

    def loss(self, batch: Any, generator: Any) -> Any:
        noise = torch.randn(batch.shape, generator=generator)
        return ((self.net(batch + 0.1 * noise) - batch) ** 2).mean()


class Killed(Exception):
    """Stands for the end of the process."""


def killer(step: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == step:
            raise Killed

    return progress


def schedule(**settings: Any) -> Schedule:
    return Schedule(**{"steps": 40, "batch": 4, "evaluate": 10, "hold_out": 0.1, "checkpoint": 0, **settings})


def fit(settings: Schedule, run: Run, seed: int = 0, tiles: Noise | None = None) -> tuple[dict[str, Any], Loop, str]:
    module = Small()
    loop = Loop(module, module.loss, settings, seed, run)
    curve = loop.fit(tiles or Noise(), "small")
    return module.state_dict(), loop, curve


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_one_seed_one_result() -> None:
    first, _, curve = fit(schedule(), Run(augment=VARIED, device="cpu"))
    torch.rand(5)  # what else happens in the process does not matter
    second, _, again = fit(schedule(), Run(augment=VARIED, device="cpu"))
    other, _, _ = fit(schedule(), Run(augment=VARIED, device="cpu"), seed=1)
    assert same(first, second) and not same(first, other)
    assert [line.rsplit(",", 1)[0] for line in curve.splitlines()] == [
        line.rsplit(",", 1)[0] for line in again.splitlines()
    ]


def test_the_loss_falls_and_the_curve_says_so() -> None:
    _, loop, curve = fit(schedule(steps=200, evaluate=20, learning_rate=1e-2), Run(device="cpu"))
    lines = curve.splitlines()
    assert lines[0] == "step,learning_rate,loss,held_out_loss,seconds"
    assert [int(line.split(",")[0]) for line in lines[1:]] == list(range(20, 201, 20))
    held = [float(line.split(",")[3]) for line in lines[1:]]
    assert held[-1] < 0.7 * held[0]
    assert loop.state.best == pytest.approx(min(held), rel=1e-4)
    rates = [float(line.split(",")[1]) for line in lines[1:]]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 1e-4


@pytest.mark.parametrize("step", [1, 2, 13, 20, 39, 40])
def test_a_killed_training_ends_in_the_same_weights(step: int, tmp_path: Path) -> None:
    whole, _, _ = fit(schedule(), Run(augment=VARIED, device="cpu"))
    with pytest.raises(Killed):
        fit(schedule(), Run(killer(step), augment=VARIED, device="cpu", folder=tmp_path))
    said: list[str] = []
    resumed, loop, curve = fit(schedule(), Run(tell=said.append, augment=VARIED, device="cpu", folder=tmp_path))
    assert f"continuing from step {step}" in said[0]
    assert same(whole, resumed)
    assert loop.state.step == 40 and len(curve.splitlines()) == 5


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
import torch
from andon.detector import Run
from test_loop import VARIED, fit, schedule

torch.set_num_threads(1)
run = Run(augment=VARIED, device="cpu", folder=Path(sys.argv[1]))
weights, _, _ = fit(schedule(steps=400, checkpoint=0.1), run)
np.savez(sys.argv[2], **{name: value.numpy() for name, value in weights.items()})
"""


def test_kill_9_changes_nothing(tmp_path: Path) -> None:
    whole, _, _ = fit(schedule(steps=400, checkpoint=0.1), Run(augment=VARIED, device="cpu"))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "training"), str(tmp_path / "weights.npz")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(command, env=environment)
    file = tmp_path / "training" / checkpoint.NAME
    deadline = time.monotonic() + 60
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and file.exists() and not (tmp_path / "weights.npz").exists()
    subprocess.run(command, env=environment, check=True)
    with np.load(tmp_path / "weights.npz") as found:
        assert all(np.array_equal(found[name], value.numpy()) for name, value in whole.items())


def test_a_loss_that_is_not_a_number_stops_with_step_and_rate(tmp_path: Path) -> None:
    module, calls = Small(), 0

    def loss(batch: Any, generator: Any) -> Any:
        nonlocal calls
        calls += 1
        return module.loss(batch, generator) * (float("nan") if calls == 7 else 1.0)

    loop = Loop(module, loss, schedule(decay="constant", warmup=0), 0, Run(device="cpu", folder=tmp_path))
    with pytest.raises(TrainingError, match=r"nan at step 7, at a learning rate of 0\.001.*learning_rate = 0\.0001"):
        loop.fit(Noise(), "small")
    assert not (tmp_path / checkpoint.NAME).exists()


def losses(values: Callable[[int], float], tmp_path: Path, steps: int = 100) -> None:
    """Train with losses that are these values at each step."""
    module = Small()
    loop: Loop

    def loss(batch: Any, generator: Any) -> Any:
        return 0 * module.loss(batch, generator) + values(loop.state.step)

    loop = Loop(module, loss, schedule(steps=steps, hold_out=0), 0, Run(device="cpu", folder=tmp_path))
    loop.fit(Noise(), "small")


@pytest.mark.parametrize(
    "values",
    [
        lambda step: 10.0**step,
        lambda step: -(10.0**step),
        lambda step: 9.4 if step == 0 else 1e19,
        lambda step: 1.0 if step < 30 else 1e7,
        lambda step: 1e-6 if step < 30 else 1e7,
        lambda step: 0.99**step if step < 50 else 1e5 + step,
    ],
)
def test_divergence_stops(values: Callable[[int], float], tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"the loss diverged: the median of the last 10 is .* at step .*learning_rate"
    ):
        losses(values, tmp_path)
    assert not (tmp_path / checkpoint.NAME).exists()


@pytest.mark.parametrize(
    "values",
    [
        lambda step: 0.0 if step == 0 else 0.3,  # the first loss is nothing to go by
        lambda step: 1e-9 if step < 30 else 50.0,
        lambda step: 50.0 - step,  # through zero
        lambda step: -0.001 * 1.1**step,
        lambda step: (-1.0) ** step,
        lambda step: 1e-6 + (step % 25 == 24) * 1e6,  # single steps
        lambda step: 1e6 * 0.5**step,
        lambda step: 0.0,
    ],
)
def test_losses_that_do_not_diverge(values: Callable[[int], float], tmp_path: Path) -> None:
    losses(values, tmp_path)


@pytest.mark.parametrize("changed", [{"checkpoint": 100.0}, {"checkpoint": 0.5}])
def test_what_changes_no_weights_may_be_changed_on_the_way(changed: dict[str, Any], tmp_path: Path) -> None:
    whole, _, _ = fit(schedule(), Run(device="cpu"))
    with pytest.raises(Killed):
        fit(schedule(), Run(killer(13), device="cpu", folder=tmp_path))
    said: list[str] = []
    resumed, _, _ = fit(schedule(**changed), Run(tell=said.append, device="cpu", folder=tmp_path))
    assert "continuing from step 13" in said[0] and same(whole, resumed)


def test_a_fit_reports_what_it_wrote(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    run = Run(device="cpu", folder=tmp_path / "training")
    fit(schedule(steps=2), run)
    assert run.written == {tmp_path / "training", tmp_path / "training" / checkpoint.NAME}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 99 bytes"),
    ],
)
def test_out_of_memory_works_in_smaller_pieces_with_the_same_gradient(error: Exception) -> None:
    whole, said = nn.Conv2d(1, 1, 3, padding=1), list[str]()
    pieces = nn.Conv2d(1, 1, 3, padding=1)
    pieces.load_state_dict(whole.state_dict())

    def loss(module: Any, most: int) -> Callable[[Any, Any], Any]:
        def of(batch: Any, generator: Any) -> Any:
            if len(batch) > most:
                raise error
            return ((module(batch) - 0.5) ** 2).mean()

        return of

    settings = schedule(batch=5, hold_out=0)
    Loop(whole, loss(whole, 5), settings, 0, Run(device="cpu")).fit(Noise(), "small")
    loop = Loop(pieces, loss(pieces, 2), settings, 0, Run(tell=said.append, device="cpu"))
    loop.fit(Noise(), "small")
    assert loop.state.pieces == 4
    assert said[1] == "out of memory: batches of 5 tiles are now processed 2 at a time"
    torch.testing.assert_close(whole.state_dict(), pieces.state_dict(), rtol=1e-4, atol=1e-6)
    with pytest.raises(TrainingError, match="even with one tile"):
        Loop(pieces, loss(pieces, 0), settings, 0, Run(device="cpu")).fit(Noise(), "small")


def test_early_stopping_keeps_the_best_weights() -> None:
    module, said = Small(), list[str]()

    def loss(batch: Any, generator: Any) -> Any:  # the held-out tiles want the opposite
        return module.loss(batch, generator) * (1 if module.training else -1)

    settings = schedule(steps=1000, patience=3, learning_rate=1e-2)
    loop = Loop(module, loss, settings, 0, Run(tell=said.append, device="cpu"))
    curve = loop.fit(Noise(), "small").splitlines()
    held = [float(line.split(",")[3]) for line in curve[1:]]
    assert len(held) == held.index(min(held)) + 1 + 3 < 100
    assert "stopped" in said[-1]


def test_time_in_place_of_steps(tmp_path: Path) -> None:
    start = time.monotonic()
    run = Run(device="cpu", seconds=0.5, folder=tmp_path)
    _, loop, _ = fit(schedule(steps=1), run)
    assert loop.state.step > 1
    assert 0.5 <= time.monotonic() - start < 5
    _, again, _ = fit(schedule(steps=1), run)  # the time is used up
    assert again.state.step == loop.state.step


@pytest.mark.parametrize(
    ("change", "settings"), [("seed", {}), ("recipe", {"learning_rate": 1e-4}), ("tiles", {}), ("augment", {})]
)
def test_the_checkpoint_of_another_training_is_refused(change: str, settings: dict[str, Any], tmp_path: Path) -> None:
    fit(schedule(steps=2), Run(device="cpu", folder=tmp_path))
    run = Run(device="cpu", folder=tmp_path, augment=VARIED if change == "augment" else Augment())
    with pytest.raises(TrainingError, match=r"another training.*Delete it"):
        fit(schedule(steps=2, **settings), run, int(change == "seed"), Noise(seed=1) if change == "tiles" else None)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "pickle"])
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    fit(schedule(steps=2), Run(device="cpu", folder=tmp_path))
    file = tmp_path / checkpoint.NAME
    data = bytearray(file.read_bytes())
    if damage == "pickle":
        np.savez(file, facts=np.array({"fingerprint": "x"}, dtype=object))
    else:
        data[len(data) // 2] ^= 0xFF
        file.write_bytes({"cut": data[:-100], "flipped": data, "empty": b"", "foreign": b"PK not a zip"}[damage])
    with pytest.raises(TrainingError, match=r"damaged.*Delete it to train from the start"):
        fit(schedule(steps=2), Run(device="cpu", folder=tmp_path))


def test_what_a_kill_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / f".{checkpoint.NAME}.12345678.part").write_bytes(b"half")
    fit(schedule(steps=2), Run(device="cpu", folder=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NAME]


def test_a_device_that_is_not_there_is_an_error() -> None:
    assert choose("cpu").type == "cpu"
    for name in ["quantum"] if torch.cuda.is_available() else ["cuda", "cuda:1", "quantum"]:
        with pytest.raises(AndonError, match=f"device '{name}' cannot be used"):
            choose(name)


def test_a_checkpoint_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AndonError, match="the folder for checkpoints cannot be created"):
        fit(schedule(), Run(device="cpu", folder=tmp_path / "file" / "training"))


def test_forecast_counts_steps_and_bytes() -> None:
    module = Small()
    short = Loop(module, module.loss, schedule(steps=10), 0, Run(device="cpu")).forecast(Noise())
    long = Loop(module, module.loss, schedule(steps=10_000), 0, Run(device="cpu")).forecast(Noise())
    limited = Loop(module, module.loss, schedule(), 0, Run(device="cpu", seconds=60)).forecast(Noise())
    assert 0 < short.seconds < long.seconds
    assert short.megabytes > 0
    assert limited.seconds == 60
