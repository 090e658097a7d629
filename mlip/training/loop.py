"""Training: data in, a run folder with the best potential out; resumable at every moment."""

import contextlib
import functools
import hashlib
import json
import math
import signal
import threading
import time
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mlip import config as settings
from mlip.data.dataset import LabelKeys, atomic_energies, is_isolated, read, split
from mlip.data.graph import build_table, pad, pad_labels, plan_ladder
from mlip.data.structure import symbol
from mlip.model.network import Network, NetworkConfig, initialize
from mlip.model.potential import DTYPES, Potential, energies_and_pull, forces_and_stress
from mlip.selftest import require_correct_arithmetic
from mlip.training import optimizer
from mlip.training.checkpoint import RunStates, atomic_write, load_model, save_model
from mlip.training.loss import LossConfig, batch_loss, loss_and_gradient
from mlip.training.optimizer import OptimizerConfig
from mlip.units import MEV


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Only the data must be given; the rest has defaults that work."""

    train: str  # file or folder with frames to train on
    valid: str = "0.1"  # fraction of them, or a file, to select the best weights by
    out: str = "run"  # folder of the run
    e0: str = "auto"  # isolated atoms: auto, fit, zero, a file, or a table "H=-13.6, O=-2043.2"
    seed: int = 0  # of the split, the first parameters and the order of the data
    batch_size: int = 2  # frames a step
    max_atoms: int | None = None  # atoms a step; chosen from the data if not given
    max_epochs: int | None = None  # passes over the data; 200 if no limit is given
    max_minutes: float | None = None  # wall-clock time of the run
    patience: int | None = None  # stop after this many epochs without a better validation error
    dtype: str = "float32"  # float32 or float64
    checkpoint_seconds: float = 60.0  # time between saved states
    keys: LabelKeys = field(default_factory=LabelKeys)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        for name in ("batch_size", "max_atoms", "max_epochs", "max_minutes", "patience"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; it must be positive")
        if not 0 <= self.checkpoint_seconds < math.inf:
            raise ValueError(
                f"checkpoint_seconds is {self.checkpoint_seconds}; it must be zero or positive"
            )
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be zero or positive")
        if self.max_epochs is None and self.max_minutes is None:
            object.__setattr__(self, "max_epochs", 200)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All arrays that a training run carries from step to step."""

    parameters: dict
    optimizer: tuple
    average: dict  # running average of the parameters: what is validated and saved
    best: dict  # the average with the lowest validation loss so far


@dataclass(frozen=True)
class Progress:
    """Where a run stands: everything beside the arrays, kept as JSON."""

    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    step: int = 0
    seconds: float = 0.0
    sums: dict = field(default_factory=dict)  # of this epoch so far
    best_loss: float | None = None
    best_epoch: int = 0
    rows: int = 0  # lines of metrics.jsonl that belong to this state


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def train_step(network, loss_config, optimizer_config, state, weights, graph, labels, rates):
    """One step on one batch.

    Args:
      weights: the potential's `Weights`; its parameters are those of the state.
      rates: (learning rate, (weights of energy, forces, stress)).

    Returns:
      the next state, and (loss, (share of each structure, error sums)).
    """
    learning_rate, loss_weights = rates
    weights = replace(weights, parameters=state.parameters)
    gradient, report = loss_and_gradient(network, loss_config, loss_weights, weights, graph, labels)
    transformation = optimizer.build(optimizer_config)
    updates, moments = transformation.update(gradient, state.optimizer, state.parameters)
    parameters, average = optimizer.apply(
        optimizer_config, updates, state.parameters, state.average, learning_rate
    )
    return TrainState(parameters, moments, average, state.best), report


@functools.partial(jax.jit, static_argnums=(0, 1))
def error_sums(network, loss_config, weights, graph, labels):
    """Sums of squared errors of a batch, and their counts."""
    energies, pull = energies_and_pull(network, weights, graph)
    forces, stress = forces_and_stress(graph, pull)
    ones = (1.0, 1.0, 1.0)
    return batch_loss(loss_config, ones, graph, labels, energies, forces, stress)[1][1]


class Frames:
    """Structures of a data set with their neighbour tables, ready to be padded into batches."""

    def __init__(self, structures, potential, config):
        self.structures, self.potential = structures, potential
        self.cutoff, self.dtype = config.network.cutoff, config.dtype
        self.kinds = [potential.species_of(s) for s in structures]
        self.tables = [build_table(s, self.cutoff) for s in structures]
        self.baselines = [potential.baseline(s) for s in structures]
        self.sizes = [table.size() for table in self.tables]
        self.ladder = plan_ladder(self.sizes, config.batch_size, config.max_atoms)

    def batches(self, order):
        """Lists of indices into the structures."""
        return self.ladder.pack(self.sizes, order)

    def batch(self, indices):
        """`Graph` and `Labels` of one batch."""
        atoms, widths = zip(*(self.sizes[i] for i in indices))
        shape = self.ladder.shape(sum(atoms), max(widths))
        frames = [(self.kinds[i], self.structures[i], self.tables[i]) for i in indices]
        labels = pad_labels(
            [self.structures[i] for i in indices],
            [self.baselines[i] for i in indices],
            shape,
            self.dtype,
        )
        return pad(frames, shape, self.cutoff, self.dtype), labels


def prepare(config):
    """Read the data of a run and make the untrained potential from it.

    Returns:
      potential, training structures, validation structures, list of lines to report.

    Raises:
      ValueError, FileNotFoundError: the data cannot be used; the message says why.
    """
    structures = read(config.train, config.keys)
    isolated = [s for s in structures if is_isolated(s, config.network.cutoff)]
    singles = {id(s) for s in isolated}
    train = [s for s in structures if id(s) not in singles]
    if not train:
        raise ValueError(f"{config.train} holds nothing but isolated atoms; add frames to train on")
    fraction = _fraction(config.valid)
    if fraction is None:
        valid = [
            s
            for s in read(config.valid, config.keys)
            if not is_isolated(s, config.network.cutoff)
        ]
    else:
        train, valid = split(train, fraction, config.seed)
    e0 = atomic_energies(config.e0, train, isolated)
    potential, lines = _untrained(config, train, e0)
    for structure in valid:
        potential.species_of(structure)
    lines = [
        f"{len(train)} frames to train on, {len(valid)} to validate, "
        f"elements {', '.join(symbol(z) for z in potential.species)}",
        *lines,
    ]
    training = {
        "train": _file_card(config.train),
        "valid": config.valid if fraction is not None else _file_card(config.valid),
        "n_train": len(train),
        "n_valid": len(valid),
        "e0_source": e0.source,
        "e0_note": e0.note,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "package_version": version("mlip-jax"),
        "jax_version": jax.__version__,
    }
    return replace(potential, training=training), train, valid, lines


def _fraction(text):
    try:
        return float(text)
    except ValueError:
        return None


def _file_card(path):
    path = Path(path)
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return {"name": path.name, "sha256": digest.hexdigest()}


def _untrained(config, train, e0):
    """The potential before training: scales from the data, random parameters."""
    species = tuple(sorted(e0.values))
    baseline = [sum(e0.values[int(z)] for z in s.numbers) for s in train]
    above = [(s.energy - b) / len(s) for s, b in zip(train, baseline) if s.energy is not None]
    shift = float(np.mean(above)) if above else 0.0
    forces = [s.forces for s in train if s.forces is not None]
    scale = float(np.sqrt(np.mean(np.concatenate(forces) ** 2))) if forces else np.std(above)
    edges = sum(build_table(s, config.network.cutoff).used.sum() for s in train)
    neighbors = edges / sum(len(s) for s in train)
    potential = Potential(
        config=config.network,
        species=species,
        parameters=initialize(Network(config.network, len(species)), config.seed),
        e0=np.array([e0.values[z] for z in species]),
        shift=np.full(len(species), shift),
        scale=np.full(len(species), scale if scale > 1e-8 else 1.0),
        average_neighbors=max(float(neighbors), 1e-3),
        dtype=config.dtype,
    )
    table = ", ".join(f"{symbol(z)} {e0.values[z]:.4f}" for z in species)
    lines = [f"E0 from {e0.source}: {table} eV"]
    lines += [f"note: {e0.note}"] if e0.note else []
    lines.append(
        f"{potential.n_parameters} parameters, {neighbors:.1f} neighbours an atom within "
        f"{config.network.cutoff} Å"
    )
    return potential, lines


def read_table(path=None, resumed=None):
    """Settings of a TOML file, or those that a run to resume was started with, or none."""
    if resumed is not None and path is None:
        path = Path(resumed) / "config.toml"
        if not path.exists():
            raise FileNotFoundError(f"{resumed} holds no run to resume; start one without --resume")
    return settings.to_table(settings.from_toml(TrainConfig, path)) if path else {}


class Stop(Exception):
    """Raised between two steps when a signal asked the run to end."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def _signals():
    """A function that raises `Stop` once Ctrl-C or SIGTERM has come; a second Ctrl-C interrupts."""
    received = []

    def note(number, frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    def check():
        if received:
            raise Stop(received[0])

    main = threading.current_thread() is threading.main_thread()
    wanted = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(config, resume=False, show=None):
    """Train a potential; the folder `config.out` then holds it with all that is known of the run.

    `model.safetensors` (best weights by validation), `metrics.jsonl` (a line an epoch),
    `config.toml`, and `states/` to resume from. Ctrl-C and SIGTERM save the state first.

    Args:
      config: a `TrainConfig`.
      resume: go on from the latest state in `config.out`, bit for bit as if never stopped (with a
        limit in epochs; one in minutes goes on with the time that is left).
      show: an object with `line(text)`, `begin(config)` and `update(progress, fraction, row)` that
        shows what happens.

    Returns:
      the best `Potential`.

    Raises:
      ValueError, FileNotFoundError: data or settings cannot be used.
      FileExistsError: `config.out` holds a run and `resume` is not given.
      FloatingPointError: the loss is not finite; the message names the frame.
    """
    start = time.monotonic()
    show = show or Silent()
    out = Path(config.out)
    _check_folder(out, config, resume)
    require_correct_arithmetic()
    potential, train_set, valid_set, lines = prepare(config)
    for text in lines:
        show.line(text)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "config.toml") as temporary:
        temporary.write_text(settings.to_toml(config), encoding="utf-8")
    with potential.precision(), contextlib.closing(RunStates(out / "states")) as states:
        run = Run(config, potential, train_set, valid_set, states, show, start)
        if resume:
            run.restore()
        with _signals() as check:
            try:
                run.to_the_end(check)
            except Stop as stop:
                run.save()
                show.line(f"stopped by {stop}; the state is saved, go on with --resume")
                raise
    return load_model(out / "model.safetensors")


def _check_folder(out, config, resume):
    exists = (out / "config.toml").exists()
    if exists and not resume:
        raise FileExistsError(
            f"{out} holds a run already; go on with it by --resume, or give another --out"
        )
    if resume and not exists:
        raise FileNotFoundError(f"{out} holds no run to resume; start one without --resume")
    if not resume:
        return
    before = settings.to_table(settings.from_toml(TrainConfig, out / "config.toml"))
    now = settings.to_table(config)
    for name, (section, _) in settings.leaves(TrainConfig).items():
        old = (before.get(section, {}) if section else before).get(name)
        new = (now.get(section, {}) if section else now).get(name)
        # The budget may grow, and paths may be written differently.
        free = {"out", "max_minutes", "max_epochs", "patience", "checkpoint_seconds"}
        if old != new and name not in free:
            raise ValueError(
                f"cannot resume {out} with {name} = {new!r}: the run was started with {old!r}; "
                "leave the setting away, or start a new run in another folder"
            )


class Silent:
    """Shows nothing."""

    def line(self, text):
        pass

    def update(self, progress, fraction, row):
        pass


class Run:
    """The loop around the steps: it orders the data, validates, saves and stops."""

    def __init__(self, config, potential, train_set, valid_set, states, show, start):
        self.config, self.potential, self.states, self.show = config, potential, states, show
        self.out, self.start, self.before = Path(config.out), start, 0.0
        self.frames = Frames(train_set, potential, config)
        valid = Frames(valid_set, potential, config)
        self.valid = [valid.batch(b) for b in valid.batches(range(len(valid_set)))]
        parameters = jax.tree.map(jnp.asarray, potential.weights.parameters)
        copies = [jax.tree.map(jnp.copy, parameters) for _ in range(3)]
        moments = optimizer.build(config.optimizer).init(parameters)
        self.state = TrainState(copies[0], moments, copies[1], copies[2])
        self.progress = Progress()
        self.saved = time.monotonic()

    def restore(self):
        restored = self.states.restore(self.state)
        if restored is None:
            self.show.line("no state was saved yet; starting from the beginning")
            return
        self.state, progress = restored
        self.progress = Progress(**progress)
        self.before = self.progress.seconds
        path = self.out / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        with atomic_write(path) as temporary:
            temporary.write_text("".join(lines[: self.progress.rows]))
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
        while not self.finished():
            self.epoch(check)
        self.save()

    def finished(self):
        waited = self.progress.epoch - self.progress.best_epoch
        if self.config.patience and self.progress.best_loss and waited >= self.config.patience:
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
        for indices in batches[self.progress.batch :]:
            if self.config.max_minutes and self.fraction(len(batches)) >= 1:
                break
            self.step(indices, len(batches))
            if time.monotonic() - self.saved > self.config.checkpoint_seconds:
                self.save()
            check()
        self.validate(self.fraction(len(batches)))

    def step(self, indices, n_batches):
        config, progress = self.config, self.progress
        fraction = self.fraction(n_batches)
        graph, labels = self.frames.batch(indices)
        rate = config.optimizer.rate(progress.step, fraction)
        rates = (rate, config.loss.weights(fraction))
        network = self.potential.network
        self.state, (loss, (shares, sums)) = train_step(
            network,
            config.loss,
            config.optimizer,
            self.state,
            self.potential.weights,
            graph,
            labels,
            rates,
        )
        if not np.isfinite(loss):
            self.refuse(indices, np.asarray(shares))
        total = {k: progress.sums.get(k, 0.0) + float(v) for k, v in sums.items()}
        self.progress = replace(progress, batch=progress.batch + 1, step=progress.step + 1, sums=total)
        self.show.update(self.progress, fraction, None)

    def refuse(self, indices, shares):
        bad = [
            self.frames.structures[i].name
            for i, share in zip(indices, shares)
            if not np.isfinite(share)
        ]
        raise FloatingPointError(
            f"the loss is not finite at step {self.progress.step} in {', '.join(bad)}; look at its "
            "labels and shortest distance and remove it, or lower --learning-rate"
        )

    def validate(self, fraction):
        """Errors of the averaged weights; the best are kept."""
        config, progress = self.config, self.progress
        weights = replace(self.potential.weights, parameters=self.state.average)
        totals = {}
        for graph, labels in self.valid:
            sums = error_sums(self.potential.network, config.loss, weights, graph, labels)
            totals = {k: totals.get(k, 0.0) + float(v) for k, v in sums.items()}
        errors = _mean_squares(totals)
        # Always by the weights of the end, so that all epochs are compared by one measure.
        loss = sum(
            w * e for w, e in zip(config.loss.weights(1.0), errors.values()) if e is not None
        )
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
            rows=progress.rows + 1,
        )
        row = {
            "epoch": self.progress.epoch,
            "step": progress.step,
            "seconds": round(self.seconds(), 3),
            "learning_rate": config.optimizer.rate(progress.step, fraction),
            **{f"train_{k}": v for k, v in _rmse(_mean_squares(progress.sums)).items()},
            **{f"valid_{k}": v for k, v in _rmse(errors).items()},
            "valid_loss": loss,
            "best": better,
        }
        with open(self.out / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        self.show.update(self.progress, fraction, row)

    def save(self):
        """Keep the state of this moment, and the best potential so far."""
        self.progress = replace(self.progress, seconds=self.seconds())
        self.states.save(self.state, self.progress.__dict__)
        if self.progress.best_loss is not None:
            self.export()
        self.saved = time.monotonic()

    def export(self):
        """Write `model.safetensors` from the best weights."""
        rows = (self.out / "metrics.jsonl").read_text().splitlines()
        best = json.loads(rows[self.progress.best_epoch - 1])
        training = self.potential.training | {
            "epochs": self.progress.epoch,
            "best_epoch": self.progress.best_epoch,
            "steps": self.progress.step,
            "minutes": round(self.seconds() / 60, 2),
            "device": jax.devices()[0].device_kind,
            **{k: v for k, v in best.items() if k.startswith("valid_")},
        }
        parameters = jax.tree.map(np.asarray, self.state.best)
        save_model(
            replace(self.potential, parameters=parameters, training=training),
            self.out / "model.safetensors",
        )


def _mean_squares(sums):
    names = ("energy", "forces", "stress")
    return {
        n: sums[n] / sums[f"{n}_count"] if sums.get(f"{n}_count") else None for n in names
    }


def _rmse(mean_squares):
    units = {"energy": "mev_per_atom", "forces": "mev_per_A", "stress": "mev_per_A3"}
    return {
        f"{name}_rmse_{units[name]}": None if value is None else MEV * math.sqrt(value)
        for name, value in mean_squares.items()
    }
