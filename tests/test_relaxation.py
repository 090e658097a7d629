"""Relaxation finds the minima that ASE finds, alone and in batches, and says where it has not."""

import functools
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS
from scipy.spatial.distance import pdist

from mlip.data.structure import Structure, from_ase, to_ase
from mlip.engines.ase import Calculator
from mlip.model.file import save_model
from mlip.relaxation import descent
from mlip.relaxation import relax as relaxation
from mlip.relaxation.descent import Descent, Problem, free_strains
from mlip.relaxation.minimizers import OPTIMIZERS, Fire
from mlip.relaxation.relax import RelaxationConfig, Start, relax
from mlip.runtime import Stop
from mlip.simulation import setup
from mlip.simulation.engine import choose
from mlip.simulation.neighbors import plan
from mlip.simulation.setup import read_starts
from mlip.units import GPA

ROOT = Path(__file__).parents[1]
TIGHT = {"max_force": 1e-5, "max_stress": 1e-5}
pytestmark = pytest.mark.filterwarnings("ignore:logm result may be inaccurate")


def silicon(seed=1, strain=0.03):
    """A rattled and strained cubic cell of 8 atoms."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Si", a=5.5, cubic=True)
    atoms.rattle(0.1, seed=seed)
    tensor = strain * rng.normal(size=(3, 3))
    atoms.set_cell(atoms.cell @ (np.eye(3) + (tensor + tensor.T) / 2), scale_atoms=True)
    return atoms


def cluster():
    atoms = bulk("Si", a=5.43, cubic=True)
    atoms.pbc, atoms.cell = False, None
    atoms.rattle(0.1, seed=3)
    return atoms


def slab():
    """One cell thick, with vacuum on both sides, strained within its plane."""
    atoms = bulk("Si", a=5.5, cubic=True)
    atoms.rattle(0.05, seed=4)
    atoms.set_cell(atoms.cell @ np.diag([1.03, 0.98, 1.0]), scale_atoms=True)
    atoms.center(vacuum=6.0, axis=2)
    atoms.pbc = (True, True, False)
    return atoms


def by_ase(atoms, potential, optimizer=BFGS, fmax=1e-6, cell=None):
    """The atoms relaxed by ASE, with their cell if the settings of a filter are given."""
    atoms = atoms.copy()
    atoms.calc = Calculator(potential)
    target = atoms if cell is None else FrechetCellFilter(atoms, **cell)
    assert optimizer(target, logfile=None).run(fmax=fmax, steps=1000)
    return atoms


def metric(cell):
    """Lengths and angles of a cell, however it is turned."""
    return np.asarray(cell) @ np.asarray(cell).T


# Minimisers and coordinates ----------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Spot:
    x: jax.Array
    gradient: jax.Array
    value: jax.Array


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_minimisers_find_the_minima_of_quadratic_functions(name):
    """Of 12 dimensions and curvatures up to 500 eV/Å², side by side."""
    rng = np.random.default_rng(0)
    ends = ((1, 2), (5, 50), (5, 500))
    curvature = np.array([np.geomspace(low, high, 12) for low, high in ends])
    axes = np.linalg.qr(rng.normal(size=(3, 12, 12)))[0]
    matrix, lowest = (axes * curvature[:, None]) @ axes.mT, rng.normal(size=(3, 12))

    def at(x):
        away = x.reshape(3, 12) - lowest
        pull = jnp.einsum("sij,sj->si", matrix, away)
        return Spot(x, pull.reshape(x.shape), (away * pull).sum(axis=1) / 2)

    @jax.jit
    def step(memory, spot):
        x, memory = memory.propose(spot, 0.5)
        memory, kept = memory.receive(spot, at(x), 0.5, 1e-12)
        return memory, choose(kept, at(x), spot)

    with jax.enable_x64(True):
        nothing = jnp.zeros((3, 4, 3))
        memory, spot = OPTIMIZERS[name].begin(nothing), Spot(nothing, nothing, jnp.full(3, jnp.inf))
        for _ in range({"fire": 600, "lbfgs": 80}[name]):
            memory, spot = step(memory, spot)
    np.testing.assert_allclose(spot.x.reshape(3, 12), lowest, rtol=0, atol=1e-6)


def test_fire_goes_half_of_its_last_step_back_where_it_went_uphill():
    """With forces F that turn round at every point, of steps ΔtₙF with Δt halved each time."""
    force, n_steps = np.array([[[0.3, 0.0, -0.1]]]), 5
    with jax.enable_x64(True):
        x, memory, places = jnp.zeros((1, 1, 3)), Fire.begin(jnp.zeros((1, 1, 3))), []
        for sign in (1, -1, 1, -1, 1):
            spot = Spot(x, jnp.asarray(-sign * force), jnp.zeros(1))
            x, memory = memory.propose(spot, 0.2)
            places.append(np.asarray(x))
        far, memory = 1e4 * force, Fire.begin(x)
        for sign in (1, -1, -1, 1):
            new, memory = memory.propose(Spot(x, jnp.asarray(-sign * far), jnp.zeros(1)), 0.2)
            assert np.linalg.norm(new - x) <= 0.2 + 1e-12
            x = new
    times = Fire.TIMESTEP * Fire.DECAY ** np.arange(n_steps)
    steps = (times**2 * [1, -1, 1, -1, 1])[:, None, None, None] * force
    back = np.concatenate([np.zeros_like(steps[:1]), steps[:-1] / 2])
    np.testing.assert_allclose(places, np.cumsum(steps - back, axis=0), rtol=0, atol=1e-15)


def test_strains_are_orthonormal_and_obey_their_names():
    diagonal = np.eye(3)
    for cell, names, count in (
        ("full", (), 6),
        ("full", ("xx", "xy"), 2),
        ("hydrostatic", (), 1),
        ("hydrostatic", ("xx", "yy"), 1),
        ("shape", (), 5),
        ("shape", ("xx", "zz"), 1),
        ("shape", ("yz",), 1),
    ):
        basis = free_strains(cell, names)
        products = np.einsum("kij,lij->kl", basis, basis)
        expected = np.diag(np.arange(6) < count).astype(float)
        np.testing.assert_allclose(products, expected, rtol=0, atol=1e-14)
        np.testing.assert_array_equal(basis, basis.mT)
        if cell == "shape":
            assert np.abs(np.trace(basis, axis1=1, axis2=2)).max() < 1e-14
        for name in descent.STRAINS:
            i, j = map("xyz".index, name)
            assert not names or name in names or not basis[:, i, j].any()
    np.testing.assert_allclose(
        free_strains("hydrostatic")[0], diagonal / np.sqrt(3), rtol=0, atol=1e-15
    )


@functools.partial(jax.jit, static_argnums=0)
def enthalpy(loop, problem, x):
    """The point at coordinates, and whether all neighbours were found."""
    there = descent.place(loop, problem, x)
    table = descent.find.inside(loop, problem.systems, *there[:2])
    return descent.measure(loop, problem, x, *there, table)[0], table.complete


@pytest.mark.parametrize("names", [(), ("xx", "yy", "xy"), ("yz", "xx")])
def test_the_gradient_is_the_derivative_of_the_enthalpy(silicon_potential, names):
    """By positions and strains, in a cell that has strained by a tenth, under pressure."""
    config = RelaxationConfig(cell="full", strain=names, pressure=30.0, fixed=(2,))
    potential, structures = silicon_potential, [from_ase(silicon())]
    grid, room = plan(structures, potential.cutoff)
    room = replace(room, neighbors=2 * room.neighbors, within=2 * room.within, reach=(3, 3, 3))
    loop = Descent(potential.surface, "float64", None, room, 0.0, strained=True)
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        systems, positions, cells = setup.make_systems(structures, potential, grid)
        bodies = relaxation.make_bodies([Start(structures[0])], systems, cells, config)
        problem = Problem(potential.weights, systems, bodies, relaxation.make_terms(config))
        x = np.concatenate([positions, np.zeros((1, 2, 3))], axis=1)
        x[0, -2:] = 0.1 * bodies.length * rng.normal(size=(2, 3))
        gradient = np.asarray(enthalpy(loop, problem, x)[0].gradient)
        assert not gradient[0, 2].any()
        for _ in range(4):
            way = rng.normal(size=x.shape)
            way[0, 2] = 0  # fixed
            ends = [enthalpy(loop, problem, x + sign * 1e-4 * way) for sign in (1, -1)]
            assert all(complete for _, complete in ends)
            slope = float((ends[0][0].value - ends[1][0].value)[0]) / 2e-4
            np.testing.assert_allclose((gradient * way).sum(), slope, rtol=1e-6, atol=1e-6)


# The same minima as ASE's ------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("settings", "in_ase"),
    [
        ({"cell": "full"}, {}),
        ({"cell": "full", "pressure": 5.0}, {"scalar_pressure": 5 * GPA}),
        ({"cell": "hydrostatic"}, {"hydrostatic_strain": True}),
        ({"cell": "shape"}, {"constant_volume": True}),
        ({"cell": "full", "strain": ("xx", "yy", "xy")}, {"mask": [1, 1, 0, 0, 0, 1]}),
    ],
    ids=["full", "pressure", "hydrostatic", "shape", "mask"],
)
def test_a_relaxed_crystal_equals_ases(silicon_potential, optimizer, settings, in_ase):
    start = silicon()
    found = relax(
        silicon_potential,
        from_ase(start),
        RelaxationConfig(optimizer=optimizer, steps=3000, **TIGHT, **settings),
    )
    expected = by_ase(start, silicon_potential, cell=in_ase)
    assert found.converged
    assert found.max_force <= 1e-5
    assert found.max_stress <= 1e-5
    np.testing.assert_allclose(
        metric(found.structure.cell), metric(expected.cell), rtol=0, atol=5e-4
    )
    assert abs(found.energy - expected.get_potential_energy()) < 1e-6
    if settings["cell"] == "shape":
        np.testing.assert_allclose(found.structure.volume, start.get_volume(), rtol=1e-12, atol=0)
    if "strain" in settings:
        np.testing.assert_allclose(found.structure.cell[:, 2], start.cell[:, 2], rtol=0, atol=1e-12)
    if "pressure" in settings:
        np.testing.assert_allclose(found.stress, -5 * GPA * np.eye(3), rtol=0, atol=2e-5 * GPA)


@pytest.mark.parametrize("optimizer", [BFGS, LBFGS, FIRE])
def test_a_relaxed_cluster_equals_ases(silicon_potential, optimizer):
    start = cluster()
    found = relax(silicon_potential, from_ase(start), RelaxationConfig(max_force=1e-5))
    assert found.converged
    assert found.stress is None
    assert found.max_stress is None
    expected = by_ase(start, silicon_potential, optimizer, fmax=1e-4)
    np.testing.assert_allclose(
        np.sort(pdist(found.structure.positions)),
        np.sort(pdist(expected.positions)),
        rtol=0,
        atol=5e-3,
    )
    assert abs(found.energy - expected.get_potential_energy()) < 1e-5


def test_a_slab_relaxes_within_its_plane(silicon_potential):
    start = slab()
    config = RelaxationConfig(cell="full", strain=("xx", "yy", "xy"), steps=3000, **TIGHT)
    found = relax(silicon_potential, from_ase(start), config)
    expected = by_ase(start, silicon_potential, cell={"mask": [1, 1, 0, 0, 0, 1]})
    assert found.converged
    assert abs(found.energy - expected.get_potential_energy()) < 1e-6
    np.testing.assert_allclose(found.structure.cell[2], start.cell[2], rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        metric(found.structure.cell), metric(expected.cell), rtol=0, atol=5e-4
    )


def test_a_crystal_without_forces_relaxes_to_the_volume_of_lowest_energy(silicon_potential):
    """Where symmetry leaves no forces, stress alone tells that there is a way to go."""
    start = from_ase(bulk("Si", a=5.7))
    found = relax(silicon_potential, start, RelaxationConfig(cell="hydrostatic", max_stress=1e-3))
    assert found.converged
    assert found.max_stress <= 1e-3
    constants = np.linspace(-0.02, 0.02, 9) + np.cbrt(4 * found.structure.volume)
    crystals = [from_ase(bulk("Si", a=a)) for a in constants]
    energies = [prediction.energy for prediction in silicon_potential.predict(crystals)]
    fit = np.polynomial.Polynomial.fit(constants, energies, 4).deriv()
    lowest = [root.real for root in fit.roots() if abs(root - constants[4]) < 0.02]
    np.testing.assert_allclose(lowest, constants[4], rtol=0, atol=1e-4)


def test_lbfgs_never_goes_uphill(silicon_potential, tmp_path):
    start = silicon()
    start.rattle(0.3, seed=5)
    path = tmp_path / "steps.xyz"
    config = RelaxationConfig(cell="full", max_force=1e-3)
    found = relax(silicon_potential, from_ase(start), config, trajectory=path)
    frames = ase.io.read(path, ":")
    assert [frame.info["steps"] for frame in frames] == list(range(found.steps + 1))
    energies = np.array([frame.get_potential_energy() for frame in frames])
    assert found.converged
    assert (np.diff(energies) < 1e-7).all()
    for frame in frames[:: len(frames) // 4]:
        assert abs(frame.get_potential_energy() - silicon_potential(from_ase(frame)).energy) < 1e-5


def test_the_networks_own_precision_suffices(silicon_potential):
    config = RelaxationConfig(cell="full", dtype="float32")
    found = relax(silicon_potential, from_ase(silicon()), config)
    exact = relax(silicon_potential, from_ase(silicon()), replace(config, dtype="float64"))
    assert found.converged
    assert abs(found.energy - exact.energy) < 1e-3


@pytest.mark.versions
@pytest.mark.parametrize("limit", [{"max_force": 2e-5}, {"cell": "full", "max_stress": 2e-4}])
def test_limits_beyond_float32_are_reached_in_float64_and_it_says_so(silicon_potential, limit):
    single, start = silicon_potential.with_dtype("float32"), from_ase(silicon())
    name, value = limit.copy().popitem()
    words = f"computing in float64, since float32 does not resolve {name} = {value:g}"
    with pytest.warns(UserWarning, match=re.escape(words)):
        found = relax(single, start, RelaxationConfig(**limit))
    exact = relax(silicon_potential, start, RelaxationConfig(**limit))
    assert found.converged
    np.testing.assert_array_equal(found.structure.positions, exact.structure.positions)


def test_float32_that_was_asked_for_stays_and_names_the_remedy(silicon_potential):
    config = RelaxationConfig(max_force=1e-9, dtype="float32", steps=60)
    with pytest.warns(UserWarning, match="not converged"):
        found = relax(silicon_potential, from_ase(silicon()), config)
    assert not found.converged
    assert "float32 does not resolve max_force = 1e-09 eV/Å, choose --dtype float64" in found.reason


# Batches -----------------------------------------------------------------------------------------


ALONE = (1, 4, 7, 10)


@pytest.fixture(scope="module")
def a_dozen(silicon_potential):
    """Six cells of eight atoms and six of two, and results of some of them, each alone."""
    atoms = [silicon(seed) for seed in range(1, 7)]
    for index in range(6):
        atoms.append(bulk("Si", a=5.3 + 0.05 * index))
        atoms[-1].rattle(0.05, seed=index)
    structures = [from_ase(a, name=f"number {n}") for n, a in enumerate(atoms)]
    config = RelaxationConfig(cell="full")
    return structures, [relax(silicon_potential, structures[i], config) for i in ALONE]


def seat(monkeypatch, potential, structures, count):
    """Let so many structures relax side by side."""
    width = plan(structures, potential.cutoff + RelaxationConfig().skin)[1].neighbors
    slots = count * width * max(map(len, structures))
    monkeypatch.setattr(relaxation, "SEATED_SLOTS", {"cpu": slots, "gpu": slots})


@pytest.mark.parametrize("seats", [12, 3])
def test_a_batch_equals_each_alone(silicon_potential, a_dozen, monkeypatch, seats):
    """Side by side or a few at a time, in whatever order they end."""
    structures, alone = a_dozen
    seat(monkeypatch, silicon_potential, structures, seats)
    together = relax(silicon_potential, structures, RelaxationConfig(cell="full"))
    assert len({result.steps for result in together}) > 3
    for structure, result in zip(structures, together):
        assert result.converged
        assert result.structure.name == structure.name
        own = silicon_potential(result.structure)
        np.testing.assert_allclose(result.energy, own.energy, rtol=0, atol=1e-6)
        np.testing.assert_allclose(result.forces, own.forces, rtol=0, atol=1e-6)
        np.testing.assert_allclose(result.stress, own.stress, rtol=0, atol=1e-7)
    for index, one in zip(ALONE, alone):
        other = together[index]
        assert other.steps == one.steps
        np.testing.assert_allclose(other.energy, one.energy, rtol=0, atol=1e-8)
        for name in ("positions", "cell"):
            ours, its = (getattr(result.structure, name) for result in (one, other))
            np.testing.assert_allclose(ours, its, rtol=0, atol=1e-6)


def test_fire_finds_the_same_minima_for_a_batch(silicon_potential, a_dozen, monkeypatch):
    structures, alone = a_dozen
    seat(monkeypatch, silicon_potential, structures, 8)
    config = RelaxationConfig(cell="full", optimizer="fire")
    together = relax(silicon_potential, structures, config)
    assert all(result.converged for result in together)
    for index, one in zip(ALONE, alone):
        assert abs(together[index].energy - one.energy) < 1e-3


def test_molecules_and_crystals_relax_in_one_call(silicon_potential):
    """Of different sizes, with and without a cell, each to its own minimum."""
    structures = [from_ase(silicon()), from_ase(cluster()), from_ase(slab())]
    structures.append(Structure([14], [[1.0, 2.0, 3.0]], np.zeros((3, 3)), [False] * 3))
    together = relax(silicon_potential, structures, RelaxationConfig(max_force=1e-4))
    assert all(result.converged for result in together)
    for structure, result in zip(structures, together):
        own = silicon_potential(result.structure)
        assert np.abs(own.forces).max() < 1e-4
        np.testing.assert_allclose(result.energy, own.energy, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(result.structure.cell, structure.cell)
        if own.stress is None:
            assert result.stress is None
            continue
        np.testing.assert_allclose(result.stress, own.stress, rtol=0, atol=1e-7)
        assert np.abs(own.stress).max() > 1e-3
    alone = relax(silicon_potential, structures[1], RelaxationConfig(max_force=1e-4))
    np.testing.assert_allclose(together[1].energy, alone.energy, rtol=0, atol=1e-8)
    assert together[1].steps == alone.steps
    assert together[3].steps == 0
    np.testing.assert_array_equal(together[3].structure.positions, structures[3].positions)


def test_many_small_structures_have_a_program_of_their_own():
    assert relaxation.by_size([8, 2, 8, 3]) == [[0, 2, 3, 1]]
    sizes = [200] + 50 * [10]
    assert relaxation.by_size(sizes) == [[0], list(range(1, 51))]
    assert sum(map(len, relaxation.by_size([512, 300, 9, 9, *range(1, 99)]))) == 102


# What is held ------------------------------------------------------------------------------------


def test_fixed_atoms_stay(silicon_potential, tmp_path):
    """Given in the file or as a setting; in a cell that relaxes they keep their place in it."""
    atoms = silicon()
    atoms.set_constraint(FixAtoms([0, 5]))
    ase.io.write(tmp_path / "start.xyz", atoms, columns=["symbols", "positions", "move_mask"])
    (start,) = read_starts(tmp_path / "start.xyz")
    out = tmp_path / "relaxed.xyz"
    found = relax(silicon_potential, [start], RelaxationConfig(max_force=1e-4, fixed=(3,)), out)[0]
    moved = np.abs(found.structure.positions - start.structure.positions).max(axis=1)
    assert not moved[[0, 3, 5]].any()
    assert (moved[[1, 2, 4, 6, 7]] > 1e-3).all()
    assert np.linalg.norm(found.forces, axis=1)[[0, 3, 5]].min() > 1e-3
    (constraint,) = ase.io.read(out).constraints
    assert constraint.index.tolist() == [0, 3, 5]
    np.testing.assert_allclose(
        ase.io.read(out).get_forces(apply_constraint=False), found.forces, rtol=0, atol=1e-7
    )

    config = RelaxationConfig(cell="full", steps=3000, **TIGHT)
    found = relax(silicon_potential, [start], config)[0]
    before, after = (
        s.positions @ np.linalg.inv(s.cell) for s in (start.structure, found.structure)
    )
    np.testing.assert_allclose(after[[0, 5]], before[[0, 5]], rtol=0, atol=1e-12)
    expected = by_ase(atoms, silicon_potential, cell={})
    assert abs(found.energy - expected.get_potential_energy()) < 1e-6


def test_a_cell_that_collapses_to_a_third_keeps_all_its_neighbours(silicon_potential, tmp_path):
    """Bins and tables that were planned for the start overflow again and again."""
    start = from_ase(bulk("Si", a=7.4))
    other = from_ase(silicon(), name="other")
    config = RelaxationConfig(cell="full", pressure=25.0, max_force=1e-3, max_stress=0.01)
    found, beside = relax(
        silicon_potential, [start, other], config, trajectory=tmp_path / "steps.xyz"
    )
    assert found.converged
    assert beside.converged
    assert found.structure.volume < start.volume / 2.5
    counts = [(np.asarray(plan([s], 5.0)[1].neighbors)).item() for s in (start, found.structure)]
    assert counts[1] > 2 * counts[0]
    for index in (0, 1):
        frames = ase.io.read(tmp_path / f"steps_{index:03d}.xyz", ":")
        for frame, own in zip(frames, silicon_potential.predict(list(map(from_ase, frames)))):
            assert abs(frame.get_potential_energy() - own.energy) < 1e-5
            np.testing.assert_allclose(frame.get_forces(), own.forces, rtol=0, atol=1e-5)


# What is said ------------------------------------------------------------------------------------


def test_what_has_not_converged_says_so(silicon_potential):
    config = RelaxationConfig(cell="full", steps=3)
    with pytest.warns(UserWarning, match="1 of 1 structures have not converged"):
        found = relax(silicon_potential, from_ase(silicon()), config)
    assert not found.converged
    assert found.steps == 3
    assert "not converged after 3 steps: forces up to" in found.reason
    assert "where max_stress is 0.05" in found.reason
    assert found.max_force > config.max_force


def test_a_structure_that_cannot_go_on_is_stopped_alone(silicon_potential):
    squeezed = silicon()
    squeezed.positions[1] = squeezed.positions[0] + [0.3, 0, 0]
    structures = [from_ase(squeezed, "squeezed"), from_ase(silicon(), "good")]
    with pytest.warns(UserWarning, match="1 of 2 structures have not converged"):
        stopped, good = relax(silicon_potential, structures)
    assert "two atoms are 0.300 Å apart, closer than min_distance = 0.4 Å" in stopped.reason
    assert np.isfinite(stopped.energy)
    assert good.converged


def test_numbers_that_are_not_finite_stop_a_structure(silicon_potential, tmp_path):
    broken = replace(silicon_potential, scale=np.array([1e300]), dtype="float32")
    out = tmp_path / "relaxed.xyz"
    with pytest.warns(UserWarning, match="not converged"):
        found = relax(broken, from_ase(silicon()), out=out)
    assert "no longer finite" in found.reason
    assert np.isnan(found.energy)
    assert np.isnan(found.forces).all()
    assert ase.io.read(out).calc is None


def test_an_energy_far_above_the_start_stops_a_structure(silicon_potential):
    """A thousand times as stiff, atoms are far beyond the minimum after FIRE's first step."""
    stiff = replace(silicon_potential, scale=1000 * silicon_potential.scale)
    lowest = to_ase(relax(silicon_potential, from_ase(silicon())).structure)
    lowest.rattle(1e-3, seed=1)
    with pytest.warns(UserWarning, match="not converged"):
        found = relax(stiff, from_ase(lowest), RelaxationConfig(optimizer="fire"))
    assert found.steps < 5
    first = stiff(from_ase(lowest)).energy
    rise = (found.energy - first) / len(lowest)
    assert f"energy is {rise:.4g} eV per atom above the start, more than max_" in found.reason


def test_a_cell_that_is_torn_apart_is_stopped_alone(silicon_potential):
    """No crystal of silicon bears −50 GPa: its cell would go on for ever."""
    structures = [from_ase(bulk("Si", a=a), f"a = {a}") for a in (5.4, 5.5)]
    config = RelaxationConfig(cell="hydrostatic", pressure=-50.0)
    with pytest.warns(UserWarning, match="2 of 2 structures have not converged"):
        found = relax(silicon_potential, structures, config)
    for start, result in zip(structures, found):
        stretch = np.cbrt(result.structure.volume / start.volume)
        assert np.exp(2) < stretch < np.exp(2.2)
        assert f"the cell has stretched {stretch:.3g} times, and would go on" in result.reason
        assert "the pressure of -50 GPa is beyond what the structure bears" in result.reason


def test_a_cell_that_collapses_says_how_far(silicon_potential):
    """In one step, to a cell of less than 1 Å with eight atoms."""
    config = RelaxationConfig(cell="hydrostatic", pressure=1e6, max_step=20.0)
    with pytest.warns(UserWarning, match="1 of 1 structures have not converged"):
        found = relax(silicon_potential, from_ase(silicon()), config)
    assert "stopped at step 0: the cell or its atoms have collapsed; structure: " in found.reason
    assert re.search(r"8 atoms in a cell of \[0\.\d.* too many images within 5.00 Å", found.reason)


def test_the_systems_without_room_are_told_apart():
    atoms = [silicon(), silicon(2), silicon(3)]
    atoms[1].positions[1] = atoms[1].positions[0] + [1e-4, 0, 0]
    structures = [from_ase(a, f"number {n}") for n, a in enumerate(atoms)]
    positions, cells = (
        np.array([getattr(s, f) for s in structures]) for f in ("positions", "cell")
    )
    needed = np.array([[30, 8, 20], [30, 8, 20], [900, 8, 20]])
    ask = functools.partial(
        setup.without_room, structures, positions, cells, needed=needed, cutoff=4.5, skin=0.5
    )
    (index, text), *others = ask(going=np.array([True] * 3)).items()
    assert (index, others) == (1, [])
    assert text.startswith("number 1: atoms 0 and 1 are 0.0001 Å apart")
    assert ask(going=np.array([True, False, True])) == {2: "an atom would have 900 neighbours"}
    assert ask(going=np.array([True, False, False])) == {0: "an atom would have 30 neighbours"}


def test_an_interrupt_keeps_what_there_is(silicon_potential, tmp_path, monkeypatch):
    monkeypatch.setattr(relaxation, "SEATED_SLOTS", {"cpu": 1, "gpu": 1})

    class Impatient:
        def line(self, text):
            pass

        def update(self, done, of, force):
            if done == 1:
                os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "relaxed.xyz"
    structures = [from_ase(silicon(seed), f"seed {seed}") for seed in (1, 2, 3)]
    with pytest.raises(Stop, match="SIGINT"):
        relax(silicon_potential, structures, out=out, show=Impatient())
    frames = ase.io.read(out, ":")
    assert frames[0].info["converged"]
    assert all("interrupted by SIGINT" in frame.info["reason"] for frame in frames[1:])


# Wrong input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "bfgs"}, "optimizer is 'bfgs'; choose one of fire, lbfgs"),
        ({"cell": "all"}, "cell is 'all'; choose one of fixed, full, hydrostatic, shape"),
        ({"max_force": -0.1}, "max_force is -0.1; it must be positive"),
        ({"max_stress": 0.0}, "max_stress is 0.0; it must be positive"),
        ({"steps": 0}, "steps is 0; it must be positive"),
        ({"max_step": float("nan")}, "max_step is nan; it must be positive"),
        ({"pressure": float("inf"), "cell": "full"}, "pressure is inf; give a finite number"),
        ({"pressure": 1.0}, "act on a cell that relaxes; choose a cell of full, hydrostatic"),
        ({"cell": "full", "strain": ("xz", "zx")}, "strain holds 'zx'; choose from xx yy zz"),
        ({"cell": "hydrostatic", "strain": ("yz",)}, "strains yz leave nothing of a hydrostatic"),
        ({"cell": "shape", "strain": ("xx",)}, "strains xx leave nothing of a shape relaxation"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RelaxationConfig(**settings)


def test_structures_that_cannot_be_relaxed_are_refused(silicon_potential):
    full, atoms = RelaxationConfig(cell="full"), silicon()
    sulphur, twice = atoms.copy(), atoms.copy()
    sulphur.numbers[0] = 16
    twice.positions[1] = twice.positions[0]
    for structures, config, message in (
        ([], full, "there are no structures to relax"),
        (from_ase(cluster(), "cluster"), full, "cluster has no periodic cell with a volume"),
        (from_ase(slab(), "slab"), full, "slab is not periodic along all axes.*--strain xx yy xy"),
        (from_ase(sulphur, "file#3"), full, "file#3 holds S, which this potential was not trained"),
        (from_ase(twice, "twice"), full, "twice: atoms 0 and 1 are .* Å apart"),
        (from_ase(atoms, "a"), RelaxationConfig(fixed=(8,)), "a has no atom 8 to be fixed"),
        (
            [Start(from_ase(atoms, "a"), fixed=np.ones(8, bool))],
            RelaxationConfig(),
            "a: all atoms are fixed; leave one free",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            relax(silicon_potential, structures, config)


def test_files_are_checked_before_anything_is_computed(silicon_potential, tmp_path):
    structure = from_ase(silicon())
    (tmp_path / "there.xyz").write_text("precious")
    (tmp_path / "folder.xyz").mkdir()
    for name, error, message in (
        ("there.xyz", FileExistsError, "there.xyz exists; give another name, or --overwrite"),
        ("there.xyz/relaxed.xyz", OSError, "there.xyz"),
        ("relaxed.cif", ValueError, "is to be an extended XYZ file"),
        ("folder.xyz", ValueError, "is to be an extended XYZ file"),
    ):
        for setting in ("out", "trajectory"):
            with pytest.raises(error, match=message):
                relax(silicon_potential, structure, **{setting: tmp_path / name})
    for again in ("one.xyz", "folder.xyz/../one.xyz"):
        with pytest.raises(ValueError, match="one.xyz is to hold both results and steps"):
            relax(silicon_potential, structure, None, tmp_path / "one.xyz", tmp_path / again)
    twice = Structure([14, 14], [[0, 0, 0], [0, 0, 1e-4]], np.zeros((3, 3)), [False] * 3)
    steps = {"trajectory": tmp_path / "steps.xyz", "overwrite": True}
    (tmp_path / "steps_000.xyz").write_text("precious")
    with pytest.raises(ValueError, match="are 0.0001 Å apart"):
        relax(silicon_potential, [structure, twice], **steps)
    assert (tmp_path / "steps_000.xyz").read_text() == "precious"
    assert (tmp_path / "there.xyz").read_text() == "precious"
    relax(silicon_potential, structure, out=tmp_path / "there.xyz", overwrite=True)
    assert len(ase.io.read(tmp_path / "there.xyz")) == 8


# The command line --------------------------------------------------------------------------------


def command(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "mlip.cli", "relax", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "150", "PYTHONPATH": str(ROOT)},
        timeout=600,
    )


def test_mlip_relax_writes_structures_and_tells_what_has_not_converged(silicon_potential, tmp_path):
    save_model(silicon_potential, tmp_path / "model.safetensors")
    ase.io.write(tmp_path / "start.xyz", [silicon(1), silicon(2)])
    ase.io.write(tmp_path / "cluster.xyz", cluster())
    options = "--cell full --pressure 2 --max-force 0.02 --max-stress 0.1 --optimizer lbfgs".split()
    arguments = ("model.safetensors", "start.xyz", *options, "--trajectory", "steps.xyz")
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "largest stress" in done.stdout
    assert "start.xyz#1" in done.stdout
    assert "wrote relaxed.xyz" in done.stdout
    frames = ase.io.read(tmp_path / "relaxed.xyz", ":")
    for frame in frames:
        assert frame.info["converged"]
        assert np.linalg.norm(frame.get_forces(), axis=1).max() <= 0.02
        pressure = frame.get_stress(voigt=False) / GPA + 2 * np.eye(3)
        assert np.abs(pressure).max() <= 0.1
        assert frame.info["max_stress_GPa"] <= 0.1
    assert len(ase.io.read(tmp_path / "steps_001.xyz", ":")) == frames[1].info["steps"] + 1

    again = command("model.safetensors", "start.xyz", cwd=tmp_path)
    assert again.returncode == 2
    assert "relaxed.xyz exists; give another name, or --overwrite" in again.stderr

    short = ("start.xyz", "cluster.xyz", "--steps", "2", "--overwrite")
    done = command("model.safetensors", *short, cwd=tmp_path)
    assert done.returncode == 3
    assert "cluster.xyz#0: not converged after 2 steps" in done.stdout
    assert "3 of 3 structures have not converged" in done.stdout
    assert "Traceback" not in done.stderr
    assert not any(frame.info["converged"] for frame in ase.io.read(tmp_path / "relaxed.xyz", ":"))
