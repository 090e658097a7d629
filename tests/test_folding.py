"""A folded potential is the same function: equal to the unfolded one, smooth, conservative."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIGS, SHAPE, TERMS, make_potential, make_structure, predict

import mlip
from mlip.data.graph import build_table, pad
from mlip.data.structure import Structure
from mlip.model.mace.model import NetworkConfig
from mlip.model.mace.splines import spline_weights
from mlip.model.potential import untrained
from mlip.model.terms import TermsConfig

KINDS = ("molecule", "slab", "crystal", "primitive")
OTHER_CONFIGS = {
    "three layers": NetworkConfig(
        channels=4, layers=3, hidden_l=1, l_max=2, radial_widths=(8,), cutoff=4.0
    ),
    "one layer": NetworkConfig(channels=4, layers=1, radial_widths=(8,), cutoff=4.0),
    "soft": NetworkConfig(
        channels=4,
        layers=3,
        hidden_l=1,
        l_max=1,
        correlation=2,
        radial_widths=(8,),
        cutoff=4.0,
        radial_basis="gaussian",
        distance_transform="soft",
        cutoff_on="functions",
        first_interaction="residual-density",
        interaction="plain",
    ),
    "one layer of polynomials": NetworkConfig(
        channels=4,
        layers=1,
        l_max=1,
        radial_widths=(8,),
        cutoff=4.0,
        radial_basis="chebyshev",
        distance_transform="agnesi",
        first_interaction="plain",
        hidden_readout=True,
    ),
}


def assert_same(found, expected, tolerance):
    """Energies and forces agree relative to the largest of all structures."""
    for name in ("energies", "forces", "stress"):
        pairs = [
            (getattr(a, name), getattr(b, name))
            for a, b in zip(found, expected)
            if getattr(b, name) is not None
        ]
        scale = max(np.abs(b).max() for _, b in pairs)
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=name)


def of_silicon(structure):
    return replace(structure, numbers=np.full(len(structure), 14))


@pytest.mark.parametrize("name", [*CONFIGS, *OTHER_CONFIGS])
@pytest.mark.parametrize("species", [(1, 8, 14), (14,)])
def test_folding_changes_nothing(name, species):
    config = (CONFIGS | OTHER_CONFIGS)[name]
    terms = TERMS.get(name, TermsConfig())
    potential = untrained(config, species, 1, average_neighbors=8, dtype="float64", terms=terms)
    structures = [make_structure(kind) for kind in KINDS]
    if len(species) == 1:
        structures = [of_silicon(structure) for structure in structures]
    assert_same(predict(mlip.fold(potential), structures), predict(potential, structures), 1e-7)


@pytest.fixture(scope="module")
def default_potential():
    """With products of three functions up to l = 3, as potentials have by default."""
    return make_potential("default", "float64")


@pytest.mark.parametrize("rows", [47, 48])  # blocks that leave rows to fill, and that do not
def test_the_size_of_blocks_changes_nothing(default_potential, rows):
    structures = [make_structure(kind) for kind in KINDS]
    expected = predict(default_potential, structures)
    for potential, tolerance in (
        (default_potential.running(block=5), 1e-12),
        (mlip.fold(default_potential, block=5), 1e-7),
    ):
        frames = [(potential.species_of(s), s, build_table(s, 5.0)) for s in structures]
        graph = pad(frames, replace(SHAPE, n_atoms=rows), 5.0, "float64")
        assert_same(potential.split(potential.evaluate(graph), frames), expected, tolerance)


def test_float32_agrees_with_the_unfolded_potential_in_float64(default_potential):
    structures = [make_structure(kind, seed) for kind in KINDS for seed in range(3)]
    folded = mlip.fold(default_potential.with_dtype("float32"))
    assert_same(predict(folded, structures), predict(default_potential, structures), 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-7)])
def test_radial_functions_of_full_rank_are_replaced_by_fewer(dtype, tolerance):
    config = NetworkConfig(channels=16)  # 64 functions of the distance in the first layer
    silicon = untrained(config, [14], seed=2, average_neighbors=20, dtype="float64")
    folded = mlip.fold(silicon.with_dtype(dtype))
    assert folded.parameters["table_0_0"].shape[1] < 64
    structures = [of_silicon(make_structure(kind)) for kind in KINDS]
    assert_same(predict(folded, structures), predict(silicon, structures), tolerance)


def test_fewer_species_give_the_same_and_others_are_refused(small_potential):
    structure = make_structure("crystal")
    structure = replace(structure, numbers=np.where(structure.numbers == 1, 8, structure.numbers))
    expected = predict(small_potential, [structure])
    assert_same(predict(mlip.fold(small_potential, ["O", "Si"]), [structure]), expected, 1e-7)
    with pytest.raises(ValueError, match="knows H, O, Si, not Fe"):
        mlip.fold(small_potential, ["Fe", "O"])
    with pytest.raises(ValueError, match="not trained on"):
        mlip.fold(small_potential, ["O"])(make_structure("crystal"))


def dimer(distance):
    return Structure([14, 14], [[0.0, 0, 0], [distance, 0, 0]], np.zeros((3, 3)), (0, 0, 0))


def test_dimers_agree_from_the_shortest_distances_to_the_cutoff(default_potential):
    silicon = replace_species(default_potential)
    distances = np.concatenate([[0.02, 0.05, 0.1, 0.2], np.linspace(0.3, 5.2, 60)])
    structures = [dimer(distance) for distance in distances]
    folded, exact = predict(mlip.fold(silicon), structures), predict(silicon, structures)
    for found, expected in zip(folded, exact):
        scale = 1e-3 + np.abs(expected.forces).max()
        np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=1e-6 * scale)


def replace_species(potential):
    return untrained(potential.config, [14], seed=2, average_neighbors=8, dtype="float64")


@pytest.mark.parametrize("distance", [0.05, 0.7, 2.3, 4.97])
def test_forces_are_the_exact_derivative_of_the_energy(default_potential, distance):
    folded, step = mlip.fold(replace_species(default_potential)), 1e-5
    low, middle, high = predict(folded, [dimer(distance + d) for d in (-step, 0.0, step)])
    numerical = -(high.energy - low.energy) / (2 * step)
    scale = 1 + abs(numerical)
    np.testing.assert_allclose(middle.forces[1, 0], numerical, rtol=0, atol=1e-8 * scale)


def test_splines_vanish_at_the_cutoff_and_have_continuous_second_derivatives():
    cutoff, order, intervals = 5.0, 5, 64
    rng = np.random.default_rng(0)
    table = rng.normal(size=intervals + 5)

    def function(distance):
        row, weights, _ = spline_weights(distance, cutoff, order, intervals)
        return sum(w * jnp.asarray(table)[row + q] for q, w in enumerate(weights))

    with jax.enable_x64(True):
        beyond = function(jnp.array([5.0, 5.1, 10.0]))
        np.testing.assert_array_equal(beyond, 0.0)
        knots = cutoff / intervals * np.arange(1, intervals)
        for derivative in (function, jax.grad(function), jax.grad(jax.grad(function))):
            either = [jax.vmap(derivative)(jnp.asarray(knots + d)) for d in (-1e-12, 1e-12)]
            np.testing.assert_allclose(*either, rtol=0, atol=1e-6)
        row, _, slopes = spline_weights(jnp.asarray(knots + 0.01), cutoff, order, intervals)
        slope = sum(s * jnp.asarray(table)[row + q] for q, s in enumerate(slopes))
        exact = jax.vmap(jax.grad(function))(jnp.asarray(knots + 0.01))
        np.testing.assert_allclose(slope, exact, rtol=0, atol=1e-10)


def test_a_derivative_by_the_tables_is_not_a_number(small_potential):
    folded = mlip.fold(small_potential)
    structure = make_structure("molecule")
    frame = (folded.species_of(structure), structure, build_table(structure, 5.0))
    graph = pad([frame], SHAPE, 5.0, "float64")
    with folded.precision():
        gradient = jax.grad(
            lambda parameters: folded.surface.outputs(
                replace(folded.weights, parameters=parameters), graph
            ).energies.sum()
        )(folded.weights.parameters)
    assert np.isnan(gradient["table_1_0"]).all()


def test_folding_twice_is_folding_once(small_potential):
    folded = mlip.fold(small_potential)
    assert mlip.fold(folded) is folded
    assert mlip.fold(folded, ["H", "O"]) is folded
    with pytest.raises(ValueError, match="folded already"):
        mlip.fold(folded, block=4)
    with pytest.raises(ValueError, match="the potential knows H, O, Si, not C"):
        mlip.fold(folded, ["H", "C"])
    with pytest.raises(ValueError, match="folded in float64"):
        folded.with_dtype("float32")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"species": []}, "empty"), ({"devices": ()}, "empty"), ({"block": -1}, "block is -1")],
)
def test_settings_that_mean_nothing_are_refused(small_potential, settings, message):
    with pytest.raises(ValueError, match=message):
        mlip.fold(small_potential, **settings)(make_structure("molecule"))


def test_a_folded_potential_is_not_saved(small_potential, tmp_path):
    with pytest.raises(ValueError, match="save the one that it came from"):
        mlip.save(mlip.fold(small_potential), tmp_path / "folded.safetensors")


def test_rough_radial_functions_get_finer_tables():
    config = NetworkConfig(channels=2, radial_widths=(8,), n_radial=32, cutoff=4.0)
    potential = untrained(config, (1, 8, 14), seed=1, average_neighbors=8, dtype="float64")
    assert len(mlip.fold(potential).parameters["table_1_0"]) > 1000


def test_forces_of_a_crystal_are_the_exact_derivative_of_the_energy():
    config = OTHER_CONFIGS["three layers"]
    potential = untrained(config, (1, 8, 14), seed=1, average_neighbors=8, dtype="float64")
    folded, structure = mlip.fold(potential), make_structure("crystal")
    direction = np.random.default_rng(0).normal(size=structure.positions.shape)
    low, middle, high = predict(
        folded,
        [
            replace(structure, positions=structure.positions + d * direction)
            for d in (-1e-5, 0, 1e-5)
        ],
    )
    numerical = -(high.energy - low.energy) / 2e-5
    np.testing.assert_allclose((middle.forces * direction).sum(), numerical, rtol=1e-7)
