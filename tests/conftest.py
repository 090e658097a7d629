"""Fixtures that tests share, so that every network compiles once."""

import functools
import os
import tempfile
from pathlib import Path

# Read when jax is imported. Compiled programs are kept for the run, for all processes in it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="mlip-test-cache-"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # remarks of a cache that is not ours
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# LLVM takes a third of the time of most files to make programs fast that run but for a moment. The
# passes of XLA are those of any user. JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests with all of them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import numpy as np
import pytest

from mlip.data.graph import Shape, build_table, pack, pad
from mlip.data.structure import Structure
from mlip.model.file import load_model
from mlip.model.fold import fold
from mlip.model.mace.model import NetworkConfig
from mlip.model.potential import untrained
from mlip.model.terms import TermsConfig
from mlip.quickstart import data_file
from mlip.training.loop import train
from mlip.training.setup import TrainConfig

SPECIES = (1, 8, 14)
CONFIGS = {
    "default": NetworkConfig(channels=4, radial_widths=(8, 8)),
    "vectors": NetworkConfig(channels=4, hidden_l=1, l_max=2, radial_widths=(8, 8), cutoff=4.0),
    "tensors": NetworkConfig(channels=3, hidden_l=2, correlation=2, radial_widths=(8,), cutoff=4.0),
    "densities": NetworkConfig(
        channels=3,
        hidden_l=1,
        l_max=1,
        correlation=2,
        radial_widths=(8,),
        cutoff=4.0,
        distance_transform="agnesi",
        first_interaction="plain-density",
        interaction="residual-density",
    ),
}
TERMS = {
    "vectors": TermsConfig(zbl=True),
    "densities": TermsConfig(zbl=True, zbl_order=5, zbl_scaled=True),
}


@pytest.fixture(scope="module", autouse=True)
def free_programs():
    """Let a file's programs go: each keeps maps of memory, of which a process may have 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def optimized():
    """All optimizations in this process, for a file whose programs run for long."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def shared_data():
    """Folder of public DFT data beside the repository; tests that need it skip without it."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the public DFT data is not beside the repository (../shared/data)")
    return folder


# Kept, since pytest makes a fixture anew whenever its parameter changes, and folding takes long.
@functools.cache
def make_potential(kind, dtype):
    name, *folded = kind.split()
    made = make_unfolded(name, dtype)
    return fold(made) if folded else made


def make_unfolded(name, dtype):
    """A random potential, with the terms of its kind."""
    terms = TERMS.get(name, TermsConfig())
    return untrained(CONFIGS[name], SPECIES, 1, average_neighbors=8, dtype=dtype, terms=terms)


@pytest.fixture(scope="session", params=[*CONFIGS, "default folded", "densities folded"])
def potential_in(request):
    """A function of the precision that gives the random potential of one kind of network."""
    return functools.partial(make_potential, request.param)


@pytest.fixture(scope="session")
def potential(potential_in):
    """The same in float64."""
    return potential_in("float64")


@pytest.fixture(scope="session")
def small_potential():
    """One random potential in float64, for what any network shows."""
    config = NetworkConfig(channels=4, l_max=2, correlation=2, radial_widths=(8,))
    return untrained(config, SPECIES, seed=1, average_neighbors=8, dtype="float64")


SHAPE = Shape(n_atoms=48, max_neighbors=48, n_structures=17)


def predict(potential, structures):
    """`potential.predict` in batches of one padded shape, so that all tests share a program."""
    frames = [(potential.species_of(s), s, build_table(s, potential.cutoff)) for s in structures]
    predictions = []
    sizes = [table.size() for _, _, table in frames]
    for batch in pack(sizes, range(len(frames)), SHAPE.n_structures - 1, SHAPE.n_atoms, 1e9):
        chosen = [frames[i] for i in batch]
        graph = pad(chosen, SHAPE, potential.cutoff, potential.dtype)
        predictions += potential.split(potential.evaluate(graph), chosen)
    return predictions


def make_structure(kind, seed=0):
    """A molecule, slab, crystal, primitive cell smaller than the cutoff, or single atom."""
    rng = np.random.default_rng([seed, len(kind)])
    cell = np.array([[4.1, 0.2, 0.0], [-0.7, 4.6, 0.3], [0.9, 0.4, 5.0]])
    pbc = {"molecule": (0, 0, 0), "slab": (1, 1, 0), "atom": (0, 0, 0)}.get(kind, (1, 1, 1))
    if kind == "primitive":
        cell = np.array([[0.0, 2.7, 2.8], [2.7, 0.0, 2.6], [2.6, 2.9, 0.0]])
    if kind in ("molecule", "atom"):
        cell = np.zeros((3, 3))
    n_atoms = {"atom": 1, "primitive": 2}.get(kind, 6)
    if kind == "atom":
        positions = np.zeros((1, 3))
    elif kind == "primitive":
        positions = np.array([[0.0, 0.0, 0.0], [1.3, 1.4, 1.5]])
    else:
        box = cell if cell.any() else 3.5 * np.eye(3)
        grid = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])[:n_atoms]
        positions = (grid / 2 + rng.uniform(0, 0.15, (n_atoms, 3))) @ box
    numbers = rng.choice(SPECIES, n_atoms)
    return Structure(numbers, positions, cell, pbc, name=kind)


@pytest.fixture(scope="session", params=["molecule", "slab", "crystal", "primitive"])
def structure(request):
    return make_structure(request.param)


def random_rotation(rng):
    """A proper rotation, uniformly distributed."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


@pytest.fixture(scope="session")
def silicon_run(tmp_path_factory):
    """Folder of a quick training of a small potential on the embedded silicon."""
    config = TrainConfig(
        train=str(data_file("silicon_train.xyz")),
        valid="0.1",
        out=str(tmp_path_factory.mktemp("silicon") / "run"),
        max_epochs=30,
        batch_size=8,
        network=NetworkConfig(
            channels=4, l_max=2, correlation=2, radial_widths=(8,), cutoff=4.5, layers=1
        ),
        terms=TermsConfig(zbl=True),
    )
    train(config)
    return Path(config.out)


@pytest.fixture(scope="session")
def silicon_potential(silicon_run):
    """A small potential in float64 with minima."""
    return load_model(silicon_run / "model.safetensors", "float64")
