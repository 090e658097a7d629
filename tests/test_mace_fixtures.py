"""Model files imported from mace-torch keep giving what mace-torch gave; needs no torch."""

import json
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from test_training import config_for

import mlip
from mlip.data.structure import Structure
from mlip.model.file import load_model
from mlip.quickstart import data_file
from mlip.relaxation.relax import RelaxationConfig, relax
from mlip.simulation.dynamics import DynamicsConfig, run
from mlip.training.loop import train

FILES = sorted((Path(__file__).parent / "fixtures").glob("mace_*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imported_models_agree_with_the_numbers_of_mace_torch(path):
    potential = load_model(path)
    rows = json.loads(path.with_suffix(".json").read_text())
    structures = [
        Structure(row["numbers"], row["positions"], row["cell"], row["pbc"]) for row in rows
    ]
    compared = [(potential.predict(structures), 1e-9, 1e-8)]
    if potential.config.distance_transform == "agnesi" and potential.terms.zbl:
        compared.append((mlip.fold(potential).predict(structures), 1e-6, 1e-5))
    for predictions, small, force in compared:
        for row, found in zip(rows, predictions):
            assert abs(found.energy - row["energy"]) / len(found.energies) < small
            np.testing.assert_allclose(found.energies, row["energies"], rtol=0, atol=small)
            np.testing.assert_allclose(found.forces, row["forces"], rtol=0, atol=force)
            if "stress" in row:
                np.testing.assert_allclose(found.stress, row["stress"], rtol=0, atol=small)


LIKE_MPA = next(path for path in FILES if path.stem == "mace_like_mpa-0")


def test_an_imported_model_simulates_and_relaxes():
    potential = load_model(LIKE_MPA)
    # As gentle as random weights have to be for atoms to stay together.
    potential = replace(potential, scale=potential.scale / 200)
    molecule = mlip.from_ase(ase.io.read(data_file("ethanol_train.xyz"), "0"))
    with pytest.warns(UserWarning, match="1 of 1 structures have not converged"):
        relaxed = relax(potential, molecule, RelaxationConfig(steps=20, max_step=0.02))
    found = potential(relaxed.structure)
    assert found.energy < potential(molecule).energy
    np.testing.assert_allclose(relaxed.energy, found.energy, rtol=0, atol=1e-6)
    config = DynamicsConfig(ensemble="nve", temperature=(300.0,), timestep=0.1, steps=100)
    trajectory = run(potential, relaxed.structure, config)
    assert not trajectory.stopped
    conserved, kinetic = (trajectory.column(f"{name}_eV") for name in ("conserved", "kinetic"))
    assert 0 < np.ptp(conserved) < 0.02 * np.ptp(kinetic)


def test_the_last_layer_of_an_imported_model_is_trained_further(tmp_path):
    before, network = load_model(LIKE_MPA), mlip.NetworkConfig()
    after = train(
        config_for(
            tmp_path,
            init=str(LIKE_MPA),
            e0="fit",
            network=network,
            trainable="last",
            dtype="float64",
            max_epochs=2,
        )
    )
    assert after.config == before.config
    moved = {n for n, p in after.parameters.items() if not np.array_equal(p, before.parameters[n])}
    assert {"density_1", "skip_1_0", "readout_1"} <= moved
    assert all(name.split("_")[1] == "1" for name in moved)


def test_there_are_fixtures_and_they_are_small():
    assert len(FILES) >= 4
    assert max(path.stat().st_size for path in FILES) < 200_000
