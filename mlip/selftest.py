"""Does the compiler compute what it was asked to? Compiled parts of the network against NumPy.

jax 0.10.2 gives wrong sums on the CPU without a word, in arrays of tens of thousands of rows only
(jax-ml/jax issue 39103), so that small tests do not see it. These run at such sizes, in float32,
against float64.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from mlip.data.graph import Graph
from mlip.model.blocks import gather_senders
from mlip.model.mace.layer import mix_channels
from mlip.model.radial import SILU_GAIN, bessel_basis, smooth_cutoff
from mlip.model.so3 import spherical_harmonics
from mlip.programs import Program, compiler_options

EDGES = (16_640, 32_800, 40_000, 40_960)
WIDTH = 20  # neighbours an atom
TOLERANCE = 1e-4  # relative to the largest value; float32 sums of some hundred terms reach 1e-5


@dataclass(frozen=True)
class Check:
    """One comparison of a compiled function with NumPy."""

    name: str
    n_edges: int
    error: float  # largest deviation over the largest value
    wrong: int  # rows that deviate by more than the tolerance


def run():
    """All comparisons, as a list of `Check`; compiled for training too, where that differs."""
    kinds = (False, True) if compiler_options(True) != compiler_options() else (False,)
    return [
        _compare(n_edges, training, *example)
        for training in kinds
        for n_edges in EDGES
        for example in _examples(n_edges)
    ]


def require_correct_arithmetic(checks=None):
    """Refuse to go on where compiled arithmetic is wrong.

    Args:
      checks: what `run` returned; run here if not given.

    Raises:
      RuntimeError: a check that fails, with the cause and the remedy.
    """
    remedy = (
        "install another version, for instance pip install 'jax!=0.10.2', or set the environment "
        "variable XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type="
    )
    failed = [check for check in checks or run() if check.wrong]
    if failed:
        worst = max(failed, key=lambda check: check.error)
        raise RuntimeError(
            f"jax {jax.__version__} on {jax.default_backend()} computes {worst.name} wrongly: "
            f"{worst.wrong} of {worst.n_edges} rows deviate from NumPy, by up to "
            f"{worst.error:.1e}; " + remedy
        )


def _examples(n_edges):
    """(name, function, its arguments, what it should give) of each comparison."""
    rng = np.random.default_rng(n_edges)
    n_atoms = n_edges // WIDTH
    displacement = rng.normal(scale=1.5, size=(n_edges, 3))
    matrix = rng.normal(size=(3, 3))
    weight, channels = rng.normal(size=(8, 32)), rng.normal(size=(n_edges, 32))
    neighbors = rng.integers(n_atoms, size=(n_atoms, WIDTH)).astype(np.int32)
    distance = np.linalg.norm(displacement, axis=1)
    features = rng.normal(size=(n_atoms, 32))

    yield (
        "a matrix times each row, squared and summed",
        jax.vmap(lambda row: ((jnp.asarray(matrix, row.dtype) @ row) ** 2).sum()),
        [displacement],
        ((displacement @ matrix.T) ** 2).sum(axis=1),
    )
    radial = np.sin(np.pi * np.arange(1, 9) * distance[:, None] / 5) / distance[:, None]
    radial *= (
        np.sqrt(2 / 5)
        * np.where(
            distance < 5,
            1 - 21 * (distance / 5) ** 5 + 35 * (distance / 5) ** 6 - 15 * (distance / 5) ** 7,
            0,
        )[:, None]
    )
    yield "the radial basis", _radial, [displacement], radial
    hidden = radial @ weight / np.sqrt(8)
    yield (
        "the radial network",
        lambda d, w: SILU_GAIN * jax.nn.silu(mix_channels(_radial(d), w)),
        [displacement, weight],
        SILU_GAIN * hidden / (1 + np.exp(-hidden)),
    )
    x, y, z = (displacement / distance[:, None]).T
    harmonics = np.sqrt([[15], [15], [5], [15], [15 / 4]]) * np.array(
        [x * z, x * y, y**2 - (x**2 + z**2) / 2, y * z, z**2 - x**2]
    )
    yield (
        "the sum over neighbours",
        lambda d, c: jnp.einsum("nkb,nkc->nbc", _table(_harmonics(d)[2]), _table(c)),
        [displacement, channels],
        np.einsum("nkb,nkc->nbc", _table(harmonics.T), _table(channels)),
    )
    # Random neighbours have no opposite edges, so that only the forward gather is compared.
    yield (
        "the gather of neighbours",
        lambda f, d: gather_senders(f, _graph(neighbors, d)).sum(axis=1),
        [features, displacement],
        features[neighbors].sum(axis=1),
    )


def _radial(displacement):
    distance = jnp.sqrt((displacement**2).sum(axis=-1))
    return bessel_basis(distance, 5.0, 8) * smooth_cutoff(distance, 5.0, 5)[..., None]


def _harmonics(displacement):
    distance = jnp.sqrt((displacement**2).sum(axis=-1))
    return spherical_harmonics(displacement / distance[..., None], 2)


def _table(rows):
    return rows.reshape(-1, WIDTH, *rows.shape[1:])


def _graph(neighbors, displacement):
    none = jnp.zeros(0)
    return Graph(none, none, neighbors, neighbors, displacement, none, none)


def _compare(n_edges, training, name, function, arguments, reference):
    # As in the network: TF32 would be a lower precision, not a wrong sum.
    with jax.enable_x64(False), jax.default_matmul_precision("highest"):
        single = [np.asarray(argument, np.float32) for argument in arguments]
        computed = np.asarray(Program(function, training)(*single), float)
    deviation = np.abs(computed - reference) / np.abs(reference).max()
    rows = deviation.reshape(len(deviation), -1).max(axis=1)
    name += " in training" if training else ""
    return Check(name, n_edges, float(rows.max()), int((~(rows <= TOLERANCE)).sum()))
