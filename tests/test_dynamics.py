"""Molecular dynamics follows the trajectories of other codes, and loses no pair on its way."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import units
from ase.data import atomic_masses
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT, NoseHooverChainNVT
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from conftest import make_structure
from pairs import argon, crystal

from mlip.data.structure import to_ase
from mlip.engines.ase import Calculator
from mlip.engines.jaxmd import energy_fn, neighbor_fn
from mlip.simulation.dynamics import DynamicsConfig, Start, run
from mlip.simulation.integrators import YOSHIDA
from mlip.units import GPA

KT = 40 * units.kB


def thermal(structure, temperature=40.0, at_rest=False):
    atoms = to_ase(structure)
    thermalize_momenta(atoms, temperature_K=temperature, rng=np.random.default_rng(0))
    if at_rest:
        atoms.set_momenta(atoms.get_momenta() - atoms.get_momenta().mean(axis=0))
    return atoms


def settings(ensemble, **changes):
    """100 steps of 2 fs, and frames at both ends; ASE counts the centre of mass too."""
    usual = {
        "timestep": 2.0,
        "steps": 100,
        "save_every": 100,
        "temperature": (40.0,),
        "rest_centre": False,
    }
    return DynamicsConfig(ensemble=ensemble, **usual | changes)


def same_end(trajectory, atoms, atol):
    last = trajectory.frames[-1]
    np.testing.assert_allclose(last.positions, atoms.positions, rtol=0, atol=atol)
    np.testing.assert_allclose(last.cell, atoms.cell.array, rtol=0, atol=atol)
    velocities = atoms.get_velocities() * units.fs
    np.testing.assert_allclose(last.velocities, velocities, rtol=0, atol=atol)
    np.testing.assert_allclose(last.energy, atoms.get_potential_energy(), rtol=0, atol=atol)


def test_a_folded_network_follows_ase(small_potential):
    structure = make_structure("crystal")
    atoms = thermal(structure, 300)
    velocities = atoms.get_velocities() * units.fs
    config = settings("nve", timestep=0.25, temperature=(300.0,))
    trajectory = run(small_potential, structure, config, velocities)
    atoms.calc = Calculator(small_potential)
    VelocityVerlet(atoms, 0.25 * units.fs).run(100)
    same_end(trajectory, atoms, 1e-9)


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "isotropic", "full"])
def test_ase_gives_the_same_trajectory(ensemble):
    structure = crystal(skew=1.0)
    atoms = thermal(structure)
    velocities = atoms.get_velocities() * units.fs
    timestep, chain = 2 * units.fs, {"temperature_K": 40, "tdamp": 50 * units.fs}
    press = {"pressure_au": 0.1 * GPA, "pdamp": 200 * units.fs}
    config = settings("nve")
    atoms.calc = Calculator(argon(), folded=False)
    if ensemble == "nve":
        dynamics = VelocityVerlet(atoms, timestep)
    else:
        common = {"thermostat": "nose-hoover", "thermostat_time": 50.0, "barostat_time": 200.0}
        config = settings("nvt", **common)
        dynamics = NoseHooverChainNVT(atoms, timestep, **chain) if ensemble == "nvt" else None
    if ensemble in ("isotropic", "full"):
        config = settings("npt", cell_motion=ensemble, pressure=0.1, **common)
        make = {"isotropic": IsotropicMTKNPT, "full": MTKNPT}[ensemble]
        dynamics = make(atoms, timestep, **chain, **press)
        # A symmetric strain has six degrees of freedom, its isotropic part one; ASE's chain on
        # the cell counts nine.
        freedom = {"isotropic": 1, "full": 6}[ensemble]
        dynamics._barostat._R[0] *= freedom / 9
        dynamics._barostat._cell_dof = freedom
    trajectory = run(argon(), structure, config, velocities, folded=False)
    dynamics.run(100)
    same_end(trajectory, atoms, 1e-9)
    if ensemble != "nve":
        ours = trajectory.column("conserved_eV")[-1]
        np.testing.assert_allclose(ours, dynamics.get_conserved_energy(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt"])
def test_jax_md_gives_the_same_trajectory(ensemble, monkeypatch):
    from jax_md import simulate, space

    # Its own weights for three sub-steps are not Yoshida's: their cubes do not add up to zero.
    monkeypatch.setitem(simulate.SUZUKI_YOSHIDA_WEIGHTS, 3, list(YOSHIDA))

    potential, structure = argon(), crystal()
    atoms = thermal(structure, at_rest=True)
    velocities = atoms.get_velocities() * units.fs
    # jax-md rounds times to float32.
    timestep, slow = (float(np.float32(t * units.fs)) for t in (2.0, 200.0))
    mass = atomic_masses[structure.numbers]
    config = settings(
        ensemble,
        timestep=timestep / units.fs,
        thermostat="nose-hoover",
        thermostat_time=slow / units.fs,
        barostat_time=slow / units.fs,
    )
    ours = run(potential, structure, config, velocities, folded=False)
    with jax.enable_x64(True):
        fractional = ensemble == "npt"
        box = jnp.asarray(structure.cell.T)
        energy = energy_fn(potential, structure, folded=False)
        neighbors = neighbor_fn(potential, structure, fractional, skin=0.5)
        start = jnp.asarray(structure.positions)
        start = start @ jnp.linalg.inv(box.T) if fractional else start
        chain = {"chain_length": 3, "chain_steps": 1, "sy_steps": 3, "tau": slow}
        if ensemble == "nve":
            begin, apply = simulate.nve(energy, lambda r, dr, **_: r + dr, timestep)
        elif ensemble == "nvt":
            begin, apply = simulate.nvt_nose_hoover(
                energy, lambda r, dr, **_: r + dr, timestep, KT, **chain
            )
        else:
            _, shift = space.periodic_general(box, fractional_coordinates=True)
            begin, apply = simulate.npt_nose_hoover(energy, shift, timestep, 0.0, KT, chain, chain)
        table = neighbors.allocate(start, box=box if fractional else None)
        momenta = jnp.asarray(atoms.get_momenta())
        extra = {"box": box} if fractional else {}
        key = jax.random.PRNGKey(0)
        if ensemble == "nve":
            extra["kT"] = KT
        state = begin(key, start, mass=jnp.asarray(mass), neighbor=table, **extra)
        state = state.set(momentum=momenta)
        state = redo_kinetic(state, ensemble, mass)

        @jax.jit
        def step(state, table):
            state = apply(state, neighbor=table)
            box = {"box": simulate.npt_box(state)} if fractional else {}
            return state, table.update(state.position, **box)

        for _ in range(100):
            state, table = step(state, table)
        assert not table.did_buffer_overflow
        theirs, cell = np.asarray(state.position), structure.cell
        if fractional:
            cell = np.asarray(simulate.npt_box(state)).T
            theirs = theirs @ cell
    last = ours.frames[-1]
    apart = (last.positions - theirs) @ np.linalg.inv(cell)
    # At constant pressure jax-md drifts fractional positions by R (exp(x) - 1) Å as if they were
    # Cartesian, about 1e-3 of the box in 100 steps.
    atol = 5e-3 if fractional else 1e-7
    np.testing.assert_allclose(apart - np.round(apart), 0, rtol=0, atol=atol)
    np.testing.assert_allclose(last.cell, cell, rtol=0, atol=atol)


def test_jax_md_finds_our_forces_and_stress(small_potential):
    from jax_md import quantity

    structure = make_structure("crystal")
    turn, box = np.linalg.qr(structure.cell.T)  # upper triangular, as jax-md wants it
    structure = replace(structure, positions=structure.positions @ turn, cell=box.T)
    expected = small_potential(structure)
    with jax.enable_x64(True):
        energy = energy_fn(small_potential, structure)
        neighbors = neighbor_fn(small_potential, structure, fractional_coordinates=True)
        places = jnp.asarray(structure.positions @ np.linalg.inv(structure.cell))
        table = neighbors.allocate(places, box=jnp.asarray(box))
        given = {"box": jnp.asarray(box), "neighbor": table}
        forces = quantity.force(energy)(places, **given)
        stress = quantity.stress(energy, places, **given)
    np.testing.assert_allclose(forces, expected.forces, rtol=0, atol=1e-9)
    np.testing.assert_allclose(stress, -expected.stress, rtol=0, atol=1e-10)


def redo_kinetic(state, ensemble, mass):
    """A jax-md state whose thermostat knows of momenta that were set from outside."""
    if ensemble == "nve":
        return state
    kinetic = (state.momentum**2 / mass[:, None]).sum() / 2
    name = "chain" if ensemble == "nvt" else "thermostat"
    return state.set(**{name: getattr(state, name).set(kinetic_energy=kinetic)})


def test_jax_md_neighbours_that_no_longer_hold_give_no_number():
    potential, structure = argon(), crystal()
    with jax.enable_x64(True):
        energy = energy_fn(potential, structure, folded=False)
        neighbors = neighbor_fn(potential, structure, skin=0.5)
        table = neighbors.allocate(jnp.asarray(structure.positions))
        moved = jnp.asarray(structure.positions).at[0].add(0.6)
        assert jnp.isnan(energy(moved, table))
        assert jnp.isnan(jax.grad(energy)(moved, table)).all()
        expected = potential(replace(structure, positions=np.asarray(moved))).energy
        found = energy(moved, neighbors.update(moved, table)) + potential.baseline(structure)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_the_energy_error_falls_with_the_square_of_the_time_step():
    structure, deviations = crystal(rattle=0.0), []
    velocities = thermal(structure).get_velocities() * units.fs
    for divisor in (1, 2):
        config = settings("nve", timestep=4 / divisor, steps=200 * divisor, log_every=divisor)
        total = run(argon(), structure, config, velocities, folded=False).column("conserved_eV")
        deviations.append(np.abs(total - total[0]).max())
    assert 3.5 < deviations[0] / deviations[1] < 4.5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_sum_of_momenta_stays_zero(dtype):
    """Forces cancel to float64 even where the network computes in float32."""
    config = settings("nve", rest_centre=True)
    last = run(argon(dtype=dtype), crystal(), config, folded=False).frames[-1]
    np.testing.assert_allclose(last.velocities.mean(axis=0), 0, rtol=0, atol=1e-15)


def test_a_cell_that_shrinks_through_the_cutoff_loses_no_pair():
    """Under 20 GPa a cell of 4 atoms becomes smaller than the cutoff, with ever more images."""
    config = settings(
        "npt",
        cell_motion="full",
        pressure=20.0,
        timestep=0.5,
        steps=2000,
        save_every=100,
        barostat_time=500.0,
        thermostat_time=20.0,
        max_temperature=1e5,
    )
    start = crystal(1, lattice=6.2)
    trajectory = run(argon(), start, config, folded=False)
    assert not trajectory.stopped
    heights = [1 / np.linalg.norm(np.linalg.inv(f.cell), axis=0).max() for f in trajectory.frames]
    assert heights[0] > 5.5 > 4.3 > min(heights)
    for frame in trajectory.frames:
        here = replace(start, positions=frame.positions, cell=frame.cell)
        expected = argon()(here)
        np.testing.assert_allclose(frame.energy, expected.energy, rtol=0, atol=1e-9)
        np.testing.assert_allclose(frame.forces, expected.forces, rtol=0, atol=1e-9)
        np.testing.assert_allclose(frame.stress, expected.stress, rtol=0, atol=1e-10)
    # It sheds the work of the pressure, about 20 eV, to the thermostat.
    assert np.ptp(trajectory.column("conserved_eV")) < 0.2


def test_tables_that_overflow_are_grown_and_the_trajectory_stays():
    """A loose cluster collapses, so that neighbours and seats run out again and again."""
    start = crystal(2, lattice=9.0, rattle=0.3)
    start = replace(start, pbc=[False] * 3, cell=np.zeros((3, 3)))
    pull = -start.positions + start.positions.mean(axis=0)
    velocities = 0.004 * pull
    config = settings("nve", timestep=4.0, steps=300, save_every=100, max_temperature=1e5)
    config = replace(config, min_distance=0.0, max_energy=1e3)
    trajectory = run(argon(), start, config, velocities, folded=False)
    atoms = to_ase(start)
    atoms.set_velocities(velocities / units.fs)
    atoms.calc = Calculator(argon(), folded=False, skin=0)
    VelocityVerlet(atoms, 4 * units.fs).run(300)
    same_end(trajectory, atoms, 1e-7)


def test_systems_side_by_side_are_as_each_alone():
    starts = [crystal(2), crystal(1, skew=1.0), crystal(2, lattice=5.6, seed=3)]
    cluster = replace(crystal(1), pbc=[False] * 3, cell=np.zeros((3, 3)))
    velocities = [thermal(s).get_velocities() * units.fs for s in [*starts, cluster]]
    all_starts = [Start(s, v) for s, v in zip([*starts, cluster], velocities)]
    config = settings("nve", temperature=(40.0, 20.0, 10.0, 40.0))
    together = run(argon(), all_starts, config, folded=False)
    for trajectory, start in zip(together, all_starts):
        alone = run(
            argon(), start.structure, settings("nve"), start.velocities, folded=False
        ).frames[-1]
        last = trajectory.frames[-1]
        np.testing.assert_allclose(last.positions, alone.positions, rtol=0, atol=1e-10)
        np.testing.assert_allclose(last.energy, alone.energy, rtol=0, atol=1e-10)


def test_one_system_that_explodes_is_stopped_alone():
    good, bad = crystal(2), crystal(2)
    fast = np.zeros((32, 3))
    fast[0] = 0.08  # Å/fs, into its neighbours
    config = settings("nve", steps=200, max_force=3.0, temperature=(40.0, 40.0))
    calm, hit = run(argon(), [Start(good), Start(bad, fast)], config, folded=False)
    assert not calm.stopped
    assert "max_force = 3 eV/Å" in hit.stopped
    assert calm.frames[-1].step == 200 > hit.frames[-1].step
    assert np.linalg.norm(hit.frames[-1].forces, axis=1).max() > 3.0
    assert hit.column("step").max() <= hit.frames[-1].step


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("max_temperature", 45.0, "temperature of .* is above max_temperature = 45 K"),
        ("max_energy", 1e-5, "potential energy is .* above the start"),
        ("min_distance", 3.55, "Å apart, closer than min_distance = 3.55 Å"),
    ],
)
def test_limits_stop_a_system_and_keep_its_frame(limit, value, words):
    config = settings("nvt", temperature=(80.0,), steps=1000, thermostat_time=20.0)
    cold = np.zeros((32, 3))
    trajectory = run(argon(), crystal(2), replace(config, **{limit: value}), cold, folded=False)
    assert trajectory.stopped.startswith("stopped at step")
    assert pytest.approx(trajectory.frames[-1].step) != 1000
    import re

    assert re.search(words, trajectory.stopped), trajectory.stopped


def test_fixed_atoms_stay_and_the_others_have_their_temperature():
    config = settings("nvt", temperature=(60.0,), steps=3000, fixed=(0, 5), thermostat_time=50.0)
    start = crystal(2)
    trajectory = run(argon(), start, replace(config, save_every=500), folded=False)
    for frame in trajectory.frames:
        np.testing.assert_array_equal(frame.positions[[0, 5]], start.positions[[0, 5]])
    moved = np.abs(trajectory.frames[-1].positions - start.positions).max(axis=1)
    assert (np.delete(moved, [0, 5]) > 0).all()
    mean = trajectory.column("temperature_K")[50:].mean()
    assert 48 < mean < 72


def test_a_ramp_takes_the_temperature_along():
    config = settings("nvt", temperature=(20.0,), temperature_end=(120.0,), steps=4000)
    config = replace(config, thermostat_time=20.0, thermostat="csvr")
    trajectory = run(argon(), crystal(2), config, folded=False)
    temperature = trajectory.column("temperature_K")
    wanted = np.linspace(20, 120, len(temperature))
    for found, expected in zip(np.array_split(temperature, 4), np.array_split(wanted, 4)):
        assert abs(found.mean() / expected.mean() - 1) < 0.2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"timestep": -1.0}, "timestep is -1.0; it must be positive"),
        ({"steps": 0}, "steps is 0; it must be positive"),
        ({"skin": float("nan")}, "skin is nan"),
        ({"temperature": (-5.0,)}, "temperature is -5.0 K"),
        ({"ensemble": "npr"}, "choose one of nve, nvt, npt"),
        ({"thermostat": "bath"}, "choose one of langevin, nose-hoover, csvr"),
        ({"pressure": float("inf")}, "pressure is inf"),
        ({"cell_axes": "xq"}, "cell_axes is 'xq'"),
    ],
)
def test_settings_out_of_range_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        DynamicsConfig(**changes)


@pytest.mark.parametrize(
    ("start", "changes", "words"),
    [
        (lambda: replace(crystal(1), pbc=[True, True, False]), {"ensemble": "npt"}, "nvt"),
        (lambda: crystal(1), {"fixed": (9,)}, "no atom 9 to be fixed"),
        (lambda: crystal(1), {"fixed": (0, 1, 2, 3)}, "all atoms are fixed"),
        (lambda: crystal(1), {"ensemble": "npt", "fixed": (0,)}, "fixed atoms"),
        (lambda: crystal(1), {"temperature": (1.0, 2.0), "replicas": 3}, "2 temperatures"),
        (lambda: crystal(1), {"min_distance": 4.0}, "cannot start.*min_distance = 4"),
        (lambda: replace(crystal(1), numbers=[6] * 4), {}, "holds C"),
        (lambda: replace(crystal(1), positions=np.zeros((4, 3))), {}, "Å apart"),
    ],
)
def test_starts_that_cannot_be_simulated_are_refused(start, changes, words):
    with pytest.raises(ValueError, match=words):
        run(argon(), start(), DynamicsConfig(**changes), folded=False)


def test_copies_that_would_be_one_and_the_same_are_refused():
    """Given velocities, only random numbers tell replicas apart."""
    start = Start(crystal(1), np.full((4, 3), 1e-3))
    for changes in (
        {"ensemble": "nve", "replicas": 2},
        {"ensemble": "nve", "temperature": (10.0, 20.0)},
        {"thermostat": "nose-hoover", "replicas": 2},
    ):
        with pytest.raises(ValueError, match="copies of a start with velocities would all go the"):
            run(argon(), start, DynamicsConfig(**changes), folded=False)
    config = settings("nvt", thermostat="csvr", replicas=2, steps=20)
    one, other = run(argon(), start, config, folded=False)
    assert np.abs(one.frames[-1].velocities - other.frames[-1].velocities).max() > 1e-6
