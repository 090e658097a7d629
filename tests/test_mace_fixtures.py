"""Model files imported from mace-torch keep giving what mace-torch gave; needs no torch."""

import json
from pathlib import Path

import numpy as np
import pytest

import mlip
from mlip.data.structure import Structure
from mlip.training.checkpoint import load_model

FILES = sorted((Path(__file__).parent / "fixtures").glob("mace_*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imported_models_agree_with_the_numbers_of_mace_torch(path):
    potential = load_model(path)
    rows = json.loads(path.with_suffix(".json").read_text())
    structures = [
        Structure(row["numbers"], row["positions"], row["cell"], row["pbc"]) for row in rows
    ]
    compared = [(potential.predict(structures), 1e-9, 1e-8)]
    if potential.config.distance_transform == "agnesi" and potential.config.zbl:
        compared.append((mlip.fold(potential).predict(structures), 1e-6, 1e-5))
    for predictions, small, force in compared:
        for row, found in zip(rows, predictions):
            assert abs(found.energy - row["energy"]) / len(found.energies) < small
            np.testing.assert_allclose(found.energies, row["energies"], rtol=0, atol=small)
            np.testing.assert_allclose(found.forces, row["forces"], rtol=0, atol=force)
            if "stress" in row:
                np.testing.assert_allclose(found.stress, row["stress"], rtol=0, atol=small)


def test_there_are_fixtures_and_they_are_small():
    assert len(FILES) >= 4
    assert max(path.stat().st_size for path in FILES) < 200_000
