"""The ASE calculator: right for any atoms after any other, compiling only when a size grows."""

import functools

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, BFGSLineSearch, GoodOldQuasiNewton, LBFGSLineSearch
from ase.optimize.precon import PreconLBFGS
from ase.optimize.sciopt import SciPyFminBFGS, SciPyFminCG
from conftest import make_structure, predict

import mlip
from mlip.data.structure import from_ase, to_ase
from mlip.engines.ase import Calculator
from mlip.model.mace import tables
from mlip.model.potential import evaluate_graph


@pytest.fixture
def crystal(small_potential):
    atoms = to_ase(make_structure("crystal"))
    atoms.calc = Calculator(small_potential)
    return atoms


def assert_exact(atoms, potential):
    """What the calculator gives equals a fresh prediction with the potential unfolded."""
    (expected,) = predict(potential, [from_ase(atoms)])
    np.testing.assert_allclose(atoms.get_potential_energy(), expected.energy, rtol=0, atol=1e-8)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, rtol=0, atol=1e-8)
    np.testing.assert_allclose(atoms.get_potential_energies(), expected.energies, atol=1e-8)
    if expected.stress is not None:
        np.testing.assert_allclose(atoms.get_stress(voigt=False), expected.stress, atol=1e-9)


def test_results_agree_with_ases_own_finite_differences(crystal):
    np.testing.assert_allclose(
        crystal.get_forces(), calculate_numerical_forces(crystal, eps=1e-4), atol=1e-5
    )
    np.testing.assert_allclose(
        crystal.get_stress(), calculate_numerical_stress(crystal, eps=1e-5), atol=1e-6
    )
    assert crystal.calc.results["free_energy"] == crystal.calc.results["energy"]


def test_the_table_is_kept_within_the_skin_and_renewed_beyond(crystal, small_potential):
    crystal.get_potential_energy()
    table = crystal.calc.table
    rng = np.random.default_rng(0)
    crystal.positions += rng.uniform(-0.1, 0.1, crystal.positions.shape)
    assert_exact(crystal, small_potential)
    assert crystal.calc.table is table
    for _ in range(6):
        crystal.positions += rng.uniform(-0.1, 0.15, crystal.positions.shape)
        assert_exact(crystal, small_potential)
    assert crystal.calc.table is not table


def test_wrapping_cell_periodicity_and_species_renew_the_table(crystal, small_potential):
    assert_exact(crystal, small_potential)
    crystal.positions += [30.0, -20.0, 4.0]
    crystal.wrap()
    assert_exact(crystal, small_potential)
    crystal.set_cell(crystal.cell * 1.03, scale_atoms=True)
    assert_exact(crystal, small_potential)
    crystal.pbc = [True, False, True]
    assert_exact(crystal, small_potential)
    crystal.numbers[:] = crystal.numbers[::-1].copy()
    assert_exact(crystal, small_potential)
    del crystal[2]
    assert_exact(crystal, small_potential)


def test_any_atoms_after_any_other(small_potential):
    calculator = Calculator(small_potential)
    for kind in ("crystal", "atom", "molecule", "primitive", "slab", "crystal"):
        atoms = to_ase(make_structure(kind))
        atoms.calc = calculator
        assert_exact(atoms, small_potential)


def test_it_compiles_only_when_a_padded_size_grows(small_potential):
    calculator = Calculator(small_potential)
    atoms = to_ase(make_structure("crystal"))
    atoms.calc = calculator
    atoms.get_forces()
    before = evaluate_graph.jitted._cache_size()
    for kind in ("primitive", "molecule", "atom", "crystal"):
        other = to_ase(make_structure(kind, seed=3))
        other.calc = calculator
        other.get_forces()
    assert evaluate_graph.jitted._cache_size() == before
    larger = atoms.repeat((2, 1, 1))
    larger.calc = calculator
    larger.get_forces()
    assert evaluate_graph.jitted._cache_size() == before + 1


def test_float32_and_float64_agree(small_potential):
    atoms = to_ase(make_structure("slab"))
    forces = []
    for dtype in ("float32", "float64"):
        atoms.calc = Calculator(small_potential, dtype=dtype)
        forces.append(atoms.get_forces())
    assert 0 < np.abs(forces[0] - forces[1]).max() < 1e-4 * max(1, np.abs(forces[1]).max())


LINE_SEARCHES = {
    "BFGSLineSearch": BFGSLineSearch,
    "GoodOldQuasiNewton": GoodOldQuasiNewton,
    "LBFGSLineSearch": LBFGSLineSearch,
    "PreconLBFGS": PreconLBFGS,
    "PreconLBFGS without": functools.partial(PreconLBFGS, precon=None),
    "SciPyFminBFGS": SciPyFminBFGS,
    "SciPyFminCG": SciPyFminCG,
}


@pytest.mark.parametrize("name", LINE_SEARCHES)
def test_line_searches_reach_tight_limits_in_float64(silicon_potential, name):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.calc = Calculator(silicon_potential)
    assert LINE_SEARCHES[name](atoms, logfile=None).run(fmax=1e-5, steps=100)
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 1e-5


def test_large_baselines_cost_no_precision_in_float32(small_potential):
    from dataclasses import replace

    heavy = replace(small_potential, e0=np.array([-1e4, -2e4, -3e4]), dtype="float32")
    atoms = to_ase(make_structure("molecule"))
    energies = []
    for potential in (heavy, heavy.with_dtype("float64")):
        atoms.calc = Calculator(potential)
        energies.append(atoms.get_potential_energy())
    assert abs(energies[0] - energies[1]) < 1e-4  # float32 has a spacing of 8e-3 eV there


def test_relaxation_of_positions_and_cell_lowers_the_energy(small_potential):
    silicon = bulk("Si", a=5.6)
    silicon.rattle(0.1, seed=1)
    silicon.calc = Calculator(small_potential)
    before = silicon.get_potential_energy()
    BFGS(FrechetCellFilter(silicon), logfile=None).run(fmax=1e-4, steps=15)
    assert silicon.get_potential_energy() < before


def test_unknown_elements_are_refused_by_name(small_potential):
    atoms = molecule("CH3SH")
    atoms.calc = Calculator(small_potential)
    with pytest.raises(ValueError, match=r"holds C, S, which this potential was not trained on"):
        atoms.get_potential_energy()


def test_stress_without_a_volume_is_refused(small_potential):
    atoms = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])
    atoms.calc = Calculator(small_potential)
    assert np.isfinite(atoms.get_potential_energy())
    with pytest.raises(PropertyNotImplementedError, match="no stress without a periodic cell"):
        atoms.get_stress()


def test_bad_settings_and_positions_are_refused(small_potential, tmp_path):
    with pytest.raises(ValueError, match=r"skin is -0.1 Å; it must be zero or positive"):
        Calculator(small_potential, skin=-0.1)
    with pytest.raises(ValueError, match="dtype is 'half'; choose one of float32, float64"):
        Calculator(small_potential, dtype="half")
    with pytest.raises(FileNotFoundError, match="is no file"):
        Calculator(tmp_path / "absent.safetensors")
    atoms = ase.Atoms("H2", [[0, 0, 0], [0, 0, np.nan]])
    atoms.calc = Calculator(small_potential)
    with pytest.raises(ValueError, match="positions hold nan"):
        atoms.get_potential_energy()


def test_the_public_names_lead_to_the_same_objects(small_potential, tmp_path):
    mlip.save(small_potential, tmp_path / "m.safetensors")
    atoms = to_ase(make_structure("molecule"))
    atoms.calc = mlip.Calculator(str(tmp_path / "m.safetensors"))
    expected = mlip.load(tmp_path / "m.safetensors")(mlip.from_ase(atoms)).energy
    np.testing.assert_allclose(atoms.get_potential_energy(), expected, rtol=0, atol=1e-10)


def test_where_tables_would_be_too_large_it_says_so_and_computes_unfolded(
    small_potential, monkeypatch
):
    monkeypatch.setattr(tables, "MOST_BYTES", 1e3)
    atoms = to_ase(make_structure("crystal"))
    atoms.calc = Calculator(small_potential)
    with pytest.warns(UserWarning, match=r"computing with the unfolded potential: the tables of 3"):
        atoms.get_potential_energy()
    assert atoms.calc.used is small_potential
    assert_exact(atoms, small_potential)
    with pytest.raises(tables.NoTables, match=r"fold fewer species, or use the potential unfolded"):
        mlip.fold(small_potential)
