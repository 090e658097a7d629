"""What a training run starts from: its settings, its data, the untrained potential."""

import hashlib
import math
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np

from mlip import config as settings
from mlip.data.checks.doctor import JUDGEMENTS, check
from mlip.data.checks.findings import Report, counted, error_text
from mlip.data.dataset import (
    atomic_energies,
    closest_pairs,
    files_of,
    read,
    split,
    split_isolated,
)
from mlip.data.graph import build_table
from mlip.data.labels import LabelKeys
from mlip.data.quantities import DERIVED
from mlip.data.structure import symbol
from mlip.model.contract import FlaxModel, hashable, model_of, require_contract
from mlip.model.execution import Execution
from mlip.model.mace.model import NetworkConfig
from mlip.model.potential import DTYPES, Potential
from mlip.model.terms import ZBL, TermsConfig
from mlip.training.batches import Frames
from mlip.training.finetune import TRAINABLE, UNSEEN, describe_network, start_from
from mlip.training.loss import LossConfig
from mlip.training.optimizer import GENTLE, OptimizerConfig

IMPORTED = ("imported", "by", "head")  # what an imported potential says of its source


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Only the data must be given; the rest has defaults that work."""

    train: str  # file or folder with frames to train on
    valid: str = "0.1"  # fraction of them, or a file, to select the best weights by
    out: str = "run"  # folder of the run
    e0: str = "auto"  # isolated atoms: auto, fit, zero, keep, a file, or "H=-13.6, O=-2043.2"
    init: str | None = None  # model file to start from, with its network; random if not given
    trainable: str = "all"  # of init: all, last (layer), readouts, or the first layer that moves
    unseen: str = "refuse"  # elements that init does not know: refuse or add
    keep_species: bool = True  # keep elements of init that the data lacks
    check: bool = True  # look the data over first, and stop where it has errors
    seed: int = 0  # of the split, the first parameters and the order of the data
    batch_size: int = 2  # frames a step
    max_atoms: int | None = None  # atoms a step; chosen from the data if not given
    max_epochs: int | None = None  # passes over the data; 200 if no limit is given
    max_minutes: float | None = None  # wall-clock time of the run
    patience: int | None = None  # stop after this many epochs without a better validation error
    dtype: str = "float32"  # float32 or float64
    block: int | None = None  # atoms taken through a layer at a time; 0 for all at once
    checkpoint_seconds: float = 60.0  # time between saved states
    keys: LabelKeys = field(default_factory=LabelKeys)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    model: dict = field(default_factory=dict)  # class and settings of a network of your own
    terms: TermsConfig = field(default_factory=TermsConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    # Settings that files of earlier versions have in another section.
    MOVED: ClassVar[dict] = dict.fromkeys(ZBL, ("network", "terms"))

    def __post_init__(self):
        for name in ("train", "valid", "out", "e0", "trainable"):  # paths and numbers too
            object.__setattr__(self, name, str(getattr(self, name)))
        object.__setattr__(self, "init", None if self.init is None else str(self.init))
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        if self.unseen not in UNSEEN:
            raise ValueError(f"unseen is {self.unseen!r}; choose one of {', '.join(UNSEEN)}")
        if self.trainable not in TRAINABLE and not (
            self.trainable.isdecimal() and int(self.trainable) > 0
        ):
            raise ValueError(
                f"trainable is {self.trainable!r}; choose one of {', '.join(TRAINABLE)}, or the "
                "number of the first layer that moves, from 1 on"
            )
        object.__setattr__(self, "model", hashable(self.model))
        # What the loss weighs besides energies is looked for, where no key is given.
        sought = [n for n in self.loss.counted() if n not in DERIVED and self.keys.key(n) == "none"]
        if sought:
            keys = replace(self.keys, **{f"{name}_key": "auto" for name in sought})
            object.__setattr__(self, "keys", keys)
        if self.network.dipoles and not (self.loss.dipole_weight or self.init):
            raise ValueError(
                "the network has dipoles, but the loss does not weigh them; give --dipole-weight, "
                "which switches them on by itself"
            )
        if self.init is None and (self.trainable != "all" or self.e0 == "keep"):
            setting = "trainable" if self.trainable != "all" else "e0"
            raise ValueError(
                f"{setting} is {getattr(self, setting)!r}, which needs a potential to start from; "
                "give one with --init"
            )
        if self.unseen == "add" and self.trainable != "all":
            raise ValueError(
                f"unseen is 'add', but trainable is {self.trainable!r}, which leaves the embedding "
                "of new elements where it starts, the same for all; train with trainable all, or "
                "leave frames with such elements away"
            )
        if self.init is not None and self.optimizer.learning_rate is None:
            gentle = replace(self.optimizer, learning_rate=GENTLE * self.optimizer.highest_rate)
            object.__setattr__(self, "optimizer", gentle)
        for name in ("batch_size", "max_atoms", "max_epochs", "max_minutes", "patience"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 2**31:
                raise ValueError(f"{name} is {value}; it must be positive and less than 2^31")
        if not 0 <= self.checkpoint_seconds < math.inf:
            raise ValueError(
                f"checkpoint_seconds is {self.checkpoint_seconds}; it must be zero or positive"
            )
        Execution(self.block)  # checked
        if self.model and not isinstance(self.model.get("class"), str):
            raise ValueError(
                f'[model] is {self.model}; it needs class = "my_package.my_module:MyNetwork"'
            )
        if self.model and self.network != NetworkConfig():
            raise ValueError(
                "[model] names a network of your own, and [network] has settings of ours; leave "
                "one of them away"
            )
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be zero or positive")
        if self.max_epochs is None and self.max_minutes is None:
            object.__setattr__(self, "max_epochs", 200)


def read_table(path=None, resumed=None):
    """Table of a TOML file, or of the settings a run was started with, or an empty one."""
    if resumed is not None and path is None:
        path = Path(resumed) / "config.toml"
        if not path.exists():
            raise FileNotFoundError(f"{resumed} holds no run to resume; start one without --resume")
    return settings.read_toml(path) if path else {}


def check_folder(out, config, resume):
    """Refuse a folder that holds another run, or none where one is to be resumed.

    Raises:
      FileExistsError, FileNotFoundError: there is a run already, or none.
      ValueError: the run to resume was started with other settings; the message says which.
    """
    exists = (out / "config.toml").exists() and any((out / "states").glob("*"))
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
        # The budget may change, and the folder be written differently.
        free = {"out", "max_minutes", "max_epochs", "patience", "checkpoint_seconds"}
        if old != new and name not in free:
            raise ValueError(
                f"cannot resume {out} with {name} = {new!r}: the run was started with {old!r}; "
                "leave the setting away, or start a new run in another folder"
            )


def prepare(config):
    """Read the data of a run and make the potential that it starts from.

    Returns:
      potential, `Frames` to train on, `Frames` to validate on, list of lines to report.

    Raises:
      ValueError, FileNotFoundError: the data cannot be used; the message says why.
    """
    cutoff = describe_network(config).cutoff
    report = look_over(config)
    remarks = _remarks(config, report)
    train, valid, isolated = divide(config, report.structures)
    _require_labels(config, train, config.train)
    _require_labels(config, valid, config.valid)
    tables = [build_table(s, cutoff) for s in train]
    neighbors = float(sum(t.used.sum() for t in tables) / sum(len(s) for s in train))
    if config.init is None:
        e0 = atomic_energies(config.e0, train, isolated, config.keys)
        potential = _untrained(config, train, neighbors, e0)
    else:
        potential, e0 = start_from(config, train, isolated)
    lacking = set(config.loss.counted()) - {*DERIVED, *potential.model.quantities}
    if lacking:
        raise ValueError(
            f"the loss weighs {', '.join(sorted(lacking))}, which the network does not predict; "
            "leave its weight at 0, or take a network that names it in its quantities"
        )
    lines = _report(potential, e0, neighbors)
    lines = [
        f"{len(train)} frames to train on, {len(valid)} to validate, "
        f"elements {', '.join(symbol(z) for z in potential.species)}",
        *lines,
        *remarks,
    ]
    training = {
        "train": file_card(config.train),
        "valid": file_card(config.valid) if _fraction(config.valid) is None else config.valid,
        "e0": config.e0 if _is_no_file(config.e0) else file_card(config.e0),
        **({} if config.init is None else _init_card(config, potential)),
        "n_train": len(train),
        "n_valid": len(valid),
        "e0_source": e0.source,
        "e0_note": e0.note,
        "closest": closest_pairs(train, tables),
        "seed": config.seed,
        "batch_size": config.batch_size,
        "package_version": version("mlip-jax"),
        "jax_version": jax.__version__,
    }
    potential = replace(potential, training=training)
    valid_tables = [build_table(s, cutoff) for s in valid]
    frames = Frames(train, tables, potential, config)
    return potential, frames, Frames(valid, valid_tables, potential, config), lines


def look_over(config):
    """The doctor's `Report` of the data of a run, or one without findings if it is not asked."""
    if not config.check:
        return Report(config.train, {}, (), [], read(config.train, config.keys))
    # E0 of the initial potential are not checked against the data.
    of_init = config.init is not None and config.e0 in ("auto", "fit", "keep")
    return check(
        config.train,
        config.keys,
        describe_network(config).cutoff,
        e0=None if of_init else config.e0,
        against=None if _fraction(config.valid) is not None else config.valid,
    )


def divide(config, structures):
    """Structures to train on, to validate on, and isolated atoms.

    Args:
      structures: of `config.train`.

    Raises:
      ValueError, FileNotFoundError: nothing but isolated atoms, or no such validation set.
    """
    cutoff, fraction = describe_network(config).cutoff, _fraction(config.valid)
    train, isolated = split_isolated(structures, cutoff)
    if not train:
        raise ValueError(f"{config.train} holds nothing but isolated atoms; add frames to train on")
    if fraction is None:
        valid, _ = split_isolated(read(config.valid, config.keys), cutoff)
    else:
        train, valid = split(train, fraction, config.seed)
    return train, valid, isolated


def _remarks(config, report):
    """Lines on what the doctor found.

    Raises:
      ValueError: it found an error.
    """
    if errors := report.graded("error"):
        judged = all(finding.check in JUDGEMENTS for finding in errors)
        hint = ". If it is meant so, train with --no-check" if judged else ""
        raise ValueError(error_text(config.train, errors) + hint)
    remarks = [f"warning: {finding}" for finding in report.graded("warning")]
    if notes := report.graded("note"):
        remarks.append(f"{counted(len(notes), 'note')} on the data: mlip check {config.train}")
    return remarks


def _require_labels(config, structures, where):
    """Refuse a set in which no frame has a label that counts in the loss."""
    counted = config.loss.counted()
    for name in counted:
        if name not in DERIVED and all(s.label(name) is None for s in structures):
            raise ValueError(
                f"no frame of {where} has a {name}, which the loss weighs; name its key with "
                f"--{name}-key, or leave --{name}-weight at 0"
            )
    if not any(s.label(name) is not None for s in structures for name in counted):
        raise ValueError(
            f"no frame of {where} has {' or '.join(counted)}, which the loss weighs; give labels, "
            "or other weights"
        )


def _fraction(text):
    try:
        return float(text)
    except ValueError:
        return None


def _is_no_file(e0):
    return e0 in ("auto", "fit", "zero", "keep") or "=" in e0


def _init_card(config, potential):
    """The file that a run starts from, and what that was imported from, if it was."""
    source = {key: potential.training[key] for key in IMPORTED if key in potential.training}
    return {"init": file_card(config.init), "trainable": config.trainable, **source}


def file_card(path):
    """Name and sha256 of a file, or of all files of a folder together."""
    path = Path(path)
    digest = hashlib.sha256()
    for file in files_of(path):
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return {"name": path.name, "sha256": digest.hexdigest()}


def _untrained(config, train, neighbors, e0):
    """The potential of random parameters with scales from the data."""
    species = tuple(sorted(e0.values))
    baseline = [sum(e0.values[int(z)] for z in s.numbers) for s in train]
    above = [(s.energy - b) / len(s) for s, b in zip(train, baseline) if s.energy is not None]
    shift = float(np.mean(above)) if above else 0.0
    forces = [s.forces for s in train if s.forces is not None]
    scale = np.sqrt(np.mean(np.concatenate(forces) ** 2)) if forces else np.std(above or [0.0])
    model = model_of(describe_network(config), len(species))
    potential = Potential(
        model=model,
        species=species,
        parameters=model.initial(config.seed),
        e0=np.array([e0.values[z] for z in species]),
        shift=np.full(len(species), shift),
        scale=np.full(len(species), float(scale) if scale > 1e-8 else 1.0),
        average_neighbors=max(neighbors, 1e-3),
        terms=config.terms,
        dtype=config.dtype,
        execution=Execution(config.block),
    )
    if isinstance(model, FlaxModel):
        with potential.precision():
            require_contract(model, potential.weights)
    return potential


def _report(potential, e0, neighbors):
    table = ", ".join(f"{symbol(z)} {energy:.4f}" for z, energy in sorted(e0.values.items()))
    lines = [f"E0 from {e0.source}: {table} eV"]
    lines += [f"note: {e0.note}"] if e0.note else []
    lines.append(
        f"{potential.n_parameters} parameters, {neighbors:.1f} neighbours an atom within "
        f"{potential.cutoff} Å"
    )
    return lines
