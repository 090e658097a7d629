"""Energy is conserved by trained potentials, over picoseconds."""

import numpy as np
import pytest

import mlip
from mlip.quickstart import data_file
from mlip.relaxation.relax import RelaxationConfig, relax
from mlip.simulation.dynamics import DynamicsConfig, run
from mlip.simulation.setup import warnings_of

NETWORK = mlip.NetworkConfig(channels=8, l_max=2, correlation=2, radial_widths=(16,), cutoff=4.0)
FILES = {
    "ethanol": ("ethanol_train.xyz", "ethanol_isolated_atoms.xyz", "ethanol_test_300K.xyz"),
    "silicon": ("silicon_train.xyz", "fit", "silicon_test.xyz"),
}
pytestmark = pytest.mark.usefixtures("optimized")


@pytest.fixture(scope="module", params=FILES)
def trained(request, tmp_path_factory):
    """A small potential after a short training, and a frame to start from."""
    train, e0, test = FILES[request.param]
    config = mlip.TrainConfig(
        train=str(data_file(train)),
        e0=str(data_file(e0)) if e0 != "fit" else e0,
        out=str(tmp_path_factory.mktemp("train") / request.param),
        max_epochs=12,
        network=NETWORK,
    )
    potential = mlip.train(config)
    frames = mlip.read(data_file(test))
    frame = next(f for f in frames if len(f) >= 8)
    return potential, frame.without_labels()


def test_energy_does_not_drift_in_float64_over_5_ps(trained):
    """The mean slope of eight runs; each alone swings by the error of its time step.

    From a minimum: a start that releases its strain heats up on the way, and the error of the time
    step grows with the kinetic energy.
    """
    potential, start = trained
    relaxed = relax(potential, start, RelaxationConfig(max_force=0.02))
    assert relaxed.converged
    start = relaxed.structure
    config = DynamicsConfig(
        ensemble="nve", dtype="float64", steps=10_000, save_every=10_000, replicas=8
    )
    slopes = []
    for trajectory in run(potential, [start], config):
        assert not trajectory.stopped
        times, total = trajectory.column("time_ps"), trajectory.column("conserved_eV")
        slopes.append(np.polyfit(times, total / len(start), 1)[0])
    uncertainty = np.std(slopes) / np.sqrt(len(slopes))
    assert uncertainty < 2e-6  # eV/atom/ps
    assert abs(np.mean(slopes)) < 1e-6 + 2 * uncertainty


def test_float32_drifts_less_than_the_kinetic_energy_fluctuates(trained):
    potential, start = trained
    config = DynamicsConfig(ensemble="nve", steps=2000, save_every=2000, temperature=(300.0,))
    trajectory = run(potential, start, config)
    change = np.abs(np.diff(trajectory.column("conserved_eV")[[0, -1]]))[0]
    assert change < 0.05 * trajectory.column("kinetic_eV").std()


def test_what_training_never_saw_is_told_at_the_start(trained):
    potential, start = trained
    assert warnings_of(potential, [start]) == []
    squeezed = mlip.Structure(start.numbers, 0.8 * start.positions, 0.8 * start.cell, start.pbc)
    (first, *_) = warnings_of(potential, [squeezed])
    assert "closer than in any training frame" in first
