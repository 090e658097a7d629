"""A system spread over several devices: the same numbers, in a process that has them."""

import os
import subprocess
import sys
import textwrap

import pytest

from mlip.engines.ase import Calculator
from mlip.model.spread import whole_shares

PROGRAM = """
import sys
import jax
import numpy as np
sys.path.insert(0, {tests!r})
from conftest import CONFIGS, TERMS, make_structure
import mlip
from mlip.data.structure import to_ase

assert len(jax.devices()) == 4
deep = mlip.NetworkConfig(
    channels=3, layers=3, l_max=1, correlation=2, radial_widths=(8,), cutoff=4.0
)
for config, dtype, tolerance in (
    (CONFIGS["vectors"], "float64", 1e-11),
    (CONFIGS["densities"], "float64", 1e-11),
    (deep, "float32", 2e-4),
    (deep, "float64", 1e-11),
):
    terms = next((TERMS[n] for n in TERMS if CONFIGS[n] is config), mlip.TermsConfig())
    potential = mlip.untrained(
        config, (1, 8, 14), seed=1, average_neighbors=8, dtype=dtype, terms=terms
    )
    # A small crystal is shared; compiled ahead, or not.
    many = 0 if config is deep else 1_000_000
    potential = potential.running(worthwhile=(2, 2), many_slots=many)
    atoms = to_ase(make_structure("crystal")) * (2, 2, 1)
    del atoms[[3, 17]]  # 22 atoms leave rows to fill
    alone = mlip.Calculator(potential, devices=(jax.devices()[0],))
    shared = mlip.Calculator(potential)
    results = []
    for calculator in (alone, shared):
        atoms.calc = calculator
        results.append((atoms.get_potential_energies(), atoms.get_forces(), atoms.get_stress()))
    assert len(shared.used.sharing(len(atoms))) == 4
    assert np.abs(results[1][1].sum(axis=0)).max() < 1e-9
    for one, other in zip(*results):
        np.testing.assert_allclose(other, one, rtol=0, atol=tolerance)

from mlip.data.structure import from_ase
from mlip.simulation.dynamics import DynamicsConfig, run
from mlip.simulation.setup import Start
from dataclasses import replace

slow = replace(potential, scale=0.02 * potential.scale)
settings = DynamicsConfig(ensemble="npt", cell_motion="full", steps=20, save_every=20)
start = from_ase(atoms)
shared = run(slow, start, settings)
alone = run(slow.running(worthwhile=(1000, 1000)), start, settings)
for name in ("positions", "velocities", "cell", "energy", "stress"):
    one, other = (trajectory.array(name)[-1] for trajectory in (alone, shared))
    np.testing.assert_allclose(other, one, rtol=0, atol=1e-11)
print("the same on four devices")
"""


def test_four_devices_give_what_one_gives():
    text = textwrap.dedent(PROGRAM).format(tests=os.path.dirname(__file__))
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", text],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the same on four devices" in done.stdout


def test_devices_are_for_folded_potentials(small_potential):
    with pytest.raises(ValueError, match="only a folded potential"):
        Calculator(small_potential, folded=False, devices=(None,))


@pytest.mark.parametrize(("n_atoms", "n_devices", "rows"), [(8, 4, 8), (9, 4, 12), (3, 1, 3)])
def test_rows_are_filled_to_whole_shares(n_atoms, n_devices, rows):
    assert whole_shares(n_atoms, (None,) * n_devices) == rows
