"""What a relaxation is asked for, and what it gives: settings, checks, results and their files."""

import io
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.stress import full_3x3_to_voigt_6_stress

from mlip.data.neighbors import complete_cell
from mlip.data.structure import Structure, to_ase
from mlip.files import append, atomic_write
from mlip.relaxation.descent import CELLS, STRAINS, free_strains
from mlip.relaxation.minimizers import OPTIMIZERS
from mlip.simulation import setup

# Smallest limits for float32, eV/Å and GPa: 3 and 10 times those that relaxations of silicon with
# defects reached in as many steps as in float64. For 1e-5 eV/Å they took twice as many.
FINEST = {"max_force": 1e-4, "max_stress": 1e-3}


@dataclass(frozen=True)
class RelaxationConfig:
    """Settings of a relaxation."""

    optimizer: str = "lbfgs"  # lbfgs or fire
    cell: str = "fixed"  # fixed, full, hydrostatic (size alone) or shape (volume kept)
    strain: tuple[str, ...] = ()  # free strains of the cell, of xx yy zz yz xz xy; all if not given
    pressure: float = 0.0  # GPa, on a cell that relaxes
    max_force: float = 0.01  # eV/Å on any free atom, at which a structure has converged
    max_stress: float = 0.05  # GPa beside the pressure, likewise, for a cell that relaxes
    steps: int = 1000  # after which a structure is left as not converged
    max_step: float = 0.2  # Å that an atom goes in one step
    fixed: tuple[int, ...] = ()  # atoms that keep their place in the cell, counted from 0
    dtype: str | None = None  # float32 or float64; if not given as trained, or as the limits need
    skin: float = 0.5  # Å beyond the cutoff within which neighbour tables are kept
    max_energy: float = 10.0  # eV per atom above the start; a system beyond is stopped
    min_distance: float = 0.4  # Å between any two atoms; likewise

    def __post_init__(self):
        for name, choices in {"optimizer": OPTIMIZERS, "cell": CELLS}.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}"
                )
        for name in "max_force max_stress steps max_step skin max_energy".split():
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; it must be positive")
        for name in ("pressure", "min_distance"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; give a finite number")
        if unknown := [name for name in self.strain if name not in STRAINS]:
            raise ValueError(f"strain holds {unknown[0]!r}; choose from {' '.join(STRAINS)}")
        if self.cell == "fixed" and (self.strain or self.pressure):
            raise ValueError(
                "strain and pressure act on a cell that relaxes; choose a cell of "
                f"{', '.join(CELLS[1:])}"
            )
        free_strains(self.cell, self.strain)

    def too_fine(self):
        """The limit that float32 does not resolve, with its value and unit; empty if none."""
        units = {"max_force": "eV/Å"} | ({} if self.cell == "fixed" else {"max_stress": "GPa"})
        return next(
            (
                f"{name} = {getattr(self, name):g} {unit}"
                for name, unit in units.items()
                if getattr(self, name) < FINEST[name]
            ),
            "",
        )


@dataclass(frozen=True)
class Relaxed:
    """Where a relaxation ended; NumPy float64."""

    structure: Structure  # the final one
    energy: float  # eV; NaN, like the forces, if the potential gave no finite number at the start
    forces: np.ndarray  # [n_atoms, 3] eV/Å, on fixed atoms too
    stress: np.ndarray | None  # [3, 3] eV/Å³; None without a volume
    steps: int
    converged: bool
    max_force: float  # eV/Å, largest on a free atom
    max_stress: float | None  # GPa, largest beside the pressure on free strains; None: cell fixed
    reason: str  # why it ended without converging; empty if it converged
    fixed: np.ndarray  # [n_atoms] True for atoms that stayed

    def to_ase(self):
        """`ase.Atoms` with the results in a calculator and the rest in `info`."""
        atoms = to_ase(self.structure)
        atoms.set_constraint(FixAtoms(mask=self.fixed) if self.fixed.any() else None)
        if math.isfinite(self.energy):
            results = {"energy": self.energy, "forces": self.forces}
            if self.stress is not None:
                results["stress"] = full_3x3_to_voigt_6_stress(self.stress)
            atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info |= {"start": self.structure.name, "steps": self.steps}
        atoms.info |= {"converged": self.converged, "max_force": self.max_force}
        if self.max_stress is not None:
            atoms.info["max_stress_GPa"] = self.max_stress
        if self.reason:
            atoms.info["reason"] = self.reason
        return atoms


def check_starts(potential, starts, config):
    """Refuse what cannot be relaxed.

    Raises:
      ValueError: no start, an element that the potential does not know, a cell that cannot relax
        as wanted, fixed atoms that are not there, or nothing that can move.
    """
    if not starts:
        raise ValueError("there are no structures to relax; give at least one")
    basis = free_strains(config.cell, config.strain)
    for start in starts:
        structure = start.structure
        potential.species_of(structure)
        if setup.is_fixed(start, config).all() and config.cell == "fixed":
            raise ValueError(f"{structure.name}: all atoms are fixed; leave one free to move")
        if config.cell == "fixed":
            continue
        if not np.isfinite(structure.volume):
            raise ValueError(
                f"{structure.name} has no periodic cell with a volume, so that it cannot relax; "
                "relax positions alone (cell fixed)"
            )
        normals = complete_cell(structure.cell, structure.pbc)[~structure.pbc]
        if np.abs(basis @ normals.T).max(initial=0) > 1e-6:
            raise ValueError(
                f"{structure.name} is not periodic along all axes, and strains along the others "
                "mean nothing; name those within the periodic ones, such as --strain xx yy xy"
            )


class Files:
    """Where results go; checked before anything is computed.

    Raises:
      ValueError: a name that is not that of an extended XYZ file, or one for two purposes.
      FileExistsError: a file that exists and is not to be overwritten.
      OSError: a folder that cannot be written.
    """

    def __init__(self, out, trajectory, n_structures, overwrite):
        self.out = None if out is None else Path(out)
        path = None if trajectory is None else Path(trajectory)
        self.trajectories = [path] * (path is not None)
        if path is not None and n_structures > 1:
            names = [f"{path.stem}_{index:03d}{path.suffix}" for index in range(n_structures)]
            self.trajectories = [path.with_name(name) for name in names]
        if self.out and self.out.resolve() in [path.resolve() for path in self.trajectories]:
            raise ValueError(f"{self.out} is to hold both results and steps; name two files")
        for path in [*([self.out] if self.out else []), *self.trajectories]:
            if path.suffix not in (".xyz", ".extxyz") or path.is_dir():
                raise ValueError(f"{path} is to be an extended XYZ file; name one, such as a.xyz")
            if path.exists() and not overwrite:
                raise FileExistsError(f"{path} exists; give another name, or --overwrite")
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass  # it can be written there

    def begin(self):
        """Remove the trajectories that are to be replaced."""
        for path in self.trajectories:
            path.unlink(missing_ok=True)

    def write(self, results):
        """All results that there are, in the order of the structures."""
        frames = [result.to_ase() for result in results if result is not None]
        if self.out is not None and frames:
            with atomic_write(self.out) as temporary:
                ase.io.write(temporary, frames, format="extxyz")

    def add_frame(self, index, result):
        """A step of a structure."""
        text = io.StringIO()
        ase.io.write(text, result.to_ase(), format="extxyz")
        file = os.open(self.trajectories[index], os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.lseek(file, 0, os.SEEK_END)
            append(file, text.getvalue(), "relax again")
        finally:
            os.close(file)
