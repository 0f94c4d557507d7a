"""The training loop of all networks. A detector passes a module and a loss of a batch.

All random values of a step are functions of (seed, step), and a checkpoint stores the rest. So an interrupted training
continues and, on a CPU with the same number of threads, ends with bit-identical weights.
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
"""Mean loss of a batch (b, c, t, t) in [0, 1]; random values come from the generator, or from torch's global one."""

FORMAT = 2  # of the checkpoints
BLOCK = 10  # number of steps whose median loss is checked
DIVERGED = 1000  # a training diverges when this median exceeds the highest median before by this factor …
CALM = 1.0  # … the highest median is at least this value, because a loss may start near 0
CURVE = "step,learning_rate,loss,held_out_loss,seconds"


class Schedule(DetectorSettings):
    """The settings of training, which the settings of every learned detector inherit."""

    unlearnt: ClassVar[frozenset[str]] = frozenset({"checkpoint"})
    """Settings that do not affect the weights: an interrupted training continues after they are changed."""

    steps: Annotated[int, Field(ge=1)] = 2000
    """Number of training steps."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Tiles per step."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Highest learning rate."""
    decay: Literal["constant", "cosine"] = "cosine"
    """Learning rate after the warm-up: constant, or cosine decay to 0."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the training in which the learning rate increases from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of AdamW; 0: Adam."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Maximum norm of the gradient (gradient clipping)."""
    hold_out: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of the parts that is held out for early stopping; 0: none."""
    patience: Annotated[int, Field(ge=0)] = 10
    """Number of evaluations without a lower held-out loss after which training stops; 0: no early stopping."""
    evaluate: Annotated[int, Field(ge=1)] = 100
    """Steps between evaluations."""
    checkpoint: Annotated[float, Field(ge=0)] = 30.0
    """Seconds between checkpoints."""

    def learnt(self) -> str:
        """Return the settings that affect the weights, as JSON."""
        return self.model_dump_json(exclude=set(self.unlearnt))


@dataclass
class State:
    """The state of a training without its tensors: plain data for the checkpoint."""

    step: int = 0  # completed steps
    seconds: float = 0.0  # duration of these steps, over all runs
    pieces: int = 1  # number of parts in which a batch is computed, with gradient accumulation
    recent: list[float] = field(default_factory=list)  # absolute losses of the current block
    highest: float | None = None  # highest median of a block, or the first loss
    losses: list[float] = field(default_factory=list)  # since the last evaluation
    best: float | None = None  # lowest held-out loss
    stale: int = 0  # number of evaluations since the lowest held-out loss
    curve: list[str] = field(default_factory=list)  # one line of CSV per evaluation


def choose(name: str) -> torch.device:
    """Return the device of this name, or the fastest available for "". AndonError when it is not available."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises the latter
        reason = str(error).partition("\n")[0]
        raise AndonError(
            f"device '{name}' cannot be used: {reason}. Expected 'cpu', or 'cuda' on a machine with an NVIDIA GPU and "
            "a torch build with CUDA. Omit the device to use the fastest available one."
        ) from None
    return device


class Loop:
    """One training of one module.

    It ends after `schedule.steps`, or after `run.seconds` if set. With a time limit, the learning rate depends on the
    elapsed time, and the training is not reproducible.
    """

    def __init__(self, module: nn.Module, loss: Loss, schedule: Schedule, seed: int, run: Run) -> None:
        """Move the module to the device."""
        self.device = choose(run.device)
        self._cuda = self.device.type == "cuda"
        # channels_last is 20 % faster on a CPU, but some kernels of torch 2.13 for it crash (1×1, AVX2).
        self._layout = torch.channels_last if self._cuda else torch.contiguous_format
        self.module = module.to(self.device).to(memory_format=self._layout)  # type: ignore[call-overload]
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(
            self._parameters, schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self._loss, self._schedule, self._seed, self._run = loss, schedule, seed, run
        self._best: dict[str, Tensor] = {}
        self._pending: list[tuple[int, Tensor]] = []  # step, its loss; `.item()` would synchronise the GPU
        self.state = State()

    def fit(self, tiles: Tiles, name: str) -> str:
        """Train, from the checkpoint in `run.folder` if there is one, and return the curve as CSV.

        The module gets the weights of the lowest held-out loss, or the last weights without held-out tiles.
        The last checkpoint stays; the caller removes the folder after it has stored the result.
        """
        s, run, state = self._schedule, self._run, self.state
        if run.folder:
            checkpoint.make(run.folder)
            run.written.update({run.folder, run.folder / checkpoint.NAME})
        learn, held_out = split(tiles.groups, s.hold_out, self._seed)
        if s.hold_out and not len(held_out):
            run.tell(
                f"no early stopping: it needs {FEWEST} good parts, and {FEWEST} defective parts if the detector is "
                "trained on them. The last weights are used"
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
        start = saved - state.seconds
        with Feed(tiles, learn, s.batch, self._seed, run.augment, self.device) as feed:
            while not self._ended():
                rate = self._step(feed)
                state.step += 1
                state.seconds = time.monotonic() - start
                if state.step % s.evaluate == 0 or self.share() >= 1:
                    self._check_losses()
                    self._evaluate(rate, self._batches(tiles, held_out))
                if run.folder and (time.monotonic() - saved >= s.checkpoint or self._ended()):
                    self._check_losses()
                    checkpoint.save(run.folder, fingerprint, self._tensors(), asdict(state))
                    saved = time.monotonic()
                done, total = (state.seconds, run.seconds) if run.seconds else (state.step, s.steps)
                run.progress("training", int(done), int(total))
        if self._best:
            self.module.load_state_dict(self._best)
        self.module.eval()
        return "\n".join([CURVE, *state.curve, ""])

    def forecast(self, tiles: Tiles) -> Forecast:
        """Estimate time and memory of `fit` from a few steps on the first tiles; changes the weights of the module."""
        s, first = self._schedule, next(iter(tiles))
        batch = floats(first[[i % len(first) for i in range(min(s.batch, len(tiles)))]], self.device)
        saved: dict[int, int] = {}  # address → bytes that are stored for the backward pass

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
        # Weights, gradients, two moments, the best weights, a checkpoint while it is written
        return Forecast(self._run.seconds or each * s.steps, (6 * weights + sum(saved.values())) / 1e6)

    def share(self) -> float:
        """Return the completed share of the training; 1 or more at its end."""
        limit = self._run.seconds
        return self.state.seconds / limit if limit else self.state.step / self._schedule.steps

    def _ended(self) -> bool:
        return self.share() >= 1 or 0 < self._schedule.patience <= self.state.stale

    def _rate(self) -> float:
        """Return the learning rate of the next step."""
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
            self._check_losses()
        return rate

    def _gradient(self, batch: Callable[[], Tensor], purpose: str) -> Tensor:
        """Compute the gradients of a batch, and return its mean loss."""
        while True:
            self._optimiser.zero_grad()
            torch.manual_seed(mix(self._seed, purpose, self.state.step))
            try:
                return self._backward(batch(), generator(self._seed, purpose, self.state.step, self.device))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            self._halve()  # outside the except block, where the exception no longer references the tensors

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
        """Halve the parts of a batch after memory ran out."""
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

    def _check_losses(self) -> None:
        """Check the losses since the last call. TrainingError when one is not finite, or when they diverge."""
        state = self.state
        for step, loss in [(step, loss.item()) for step, loss in self._pending]:
            if not math.isfinite(loss):
                self._fail(f"the loss became {loss:g} at step {step}")
            before = abs(loss) if state.highest is None else state.highest
            state.highest = before
            state.losses.append(loss)
            state.recent.append(abs(loss))
            if len(state.recent) == BLOCK:
                level = median(state.recent)
                if level > DIVERGED * max(before, CALM):
                    self._fail(
                        f"the loss diverged: the median of the last {BLOCK} is {level:.3g} at step {step}, and was at "
                        f"most {before:.3g} before"
                    )
                state.highest = max(before, level)
                state.recent.clear()
        self._pending.clear()

    def _fail(self, what: str) -> NoReturn:
        if self._run.folder:  # a training from this checkpoint would diverge again
            checkpoint.remove(self._run.folder)
        rate, lower = self._optimiser.param_groups[0]["lr"], self._schedule.learning_rate / 10
        raise TrainingError(
            f"{what}, at a learning rate of {rate:.3g}. Try a tenth of it: learning_rate = {lower:g}, or a lower clip."
        )

    def _batches(self, tiles: Tiles, rows: Rows) -> Iterator[Tensor]:
        """Yield these rows of the tiles in batches, without augmentation."""
        size = math.ceil(self._schedule.batch / self.state.pieces)
        for start in range(0, len(rows), size):
            yield floats(tiles[rows[start : start + size].tolist()], self.device)

    def _evaluate(self, rate: float, batches: Iterator[Tensor]) -> None:
        """Add a line to the curve, and store the weights if their held-out loss is the lowest so far."""
        state = self.state
        generator = torch.Generator(self.device).manual_seed(mix(self._seed, "evaluate"))
        torch.manual_seed(mix(self._seed, "evaluate"))
        self.module.eval()
        with torch.no_grad():
            losses = [(len(batch), self._compute(batch, generator).item()) for batch in batches]
        self.module.train()
        loss, held_out = fmean(state.losses), None
        state.losses.clear()
        if losses:
            held_out = sum(count * value for count, value in losses) / sum(count for count, _ in losses)
            state.stale += 1
            if state.best is None or held_out < state.best:
                state.best, state.stale = held_out, 0
                self._best = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        cells = (rate, loss, "" if held_out is None else f"{held_out:.6g}", state.seconds)
        state.curve.append("{},{:.6g},{:.6g},{},{:.2f}".format(state.step, *cells))
        text = f"step {state.step}: loss {loss:.4g}"
        self._run.tell(text if held_out is None else f"{text}, held out {held_out:.4g}")
        if self._ended() and self.share() < 1:
            self._run.tell(f"stopped: the held-out loss has not decreased for {state.stale} evaluations")

    def _tensors(self) -> dict[str, Tensor]:
        """Return all tensors of a checkpoint."""
        moments = self._optimiser.state_dict()["state"]
        return {
            **{f"module/{name}": tensor for name, tensor in self.module.state_dict().items()},
            **{f"best/{name}": tensor for name, tensor in self._best.items()},
            **{f"moment/{index}/{name}": value for index, of in moments.items() for name, value in of.items()},
        }

    def _resume(self, fingerprint: str) -> None:
        """Continue from the checkpoint, if there is one."""
        saved = checkpoint.load(self._run.folder, fingerprint) if self._run.folder else None
        if saved is None:
            return
        self.module.load_state_dict(saved.under("module/"))
        self._best = saved.under("best/")
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in saved.under("moment/").items():
            index, name = key.split("/")
            moments.setdefault(int(index), {})[name] = tensor
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": moments, "param_groups": groups})
        self.state.__dict__.update(saved.facts)
        self._run.tell(f"continuing from step {self.state.step}, where this training was interrupted")
