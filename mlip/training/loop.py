"""Training: data in, a run folder with the best potential out; resumable at every moment."""

import contextlib
import functools
import json
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mlip import config as settings
from mlip.data.quantities import DERIVED, QUANTITIES
from mlip.files import atomic_write
from mlip.model.execution import compile_within_memory
from mlip.model.file import load_model, save_model
from mlip.programs import keep_compiled_programs
from mlip.runtime import Stop, stop_signals
from mlip.selftest import require_correct_arithmetic
from mlip.training import optimizer
from mlip.training.finetune import adopt_network, names_that_move, network_class, settings_of
from mlip.training.setup import check_folder, prepare
from mlip.training.states import RunStates
from mlip.training.step import AXIS, SAME, TrainState, error_sums, train_step


@dataclass(frozen=True)
class Progress:
    """Where a run stands: everything beside the arrays, kept as JSON."""

    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    step: int = 0
    seconds: float = 0.0
    sums: dict = field(default_factory=dict)  # of this epoch so far
    best_loss: float | None = None
    best_epoch: int = 0  # 0 is the start, where that was a trained model
    best_errors: dict = field(default_factory=dict)  # on the validation set, by name
    data: str = ""  # names and sha256 of the training, validation and E0 files


def train(config, resume=False, show=None, model=None):
    """Train a potential; the folder `config.out` then holds it with all that is known of the run.

    The devices of the process share every batch in equal parts, as many as can.

    `model.safetensors` (best weights by validation), `metrics.jsonl` (a line an epoch),
    `config.toml`, and `states/` to resume from. Ctrl-C and SIGTERM save the state first.

    Args:
      config: a `TrainConfig`.
      resume: go on from the latest state in `config.out`, on as many devices bit for bit as if
        never stopped (with a limit in epochs; one in minutes goes on with the time that is left).
      model: an instance of a flax module, a network of your own (see `mlip.model.contract`); the
        run folder keeps the name of its class, which has to be importable, and its fields.
      show: an object with `line(text)` and `update(progress, fraction, row)` that shows what
        happens.

    Returns:
      the best `Potential`.

    Raises:
      ValueError, FileNotFoundError: data or settings cannot be used.
      FileExistsError: `config.out` holds a run and `resume` is not given.
      FloatingPointError: the loss is not finite; the message names the frame.
      MemoryError: a large batch does not fit into memory.
    """
    start = time.monotonic()
    if model is not None:
        config = replace(config, model=settings_of(model))
    config, show = adopt_network(config), show or Silent()
    out = Path(config.out)
    check_folder(out, config, resume)
    potential, frames, valid_frames, lines = prepare(config)
    keep_compiled_programs()
    require_correct_arithmetic()
    for text in lines:
        show.line(text)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "config.toml") as temporary:
        temporary.write_text(settings.to_toml(config), encoding="utf-8")
    with potential.precision(), contextlib.closing(RunStates(out / "states")) as states:
        run = Run(config, potential, frames, valid_frames, states, show, start)
        if resume:
            run.restore()
        else:
            if config.init:
                run.validate_start()
            (out / "metrics.jsonl").unlink(missing_ok=True)  # of a run that left no state
        with stop_signals() as check:
            try:
                run.to_the_end(check)
            except Stop as stop:
                run.save()
                onward = f"go on with --resume, or see what there is with mlip report {out}"
                show.line(f"stopped by {stop}; the state is saved: {onward}")
                raise
    return load_model(out / "model.safetensors", model=network_class(config))


class Silent:
    """Shows nothing."""

    def line(self, text):
        pass

    def update(self, progress, fraction, row):
        pass


class Run:
    """The loop around the steps: it orders the data, validates, saves and stops."""

    def __init__(self, config, potential, frames, valid_frames, states, show, start):
        self.config, self.potential, self.states, self.show = config, potential, states, show
        self.out, self.start, self.before = Path(config.out), start, 0.0
        self.frames = frames
        every = range(len(valid_frames.structures))
        self.valid = [valid_frames.batch(b) for b in valid_frames.batches(every)]
        self.valid_turns = valid_frames.turns
        moving = names_that_move(config.trainable, potential)
        parameters = {name: potential.weights.parameters[name] for name in moving}
        copies = [jax.tree.map(jnp.copy, parameters) for _ in range(3)]
        moments = optimizer.build(config.optimizer).init(parameters)
        self.devices = frames.devices
        self.weights = self.everywhere(potential.weights)
        self.state = self.everywhere(TrainState(copies[0], moments, copies[1], copies[2]))
        sources = {key: potential.training.get(key) for key in ("train", "valid", "e0", "init")}
        sources = {key: value for key, value in sources.items() if value is not None}
        self.progress = Progress(data=json.dumps(sources, sort_keys=True))
        self.saved = time.monotonic()
        self.programs = {}  # of large batches, by shape

    def everywhere(self, arrays):
        """Arrays on all devices that share the batches."""
        if self.devices is None:
            return arrays
        return jax.device_put(arrays, NamedSharding(Mesh(self.devices, AXIS), SAME))

    def restore(self):
        restored = self.states.restore(self.state)
        if restored is None:
            raise FileNotFoundError(
                f"{self.out} holds no state that was written whole; start again "
                "without --resume in another folder"
            )
        self.state, progress = self.everywhere(restored[0]), restored[1]
        if progress["data"] != self.progress.data:
            raise ValueError(
                f"cannot resume {self.out}: the data is not what it was when the run started (now "
                f"{self.progress.data}, then {progress['data']}); put it back, or start a new run"
            )
        self.progress = Progress(**progress)
        self.before = self.progress.seconds
        path = self.out / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        with atomic_write(path) as temporary:
            temporary.write_text("".join(lines[: self.progress.epoch]))
        self.show.line(
            f"resumed at epoch {self.progress.epoch + 1}, step {self.progress.step}, "
            f"{self.before / 60:.1f} minutes in"
        )

    def seconds(self):
        """Wall-clock time of the run, earlier parts included."""
        return self.before + time.monotonic() - self.start

    def fraction(self, batches):
        """How much of the training is done, 0 to 1, by epochs or by time, whichever is more."""
        done = 0.0
        if self.config.max_epochs:
            epochs = self.progress.epoch + self.progress.batch / batches
            done = epochs / self.config.max_epochs
        if self.config.max_minutes:
            done = max(done, self.seconds() / (60 * self.config.max_minutes))
        return min(done, 1.0)

    def to_the_end(self, check):
        # However short the time, there is a step and a validation, so that there is a model.
        while self.progress.epoch == 0 or not self.finished():
            self.epoch(check)
        if self.progress.best_epoch == 0:
            self.show.line("no epoch was better than the model at the start, which is kept")
        self.save()

    def finished(self):
        waited = self.progress.epoch - self.progress.best_epoch
        if self.config.patience and waited >= self.config.patience:
            self.show.line(f"stopped early: no better validation error for {waited} epochs")
            return True
        epochs, minutes = self.config.max_epochs, self.config.max_minutes
        return bool(
            (epochs and self.progress.epoch >= epochs)
            or (minutes and self.seconds() >= 60 * minutes)
        )

    def epoch(self, check):
        """One pass over the data from where it stands, then a validation."""
        order = np.random.default_rng([self.config.seed, self.progress.epoch]).permutation(
            len(self.frames.structures)
        )
        batches = self.frames.batches(order)
        left = batches[self.progress.batch :]
        packed = map(self.frames.batch, left)
        batch = next(packed, None)
        for indices in left:
            fraction = self.fraction(len(batches))
            metrics = self.step(batch, fraction)
            batch = next(packed, None)  # while the device computes
            self.finish(indices, metrics, fraction)
            if time.monotonic() - self.saved > self.config.checkpoint_seconds:
                self.save()
            check()
            if self.config.max_minutes and self.fraction(len(batches)) >= 1:
                break
        self.validate(self.fraction(len(batches)))

    def step(self, batch, fraction):
        """Start a step on a batch; returns its metrics, which may still be computed."""
        config, count = self.config, self.progress.step
        rates = (
            config.optimizer.rate(count, fraction),
            config.optimizer.renewal(count),
            config.loss.weights(fraction),
        )
        step = self.program(*batch, rates)
        self.state, metrics = step(self.state, self.weights, *batch, rates)
        return metrics

    def finish(self, indices, metrics, fraction):
        """Wait for the step on these frames, and note its metrics.

        Raises:
          FloatingPointError: its loss or gradient is not finite.
        """
        progress, (loss, (shares, sums)) = self.progress, metrics
        if not np.isfinite(loss):
            self.refuse(self.frames.parts(indices, self.frames.n_parts), np.asarray(shares))
        total = {k: progress.sums.get(k, 0.0) + float(v) for k, v in sums.items()}
        self.progress = replace(
            progress, batch=progress.batch + 1, step=progress.step + 1, sums=total
        )
        self.show.update(self.progress, fraction, None)

    def program(self, graph, labels, rates):
        """The step for a batch; where that is large, compiled and known to fit into memory.

        Raises:
          MemoryError: it does not fit.
        """
        config, surface = self.config, self.potential.surface
        settings = surface, config.loss, config.optimizer, self.devices, self.frames.turns
        if graph.neighbors.size <= surface.execution.many_slots:
            return functools.partial(train_step, *settings)
        if graph.neighbors.shape not in self.programs:
            self.programs[graph.neighbors.shape] = compile_within_memory(
                train_step,
                [settings],
                (self.state, self.weights, graph, labels, rates),
                surface.execution,
                len(graph.species),
                "a training step",
                self.devices,
                "a smaller --batch-size, float32, or fewer channels",
            )
        return self.programs[graph.neighbors.shape]

    def refuse(self, parts, shares):
        rows = shares.reshape(self.frames.n_parts, -1)  # of a part its frames, then padding
        bad = [
            self.frames.structures[i].name
            for indices, row in zip(parts, rows)
            for i, share in zip(indices, row)
            if not np.isfinite(share)
        ] or [self.frames.structures[i].name for indices in parts for i in indices]
        raise FloatingPointError(
            f"the loss or its gradient is not finite at step {self.progress.step} "
            f"in {', '.join(bad)}; look at its "
            "labels and shortest distance and remove it, or lower --learning-rate"
        )

    def validate_start(self):
        """The model that the training starts from is the best so far."""
        loss, errors = self.validation()
        if math.isfinite(loss):
            self.progress = replace(self.progress, best_loss=loss, best_errors=errors)
        found = (f"{k.removeprefix('valid_')} {v:.2f}" for k, v in errors.items() if v)
        self.show.line(f"before training: {', '.join(found)}")

    def validate(self, fraction):
        """Errors of the averaged weights; the best are kept."""
        config, progress = self.config, self.progress
        loss, errors = self.validation()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the validation error is not finite after step {progress.step}; lower "
                "--learning-rate"
            )
        better = progress.best_loss is None or loss < progress.best_loss
        if better:
            best = jax.tree.map(jnp.copy, self.state.average)
            self.state = replace(self.state, best=best)
        self.progress = replace(
            progress,
            epoch=progress.epoch + 1,
            batch=0,
            sums={},
            best_loss=loss if better else progress.best_loss,
            best_epoch=progress.epoch + 1 if better else progress.best_epoch,
            best_errors=errors if better else progress.best_errors,
        )
        row = {
            "epoch": self.progress.epoch,
            "step": progress.step,
            "seconds": round(self.seconds(), 3),
            "learning_rate": config.optimizer.rate(progress.step, fraction),
            **{f"train_{k}": v for k, v in _rmse(_mean_squares(progress.sums)).items()},
            **errors,
            "valid_loss": loss,
            "best": better,
        }
        with open(self.out / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        self.show.update(self.progress, fraction, row)

    def validation(self):
        """Loss and errors, by name, of the averaged weights on the validation set."""
        parameters, totals = self.weights.parameters | self.state.average, {}
        weights = replace(self.weights, parameters=parameters)
        for graph, labels in self.valid:
            settings = self.potential.surface, self.config.loss, self.devices, self.valid_turns
            sums = error_sums(*settings, weights, graph, labels)
            totals = {k: totals.get(k, 0.0) + float(v) for k, v in sums.items()}
        squares = _mean_squares(totals)
        # Always by the weights of the end, so that all epochs are compared by one measure.
        weights = self.config.loss.weights(1.0)
        loss = sum(weights[name] * value for name, value in squares.items() if value is not None)
        return loss, {f"valid_{name}": error for name, error in _rmse(squares).items()}

    def save(self):
        """Keep the state of this moment, and the best potential so far."""
        self.progress = replace(self.progress, seconds=self.seconds())
        self.states.save(self.state, self.progress.__dict__)
        if self.progress.best_loss is not None:
            self.export()
        self.saved = time.monotonic()

    def export(self):
        """Write `model.safetensors` from the best weights."""
        training = self.potential.training | {
            "epochs": self.progress.epoch,
            "best_epoch": self.progress.best_epoch,
            "steps": self.progress.step,
            "minutes": round(self.seconds() / 60, 2),
            "device": jax.devices()[0].device_kind,
            "devices": len(self.devices or [None]),
            **self.progress.best_errors,
            "valid_loss": self.progress.best_loss,
        }
        parameters = self.potential.parameters | jax.tree.map(np.asarray, self.state.best)
        save_model(
            replace(self.potential, parameters=parameters, training=training),
            self.out / "model.safetensors",
        )


def _mean_squares(sums):
    names = (name for name in QUANTITIES if name in DERIVED or name in sums)
    return {n: sums[n] / sums[f"{n}_count"] if sums.get(f"{n}_count") else None for n in names}


def _rmse(mean_squares):
    found = {}
    for name, value in mean_squares.items():
        row = QUANTITIES[name]
        error = None if value is None else row.factor * math.sqrt(value)
        found[f"{name}_rmse_{row.suffix}"] = error
    return found
