"""Errors are what their names say, overall and by element and group."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import make_structure

from mlip.model.potential import Prediction
from mlip.training.evaluation import metrics, parity


def case():
    """Three frames with known errors."""
    rng = np.random.default_rng(0)
    structures, predictions = [], []
    for index, kind in enumerate(("molecule", "crystal", "primitive")):
        structure = make_structure(kind)
        forces = rng.normal(size=(len(structure), 3))
        structure = replace(
            structure,
            energy=10.0 * index,
            forces=forces,
            stress=np.eye(3) if kind != "molecule" else None,
            group="a" if index < 2 else "b",
        )
        predictions.append(
            Prediction(
                structure.energy + (index + 1) * 0.006,
                np.zeros(len(structure)),
                forces + np.where(structure.numbers == 8, 0.02, -0.01)[:, None],
                None if kind == "molecule" else np.eye(3) + 0.003,
            )
        )
        structures.append(structure)
    return structures, predictions


def test_errors_have_their_closed_forms():
    structures, predictions = case()
    errors = metrics(parity(structures, predictions))
    expected = np.array([6.0, 12.0, 18.0])  # meV a structure
    np.testing.assert_allclose(errors["energy_mae_mev"], expected.mean())
    np.testing.assert_allclose(errors["energy_rmse_mev"], np.sqrt((expected**2).mean()))
    per_atom = expected / [6, 6, 2]
    np.testing.assert_allclose(errors["energy_rmse_mev_per_atom"], np.sqrt((per_atom**2).mean()))
    np.testing.assert_allclose(errors["stress_rmse_mev_per_A3"], 3.0)
    assert (errors["n_energy"], errors["n_forces"], errors["n_stress"]) == (3, 42, 18)


def test_errors_by_element_and_group():
    structures, predictions = case()
    errors = metrics(parity(structures, predictions))
    present = set(np.concatenate([s.numbers for s in structures]))
    expected = {"O": 20.0, "H": 10.0, "Si": 10.0}
    assert len(errors["elements"]) == len(present)
    for element, values in errors["elements"].items():
        np.testing.assert_allclose(values["forces_rmse_mev_per_A"], expected[element])
    np.testing.assert_allclose(errors["groups"]["a"]["energy_mae_mev"], 9.0)
    np.testing.assert_allclose(errors["groups"]["b"]["energy_mae_mev"], 18.0)
    assert errors["groups"]["a"]["n_stress"] == 9


def test_labels_that_are_missing_are_counted_as_missing():
    structures, predictions = case()
    structures = [replace(s, stress=None, forces=None) for s in structures]
    errors = metrics(parity(structures, predictions))
    assert errors["forces_rmse_mev_per_A"] is None
    assert errors["n_forces"] == 0
    assert errors["energy_rmse_mev"] == pytest.approx(np.sqrt(np.mean([36, 144, 324])))
    assert metrics(parity([s.without_labels() for s in structures], predictions))["n_energy"] == 0
