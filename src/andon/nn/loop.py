"""The one gradient loop: a helper and not a framework. A detector hands it a module and a loss on a batch.

Whatever is random in a step is a function of (seed, step), and a checkpoint holds the rest, so a training that was
killed goes on where it was and, on a CPU with the same number of threads, ends in bit-identical weights.
Optimiser: AdamW (Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019); Adam at weight_decay = 0.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Annotated, Any, ClassVar, Literal, NoReturn

import torch
from pydantic import Field
from torch import Tensor, nn

from andon.detector import DetectorSettings, Forecast, Run, Tiles
from andon.errors import AndonError, TrainingError, out_of_memory
from andon.files import digest
from andon.nn import checkpoint
from andon.nn.data import FEWEST, Feed, Rows, contents, floats, generator, mix, split

Loss = Callable[[Tensor, torch.Generator], Tensor]
"""Mean loss of a batch (b, c, t, t) in [0, 1]; whatever it draws comes from the generator, or from torch's own."""

FORMAT = 2  # of the checkpoints
BLOCK = 10  # steps whose losses are judged together, by their median
DIVERGED = 1000  # times the highest median before …
CALM = 1.0  # … which counts as so much at least: a loss that begins near 0 may grow to what is usual of losses
CURVE = "step,learning_rate,loss,held_out_loss,seconds"


class Schedule(DetectorSettings):
    """How a network is trained; the settings of a learned detector inherit these."""

    unlearnt: ClassVar[frozenset[str]] = frozenset({"checkpoint"})
    """Settings that change no weights: a training that was interrupted goes on when they are changed."""

    steps: Annotated[int, Field(ge=1)] = 2000
    """Number of training steps."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Tiles in a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Highest learning rate."""
    decay: Literal["constant", "cosine"] = "cosine"
    """Learning rate after the warm-up: constant, or falling to 0 along a cosine."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the training in which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of AdamW; 0: Adam."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Greatest norm of a gradient; a greater one is scaled down to it."""
    hold_out: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of the parts that is held out for early stopping; 0: none."""
    patience: Annotated[int, Field(ge=0)] = 10
    """Evaluations without a lower held-out loss after which training stops; 0: it never stops early."""
    evaluate: Annotated[int, Field(ge=1)] = 100
    """Steps between evaluations."""
    checkpoint: Annotated[float, Field(ge=0)] = 30.0
    """Seconds between checkpoints."""

    def learnt(self) -> str:
        """Return the settings that change weights, as JSON."""
        return self.model_dump_json(exclude=set(self.unlearnt))


@dataclass
class State:
    """Where a training is, besides its tensors. Plain data: goes into the checkpoint."""

    step: int = 0  # steps done
    seconds: float = 0.0  # in them, over all runs
    pieces: int = 1  # a batch is worked through in so many pieces, their gradients added
    recent: list[float] = field(default_factory=list)  # losses of a block that is not full yet
    highest: float | None = None  # median of the absolute losses of a block, or the first loss
    losses: list[float] = field(default_factory=list)  # since the last evaluation
    best: float | None = None  # held-out loss
    stale: int = 0  # evaluations since
    curve: list[str] = field(default_factory=list)  # a line an evaluation


def choose(name: str) -> torch.device:
    """Return the device of that name, or the best there is for "". AndonError when there is none."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises the latter
        reason = str(error).partition("\n")[0]
        raise AndonError(
            f"device '{name}' cannot be used: {reason}. Expected 'cpu', or 'cuda' on a machine with an NVIDIA GPU and "
            "a torch built for it. Leave the device out to use the best one available."
        ) from None
    return device


class Loop:
    """One training of one module.

    Ends after `schedule.steps`, or after `run.seconds` where they are given: the learning rate then follows the share
    of the time gone by. How far a machine gets in a time is its own affair, so such a training is not reproducible.
    """

    def __init__(self, module: nn.Module, loss: Loss, schedule: Schedule, seed: int, run: Run) -> None:
        """Move the module to the device; nothing is learnt yet."""
        self.device = choose(run.device)
        self._cuda = self.device.type == "cuda"
        # On a CPU channels_last would be faster by a fifth, but some of torch 2.13's kernels for it crash (1×1, AVX2).
        self._layout = torch.channels_last if self._cuda else torch.contiguous_format
        self.module = module.to(self.device).to(memory_format=self._layout)  # type: ignore[call-overload]
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(
            self._parameters, schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self._loss, self._schedule, self._seed, self._run = loss, schedule, seed, run
        self._best: dict[str, Tensor] = {}
        self._pending: list[tuple[int, Tensor]] = []  # step, its loss; not looked at yet, for a look makes a GPU wait
        self.state = State()

    def fit(self, tiles: Tiles, name: str) -> str:
        """Train, from the checkpoint in `run.folder` where there is one, and return the curve as CSV.

        The module ends with the weights of the lowest held-out loss, or with the last where nothing is held out.
        The checkpoint of the end stays: whoever has kept the result removes the folder.
        """
        s, run, state = self._schedule, self._run, self.state
        if run.folder:
            checkpoint.make(run.folder)
            run.written.update({run.folder, run.folder / checkpoint.NAME})
        learn, held = split(tiles.groups, s.hold_out, self._seed)
        if s.hold_out and not len(held):
            run.tell(
                f"nothing is held out for early stopping: it needs {FEWEST} good parts, and {FEWEST} defective parts "
                "if the detector learns from them. The last weights are kept"
            )
        identity = (
            FORMAT,
            name,
            s.learnt(),
            run.augment.model_dump_json(),
            self._seed,
            contents(tiles),
            (len(tiles), *tiles.shape, tiles.channels),
        )
        fingerprint = digest(repr(identity).encode())
        self._resume(fingerprint)
        self.module.train()
        saved = time.monotonic()
        began = saved - state.seconds
        with Feed(tiles, learn, s.batch, self._seed, run.augment, self.device) as feed:
            while not self._ended():
                rate = self._step(feed)
                state.step += 1
                state.seconds = time.monotonic() - began
                if state.step % s.evaluate == 0 or self.share() >= 1:
                    self._look()
                    self._evaluate(rate, self._held_out(tiles, held))
                if run.folder and (time.monotonic() - saved >= s.checkpoint or self._ended()):
                    self._look()
                    checkpoint.save(run.folder, fingerprint, self._tensors(), asdict(state))
                    saved = time.monotonic()
                done = (state.seconds, run.seconds) if run.seconds else (state.step, s.steps)
                run.progress("training", int(done[0]), int(done[1]))
        if self._best:
            self.module.load_state_dict(self._best)
        self.module.eval()
        return "\n".join([CURVE, *state.curve, ""])

    def forecast(self, tiles: Tiles) -> Forecast:
        """Estimate time and memory of `fit` from a few steps on the first tiles; spoils the module."""
        s, first = self._schedule, next(iter(tiles))
        batch = floats(first[[i % len(first) for i in range(min(s.batch, len(tiles)))]], self.device)
        saved: dict[int, int] = {}  # address → bytes kept for the backward pass

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        def step() -> None:
            self._gradient(lambda: batch, "forecast")
            self._optimiser.step()
            if self._cuda:
                torch.cuda.synchronize(self.device)

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            step()
        start, steps = time.perf_counter(), 0
        while steps < 2 or (steps < 10 and time.perf_counter() - start < 2):
            step()
            steps += 1
        each = (time.perf_counter() - start) / steps
        weights = sum(p.numel() * p.element_size() for p in self._parameters)
        # Weights, gradients, two moments, the best weights, a checkpoint on its way to the disk.
        return Forecast(self._run.seconds or each * s.steps, (6 * weights + sum(saved.values())) / 1e6)

    def share(self) -> float:
        """Return how much of the training is done; 1 or more: all of it."""
        limit = self._run.seconds
        return self.state.seconds / limit if limit else self.state.step / self._schedule.steps

    def _ended(self) -> bool:
        return self.share() >= 1 or 0 < self._schedule.patience <= self.state.stale

    def _rate(self) -> float:
        """Return the learning rate of the coming step."""
        s = self._schedule
        share = min(1.0, self.share() + (0 if self._run.seconds else 1 / s.steps))
        if share < s.warmup:
            return s.learning_rate * share / s.warmup
        if s.decay == "constant":
            return s.learning_rate
        return s.learning_rate * (1 + math.cos(math.pi * (share - s.warmup) / (1 - s.warmup))) / 2

    def _step(self, feed: Callable[[int], Tensor]) -> float:
        """Take one step; return its learning rate."""
        rate = self._rate()
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        loss = self._gradient(lambda: feed(self.state.step), "step")
        nn.utils.clip_grad_norm_(self._parameters, self._schedule.clip)
        self._optimiser.step()
        self._pending.append((self.state.step + 1, loss))
        if not self._cuda:
            self._look()
        return rate

    def _gradient(self, batch: Callable[[], Tensor], purpose: str) -> Tensor:
        """Leave the gradients of a batch in the parameters, and return its mean loss."""
        while True:
            self._optimiser.zero_grad()
            torch.manual_seed(mix(self._seed, purpose, self.state.step))
            try:
                return self._backward(batch(), generator(self._seed, purpose, self.state.step, self.device))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            self._halve()  # here the failed attempt is forgotten, and its memory with it

    def _backward(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        total = torch.zeros((), device=self.device)
        for piece in torch.split(batch, math.ceil(len(batch) / self.state.pieces)):
            loss = self._compute(piece, generator) * (len(piece) / len(batch))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _compute(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        half: AbstractContextManager[Any] = torch.autocast("cuda", torch.bfloat16) if self._cuda else nullcontext()
        with half:
            return self._loss(batch.contiguous(memory_format=self._layout), generator)

    def _halve(self) -> None:
        """Work in pieces half as large after the memory ran out."""
        batch, state = self._schedule.batch, self.state
        if state.pieces >= batch:
            raise TrainingError(
                f"out of memory on {self.device}, even with one tile at a time. Use a smaller geometry.size or a "
                "smaller network, or a device with more memory."
            )
        state.pieces = min(2 * state.pieces, batch)
        if self._cuda:
            torch.cuda.empty_cache()
        size = math.ceil(batch / state.pieces)
        self._run.tell(f"out of memory: batches of {batch} tiles are now processed {size} at a time")

    def _look(self) -> None:
        """Look at the losses that came in. TrainingError when one is not finite, or when they diverge."""
        state = self.state
        for step, loss in [(step, loss.item()) for step, loss in self._pending]:
            if not math.isfinite(loss):
                self._diverged(f"the loss became {loss:g} at step {step}")
            before = abs(loss) if state.highest is None else state.highest
            state.highest = before
            state.losses.append(loss)
            state.recent.append(abs(loss))
            if len(state.recent) == BLOCK:
                level = median(state.recent)
                if level > DIVERGED * max(before, CALM):
                    self._diverged(
                        f"the loss diverged: the median of the last {BLOCK} is {level:.3g} at step {step}, and was at "
                        f"most {before:.3g} before"
                    )
                state.highest = max(before, level)
                state.recent.clear()
        self._pending.clear()

    def _diverged(self, what: str) -> NoReturn:
        if self._run.folder:  # what was saved on the way there leads there again
            checkpoint.remove(self._run.folder)
        rate, lower = self._optimiser.param_groups[0]["lr"], self._schedule.learning_rate / 10
        raise TrainingError(
            f"{what}, at a learning rate of {rate:.3g}. Try a tenth of it: learning_rate = {lower:g}, or a lower clip."
        )

    def _held_out(self, tiles: Tiles, held: Rows) -> Iterator[Tensor]:
        """Yield the held-out tiles, always the same and never varied, in batches."""
        size = math.ceil(self._schedule.batch / self.state.pieces)
        for start in range(0, len(held), size):
            yield floats(tiles[held[start : start + size].tolist()], self.device)

    def _evaluate(self, rate: float, batches: Iterator[Tensor]) -> None:
        """Note the losses, and keep the weights when they are the best so far."""
        state = self.state
        generator = torch.Generator(self.device).manual_seed(mix(self._seed, "evaluate"))
        torch.manual_seed(mix(self._seed, "evaluate"))
        self.module.eval()
        with torch.no_grad():
            found = [(len(batch), self._compute(batch, generator).item()) for batch in batches]
        self.module.train()
        loss, held = fmean(state.losses), None
        state.losses.clear()
        if found:
            held = sum(count * value for count, value in found) / sum(count for count, _ in found)
            state.stale += 1
            if state.best is None or held < state.best:
                state.best, state.stale = held, 0
                self._best = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        cells = (rate, loss, "" if held is None else f"{held:.6g}", state.seconds)
        state.curve.append("{},{:.6g},{:.6g},{},{:.2f}".format(state.step, *cells))
        self._run.tell(f"step {state.step}: loss {loss:.4g}" + ("" if held is None else f", held out {held:.4g}"))
        if self._ended() and self.share() < 1:
            self._run.tell(f"stopped: the held-out loss has not become lower for {state.stale} evaluations")

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors that a checkpoint needs."""
        moments = self._optimiser.state_dict()["state"]
        return {
            **{f"module/{name}": tensor for name, tensor in self.module.state_dict().items()},
            **{f"best/{name}": tensor for name, tensor in self._best.items()},
            **{f"moment/{index}/{name}": value for index, of in moments.items() for name, value in of.items()},
        }

    def _resume(self, fingerprint: str) -> None:
        """Go on from the checkpoint, where there is one."""
        found = checkpoint.load(self._run.folder, fingerprint) if self._run.folder else None
        if found is None:
            return
        self.module.load_state_dict(found.under("module/"))
        self._best = found.under("best/")
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in found.under("moment/").items():
            index, name = key.split("/")
            moments.setdefault(int(index), {})[name] = tensor
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": moments, "param_groups": groups})
        self.state.__dict__.update(found.facts)
        self._run.tell(f"going on from step {self.state.step}, where this training was interrupted")
