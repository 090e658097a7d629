"""Trajectories: frames in memory, and the files of a simulation.

A frame, and a line of numbers, is written in one call, so that a process that is killed leaves
whole ones. What a checkpoint does not know of yet is cut off when a run resumes.
"""

import contextlib
import io
import os
from dataclasses import dataclass, field
from pathlib import Path

import ase.io
import numpy as np
from ase import units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.trajectory import Trajectory as AseTrajectory
from ase.stress import full_3x3_to_voigt_6_stress

from mlip.data.structure import Structure, to_ase
from mlip.files import append, atomic_write, no_room
from mlip.units import MEV

REMEDY = "go on with --resume"
COLUMNS = (
    "step",
    "time_ps",
    "potential_eV",
    "kinetic_eV",
    "temperature_K",
    "pressure_GPa",
    "conserved_eV",
    "volume_A3",
)


@dataclass(frozen=True)
class Frame:
    """One system at one moment; NumPy float64."""

    step: int
    time: float  # fs
    positions: np.ndarray  # [n_atoms, 3] Å, never wrapped
    velocities: np.ndarray  # [n_atoms, 3] Å/fs
    forces: np.ndarray  # [n_atoms, 3] eV/Å
    cell: np.ndarray  # [3, 3] Å
    energy: float  # eV, potential
    stress: np.ndarray | None  # [3, 3] eV/Å³, without the kinetic part; None without a volume

    def to_ase(self, structure):
        """`ase.Atoms` with momenta and, in a calculator, the results."""
        atoms = to_ase(structure)
        atoms.set_cell(self.cell)
        atoms.set_positions(self.positions)
        atoms.set_velocities(self.velocities / units.fs)
        results = {"energy": self.energy, "forces": self.forces}
        if self.stress is not None:
            results["stress"] = full_3x3_to_voigt_6_stress(self.stress)
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info |= {"step": self.step, "time_ps": self.time / 1000}
        return atoms


@dataclass
class Trajectory:
    """One system through a simulation."""

    structure: Structure  # the start
    frames: list = field(default_factory=list)  # of `Frame`; the last one where files hold them
    thermo: list = field(default_factory=list)  # rows of COLUMNS since the run began or resumed
    stopped: str = ""  # why the system was stopped before the end

    def array(self, name):
        """A field of all frames, [n_frames, ...]; see `Frame`."""
        return np.array([getattr(frame, name) for frame in self.frames])

    def column(self, name):
        """A column of the thermodynamic quantities, [n_rows]; see COLUMNS."""
        return np.array([row[COLUMNS.index(name)] for row in self.thermo])


def summary(rows, n_atoms):
    """What rows of COLUMNS come to; None where there are too few.

    Returns:
      means over the second half (`temperature_K`, `pressure_GPa`, `volume_A3`), and the drift of
      the conserved quantity over all, `drift_meV_per_atom_per_ps`.
    """
    rows = np.array(rows).reshape(-1, len(COLUMNS))
    half, found = rows[len(rows) // 2 :], {}
    for name in ("temperature_K", "pressure_GPa", "volume_A3"):
        found[name] = float(half[:, COLUMNS.index(name)].mean()) if len(rows) else None
    found["drift_meV_per_atom_per_ps"] = None
    if len(rows) > 2:
        times, conserved = (rows[:, COLUMNS.index(name)] for name in ("time_ps", "conserved_eV"))
        slope = np.polyfit(times, conserved, 1)[0]
        found["drift_meV_per_atom_per_ps"] = float(MEV * slope / n_atoms)
    return found


class Files:
    """The files of one system: `trajectory.xyz` or `trajectory.traj`, and `thermo.csv`.

    Args:
      folder: made if absent.
      structure: the start.
      kind: xyz or traj.
      kept: what `sync` gave when the run that resumes was checkpointed; None begins anew.
    """

    def __init__(self, folder, structure, kind, kept=None):
        self.structure, self.kind = structure, kind
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"trajectory.{kind}"
        self.rows = _open_at(folder / "thermo.csv", kept and kept[0])
        if kept is None:
            append(self.rows, ",".join(COLUMNS) + "\n", REMEDY)
        if kind == "xyz":
            self.frames = _open_at(self.path, kept and kept[1])
        else:
            self.frames = _open_traj(self.path, kept and kept[1])

    def add_frame(self, frame):
        atoms = frame.to_ase(self.structure)
        if self.kind == "traj":
            try:
                self.frames.write(atoms)
            except OSError as error:
                # Its writer would try to end the frame once more when it is closed.
                file, self.frames = self.frames.backend.fd, None
                with contextlib.suppress(OSError):
                    file.close()
                raise no_room(error, REMEDY) from error
            return
        text = io.StringIO()
        ase.io.write(text, atoms, format="extxyz")
        append(self.frames, text.getvalue(), REMEDY)

    def add_row(self, row):
        append(self.rows, ",".join(f"{value:.12g}" for value in row) + "\n", REMEDY)

    def sync(self):
        """Bring all to the disk; what a run that resumes from here must be given as `kept`."""
        os.fsync(self.rows)
        if self.kind == "traj":
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())
            return [os.lseek(self.rows, 0, os.SEEK_CUR), len(self.frames)]
        os.fsync(self.frames)
        return [os.lseek(file, 0, os.SEEK_CUR) for file in (self.rows, self.frames)]

    def close(self):
        os.close(self.rows)
        if self.kind == "xyz":
            os.close(self.frames)
        elif self.frames is not None:
            self.frames.close()


def _open_at(path, size):
    """A file descriptor at the end of the first `size` bytes, with all beyond them cut off."""
    if size is not None and (not path.is_file() or path.stat().st_size < size):
        raise ValueError(
            f"{path} is shorter than it was at the checkpoint; a file of the run was changed or "
            "removed, so it cannot be resumed"
        )
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.ftruncate(file, size or 0)
    os.lseek(file, size or 0, os.SEEK_SET)
    return file


def _open_traj(path, n_frames):
    """ASE's writer after the first `n_frames` frames of a file."""
    if n_frames is None:
        return AseTrajectory(path, "w")
    with AseTrajectory(path) as old:
        if len(old) < n_frames:
            raise ValueError(
                f"{path} holds {len(old)} frames, fewer than the {n_frames} at the checkpoint; it "
                "was changed, so the run cannot be resumed"
            )
        frames = [old[index] for index in range(n_frames)] if len(old) > n_frames else None
    if frames is not None:
        with atomic_write(path) as temporary, AseTrajectory(temporary, "w") as new:
            for atoms in frames:
                new.write(atoms)
    return AseTrajectory(path, "a")
