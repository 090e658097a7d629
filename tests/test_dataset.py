"""Reading data: labels are found or refused by name, never dropped, zeroed or mixed up."""

import ase
import ase.db
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from mlip.data.dataset import atomic_energies, fit_atomic_energies, read, split
from mlip.data.labels import LabelKeys
from mlip.data.structure import Structure, number_of
from mlip.quickstart import data_file
from mlip.units import GPA, KBAR

FORCES = np.array([[0.1, -0.2, 0.3], [-0.1, 0.2, -0.3]])
STRESS = np.array([[1.0, 0.6, 0.5], [0.6, 2.0, 0.4], [0.5, 0.4, 3.0]]) / 100


def hydrogen(**labels):
    atoms = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], cell=[4, 5, 6], pbc=True)
    if labels:
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def write(tmp_path, atoms, name="data.xyz", **options):
    path = tmp_path / name
    ase.io.write(path, atoms, **options)
    return path


@pytest.mark.parametrize("name", ["data.xyz", "data.traj", "data.db", "data.json"])
def test_results_of_a_calculator_are_read_from_every_format(tmp_path, name):
    voigt = STRESS[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    path = write(tmp_path, [hydrogen(energy=-6.5, forces=FORCES, stress=voigt)] * 3, name)
    for structure in read(path):
        assert structure.energy == -6.5
        np.testing.assert_allclose(structure.forces, FORCES, atol=1e-8)
        np.testing.assert_allclose(structure.stress, STRESS, atol=1e-8)


def test_labels_in_info_and_arrays_are_found(tmp_path):
    atoms = hydrogen()
    atoms.info |= {"REF_energy": -6.5, "REF_stress": STRESS}
    atoms.arrays["REF_forces"] = FORCES
    (structure,) = read(write(tmp_path, atoms))
    assert structure.energy == -6.5
    np.testing.assert_allclose(structure.forces, FORCES)
    np.testing.assert_allclose(structure.stress, STRESS)


def test_old_and_new_ase_agree_on_energy_in_the_comment_line(tmp_path):
    path = tmp_path / "data.xyz"
    path.write_text(
        '2\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-6.5 pbc="F F F"\n'
        "H 0 0 0 0.1 0.0 0.0\nH 0 0 0.8 -0.1 0.0 0.0\n"
    )
    (structure,) = read(path)
    assert structure.energy == -6.5
    np.testing.assert_allclose(structure.forces[:, 0], [0.1, -0.1])


def test_forces_of_fixed_atoms_are_not_zeroed(tmp_path):
    atoms = hydrogen(energy=-6.5, forces=FORCES)
    atoms.set_constraint(FixAtoms([0]))
    for name in ("data.traj", "data.xyz", "data.db"):
        (structure,) = read(write(tmp_path, atoms, name))
        np.testing.assert_allclose(structure.forces, FORCES, atol=1e-8, err_msg=name)


def test_the_free_energy_beside_the_energy_is_no_second_candidate(tmp_path):
    path = write(tmp_path, hydrogen(energy=-6.5, free_energy=-6.6, forces=FORCES))
    assert read(path)[0].energy == -6.5
    assert read(path, LabelKeys(energy_key="free_energy"))[0].energy == -6.6


def test_two_candidates_are_refused_and_a_key_decides(tmp_path):
    atoms = hydrogen(energy=-6.5, forces=FORCES)
    atoms.info["dft_energy"] = -7.5
    path = write(tmp_path, atoms)
    with pytest.raises(ValueError, match="2 candidates for the energy: dft_energy, energy; choose"):
        read(path)
    assert read(path, LabelKeys(energy_key="dft_energy"))[0].energy == -7.5


def test_no_candidate_is_refused_with_what_was_found(tmp_path):
    atoms = hydrogen(forces=FORCES)
    atoms.info["enthalpy"] = 3.0
    path = write(tmp_path, atoms)
    with pytest.raises(ValueError, match=r"has no energy; found the keys enthalpy.*--energy-key"):
        read(path)
    assert read(path, LabelKeys(energy_key="none"))[0].energy is None
    with pytest.raises(ValueError, match=r"has no energy under the key 'E'; found the keys"):
        read(path, LabelKeys(energy_key="E"))
    with pytest.raises(ValueError, match="has no forces"):
        read(write(tmp_path, hydrogen(energy=-6.5)))


@pytest.mark.parametrize("name", ["kinetic_energy", "energy_cutoff", "zero_point_energy"])
def test_energies_that_are_not_those_of_the_atoms_are_no_candidates(tmp_path, name):
    atoms = hydrogen(forces=FORCES)
    atoms.info[name] = 0.05
    with pytest.raises(ValueError, match=f"has no energy; found the keys forces, {name}|{name}"):
        read(write(tmp_path, atoms, "data.traj"))
    atoms = hydrogen(energy=-6.5, forces=FORCES)
    atoms.info[name] = 0.05
    assert read(write(tmp_path, atoms, "data.traj"))[0].energy == -6.5


def test_labels_missing_in_some_frames_are_none_there(tmp_path):
    frames = [hydrogen(energy=-6.5, forces=FORCES), hydrogen(energy=-6.4), hydrogen(forces=FORCES)]
    first, second, third = read(write(tmp_path, frames))
    assert first.energy == -6.5
    assert second.forces is None
    assert third.energy is None
    np.testing.assert_allclose(third.forces, FORCES)


@pytest.mark.parametrize(
    ("unit", "factor"), [("eV/A^3", 1), ("GPa", GPA), ("kbar", KBAR), ("-kbar", -KBAR)]
)
def test_stress_units_and_signs(tmp_path, unit, factor):
    atoms = hydrogen(energy=0.0, forces=FORCES)
    atoms.info["my_stress"] = STRESS
    (structure,) = read(write(tmp_path, atoms), LabelKeys(stress_unit=unit))
    np.testing.assert_allclose(structure.stress, factor * STRESS)


def test_energies_and_forces_in_other_units(tmp_path):
    path = write(tmp_path, hydrogen(energy=-1.0, forces=FORCES))
    (structure,) = read(path, LabelKeys(energy_unit="Hartree", forces_unit="-Hartree/Bohr"))
    assert structure.energy == pytest.approx(-27.211386, abs=1e-6)
    np.testing.assert_allclose(structure.forces, -51.422067 * FORCES, rtol=1e-7, atol=0)
    (structure,) = read(path, LabelKeys(energy_unit="kcal/mol", forces_unit="kcal/mol/A"))
    assert structure.energy == pytest.approx(-0.04336410, abs=1e-8)
    with pytest.raises(ValueError, match="forces_unit is 'mN'; choose one of eV/A, "):
        LabelKeys(forces_unit="mN")


def test_vasps_order_of_the_shear_components(tmp_path):
    atoms = hydrogen(energy=0.0, forces=FORCES)
    atoms.info["my_stress"] = STRESS[[0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0]]
    (structure,) = read(write(tmp_path, atoms), LabelKeys(stress_order="vasp"))
    np.testing.assert_allclose(structure.stress, STRESS)


def test_labels_that_are_no_numbers_are_refused(tmp_path):
    atoms = hydrogen(forces=FORCES)
    atoms.info["energy"] = "unconverged"
    with pytest.raises(ValueError, match="energy under 'energy' are 'unconverged', which are no"):
        read(write(tmp_path, atoms))


def test_two_different_values_under_one_key_are_refused(tmp_path):
    atoms = hydrogen(energy=-6.5, forces=FORCES)
    atoms.info["energy"] = -7.5
    path = write(tmp_path, atoms, "data.traj")
    with pytest.raises(ValueError, match=r"data.traj#0 holds two different values named 'energy'"):
        read(path)
    assert read(path, LabelKeys(energy_key="none"))[0].energy is None


def test_virials_become_stress(tmp_path):
    atoms = hydrogen(energy=0.0, forces=FORCES)
    atoms.info["virial"] = -STRESS * atoms.get_volume()
    (structure,) = read(write(tmp_path, atoms))
    np.testing.assert_allclose(structure.stress, STRESS)


def test_a_folder_is_read_file_by_file_in_order(tmp_path):
    write(tmp_path, hydrogen(energy=1.0, forces=FORCES), "b.xyz")
    write(tmp_path, [hydrogen(energy=2.0, forces=FORCES)] * 2, "a.traj")
    assert [(s.name, s.energy) for s in read(tmp_path)] == [
        ("a.traj#0", 2.0),
        ("a.traj#1", 2.0),
        ("b.xyz#0", 1.0),
    ]


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read(tmp_path / "absent.xyz")
    with pytest.raises(ValueError, match="folder .* is empty"):
        read(tmp_path)
    (tmp_path / "empty.xyz").write_text("")
    with pytest.raises(ValueError, match=r"empty\.xyz"):
        read(tmp_path / "empty.xyz")
    (tmp_path / "cut.xyz").write_text("3\nProperties=species:S:1:pos:R:3\nH 0 0 0\n")
    with pytest.raises(ValueError, match=r"cut\.xyz cannot be read"):
        read(tmp_path / "cut.xyz")


@pytest.mark.parametrize(
    ("field", "value", "phrase"),
    [
        (
            "positions",
            np.array([[0, 0, 0], [0, 0, np.nan]]),
            r"f#1: positions hold nan at \(1, 2\)",
        ),
        ("forces", FORCES[:1], r"forces have shape \(1, 3\); expected \(2, 3\)"),
        ("energy", np.inf, "the energy is inf"),
        ("numbers", [1, 119], "atomic number 119 is no element"),
        ("cell", np.zeros((3, 3)), "periodic lattice vectors .* are zero"),
        ("stress", np.zeros(6), r"stress have shape \(6,\)"),
        ("positions", np.zeros((0, 3)), "2 atomic numbers but 0 positions"),
    ],
)
def test_impossible_structures_are_refused(field, value, phrase):
    fields = {
        "numbers": [1, 1],
        "positions": [[0, 0, 0], [0, 0, 0.8]],
        "cell": 4 * np.eye(3),
        "pbc": [True] * 3,
        "name": "f#1",
        field: value,
    }
    with pytest.raises(ValueError, match=phrase):
        Structure(**fields)


def compositions(rows, energies):
    return [
        Structure(
            [1] * h + [8] * o, np.eye(h + o, 3) * 9, np.zeros((3, 3)), [False] * 3, energy=energy
        )
        for (h, o), energy in zip(rows, energies)
    ]


def test_atomic_energies_are_fitted_where_compositions_determine_them():
    frames = compositions([(2, 1), (2, 0), (1, 1)], [2 * -13.6 - 2040, 2 * -13.6, -13.6 - 2040])
    fitted = fit_atomic_energies(frames, [1, 8])
    np.testing.assert_allclose([fitted.values[1], fitted.values[8]], [-13.6, -2040], atol=1e-8)
    assert not fitted.note
    assert "least squares over 3 energies" in fitted.source


def test_undetermined_atomic_energies_are_reported():
    fitted = fit_atomic_energies(compositions([(2, 1)] * 4, [-2067.2] * 4), [1, 8])
    assert "determine only 1 of 2 energies of single atoms" in fitted.note
    np.testing.assert_allclose(2 * fitted.values[1] + fitted.values[8], -2067.2)


def test_atomic_energies_from_file_table_and_training_set():
    ethanol = read(data_file("ethanol_test_300K.xyz"))[:2]
    file = data_file("ethanol_isolated_atoms.xyz")
    from_file = atomic_energies(str(file), ethanol, [])
    assert from_file.source == "isolated atoms of ethanol_isolated_atoms.xyz"
    atoms = read(file, LabelKeys(forces_key="none"))
    assert atomic_energies("auto", ethanol, atoms).values == from_file.values
    table = ", ".join(f"{z}={e}" for z, e in from_file.values.items())
    assert atomic_energies(table, ethanol, []).values == from_file.values
    assert atomic_energies("zero", ethanol, atoms).values == {1: 0.0, 6: 0.0, 8: 0.0}
    with pytest.raises(ValueError, match="E0 of C is missing"):
        atomic_energies("H=-13.6, O=-2040", ethanol, [])
    with pytest.raises(ValueError, match="'Q=1' is not element=energy"):
        atomic_energies("Q=1", ethanol, [])
    with pytest.raises(ValueError, match="has 9 atoms"):
        atomic_energies(str(data_file("ethanol_test_300K.xyz")), ethanol, [])


def test_splits_are_disjoint_complete_and_fixed_by_the_seed():
    frames = compositions([(n, 1) for n in range(1, 21)], range(20))
    train, valid = split(frames, 0.2, seed=3)
    assert len(valid) == 4
    assert sorted(s.energy for s in train + valid) == list(range(20))
    assert [s.energy for s in split(frames, 0.2, 3)[1]] == [s.energy for s in valid]
    assert [s.energy for s in split(frames, 0.2, 4)[1]] != [s.energy for s in valid]
    for fraction in (0.0, 0.001, 1.0, 1.5):
        with pytest.raises(ValueError, match="validation fraction"):
            split(frames, fraction, 0)


def test_elements_by_symbol_or_number():
    assert number_of("si") == number_of(14) == number_of(" 14 ") == 14
    with pytest.raises(ValueError, match="'Xx' is no chemical element"):
        number_of("Xx")


@pytest.mark.parametrize(
    ("name", "count"),
    [("ethanol_train", 400), ("ethanol_test_300K", 60), ("ethanol_test_600K", 60)],
)
def test_the_embedded_ethanol_is_what_its_provenance_says(name, count):
    frames = read(data_file(f"{name}.xyz"))
    assert len(frames) == count
    for atoms in ase.io.read(data_file(f"{name}.xyz"), ":"):
        assert "PBE/def2-svp" in atoms.info["provenance"]
        assert str(atoms.symbols) == "C2OH6"
    # Grid response is in the forces, so that they sum to zero.
    assert max(np.abs(frame.forces.sum(axis=0)).max() for frame in frames) < 1e-6


def test_the_embedded_silicon_has_the_same_energy_scale_in_all_its_cells():
    frames = read(data_file("silicon_train.xyz")) + read(data_file("silicon_test.xyz"))
    assert len(frames) >= 150
    assert all(f.stress is not None and f.forces is not None for f in frames)
    groups = {f.group for f in frames}
    assert groups == {"rattled", "strained", "sheared", "primitive", "vacancy"}
    lowest = {g: min(f.energy / len(f) for f in frames if f.group == g) for g in groups}
    # The perfect crystal lies at -107.081 eV/atom; a vacancy costs some eV in 7 atoms.
    for group in groups - {"vacancy"}:
        assert -107.09 < lowest[group] < -107.0


def test_train_and_test_files_share_no_frame():
    for kind, others in {
        "ethanol_train": ("ethanol_test_300K", "ethanol_test_600K"),
        "silicon_train": ("silicon_test",),
    }.items():
        seen = {f.positions.tobytes() for f in read(data_file(f"{kind}.xyz"))}
        for other in others:
            assert not seen & {f.positions.tobytes() for f in read(data_file(f"{other}.xyz"))}
