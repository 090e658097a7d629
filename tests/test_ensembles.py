"""Thermostats and barostats sample what statistical mechanics says they should."""

import numpy as np
import pytest
from ase import units
from ase.data import atomic_masses
from pairs import argon, crystal
from scipy.stats import kstest

from mlip.simulation.dynamics import DynamicsConfig, run
from mlip.simulation.integrators import THERMOSTATS
from mlip.units import GPA

TEMPERATURE = 60.0  # K
KT = TEMPERATURE * units.kB
REPLICAS = 8
pytestmark = pytest.mark.usefixtures("optimized")


@pytest.fixture(scope="module", params=THERMOSTATS)
def sampled(request):
    """Eight crystals of 32 atoms in the canonical ensemble, without their first fifth."""
    config = DynamicsConfig(
        ensemble="nvt",
        thermostat=request.param,
        temperature=(TEMPERATURE,),
        timestep=4.0,
        steps=6000,
        thermostat_time=100.0,
        replicas=REPLICAS,
        save_every=600,
        log_every=5,
        chain_length=4,
    )
    return run(argon(), [crystal(2, rattle=0.02)], config, folded=False)


def series(trajectories, column):
    """[n_replicas, n_rows] after the first fifth."""
    values = np.array([trajectory.column(column) for trajectory in trajectories])
    return values[:, values.shape[1] // 5 :]


def test_the_kinetic_energy_has_its_canonical_mean_and_variance(sampled):
    """31 free atoms: a gamma distribution of 93 degrees of freedom."""
    kinetic, freedom = series(sampled, "kinetic_eV"), 93
    mean, variance = freedom * KT / 2, freedom * KT**2 / 2
    assert abs(kinetic.mean() / mean - 1) < 0.02
    assert abs(kinetic.var() / variance - 1) < 0.25


def test_the_conserved_quantity_stays(sampled):
    """Far below the fluctuation of the energy that the thermostat brings about."""
    conserved = series(sampled, "conserved_eV")
    total = series(sampled, "potential_eV") + series(sampled, "kinetic_eV")
    assert conserved.std(axis=1).max() < 0.1 * total.std(axis=1).min()


def test_velocities_are_of_the_maxwell_distribution(sampled):
    mass = atomic_masses[18]
    velocities = np.concatenate([t.array("velocities")[2:] for t in sampled]) / units.fs
    one = velocities[:, ::2].ravel() * np.sqrt(mass / KT / (31 / 32))
    assert kstest(one, "norm").pvalue > 1e-4
    by_axis = (velocities**2).mean(axis=(0, 1)) * mass / KT * 32 / 31
    np.testing.assert_allclose(by_axis, 1, rtol=0, atol=0.1)


def test_a_cold_crystal_shares_its_energy_equally():
    """Near 0 K a crystal is harmonic: potential and kinetic energy have the same mean."""
    config = DynamicsConfig(
        temperature=(2.0,),
        timestep=4.0,
        steps=6000,
        thermostat_time=200.0,
        replicas=REPLICAS,
        save_every=6000,
    )
    start = crystal(2, lattice=5.3, rattle=0.0)
    trajectories = run(argon(), [start], config, folded=False)
    potential = series(trajectories, "potential_eV") - argon()(start).energy
    mean = 93 * units.kB * 2.0 / 2
    assert abs(series(trajectories, "kinetic_eV").mean() / mean - 1) < 0.03
    assert abs(potential.mean() / mean - 1) < 0.05


@pytest.mark.parametrize(("motion", "thermostat"), [("isotropic", "nose-hoover"), ("full", "csvr")])
def test_an_ideal_gas_has_its_volume(motion, thermostat):
    """⟨V⟩ = N kT / P where the centre of mass is at rest."""
    pressure = 0.02
    n_atoms, kt = 32, 300 * units.kB
    volume = n_atoms * kt / (pressure * GPA)
    start = crystal(2, lattice=(volume / 8) ** (1 / 3))
    config = DynamicsConfig(
        ensemble="npt",
        cell_motion=motion,
        thermostat=thermostat,
        temperature=(300.0,),
        pressure=pressure,
        timestep=4.0,
        steps=15000,
        thermostat_time=100.0,
        barostat_time=300.0,
        replicas=REPLICAS,
        save_every=15000,
        min_distance=0.0,
    )
    trajectories = run(argon(strength=0.0, cutoff=1.0), [start], config, folded=False)
    volumes = series(trajectories, "volume_A3")
    assert abs(volumes.mean() / volume - 1) < 0.04
    # Var V = N (kT / P)² for the same measure.
    assert abs(volumes.std() / (np.sqrt(n_atoms) * kt / (pressure * GPA)) - 1) < 0.2


def test_a_crystal_under_pressure_has_that_pressure():
    config = DynamicsConfig(
        ensemble="npt",
        cell_motion="full",
        temperature=(20.0,),
        pressure=0.3,
        timestep=4.0,
        steps=6000,
        barostat_time=400.0,
        replicas=REPLICAS,
        save_every=3000,
    )
    trajectories = run(argon(), [crystal(2, lattice=5.2)], config, folded=False)
    assert abs(series(trajectories, "pressure_GPa").mean() - 0.3) < 0.01
    conserved = series(trajectories, "conserved_eV")
    assert np.abs(conserved - conserved[:, :1]).max() < 0.02
    # The static crystal at this pressure, from finite differences of its energy.
    edges = np.linspace(4.8, 5.4, 61)
    energies = [argon()(crystal(2, lattice=a, rattle=0.0)).energy for a in edges]
    enthalpy = np.array(energies) + 0.3 * GPA * (2 * edges) ** 3
    static = edges[np.argmin(enthalpy)]
    mean = np.cbrt(series(trajectories, "volume_A3").mean()) / 2
    assert static < mean < static + 0.06  # thermal expansion


def test_the_seed_decides_the_trajectory():
    ends = []
    for seed in (0, 0, 1):
        config = DynamicsConfig(temperature=(40.0,), steps=50, seed=seed, timestep=2.0)
        ends.append(run(argon(), crystal(2), config, folded=False).frames[-1].positions)
    np.testing.assert_array_equal(ends[0], ends[1])
    assert np.abs(ends[0] - ends[2]).max() > 1e-3
