"""The optimizer: clipping, Muon or Adam, learning rate over the training, averaged weights."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import optax

# Where none is given.
RATES = {"muon": 0.03, "adam": 0.01, "adamw": 0.01}
GENTLE = 0.1  # share of these rates for a potential that is trained already
WEIGHT_DECAYS = {"muon": 0.0, "adamw": 1e-4}
DECAYS = ("cosine", "linear", "none")


@dataclass(frozen=True)
class OptimizerConfig:
    """How the parameters move. The learning rate follows the progress of the whole training."""

    optimizer: str = "muon"  # muon, adam or adamw
    amsgrad: bool | None = None  # of adam and adamw, where it is on if not given; Reddi et al. 2018
    learning_rate: float | None = None  # if not given 0.03 with muon, else 0.01; with init a tenth
    decay: str = "cosine"  # cosine, linear or none, over the whole training
    final_learning_rate: float = 0.0  # at the end of the decay
    warmup_steps: int = 100  # steps over which the rate rises linearly from zero
    weight_decay: float | None = None  # of muon's matrices, 0, or adamw, 1e-4 if not given
    clip_norm: float = 10.0  # largest norm of the gradient; 0 switches clipping off
    ema: float = 0.995  # share of the past in the averaged weights, which are those saved; 0: none

    def __post_init__(self):
        if self.optimizer not in RATES:
            raise ValueError(f"optimizer is {self.optimizer!r}; choose one of {', '.join(RATES)}")
        if self.decay not in DECAYS:
            raise ValueError(f"decay is {self.decay!r}; choose one of {', '.join(DECAYS)}")
        if not 0 < self.highest_rate <= 1:
            raise ValueError(
                f"learning_rate is {self.learning_rate}; it must be positive and at most 1"
            )
        if not 0 <= self.final_learning_rate <= self.highest_rate:
            raise ValueError(
                f"final_learning_rate is {self.final_learning_rate}; it must lie between 0 and "
                f"learning_rate ({self.highest_rate})"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must lie in [0, 1)")
        for name, known in (("amsgrad", ("adam", "adamw")), ("weight_decay", WEIGHT_DECAYS)):
            if getattr(self, name) is not None and self.optimizer not in known:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but {self.optimizer} has none; leave it "
                    f"away, or take optimizer {' or '.join(known)}"
                )
        for name in ("warmup_steps", "weight_decay", "clip_norm"):
            if not 0 <= (getattr(self, name) or 0) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be zero or positive")

    @property
    def highest_rate(self):
        return RATES[self.optimizer] if self.learning_rate is None else self.learning_rate

    def rate(self, step, progress):
        """Learning rate at a step, when this fraction of the training is done."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        left = {
            "cosine": (1 + math.cos(math.pi * min(progress, 1.0))) / 2,
            "linear": 1 - min(progress, 1.0),
            "none": 1.0,
        }[self.decay]
        span = self.highest_rate - self.final_learning_rate
        return warm * (self.final_learning_rate + span * left)

    def renewal(self, step):
        """Share of the new parameters in the running average: large at first, then 1 - ema.

        So the random start is soon forgotten. Source: `tf.train.ExponentialMovingAverage`.
        """
        return 1 - min(self.ema, (2 + step) / (11 + step))


def build(config):
    """The `optax` transformation of a config, for a learning rate of 1.

    Muon (Jordan et al. 2024) turns the momentum of a matrix into the nearest orthogonal one, so
    that all its directions are learned at one pace, with updates of a root mean square of 0.2 (Liu
    et al. 2025, arXiv:2502.16982). Parameters of three axes are left to Adam (Nesterov's).
    """
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    decay = config.weight_decay
    decay = WEIGHT_DECAYS.get(config.optimizer, 0.0) if decay is None else decay
    if config.optimizer == "muon":
        return optax.chain(*parts, muon(decay))
    parts.append(optax.scale_by_adam() if config.amsgrad is False else optax.scale_by_amsgrad())
    if decay:
        parts.append(optax.add_decayed_weights(decay))
    return optax.chain(*parts)


def muon(weight_decay=0.0):
    """Muon that takes the matrices of one size together, which costs less than one by one."""
    axes = {"matrices": optax.contrib.MuonDimensionNumbers(1, 2), "others": None}
    # Steps go against the updates here and along them in optax.
    inner = optax.contrib.muon(
        -1.0,
        weight_decay=weight_decay,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=axes,
    )

    def update(gradients, state, parameters):
        updates, state = inner.update(by_size(gradients), state, by_size(parameters))
        for size, names in matrices(parameters).items():
            updates["others"] |= dict(zip(names, updates["matrices"][size]))
        return updates["others"], state

    return optax.GradientTransformation(lambda parameters: inner.init(by_size(parameters)), update)


def matrices(parameters):
    """Names of the matrices of each size."""
    names = {}
    for name, parameter in sorted(parameters.items()):
        if parameter.ndim == 2:
            names.setdefault("x".join(map(str, parameter.shape)), []).append(name)
    return names


def by_size(parameters):
    """Matrices of one size in one array, [n, rows, columns]; the other parameters as they are."""
    others = dict(parameters)
    stacks = {
        size: jnp.stack([others.pop(name) for name in names])
        for size, names in matrices(parameters).items()
    }
    return {"matrices": stacks, "others": others}


def apply(updates, parameters, average, learning_rate, renewal):
    """Parameters moved against the updates, and their running average."""
    updates = optax.tree.scale(-learning_rate, updates)
    parameters = optax.apply_updates(parameters, updates)
    return parameters, optax.incremental_update(parameters, average, renewal)
