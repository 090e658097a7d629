"""The doctor: every check fires on a data set with its flaw, and is silent on the same without."""

from dataclasses import replace

import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from mlip.data.checks.consistency import close_pairs, fit_work
from mlip.data.checks.doctor import check
from mlip.data.checks.sample import survey
from mlip.data.labels import LabelKeys
from mlip.data.neighbors import neighbor_list
from mlip.data.structure import from_ase
from mlip.model.potential import Prediction
from mlip.quickstart import data_file
from mlip.units import BOHR, GPA, HARTREE, KBAR, KCAL_MOL, RYDBERG

# What the sound sets are told: one composition, few pairs, cells of two atoms.
SOUND = {"ethanol": {"open-references", "missing-pairs"}, "silicon": {"small-cells"}}


@pytest.fixture
def ethanol():
    """60 frames of molecules at 300 K, PBE/def2-SVP."""
    return ase.io.read(data_file("ethanol_test_300K.xyz"), ":")


@pytest.fixture
def silicon():
    """33 frames of strained and rattled crystals, PBE, with stress."""
    return ase.io.read(data_file("silicon_test.xyz"), ":")


def label(atoms, **labels):
    """Replace labels of a frame; None takes one away."""
    results = {**getattr(atoms.calc, "results", {}), **labels}
    atoms.calc = SinglePointCalculator(atoms)
    atoms.calc.results = {key: value for key, value in results.items() if value is not None}


def scale(frames, energy=1.0, forces=1.0, stress=1.0):
    for atoms in frames:
        factors = {"energy": energy, "forces": forces, "stress": stress}
        label(atoms, **{k: v * factors[k] for k, v in atoms.calc.results.items() if k in factors})
    return frames


def tensor(atoms):
    return atoms.calc.results["stress"][[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)


def findings(folder, frames, name="data.traj", **options):
    """What `check` finds in frames, by name of the check."""
    path = folder / name
    for atoms in frames:
        label(atoms)  # or ASE would forget the labels of frames whose atoms have been changed
    ase.io.write(path, frames)
    report = check(path, **options)
    return {finding.check: finding for finding in report.findings}


def new(found, kind):
    return set(found) - SOUND[kind]


@pytest.mark.parametrize("kind", SOUND)
def test_sound_sets_are_told_nothing_but_notes_that_are_true(tmp_path, request, kind):
    found = findings(tmp_path, request.getfixturevalue(kind))
    assert set(found) == SOUND[kind]
    assert all(finding.grade == "note" for finding in found.values())


@pytest.mark.parametrize("name", ["ethanol_train", "ethanol_test_600K", "silicon_train"])
def test_the_embedded_sets_are_sound(name):
    report = check(data_file(f"{name}.xyz"))
    assert {f.check for f in report.findings} == SOUND[name.split("_")[0]]


# Labels by themselves.


def test_a_set_without_energies_is_an_error_that_lists_the_keys(tmp_path, ethanol):
    for atoms in ethanol:
        atoms.info["dft_total"] = atoms.calc.results["energy"]
        label(atoms, energy=None)
    found = findings(tmp_path, ethanol)["no-label"]
    assert found.grade == "error"
    assert "dft_total" in found.message
    assert "--energy-key" in found.remedy


def test_two_candidates_are_an_error_and_all_else_is_still_looked_at(tmp_path, ethanol):
    for atoms in ethanol:
        atoms.info["dft_energy"] = atoms.calc.results["energy"] + 1
    ethanol[7].positions[2, 1] = np.nan
    found = findings(tmp_path, ethanol, "data.traj")
    assert found["two-candidates"].grade == found["not-finite"].grade == "error"
    assert "dft_energy, energy" in found["two-candidates"].message
    assert found["not-finite"].frames == ((str(tmp_path / "data.traj"), 7),)


def test_two_values_under_one_name_are_an_error(tmp_path, ethanol):
    ethanol[3].info["energy"] = -1.0
    found = findings(tmp_path, ethanol)["two-values"]
    assert found.grade == "error"
    assert [index for _, index in found.frames] == [3]


def test_a_file_that_cannot_be_read_is_an_error_beside_the_others(tmp_path, ethanol):
    (tmp_path / "broken.xyz").write_text("9\nno lattice\nH 0 0\n")
    ase.io.write(tmp_path / "good.traj", ethanol)
    report = check(tmp_path)
    assert [f.check for f in report.graded("error")] == ["unreadable"]
    assert report.graded("error")[0].frames == ((str(tmp_path / "broken.xyz"), None),)
    assert len(report.structures) == 60
    (tmp_path / "empty").mkdir()
    assert check(tmp_path / "empty").findings[0].check == "no-frames"


def bad_frames():
    """(change of a frame, rule that it breaks)"""
    nan = np.nan
    return {
        "energy is NaN": (lambda a: label(a, energy=nan), "not-finite"),
        "forces hold an infinity": (
            lambda a: label(a, forces=np.full((8, 3), np.inf)),
            "not-finite",
        ),
        "stress is NaN": (lambda a: label(a, stress=np.full(6, nan)), "not-finite"),
        "positions hold NaN": (lambda a: a.positions.fill(nan), "not-finite"),
        "cell is infinite": (lambda a: a.cell.__setitem__(0, np.inf), "not-finite"),
        "forces of too few atoms": (lambda a: label(a, forces=np.ones((7, 3))), "wrong-shape"),
        "stress of five numbers": (lambda a: label(a, stress=np.ones(5)), "wrong-shape"),
        "an energy an atom": (lambda a: label(a, energy=np.ones(8)), "wrong-shape"),
        "energy is text": (lambda a: label(a, energy="unconverged"), "not-numbers"),
        "stress is skew": (lambda a: label(a, stress=np.arange(9.0)), "asymmetric-stress"),
        "no cell": (lambda a: a.set_cell(np.zeros((3, 3))), "no-cell"),
        "flat cell": (lambda a: a.cell.__setitem__(2, a.cell[1]), "no-cell"),
        "element X": (lambda a: a.numbers.fill(0), "unknown-element"),
        "no atoms": (lambda a: a.__delitem__(slice(None)), "no-atoms"),
        "two atoms in one place": (
            lambda a: a.positions.__setitem__(0, a.positions[1]),
            "coincident-atoms",
        ),
    }


@pytest.mark.parametrize("flaw", bad_frames())
def test_a_frame_that_cannot_be_used_is_an_error_with_its_index(tmp_path, silicon, flaw):
    change, rule = bad_frames()[flaw]
    frames = [atoms for atoms in silicon if len(atoms) == 8]
    change(frames[5])
    found = findings(tmp_path, frames, "data.traj")
    assert found[rule].grade == "error"
    assert [index for _, index in found[rule].frames] == [5]
    assert {f.grade for r, f in found.items() if r != rule} <= {"note"}


def test_a_cell_with_too_many_neighbours_is_an_error(tmp_path, silicon):
    silicon[2].set_cell(0.01 * silicon[2].cell, scale_atoms=True)
    found = findings(tmp_path, silicon[:5], cutoff=20.0)["too-many-neighbours"]
    assert found.grade == "error"
    assert [index for _, index in found.frames] == [2]
    with pytest.raises(ValueError, match="cutoff is 25.0 Å; it must be positive and at most 20 Å"):
        check(data_file("silicon_test.xyz"), cutoff=25.0)


def test_keys_that_look_like_labels_but_are_not_read_are_named(tmp_path, silicon):
    for atoms in silicon:
        atoms.info["vasp_stress_kbar"] = atoms.calc.results["stress"] / KBAR
        label(atoms, stress=None)
    found = findings(tmp_path, silicon)["unread-key"]
    assert found.grade == "warning"
    assert "--stress-key vasp_stress_kbar" in found.remedy
    keys = LabelKeys(stress_key="vasp_stress_kbar", stress_unit="kbar")
    assert not new(findings(tmp_path, silicon, keys=keys), "silicon")
    # Where there is a stress already, or none is wanted, it is no more than a note.
    assert findings(tmp_path, scale(silicon))["unread-key"].grade == "warning"
    assert "unread-key" not in findings(tmp_path, silicon, keys=LabelKeys(stress_key="none"))


def test_frames_without_a_label_that_others_have_are_noted(tmp_path, ethanol):
    label(ethanol[4], forces=None)
    label(ethanol[9], forces=None)
    found = findings(tmp_path, ethanol)["missing-label"]
    assert found.grade == "note"
    assert [index for _, index in found.frames] == [4, 9]


def test_stress_of_molecules_is_noted_as_unused(tmp_path, ethanol):
    for atoms in ethanol:
        label(atoms, stress=np.zeros(6))
    assert findings(tmp_path, ethanol)["stress-without-volume"].grade == "note"


@pytest.mark.parametrize("energy", [0.0, -4209.5])
def test_energies_that_are_all_the_same_are_an_error(tmp_path, ethanol, energy):
    for atoms in ethanol:
        label(atoms, energy=energy)
    assert findings(tmp_path, ethanol)["equal-energies"].grade == "error"


def test_coarse_energies_are_told_with_their_step(tmp_path, ethanol):
    for atoms in ethanol:
        label(atoms, energy=round(atoms.calc.results["energy"], 2))
    found = findings(tmp_path, ethanol)["coarse-energies"]
    assert found.grade == "warning"
    assert "2 decimals, in steps of 10 meV" in found.message


def test_energies_in_float32_are_noted(tmp_path, ethanol):
    # A large cell: eight molecules, whose energy has a spacing of 4 meV in float32.
    for atoms in ethanol:
        label(atoms, energy=float(np.float32(8 * atoms.calc.results["energy"])))
    keys = LabelKeys(forces_key="none")
    found = findings(tmp_path, ethanol, keys=keys)["coarse-energies"]
    assert "float32" in found.message


def test_forces_that_are_all_zero_are_an_error(tmp_path, ethanol):
    assert findings(tmp_path, scale(ethanol, forces=0.0))["zero-forces"].grade == "error"


def test_zero_forces_of_perfect_crystals_are_right(tmp_path, silicon):
    frames = []
    for length in np.linspace(5.3, 5.6, 8):
        atoms = silicon[0].copy()
        atoms.set_cell(length * np.eye(3))
        grid = [[0, 0, 0], [0, 2, 2], [2, 0, 2], [2, 2, 0]]
        atoms.set_scaled_positions(np.array(grid + [[x + 1 for x in p] for p in grid]) / 4)
        atoms.calc = SinglePointCalculator(
            atoms, energy=-856.65 + 10 * (length - 5.45) ** 2, forces=np.zeros((8, 3))
        )
        frames.append(atoms)
    found = findings(tmp_path, frames)
    assert {"zero-forces", "zeroed-forces"}.isdisjoint(found)


def test_forces_zeroed_for_fixed_atoms_are_found(tmp_path, ethanol):
    for atoms in ethanol[10:20]:
        atoms.set_constraint(FixAtoms([0, 1]))
        label(atoms, forces=atoms.get_forces(apply_constraint=True))
    found = findings(tmp_path, ethanol)["zeroed-forces"]
    assert found.grade == "warning"
    assert [index for _, index in found.frames] == list(range(10, 20))


def test_a_net_force_is_found(tmp_path, ethanol):
    label(ethanol[5], forces=ethanol[5].calc.results["forces"] + [0.02, 0, 0])
    found = findings(tmp_path, ethanol)["net-force"]
    assert [index for _, index in found.frames] == [5]
    assert "20 meV/Å" in found.message


def test_forces_in_another_orientation_are_found(tmp_path, ethanol):
    for atoms in ethanol:
        label(atoms, forces=atoms.calc.results["forces"][:, [1, 0, 2]])
    assert len(findings(tmp_path, ethanol)["net-torque"].frames) > 40


def nitrogen(n=150, spread=0.06, stiffness=143.0):
    """Turned and stretched N2, of a Morse potential with its 143 eV/Å² and 9.9 eV."""
    rng, frames, well = np.random.default_rng(0), [], 9.9
    steep = np.sqrt(stiffness / 2 / well)
    for _ in range(n):
        stretch = rng.normal(0, spread)
        left = 1 - np.exp(-steep * stretch)
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        pull = 2 * well * left * (1 - left) * steep * turn[0]
        atoms = ase.Atoms("N2", [[0.0, 0.0, 0.0], (1.10 + stretch) * turn[0]])
        atoms.positions += rng.normal(size=3)
        energy = -2970.0 + well * left**2
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.array([pull, -pull]))
        frames.append(atoms)
    return frames


def test_forces_along_a_linear_molecule_have_no_torque_and_its_bonds_may_be_stiff(tmp_path):
    assert set(findings(tmp_path, nitrogen())) == set()


def test_free_energies_that_differ_from_the_energies_are_found(tmp_path, silicon):
    for index, atoms in enumerate(silicon):
        label(atoms, free_energy=atoms.calc.results["energy"] - 0.01 * (index % 3) * len(atoms))
    found = findings(tmp_path, silicon)["free-energy"]
    assert found.grade == "warning"
    assert "--energy-key free_energy" in found.remedy
    for atoms in silicon:
        label(atoms, free_energy=atoms.calc.results["energy"] - 0.01 * len(atoms))
    assert not new(findings(tmp_path, silicon), "silicon")


def test_free_energies_are_compared_in_the_unit_of_the_energies(tmp_path, silicon):
    for index, atoms in enumerate(silicon):
        energy = atoms.calc.results["energy"]
        # 0.4 meV/atom of spread, which are 10 meV if they are Hartree.
        label(atoms, free_energy=energy - 4e-4 * (index % 3) * len(atoms))
    assert not new(findings(tmp_path, silicon), "silicon")
    keys = LabelKeys(energy_unit="Hartree")
    found = findings(tmp_path, silicon, keys=keys)["free-energy"]
    assert "vary by 8.9 meV/atom" in found.message


def test_energies_that_are_read_in_another_unit_are_coarse_all_the_same(tmp_path, ethanol):
    for atoms in ethanol:
        label(atoms, energy=round(atoms.calc.results["energy"] / HARTREE, 3))
    scale(ethanol, forces=BOHR / HARTREE)
    keys = LabelKeys(energy_unit="Hartree", forces_unit="Hartree/Bohr")
    found = findings(tmp_path, ethanol, keys=keys)["coarse-energies"]
    assert "3 decimals, in steps of 27 meV" in found.message


@pytest.mark.parametrize(
    ("e0", "shift", "guess"),
    [
        ("H=-13.57, C=-1027.26, O=-2038.53", 4206.0, "energies are interaction energies"),
        ("H=-1.1, C=-1.3, O=-1.6", 0.0, "energies are total ones while E0 are not"),
        ("H=-13.6, C=-155.0, O=-432.0", 0.0, "different methods, pseudopotentials or units"),
    ],
)
def test_energies_that_do_not_belong_to_their_e0_are_found(tmp_path, ethanol, e0, shift, guess):
    for atoms in ethanol:
        label(atoms, energy=atoms.calc.results["energy"] + shift)
    found = findings(tmp_path, ethanol, e0=e0)["reference-energies"]
    assert guess in found.message
    assert found.grade == "warning"  # one composition: a constant is all that is spoilt
    water = ase.Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    water.calc = SinglePointCalculator(
        water, energy=-2077.0 + shift * 0.495, forces=np.zeros((3, 3))
    )
    found = findings(tmp_path, [*ethanol, water], e0=e0)["reference-energies"]
    assert found.grade == "error"


def test_e0_of_the_same_method_leave_nothing_to_say(tmp_path, ethanol):
    found = findings(tmp_path, ethanol, e0=str(data_file("ethanol_isolated_atoms.xyz")))
    assert set(found) == {"missing-pairs"}
    assert findings(tmp_path, ethanol, e0="H=-13.6")["e0"].grade == "error"


def test_e0_that_the_compositions_leave_open_are_told_as_training_fits_them(tmp_path, ethanol):
    atoms = ase.io.read(data_file("ethanol_isolated_atoms.xyz"), ":")
    (tmp_path / "fit").mkdir()
    found = findings(tmp_path / "fit", [*ethanol, *atoms], e0="fit")["open-references"]
    assert found.grade == "note"  # isolated atoms are not fitted: there is one composition
    assert "(all frames have one)" in found.message
    assert "open-references" not in findings(tmp_path, [*ethanol, *atoms], e0="auto")
    assert "open-references" not in findings(tmp_path, ethanol, e0=None)


def test_a_single_atom_in_a_cell_that_cannot_be_is_an_error_beside_the_others(tmp_path, ethanol):
    dense = ase.Atoms("H", cell=0.012 * np.eye(3), pbc=True)
    dense.calc = SinglePointCalculator(dense, energy=-13.6, forces=np.zeros((1, 3)))
    found = findings(tmp_path, [*ethanol, dense])
    assert [index for _, index in found["too-many-neighbours"].frames] == [60]
    assert "missing-pairs" in found


# Geometry.


def test_atoms_that_are_too_close_are_found(tmp_path, ethanol):
    direction = ethanol[2].positions[1] - ethanol[2].positions[0]
    ethanol[2].positions[0] += 0.6 * direction
    found = findings(tmp_path, ethanol)["close-atoms"]
    assert [index for _, index in found.frames] == [2]
    assert "C 0 and C 1" in found.message


def test_atoms_without_neighbours_are_found(tmp_path, ethanol):
    ethanol[2].positions[3] += 30
    found = findings(tmp_path, ethanol)["lonely-atoms"]
    assert [index for _, index in found.frames] == [2]


def test_crystals_that_lost_their_periodicity_are_found(tmp_path, silicon):
    for atoms in silicon:
        atoms.pbc = False
        label(atoms, stress=None)
    found = findings(tmp_path, silicon)
    assert len(found["lost-periodicity"].frames) > 25
    assert "net-torque" not in found


def test_molecules_in_a_box_are_not_taken_for_crystals(tmp_path, ethanol):
    for atoms in ethanol:
        atoms.set_cell(30 * np.eye(3))
    assert not new(findings(tmp_path, ethanol), "ethanol")
    for atoms in ethanol:
        atoms.pbc = True
    found = findings(tmp_path, ethanol)
    assert new(found, "ethanol") == {"vacuum"}
    assert "molecules or clusters" in found["vacuum"].message


def test_left_handed_cells_are_noted(tmp_path, silicon):
    for atoms in silicon[:4]:
        atoms.set_cell(atoms.cell[[1, 0, 2]])
    assert [i for _, i in findings(tmp_path, silicon)["left-handed-cell"].frames] == [0, 1, 2, 3]


def test_frames_that_stand_twice_are_found(tmp_path, ethanol):
    moved = ethanol[3].copy()
    moved.positions += [1.0, 2.0, 3.0]
    moved.calc = ethanol[3].calc
    found = findings(tmp_path, [*ethanol, moved])
    assert new(found, "ethanol") == {"duplicate-frames"}
    assert [index for _, index in found["duplicate-frames"].frames] == [60]


def test_wrapped_crystals_that_stand_twice_are_found(tmp_path, silicon):
    moved = silicon[3].copy()
    moved.calc = silicon[3].calc
    moved.positions += [2.1, 1.9, 2.3]
    moved.wrap()
    found = findings(tmp_path, [*silicon, moved])
    assert new(found, "silicon") == {"duplicate-frames"}


def test_contradictory_frames_are_found(tmp_path, ethanol):
    twin = ethanol[3].copy()
    twin.calc = SinglePointCalculator(twin, **ethanol[3].calc.results)
    label(twin, energy=twin.calc.results["energy"] + 0.1)
    found = findings(tmp_path, [*ethanol, twin])["contradictory-frames"]
    assert found.grade == "warning"
    assert [index for _, index in found.frames] == [3, 60]


def turned_copy(atoms):
    """The same molecule turned, mirrored and with two of its hydrogens exchanged."""
    order = [0, 1, 2, 4, 3, 5, 6, 7, 8]
    turn = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    copy = atoms[order]
    copy.positions = copy.positions @ turn
    copy.calc = SinglePointCalculator(
        copy,
        energy=atoms.calc.results["energy"],
        forces=atoms.calc.results["forces"][order] @ turn,
    )
    return copy


def test_turned_copies_are_noted(tmp_path, ethanol):
    assert (ethanol[0].numbers[3:5] == 1).all()
    found = findings(tmp_path, [*ethanol, turned_copy(ethanol[8])])
    assert new(found, "ethanol") == {"turned-frames"}
    assert found["turned-frames"].grade == "note"


def test_frames_of_the_training_set_in_the_test_set_are_found(tmp_path, ethanol):
    other = tmp_path / "test.traj"
    ase.io.write(other, [*ethanol[40:45], turned_copy(ethanol[2]), *ethanol[50:]])
    found = findings(tmp_path, ethanol[:45], against=other)
    assert [index for _, index in found["leaked-frames"].frames] == [40, 41, 42, 43, 44]
    assert [index for _, index in found["leaked-turned-frames"].frames] == [2]
    ase.io.write(other, ethanol[45:])
    assert not new(findings(tmp_path, ethanol[:45], against=other), "ethanol")


def test_frames_without_neighbours_are_told_apart_by_their_elements(tmp_path):
    def apart(symbols, distance, energy):
        atoms = ase.Atoms(symbols, [[distance * i, 0, 0] for i in range(len(symbols))])
        zeros = np.zeros((len(symbols), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=zeros)
        return atoms

    other = tmp_path / "other.traj"
    ase.io.write(other, [apart(["Cu", "Au"], 7.0, -1.0)])
    dimers = [apart(["Cu", "Cu"], 6.0 + i, -1.0) for i in range(3)]
    found = findings(tmp_path, dimers, against=other)
    assert {"leaked-frames", "leaked-turned-frames", "turned-frames"}.isdisjoint(found)
    found = findings(tmp_path, [apart(["Pt"], 0.0, -1.0), apart(["O"], 0.0, -1.0), *dimers])
    assert {"turned-frames", "duplicate-frames"}.isdisjoint(found)


def test_outliers_of_the_energy_are_found(tmp_path, ethanol):
    label(ethanol[5], energy=ethanol[5].calc.results["energy"] + 5)
    found = findings(tmp_path, ethanol)["energy-outlier"]
    assert [index for _, index in found.frames] == [5]


@pytest.mark.parametrize("n_frames", [8, 15])
def test_outliers_of_the_energy_are_found_in_small_sets(tmp_path, ethanol, n_frames):
    assert not new(findings(tmp_path, ethanol[:n_frames]), "ethanol")
    label(ethanol[5], energy=ethanol[5].calc.results["energy"] + 50)
    found = findings(tmp_path, ethanol[:n_frames])
    assert [index for _, index in found["energy-outlier"].frames] == [5]
    assert "units" not in found


def test_outliers_of_the_energy_are_found_where_few_frames_have_a_composition(tmp_path):
    rng, frames, single = np.random.default_rng(5), [], {29: -45_000.0, 79: -500_000.0}
    for index in range(60):
        atoms = ase.build.bulk("Cu", "fcc", a=3.9, cubic=True).repeat((2, 1, 1))
        atoms.numbers[: index % 20] = 79  # eight frames of gold, three of each mixture
        atoms.rattle(0.05, rng=rng)
        energy = sum(single[z] for z in atoms.numbers.tolist()) - 8 * 3.5 + rng.normal(0, 0.2)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((8, 3)))
        frames.append(atoms)
    assert "energy-outlier" not in findings(tmp_path, frames)
    label(frames[23], energy=frames[23].calc.results["energy"] + 40)
    found = findings(tmp_path, frames)["energy-outlier"]
    assert [index for _, index in found.frames] == [23]
    assert "data.traj#23 where Cu5Au3 has" in found.message


def test_a_frame_whose_energy_jumps_is_named_and_the_rest_still_judged(tmp_path, ethanol):
    label(ethanol[5], energy=ethanol[5].calc.results["energy"] + 50)
    found = findings(tmp_path, ethanol)
    assert new(found, "ethanol") == {"energy-outlier", "energy-jump"}
    assert [index for _, index in found["energy-jump"].frames] == [5]
    assert "50" in found["energy-jump"].message or "49" in found["energy-jump"].message
    found = findings(tmp_path, scale(ethanol, 1 / HARTREE, BOHR / HARTREE))
    assert "--energy-unit Hartree --forces-unit=Hartree/Bohr" in found["units"].remedy


def test_large_forces_are_found(tmp_path, ethanol):
    forces = ethanol[5].calc.results["forces"].copy()
    forces[:2] = [[40.0, 0, 0], [-40.0, 0, 0]]
    label(ethanol[5], forces=forces)
    assert [i for _, i in findings(tmp_path, ethanol)["large-forces"].frames] == [5]


def test_outliers_of_the_density_are_found(tmp_path, silicon):
    silicon[5].set_cell(1.4 * silicon[5].cell, scale_atoms=True)
    assert [i for _, i in findings(tmp_path, silicon)["density-outlier"].frames] == [5]


# Sufficiency.


def test_rare_elements_and_missing_pairs_are_found(tmp_path):
    frames = ase.io.read(data_file("ethanol_train.xyz"), ":")
    for atoms in frames[:3]:
        atoms.numbers[2] = 16
    found = findings(tmp_path, frames)
    assert "S in 3" in found["rare-element"].message
    assert [index for _, index in found["rare-element"].frames] == [0, 1, 2]
    assert "O-S" in found["missing-pairs"].message


def test_rare_pairs_of_common_elements_are_noted(tmp_path):
    frames = ase.io.read(data_file("ethanol_train.xyz"), ":300")
    assert "rare-pairs" not in findings(tmp_path, frames)
    for atoms in frames:  # two molecules of water far away, in four frames so near that they meet
        atoms.info.clear()
    for index, atoms in enumerate(frames):
        distance = 2.8 if index < 4 else 9.0
        second = ase.Atoms("O", [atoms.positions[2] + [distance, 0, 0]])
        forces = np.vstack([atoms.calc.results["forces"], np.zeros((1, 3))])
        energy = atoms.calc.results["energy"]
        atoms.extend(second)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    found = findings(tmp_path, frames)["rare-pairs"]
    assert found.grade == "note"
    assert "O-O in 4" in found.message


def test_stress_in_one_cell_only_is_found(tmp_path, silicon):
    frames = [atoms for atoms in silicon if len(atoms) == 8]
    for atoms in frames:
        atoms.set_cell(5.45 * np.eye(3), scale_atoms=True)
    assert findings(tmp_path, frames)["no-strains"].grade == "warning"
    for atoms in frames:
        label(atoms, stress=None)
    assert findings(tmp_path, frames)["no-strains"].grade == "note"


def test_a_frame_far_larger_than_the_rest_is_found(tmp_path, silicon):
    large = silicon[0].repeat(3)
    large.calc = SinglePointCalculator(large, energy=27 * silicon[0].calc.results["energy"])
    found = findings(tmp_path, [*silicon, large])["large-frame"]
    assert [index for _, index in found.frames] == [33]


@pytest.mark.parametrize(
    ("cutoff", "expected"),
    [(2.6, "few-neighbors"), (4.0, None), (10.0, "many-neighbors"), (10.0, "small-cells")],
)
def test_cutoffs_that_are_too_short_or_too_long_are_found(tmp_path, silicon, cutoff, expected):
    found = findings(tmp_path, silicon, cutoff=cutoff)
    warnings = {name for name, finding in found.items() if finding.grade == "warning"}
    assert expected in warnings if expected else not warnings


def test_molecules_with_few_atoms_have_few_neighbours_and_that_is_right(tmp_path):
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(5):
        atoms = ase.Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
        atoms.rattle(0.02, rng=rng)
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=np.zeros((3, 3)))
        frames.append(atoms)
    assert "few-neighbors" not in findings(tmp_path, frames)


# Units and consistency.


def test_turned_and_wrapped_frames_are_compared_all_the_same(tmp_path, ethanol, silicon):
    rng = np.random.default_rng(2)
    for atoms in ethanol:
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        turn *= np.sign(np.linalg.det(turn))
        atoms.positions = atoms.positions @ turn + rng.normal(size=3)
        label(atoms, forces=atoms.calc.results["forces"] @ turn)
    for atoms in silicon:
        atoms.positions += rng.normal(size=3)
        atoms.wrap()
    for frames in (ethanol, silicon):
        structures = [from_ase(atoms, **results(atoms)) for atoms in frames]
        sample = survey(structures, [("", i) for i in range(len(frames))], LabelKeys(), 5.0)
        fit = fit_work(close_pairs(sample))
        assert fit.n_pairs > 30
        assert fit.forces == pytest.approx(1.0, abs=0.1)
        assert fit.explained > 0.6
        assert fit.stress is None or fit.stress == pytest.approx(1.0, abs=0.1)


def results(atoms):
    """Energy, forces and stress of a frame, for a `Structure`."""
    found = {k: v for k, v in atoms.calc.results.items() if k in ("energy", "forces", "stress")}
    return found | ({"stress": tensor(atoms)} if "stress" in found else {})


UNITS = {
    ("Hartree", "Hartree/Bohr"): (HARTREE, HARTREE / BOHR),
    ("Ry", "Ry/Bohr"): (RYDBERG, RYDBERG / BOHR),
    ("kcal/mol", "kcal/mol/A"): (KCAL_MOL, KCAL_MOL),
    ("eV", "Hartree/Bohr"): (1.0, HARTREE / BOHR),
    ("Hartree", "eV/A"): (HARTREE, 1.0),
    ("eV", "-eV/A"): (1.0, -1.0),
}


@pytest.mark.parametrize("units", UNITS, ids=" ".join)
def test_foreign_units_are_recognised(tmp_path, ethanol, units):
    energy, forces = UNITS[units]
    scale(ethanol, 1 / energy, 1 / forces)
    found = findings(tmp_path, ethanol)["units"]
    assert found.grade == "error"
    named = f"--energy-unit {units[0]} --forces-unit={units[1]}"
    assert named in found.remedy
    keys = LabelKeys(energy_unit=units[0], forces_unit=units[1])
    assert not new(findings(tmp_path, ethanol, keys=keys), "ethanol")


@pytest.mark.parametrize("energy", [1.0, 1 / HARTREE], ids=["eV", "atomic units"])
def test_positions_in_bohr_are_recognised(tmp_path, ethanol, energy):
    for atoms in ethanol:
        atoms.positions /= BOHR
    found = findings(tmp_path, scale(ethanol, energy, energy * (1 if energy == 1 else BOHR)))
    assert "units" not in found
    assert "positions look like Bohr" in found["length-unit"].message
    assert "multiply positions and cell by 0.529177" in found["length-unit"].remedy
    assert found["length-unit"].grade == ("error" if energy == 1 else "warning")


@pytest.mark.parametrize("units", [u for u in UNITS if "kcal/mol" not in u], ids=" ".join)
def test_energies_that_do_not_fit_the_forces_are_recognised_in_crystals(tmp_path, silicon, units):
    energy, forces = UNITS[units]
    found = findings(tmp_path, scale(silicon, 1 / energy, 1 / forces))
    assert f"--energy-unit {units[0]} --forces-unit={units[1]}" in found["units"].remedy


def test_forces_of_other_frames_are_recognised(tmp_path, ethanol):
    energies = [atoms.calc.results["energy"] for atoms in ethanol]
    for atoms, energy in zip(ethanol, np.random.default_rng(1).permutation(energies)):
        label(atoms, energy=float(energy))
    assert findings(tmp_path, ethanol)["energies-against-forces"].grade == "warning"


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("-eV/A^3", -1), ("GPa", GPA), ("kbar", KBAR), ("-kbar", -KBAR), ("Ry/Bohr^3", 91.8158)],
)
def test_foreign_units_and_signs_of_the_stress_are_recognised(tmp_path, silicon, unit, factor):
    scale(silicon, stress=1 / factor)
    found = findings(tmp_path, silicon)["stress-unit"]
    assert found.grade == "error"
    assert f"--stress-unit={unit}" in found.remedy
    assert not new(findings(tmp_path, silicon, keys=LabelKeys(stress_unit=unit)), "silicon")


def test_virials_named_stress_are_recognised(tmp_path, silicon):
    for atoms in silicon:
        label(atoms, stress=-atoms.get_volume() * atoms.calc.results["stress"])
    found = findings(tmp_path, silicon)["stress-unit"]
    assert "under a key that ends in virial" in found.remedy
    assert "sign turned" not in found.remedy


@pytest.mark.parametrize("order", ["xx yy zz xy yz xz", "xx yy zz xz yz xy", "xx yy zz xy xz yz"])
def test_the_order_of_the_shear_components_is_recognised(tmp_path, order):
    silicon = ase.io.read(data_file("silicon_train.xyz"), ":")
    names = "xx yy zz yz xz xy".split()
    for atoms in silicon:
        stress = dict(zip(names, atoms.calc.results["stress"]))
        label(atoms, stress=np.array([stress[name] for name in order.split()]))
    found = findings(tmp_path, silicon)["stress-order"]
    assert found.grade == "error"
    assert f'--stress-order "{order}"' in found.remedy
    assert not new(findings(tmp_path, silicon, keys=LabelKeys(stress_order=order)), "silicon")


@pytest.mark.parametrize("factor", [-1.0, 1 / GPA, -1 / KBAR])
def test_a_stress_that_shrinks_with_density_is_recognised_without_forces(tmp_path, silicon, factor):
    for atoms in silicon:
        label(atoms, forces=None, stress=factor * atoms.calc.results["stress"])
    keys = LabelKeys(forces_key="none")
    found = findings(tmp_path, silicon, keys=keys)["stress-sign"]
    assert found.grade == "error"
    for atoms in silicon:
        label(atoms, stress=atoms.calc.results["stress"] / factor)
    assert not new(findings(tmp_path, silicon, keys=keys), "silicon")


def pair_potential(structures):
    """Predictions of a smooth pair potential with a minimum at 2.5 Å, its exact derivatives."""
    predictions = []
    for structure in structures:
        i, j, shift = neighbor_list(structure, 6.0)
        vectors = structure.positions[j] + shift @ structure.cell - structure.positions[i]
        r = np.linalg.norm(vectors, axis=1)
        well, fade = np.exp(-2 * (r - 2.5)), (1 - (r / 6) ** 2) ** 3
        energy = well**2 - 2 * well
        slope = (-4 * well**2 + 4 * well) * fade + energy * 3 * (1 - (r / 6) ** 2) ** 2 * (-r / 18)
        pull = (slope / r)[:, None] * vectors / 2
        forces = np.zeros((len(structure), 3))
        np.add.at(forces, i, 2 * pull)
        stress = vectors.T @ pull / structure.volume if np.isfinite(structure.volume) else None
        total = (energy * fade).sum() / 2
        predictions.append(Prediction(total, np.full(len(structure), np.nan), forces, stress))
    return predictions


def crystals(n=25, pad=0.0):
    """Strained and rattled crystals of copper labelled by the pair potential; slabs with a pad."""
    rng, frames = np.random.default_rng(3), []
    for _ in range(n):
        atoms = ase.build.bulk("Cu", "fcc", a=3.6, cubic=True)
        atoms = atoms.repeat((1, 1, 4 if pad else 1))
        atoms.rattle(0.05, rng=rng)
        strain = rng.normal(0, 0.02, (3, 3))
        cell = atoms.cell.array
        cell[2, 2] += pad
        atoms.set_cell(cell)
        atoms.set_cell(atoms.cell @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        (found,) = pair_potential([from_ase(atoms)])
        voigt = found.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        atoms.calc = SinglePointCalculator(
            atoms, energy=found.energy, forces=found.forces, stress=voigt
        )
        frames.append(atoms)
    return frames


def test_the_stress_of_slabs_is_compared_with_their_forces(tmp_path):
    slabs = crystals(pad=10.0)
    good = findings(tmp_path, slabs)
    assert good["vacuum"].grade == "note"
    assert "stress-of-slabs" not in good
    for atoms in slabs[:6]:
        # The cell has been turned, and its atoms with it, but not the stress.
        label(atoms, stress=atoms.calc.results["stress"][[2, 0, 1, 5, 3, 4]] * 3)
    found = findings(tmp_path, slabs)["stress-of-slabs"]
    assert {index for _, index in found.frames} <= set(range(6))


@pytest.mark.parametrize(
    ("change", "rule", "remedy"),
    [
        (lambda s: s, None, ""),
        (lambda s: -s, "stress-of-model", "--stress-unit=-eV/A^3"),
        (lambda s: s / KBAR, "stress-of-model", "--stress-unit=kbar"),
        (lambda s: s[[0, 1, 2, 5, 3, 4]], "stress-order", '"xx yy zz xy yz xz"'),
        (lambda s: np.random.default_rng(0).normal(size=6), "stress-of-model", "train with stress"),
    ],
)
def test_a_potential_strained_by_hand_tells_what_the_stress_is(tmp_path, change, rule, remedy):
    frames = crystals()
    for atoms in frames:
        # Forces alone, so that nothing but the potential knows of the stress.
        label(atoms, stress=change(atoms.calc.results["stress"]), forces=None)
        atoms.set_cell(atoms.cell)
    keys = LabelKeys(forces_key="none")
    found = findings(tmp_path, frames, keys=keys, predict=pair_potential)
    named = {name for name in found if name in ("stress-of-model", "stress-order")}
    assert named == ({rule} if rule else set())
    assert rule is None or remedy in found[rule].remedy


def test_the_pair_potential_of_these_tests_is_consistent():
    structure = from_ase(crystals(1)[0])
    (found,) = pair_potential([structure])
    step, numeric = 1e-5, np.zeros((3, 3))
    for i, j in np.ndindex(3, 3):
        energies = []
        for sign in (1, -1):
            stretch = np.eye(3)
            stretch[i, j] += sign * step
            positions, cell = structure.positions @ stretch, structure.cell @ stretch
            bent = replace(structure, positions=positions, cell=cell)
            energies.append(pair_potential([bent])[0].energy)
        numeric[i, j] = (energies[0] - energies[1]) / (2 * step * structure.volume)
    np.testing.assert_allclose(found.stress, (numeric + numeric.T) / 2, rtol=0, atol=1e-8)
