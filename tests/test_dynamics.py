"""Dynamics by ASE and by jax-md follow the same trajectory and conserve energy."""

import numpy as np
import pytest
from ase import units
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from conftest import make_structure

from mlip.data.structure import to_ase
from mlip.simulation.calculator import Calculator
from mlip.simulation.dynamics import run_nve

TIMESTEP = 0.25  # fs


def thermal(structure, temperature=300):
    atoms = to_ase(structure)
    thermalize_momenta(atoms, temperature_K=temperature, rng=np.random.default_rng(0))
    return atoms


def test_jax_md_and_ase_agree_over_100_steps(small_potential):
    structure = make_structure("crystal")
    atoms = thermal(structure)
    velocities = atoms.get_velocities() * units.fs
    trajectory = run_nve(small_potential, structure, velocities, TIMESTEP, 100)
    atoms.calc = Calculator(small_potential)
    # jax-md rounds the time step to float32.
    VelocityVerlet(atoms, float(np.float32(TIMESTEP * units.fs))).run(100)
    np.testing.assert_allclose(trajectory.times, [0, 12.5, 25.0])
    np.testing.assert_allclose(trajectory.positions[-1], atoms.positions, rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        trajectory.potential_energy[-1], atoms.get_potential_energy(), rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(
        trajectory.kinetic_energy[-1], atoms.get_kinetic_energy(), rtol=0, atol=1e-9
    )


def test_a_thin_skin_gives_the_same_trajectory(small_potential):
    structure = make_structure("crystal")
    velocities = thermal(structure, temperature=5000).get_velocities() * units.fs
    thick, thin = (
        run_nve(small_potential, structure, velocities, TIMESTEP, 150, skin) for skin in (1.5, 0.05)
    )
    moved = np.linalg.norm(thick.positions[-1] - thick.positions[0], axis=1).max()
    assert moved > 0.5, "the test needs tables to be renewed"
    np.testing.assert_allclose(thin.positions[-1], thick.positions[-1], rtol=0, atol=1e-9)


def test_the_energy_error_falls_with_the_square_of_the_time_step(small_potential):
    structure = make_structure("crystal")
    velocities = thermal(structure).get_velocities() * units.fs
    deviations = []
    for divisor in (1, 2):
        run = run_nve(small_potential, structure, velocities, 0.5 / divisor, 200 * divisor)
        total = run.potential_energy + run.kinetic_energy
        deviations.append(np.abs(total[::divisor] - total[0]).max())
    assert 3.0 < deviations[0] / deviations[1] < 5.0


@pytest.mark.parametrize(
    ("name", "value"), [("timestep", -1.0), ("n_steps", 0), ("skin", float("nan"))]
)
def test_settings_out_of_range_are_refused(small_potential, name, value):
    structure = make_structure("molecule")
    settings = {"timestep": 1.0, "n_steps": 1, "skin": 0.5, name: value}
    with pytest.raises(ValueError, match=f"{name} is .*must be positive"):
        run_nve(small_potential, structure, np.zeros((6, 3)), **settings)
