"""Products of float32 matrices ask for all digits, which GPUs leave out where they are not told."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIGS, SHAPE, SPECIES, make_structure

import mlip
from mlip.data.graph import build_table, pad, pad_labels
from mlip.simulation.jaxmd import energy_fn, neighbor_fn
from mlip.training.loss import LossConfig, loss_and_gradient


@pytest.fixture(scope="module", params=["vectors", "densities"])
def float32(request):
    config = replace(CONFIGS[request.param], layers=3)
    return mlip.untrained(config, SPECIES, seed=1, average_neighbors=8)


def batch(potential):
    structure = make_structure("crystal")
    table = build_table(structure, potential.config.cutoff)
    frame = (potential.species_of(structure), structure, table)
    return pad([frame], SHAPE, potential.config.cutoff, "float32")


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


@pytest.mark.parametrize("kept", [16, 0], ids=["kept", "made again"])
def test_the_gradient_of_training_uses_all_digits(float32, kept, monkeypatch):
    monkeypatch.setattr("mlip.training.loss.KEPT", kept)
    structure = make_structure("crystal")
    labelled = replace(structure, energy=1.0, forces=np.ones((len(structure), 3)), stress=np.eye(3))
    labels = pad_labels([labelled], [0.0], SHAPE, "float32")
    gradient = jax.jit(
        lambda graph: loss_and_gradient(
            float32.network, LossConfig(), (1.0, 1.0, 1.0), float32.weights, graph, labels
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
