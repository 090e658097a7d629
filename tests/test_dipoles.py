"""Dipole moments: vectors that turn with the molecule, learned alone or beside the energy."""

from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import SPECIES, make_structure, random_rotation

import mlip
from mlip.cli import main
from mlip.data.labels import LabelKeys
from mlip.data.structure import Unusable, to_ase
from mlip.quickstart import data_file
from mlip.units import BOHR, DEBYE

NETWORK = mlip.NetworkConfig(
    channels=4, l_max=2, correlation=2, radial_widths=(8,), cutoff=4.0, dipoles=True
)
CHARGES = {1: 0.2, 6: -0.15, 8: -0.9}


@pytest.fixture(scope="module")
def potential():
    return mlip.untrained(NETWORK, SPECIES, seed=1, average_neighbors=8, dtype="float64")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ethanol with the dipoles of fixed charges that sum to zero."""
    frames = ase.io.read(data_file("ethanol_train.xyz"), ":60")
    for atoms in frames:
        charges = np.array([CHARGES[z] for z in atoms.numbers])
        dipole = (charges - charges.mean()) @ atoms.positions
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, dipole=dipole, **labels)
    path = tmp_path_factory.mktemp("dipoles") / "ethanol.xyz"
    ase.io.write(path, frames)
    return path


def test_a_dipole_turns_with_the_molecule_and_stays_where_it_is_moved(potential):
    molecule, rng = make_structure("molecule"), np.random.default_rng(0)
    found = potential(molecule).others["dipole"]
    assert np.linalg.norm(found) > 1e-3
    for turn in (random_rotation(rng), -np.eye(3)):
        turned = replace(molecule, positions=molecule.positions @ turn.T)
        np.testing.assert_allclose(potential(turned).others["dipole"], turn @ found, atol=1e-12)
    moved = replace(molecule, positions=molecule.positions + [30.0, -20.0, 10.0])
    np.testing.assert_allclose(potential(moved).others["dipole"], found, atol=1e-10)


def test_a_batch_gives_every_molecule_its_own_dipole(potential):
    molecules = [make_structure("molecule", seed) for seed in range(3)]
    together = potential.predict([*molecules, make_structure("crystal")])
    for molecule, found in zip(molecules, together):
        expected = potential(molecule).others["dipole"]
        np.testing.assert_allclose(found.others["dipole"], expected, atol=1e-12)
    assert not together[-1].others  # periodic


def test_ase_gets_the_dipole_beside_energy_and_forces(potential):
    molecule = make_structure("molecule")
    atoms, expected = to_ase(molecule), potential(molecule)
    atoms.calc = mlip.Calculator(potential)
    energy = atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_dipole_moment(), expected.others["dipole"], atol=1e-12)
    assert atoms.get_potential_energy() == energy
    assert abs(energy - expected.energy) < 1e-6
    atoms.set_cell(10 * np.eye(3))
    atoms.pbc = True
    with pytest.raises(PropertyNotImplementedError, match="multiples of its vectors"):
        atoms.get_dipole_moment()


def test_a_potential_without_dipoles_gives_none(small_potential):
    atoms = to_ase(make_structure("molecule"))
    atoms.calc = mlip.Calculator(small_potential)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_dipole_moment()


@pytest.mark.parametrize(("unit", "factor"), [("eA", 1.0), ("Debye", DEBYE), ("eBohr", BOHR)])
def test_dipoles_are_read_in_their_unit(data, unit, factor):
    plain = mlip.read(data, LabelKeys(dipole_key="dipole"))[0].label("dipole")
    found = mlip.read(data, LabelKeys(dipole_key="auto", dipole_unit=unit))[0].label("dipole")
    np.testing.assert_allclose(found, factor * plain)
    assert mlip.read(data)[0].label("dipole") is None  # unless somebody asks


def test_a_dipole_of_a_periodic_cell_is_refused_with_the_reason(data, tmp_path):
    atoms = ase.io.read(data)
    labels = atoms.calc.results
    atoms.set_cell(12 * np.eye(3))
    atoms.pbc = True
    atoms.calc = SinglePointCalculator(atoms, **labels)
    ase.io.write(tmp_path / "periodic.xyz", atoms)
    with pytest.raises(Unusable, match="only up to multiples of the lattice vectors"):
        mlip.read(tmp_path / "periodic.xyz", LabelKeys(dipole_key="auto"))
    assert mlip.read(tmp_path / "periodic.xyz")[0].energy is not None


@pytest.mark.parametrize("alone", [True, False])
def test_dipoles_are_learned_alone_and_beside_energies(data, tmp_path, alone, capsys):
    words = f"train --train {data} --out {tmp_path / 'run'} --dipole-weight 100 --max-epochs 40"
    words += " --channels 8 --l-max 2 --correlation 2 --radial-widths 8 --cutoff 4 --batch-size 6"
    if alone:
        words += " --energy-weight 0 --forces-weight 0 --stress-weight 0"
        words += " --energy-key none --forces-key none"
    assert main(words.split()) == 0
    assert "me·Å" in capsys.readouterr().out
    model = tmp_path / "run" / "model.safetensors"
    out = tmp_path / "errors"
    flags = ["--out", str(out), "--json", str(tmp_path / "e.json"), "--no-probe"]
    assert main(["evaluate", str(model), str(data), *flags]) == 0
    frames = mlip.read(data, LabelKeys(dipole_key="auto"))
    errors = mlip.metrics(mlip.parity(frames, mlip.load(model).predict(frames)))
    size = 1000 * np.sqrt(np.mean([frame.label("dipole") ** 2 for frame in frames]))
    assert errors["dipole_rmse_me_A"] < 0.3 * size
    assert errors["dipole_rmse_norm_me_A"] < 0.5 * size
    assert "Dipole component" in (out / "report.html").read_text()


def test_dipoles_that_no_frame_has_are_not_trained_on(tmp_path):
    config = mlip.TrainConfig(
        train=str(data_file("silicon_train.xyz")),
        out=str(tmp_path / "run"),
        loss=mlip.LossConfig(dipole_weight=1.0),
        check=False,
    )
    with pytest.raises(ValueError, match="has a dipole, which the loss weighs; name its key"):
        mlip.train(config)


def test_a_run_from_a_potential_without_dipoles_learns_none(data, small_potential, tmp_path):
    mlip.save(small_potential, tmp_path / "model.safetensors")
    config = mlip.TrainConfig(
        train=str(data),
        init=str(tmp_path / "model.safetensors"),
        unseen="add",
        loss=mlip.LossConfig(dipole_weight=1.0),
        out=str(tmp_path / "run"),
    )
    with pytest.raises(ValueError, match="the loss weighs dipole, which the network does not"):
        mlip.train(config)
