"""`mlip check` and its places: JSON, mended files, the start of a training, public data."""

import json

import ase.io
import numpy as np
import pytest
from scipy.spatial.distance import pdist

from mlip.cli import main
from mlip.data.checks.doctor import check, mend
from mlip.data.checks.findings import listed
from mlip.data.dataset import read
from mlip.data.labels import LabelKeys
from mlip.model.mace.model import NetworkConfig
from mlip.quickstart import data_file
from mlip.training.setup import TrainConfig, prepare
from mlip.units import BOHR, HARTREE

ETHANOL = data_file("ethanol_test_300K.xyz")


def foreign_frames(folder, n=30):
    """A file in Hartree and Bohr under odd keys, with a frame twice and one that is broken."""
    frames = ase.io.read(ETHANOL, f":{n}")
    for atoms in frames:
        atoms.info |= {"E_scf_energy": atoms.calc.results["energy"] / HARTREE, "temperature": 300}
        atoms.arrays["my_forces"] = atoms.calc.results["forces"] / (HARTREE / BOHR)
        atoms.calc = None
    frames.append(frames[4].copy())
    frames[7].info["E_scf_energy"] = np.nan
    path = folder / "foreign.xyz"
    ase.io.write(path, frames)
    return path


def test_mended_sets_hold_the_same_labels_in_ev_and_each_frame_once(tmp_path, capsys):
    path, out = foreign_frames(tmp_path), tmp_path / "mended.xyz"
    units = ["--energy-unit", "Hartree", "--forces-unit", "Hartree/Bohr"]
    assert main(["check", str(path), "--fix", str(out), *units]) == 0
    printed = capsys.readouterr().out
    assert "left out, since they repeat an earlier one: 1 frame" in printed
    assert "kept without a label that cannot be used: 1 frame" in printed
    assert "wrote 30 frames with energy, forces in eV and Å" in printed
    mended, sound = read(out), read(ETHANOL)[:30]
    for index, (one, other) in enumerate(zip(mended, sound)):
        np.testing.assert_allclose(one.forces, other.forces, rtol=0, atol=1e-6)
        np.testing.assert_allclose(one.positions, other.positions, rtol=0, atol=1e-7)
        assert one.group == other.group
        assert one.energy is None if index == 7 else abs(one.energy - other.energy) < 1e-6
    assert ase.io.read(out, 3).info["temperature"] == 300
    assert not check(out).graded("warning")


def test_a_mended_set_says_which_keys_it_leaves_out(tmp_path):
    frames = ase.io.read(ETHANOL, ":5")
    for atoms in frames:
        atoms.info |= {"formation_energy": -1.0, "kinetic_energy": 0.3}
        atoms.arrays["mm_forces"] = np.ones((9, 3))
        atoms.calc.results["dipole"] = np.array([0.1, 0.2, 0.3])
    ase.io.write(tmp_path / "many.xyz", frames)
    out = tmp_path / "mended.xyz"
    keys = LabelKeys(energy_key="energy", forces_key="forces")
    lines = mend(check(tmp_path / "many.xyz", keys), out)
    assert any(line.startswith("left out the keys formation_energy, mm_forces,") for line in lines)
    assert len(read(out)) == 5  # without a second candidate
    atoms = ase.io.read(out, 3)
    assert atoms.info["kinetic_energy"] == 0.3
    np.testing.assert_allclose(atoms.calc.results["dipole"], [0.1, 0.2, 0.3], rtol=0, atol=1e-8)


def test_a_mended_crystal_keeps_its_stress_under_ases_name(tmp_path):
    path, out = data_file("silicon_test.xyz"), tmp_path / "mended.xyz"
    frames = ase.io.read(path, ":")
    for atoms in frames:
        stress = atoms.calc.results.pop("stress")
        atoms.info["virial"] = -atoms.get_volume() * stress[[0, 5, 4, 5, 1, 3, 4, 3, 2]]
    ase.io.write(tmp_path / "virials.xyz", frames)
    mend(check(tmp_path / "virials.xyz"), out)
    for one, other in zip(read(out), read(path)):
        np.testing.assert_allclose(one.stress, other.stress, rtol=0, atol=1e-9)


def test_existing_files_are_replaced_only_when_told(tmp_path, capsys):
    out = tmp_path / "mended.xyz"
    out.write_text("precious")
    assert main(["check", str(ETHANOL), "--fix", str(out)]) == 2
    assert "exists already; give another name, or --overwrite" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert main(["check", str(ETHANOL), "--fix", str(out), "--overwrite"]) == 0
    assert len(read(out)) == 60


def test_what_only_its_author_can_put_right_is_not_written(tmp_path, capsys):
    path, out = foreign_frames(tmp_path), tmp_path / "mended.xyz"
    assert main(["check", str(path), "--fix", str(out)]) == 2
    message = capsys.readouterr().err
    assert "cannot mend" in message
    assert "--energy-unit Hartree --forces-unit=Hartree/Bohr" in message
    assert not out.exists()


def test_the_json_has_the_documented_keys(tmp_path, capsys):
    path, out = foreign_frames(tmp_path), tmp_path / "check.json"
    assert main(["check", str(path), "--json", str(out)]) == 2
    assert "foreign.xyz has 2 errors" in capsys.readouterr().err
    table = json.loads(out.read_text())
    assert list(table) == ["schema", "data", "summary", "counts", "findings"]
    assert table["schema"] == "mlip check 1"
    assert table["counts"] == {"error": 2, "warning": 1, "note": 3}
    for finding in table["findings"]:
        assert list(finding) == ["grade", "check", "message", "remedy", "frames"]
        assert all(list(frame) == ["file", "index"] for frame in finding["frames"])
    grades = [finding["grade"] for finding in table["findings"]]
    assert grades == sorted(grades, key=["error", "warning", "note"].index)
    (bad,) = [f for f in table["findings"] if f["check"] == "not-finite"]
    assert bad["frames"] == [{"file": str(path), "index": 7}]
    summary = table["summary"]
    assert (summary["frames"], summary["atoms"]) == (31, 279)
    assert summary["elements"] == {"H": 186, "C": 62, "O": 31}
    assert summary["labels"]["energy"] == {"key": "E_scf_energy", "frames": 30}
    assert set(summary["forces_eV_per_A"]) == {"mean", "std", "quantiles"}


def test_the_shortest_distance_is_that_of_any_two_atoms(tmp_path):
    atoms = ase.io.read(ETHANOL, "0")
    # For its elements the pair C-C is now the closest, but hydrogens are closer to their atoms.
    atoms.positions[0] += 0.2 * (atoms.positions[1] - atoms.positions[0])
    ase.io.write(tmp_path / "one.traj", atoms)
    closest = check(tmp_path / "one.traj").summary["closest_A"]
    assert closest == pytest.approx(pdist(atoms.positions).min(), rel=0, abs=1e-9)


def test_the_terminal_shows_findings_within_80_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["check", str(foreign_frames(tmp_path))])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "foreign.xyz#7" in printed.replace("\n", "")


def test_frames_are_listed_by_runs():
    frames = [("a/t.xyz", i) for i in (0, 1, 2, 5, 9, 10)] + [("a/u.xyz", 3), ("bad.xyz", None)]
    assert listed(frames) == "t.xyz#0 to #2, #5, #9 to #10, u.xyz#3, bad.xyz"
    assert listed(frames, most=2) == "t.xyz#0 to #2, #5 and 4 more"


def test_a_training_stops_where_the_data_has_errors(tmp_path):
    network = NetworkConfig(channels=2, l_max=1, correlation=2, radial_widths=(4,))
    path = foreign_frames(tmp_path)
    config = TrainConfig(train=str(path), out=str(tmp_path / "run"), network=network)
    with pytest.raises(ValueError, match=r"has 2 errors: not-finite: .*; and units: ") as caught:
        prepare(config)
    assert "--no-check" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    frames = ase.io.read(path, ":")
    ase.io.write(path, frames[:7] + frames[8:])
    with pytest.raises(ValueError, match=r"has an error: units: .*train with --no-check"):
        prepare(config)


def test_a_training_tells_warnings_and_counts_notes(tmp_path):
    frames = ase.io.read(ETHANOL, ":30")
    ase.io.write(tmp_path / "twice.xyz", [*frames, frames[3]])
    network = NetworkConfig(channels=2, l_max=1, correlation=2, radial_widths=(4,))
    config = TrainConfig(train=str(tmp_path / "twice.xyz"), valid=str(ETHANOL), network=network)
    lines = "\n".join(prepare(config)[3])
    assert "warning: duplicate-frames: 1 frame repeats an earlier one (twice.xyz#30)" in lines
    assert "warning: leaked-frames: 31 frames stand in" in lines
    assert "2 notes on the data: mlip check" in lines
    config = TrainConfig(
        train=str(tmp_path / "twice.xyz"), valid=str(ETHANOL), network=network, check=False
    )
    assert "warning" not in "\n".join(prepare(config)[3])


VASP = {"stress_key": "vasp_stress_kbar", "stress_unit": "-kbar"}


def test_public_sets_have_no_errors_and_warnings_that_are_true(shared_data):
    files = sorted(shared_data.rglob("*.xyz"))
    assert len(files) >= 14
    for file in files:
        report = check(file)
        found = {finding.check for finding in report.findings if finding.grade != "note"}
        # The stress of mlearn stands under a key of its own.
        assert found == ({"unread-key"} if "mlearn" in file.parts else set()), file


@pytest.mark.parametrize("name", ["3bpa", "acac"])
def test_public_folders_are_read_without_their_licences(shared_data, name):
    report = check(shared_data / name, cutoff=3.0)
    assert not report.graded("error")
    assert report.summary["e0_source"] == "isolated atoms in the training set"


def test_the_frames_that_two_sets_of_3bpa_share_are_found(shared_data):
    folder = shared_data / "3bpa"
    report = check(folder / "train_300K.xyz", against=folder / "train_mixedT.xyz")
    (finding,) = report.graded("warning")
    assert finding.check == "leaked-frames"
    assert len(finding.frames) == 31


def test_energies_of_water_in_float32_are_noted(shared_data):
    report = check(shared_data / "water" / "data_0.xyz")
    (finding,) = [f for f in report.findings if f.check == "coarse-energies"]
    assert "float32, in steps of 2 meV (0.01 meV/atom)" in finding.message


@pytest.mark.parametrize(("element", "order"), [("Si", "vasp"), ("Mo", "xx yy zz xy xz yz")])
def test_the_orders_of_vasps_stress_in_mlearn_are_recognised(shared_data, element, order):
    # The shear components stand in two orders in the two sets, as the energies of sheared cells
    # and, in molybdenum, the forces of slabs say.
    path = shared_data / "mlearn" / element / "train.xyz"
    right = LabelKeys(**VASP, stress_order=order)
    (finding,) = check(path, LabelKeys(**VASP)).graded("error")
    assert finding.check == "stress-order"
    assert f'"{" ".join(right.order_of_stress())}"' in finding.remedy
    report = check(path, right)
    assert not report.graded("error")
    # Tilted slabs of silicon have been turned without their stress.
    expected = {"stress-of-slabs"} if element == "Si" else set()
    assert {f.check for f in report.graded("warning")} == expected


def test_the_sign_and_unit_of_vasps_stress_are_recognised(shared_data):
    path = shared_data / "mlearn" / "Mo" / "train.xyz"
    for unit in ("kbar", "GPa", "eV/A^3"):
        keys = LabelKeys(
            stress_key="vasp_stress_kbar", stress_unit=unit, stress_order="xx yy zz xy xz yz"
        )
        errors = check(path, keys).graded("error")
        assert [f.check for f in errors] == ["stress-unit"]
        assert "--stress-unit=-kbar" in errors[0].remedy
