"""Products of float32 matrices ask for all digits, which GPUs leave out where they are not told."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from conftest import CONFIGS, SHAPE, SPECIES, TERMS, make_structure

import mlip
from mlip.data.graph import Shape, build_table, pad, pad_labels
from mlip.data.quantities import DERIVED
from mlip.data.structure import Structure
from mlip.engines.jaxmd import energy_fn, neighbor_fn
from mlip.training.loss import LossConfig, loss_and_gradient

pytestmark = pytest.mark.versions


@pytest.fixture(scope="module", params=["vectors", "densities"])
def float32(request):
    config = replace(CONFIGS[request.param], layers=3)
    return mlip.untrained(config, SPECIES, seed=1, average_neighbors=8, terms=TERMS[request.param])


def batch(potential):
    structure = make_structure("crystal")
    table = build_table(structure, potential.cutoff)
    frame = (potential.species_of(structure), structure, table)
    return pad([frame], SHAPE, potential.cutoff, "float32")


def assert_full_precision(lowered):
    products = re.findall(r"stablehlo\.dot_general.*", lowered.as_text())
    assert products
    for product in products:
        assert "precision = [HIGHEST, HIGHEST]" in product or "f32" not in product, product


@pytest.mark.parametrize("form", ["unfolded", "folded", "spread"])
def test_predictions_use_all_digits(float32, form):
    settings = {"devices": (jax.devices()[0],)} if form == "spread" else {}
    used = float32 if form == "unfolded" else mlip.fold(float32, **settings)
    function, settings, arguments = used.evaluator(batch(float32))
    assert_full_precision(function.jitted.lower(*settings, *arguments))


@pytest.mark.parametrize("form", ["unfolded", "folded"])
def test_last_steps_in_float64_lower_the_noise_of_energies(silicon_potential, form):
    """Along a short path the error of float32 is smooth but for its noise."""
    made = silicon_potential.with_dtype("float32")
    made, exact = (p if form == "unfolded" else mlip.fold(p) for p in (made, silicon_potential))

    def energies(potential, double_sums, graphs):
        function, settings, _ = potential.evaluator(graphs[0])
        with jax.enable_x64(double_sums):
            found = [function(*settings, potential.weights, graph).energies for graph in graphs]
            return np.array(found, float)[:, :-1]

    reference = energies(exact, True, path(exact))
    errors = [energies(made, double, path(made)) - reference for double in (True, False)]
    times = np.linspace(-1, 1, len(reference))
    smooth = np.polynomial.polynomial.polyfit(times, np.hstack(errors), 3)
    noise = np.hstack(errors) - np.polynomial.polynomial.polyval(times, smooth).T
    ours, before = (half.std() for half in np.split(noise, 2, axis=1))
    assert ours < 0.9 * before


def path(potential, n_steps=40):
    """Batches of a silicon crystal whose atoms move on by 1e-4 Å at every step."""
    rng = np.random.default_rng(0)
    atoms = bulk("Si", cubic=True)
    start = atoms.positions + rng.normal(scale=0.05, size=atoms.positions.shape)
    moves = rng.normal(scale=1e-4, size=start.shape)
    structures = [
        Structure(atoms.numbers, start + step * moves, atoms.cell.array, atoms.pbc)
        for step in range(n_steps)
    ]
    tables = [build_table(s, potential.cutoff) for s in structures]
    shape = Shape(len(atoms) + 1, max(table.size()[1] for table in tables), 2)
    return [
        pad([(potential.species_of(s), s, table)], shape, potential.cutoff, potential.dtype)
        for s, table in zip(structures, tables)
    ]


@pytest.mark.parametrize("kept", [16, 0], ids=["kept", "made again"])
def test_the_gradient_of_training_uses_all_digits(float32, kept):
    surface = float32.surface.running(kept_blocks=kept)
    structure = make_structure("crystal")
    labelled = replace(structure, energy=1.0, forces=np.ones((len(structure), 3)), stress=np.eye(3))
    labels = pad_labels([labelled], [0.0], SHAPE, "float32")
    gradient = jax.jit(
        lambda graph: loss_and_gradient(
            surface, LossConfig(), dict.fromkeys(DERIVED, 1.0), float32.weights, graph, labels
        )
    )
    assert_full_precision(gradient.lower(batch(float32)))


@pytest.mark.parametrize("fractional", [False, True])
def test_energies_and_neighbours_for_jax_md_use_all_digits(float32, fractional):
    structure = make_structure("crystal")
    neighbors = neighbor_fn(float32, structure, fractional)
    energy = energy_fn(float32, structure)
    positions = np.float32(structure.positions)
    start = neighbors.allocate(positions, box=np.float32(structure.cell.T))

    def forces(positions, box, found):
        found = neighbors.update(positions, found, box)
        return jax.grad(energy, argnums=(0, 3))(positions, found, box, jnp.eye(3))

    assert_full_precision(jax.jit(forces).lower(positions, np.float32(structure.cell.T), start))
