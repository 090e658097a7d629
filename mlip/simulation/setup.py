"""The settings of a simulation, and how structures become the arrays that it runs on."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from ase import units
from ase.constraints import FixAtoms
from ase.data import atomic_masses

from mlip.data.dataset import closest_pairs, read_frames
from mlip.data.graph import build_table
from mlip.data.neighbors import complete_cell
from mlip.data.structure import Structure, from_ase
from mlip.model.spread import whole_shares
from mlip.simulation.engine import Course, Limits, Setting, Systems
from mlip.simulation.integrators import (
    CELL_MOTIONS,
    THERMOSTATS,
    Bodies,
    draw_momenta,
    rest_centre,
)
from mlip.simulation.neighbors import plan
from mlip.units import GPA

ENSEMBLES = ("nve", "nvt", "npt")
FORMATS = ("xyz", "traj")


@dataclass(frozen=True)
class DynamicsConfig:
    """Settings of a simulation."""

    ensemble: str = "nvt"  # nve, nvt or npt
    thermostat: str = "langevin"  # langevin, nose-hoover or csvr
    temperature: tuple[float, ...] = (300.0,)  # K; one for all systems, or one for each
    temperature_end: tuple[float, ...] | None = None  # K, reached linearly at the last step
    pressure: float = 0.0  # GPa
    pressure_end: float | None = None  # GPa, reached linearly at the last step
    cell_motion: str = "isotropic"  # at npt: isotropic, axes (each its own) or full (shear too)
    cell_axes: str = "xyz"  # Cartesian axes along which axes and full may strain the cell
    timestep: float = 0.5  # fs
    steps: int = 10_000  # in all
    thermostat_time: float = 100.0  # fs, in which the thermostat acts
    barostat_time: float = 1000.0  # fs, in which the barostat acts
    chain_length: int = 3  # of nose-hoover thermostats
    replicas: int = 1  # copies of every start, each with its own random numbers
    rest_centre: bool = True  # the centre of mass does not move; ignored with fixed atoms
    fixed: tuple[int, ...] = ()  # atoms that stay where they are, counted from 0
    seed: int = 0  # of velocities and thermostats
    dtype: str | None = None  # float32 or float64, of the network; as trained if not given
    skin: float = 0.5  # Å beyond the cutoff within which neighbour tables are kept
    save_every: int = 100  # steps between frames
    log_every: int = 10  # steps between lines of thermo.csv
    checkpoint_every: int = 1000  # steps between states to resume from
    trajectory: str = "xyz"  # file of the frames: xyz or traj
    max_temperature: float = 10_000.0  # K; a system beyond a limit is stopped
    max_force: float = 200.0  # eV/Å on any atom
    max_energy: float = 10.0  # eV per atom above the start
    min_distance: float = 0.4  # Å between any two atoms

    def __post_init__(self):
        for name, choices in {
            "ensemble": ENSEMBLES,
            "thermostat": THERMOSTATS,
            "cell_motion": CELL_MOTIONS,
            "trajectory": FORMATS,
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}"
                )
        for name in (
            "timestep steps thermostat_time barostat_time chain_length replicas skin save_every "
            "log_every checkpoint_every max_temperature max_force max_energy"
        ).split():
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; it must be positive")
        for name in ("temperature", "temperature_end"):
            for value in getattr(self, name) or ():
                if not (math.isfinite(value) and value > 0):
                    raise ValueError(f"{name} is {value} K; it must be positive")
        for name in ("pressure", "pressure_end", "min_distance"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; give a finite number")
        if not self.cell_axes or set(self.cell_axes) - set("xyz"):
            raise ValueError(f"cell_axes is {self.cell_axes!r}; name some of x, y and z")
        if not self.temperature:
            raise ValueError("temperature is empty; give one for all systems, or one for each")


@dataclass(frozen=True)
class Start:
    """Where a system begins."""

    structure: Structure
    velocities: np.ndarray | None = None  # [n_atoms, 3] Å/fs; None to draw them
    fixed: np.ndarray | None = None  # [n_atoms] True for atoms that stay where they are

    def __post_init__(self):
        for name, shape in (
            ("velocities", (len(self.structure), 3)),
            ("fixed", (len(self.structure),)),
        ):
            value = getattr(self, name)
            if value is not None and (np.shape(value) != shape or not np.isfinite(value).all()):
                raise ValueError(
                    f"{self.structure.name}: {name} have shape {np.shape(value)} or are not "
                    f"finite; give finite ones of shape {shape}"
                )


def read_starts(path):
    """A `Start` for every frame of a file, with its velocities and fixed atoms.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that ASE cannot read, no frame, a structure that cannot be (see
        `Structure`), or constraints other than fixed atoms.
    """
    starts = []
    for frame in read_frames(path):
        name, atoms = frame.name, frame.atoms
        fixed = np.zeros(len(atoms), bool)
        for constraint in atoms.constraints:
            if not isinstance(constraint, FixAtoms):
                raise ValueError(
                    f"{name} holds the constraint {type(constraint).__name__}; only FixAtoms is "
                    "simulated, so remove it"
                )
            fixed[constraint.index] = True
        usual = atomic_masses[atoms.numbers]
        if not np.allclose(atoms.get_masses(), usual, rtol=1e-3, atol=0):
            raise ValueError(
                f"{name} has masses of its own; only those of the natural elements are simulated, "
                "so remove the column"
            )
        velocities = atoms.get_velocities() * units.fs if atoms.has("momenta") else None
        starts.append(Start(from_ase(atoms, name), velocities, fixed))
    return starts


def spread_out(starts, config):
    """A `Start`, and temperatures at the begin and the end (K), for every system.

    Raises:
      ValueError: a number of temperatures that fits neither the starts nor their replicas, or
        copies of a start that would be the same system again.
    """
    temperatures = config.temperature
    same = config.ensemble == "nve" or (config.thermostat == "nose-hoover" and config.replicas > 1)
    copied = config.replicas > 1 or (len(starts) == 1 and len(temperatures) > 1)
    if same and copied and any(start.velocities is not None for start in starts):
        raise ValueError(
            "copies of a start with velocities would all go the same way, since nothing is random; "
            "simulate one, leave the velocities away, or choose a langevin or csvr thermostat"
        )
    if len(starts) == 1 and config.replicas == 1:
        starts = starts * len(temperatures)
    else:
        starts = [start for start in starts for _ in range(config.replicas)]
    columns = []
    for given in (temperatures, config.temperature_end or temperatures):
        if len(given) not in (1, len(starts)):
            raise ValueError(
                f"{len(given)} temperatures are given for {len(starts)} systems; give one for all "
                "or one for each"
            )
        columns.append(given * len(starts) if len(given) == 1 else given)
    return starts, np.array(columns)


def check_starts(potential, starts, config):
    """Refuse what cannot be simulated.

    Raises:
      ValueError: an element that the potential does not know, constant pressure without a
        periodic cell, fixed atoms that are not there, or nothing that can move.
    """
    for start in starts:
        structure = start.structure
        potential.species_of(structure)
        if config.ensemble == "npt" and not structure.pbc.all():
            raise ValueError(
                f"{structure.name} is not periodic along all three axes, so that its pressure is "
                "not defined; choose ensemble nvt"
            )
        if is_fixed(start, config).all():
            raise ValueError(f"{structure.name}: all atoms are fixed; leave one free to move")
        if config.ensemble == "npt" and is_fixed(start, config).any():
            raise ValueError(
                f"{structure.name} has fixed atoms, which would hold its cell; choose ensemble nvt"
            )


def is_fixed(start, config):
    """Which atoms stay where they are, [n_atoms].

    Raises:
      ValueError: fixed atoms that are not there.
    """
    structure = start.structure
    wrong = [index for index in config.fixed if not 0 <= index < len(structure)]
    if wrong:
        raise ValueError(
            f"{structure.name} has no atom {wrong[0]} to be fixed; atoms count from 0 to "
            f"{len(structure) - 1}"
        )
    fixed = np.zeros(len(structure), bool) if start.fixed is None else start.fixed.copy()
    fixed[list(config.fixed)] = True
    return fixed


def warnings_of(potential, structures):
    """What the potential was not trained for in these structures, a sentence each."""
    trained = potential.training.get("closest", {})  # Å by pair of elements, such as H-O
    found = []
    for structure in structures:
        closest = closest_pairs([structure], [build_table(structure, potential.cutoff)])
        for pair, distance in sorted(closest.items()):
            if not trained:
                continue
            if pair not in trained:
                found.append(
                    f"{structure.name}: {pair} are {distance:.2f} Å apart, a pair that no training "
                    "frame held"
                )
            elif distance < trained[pair] - 0.01:
                found.append(
                    f"{structure.name}: {pair} are {distance:.2f} Å apart, closer than in any "
                    f"training frame ({trained[pair]:.2f} Å)"
                )
    return list(dict.fromkeys(found))


def make_systems(structures, potential, grid):
    """`Systems`, positions [n_systems, n_atoms, 3] and cells [n_systems, 3, 3] (Å) in NumPy."""
    potential.require_local("dynamics and relaxation on the device")
    most = max(map(len, structures))
    most = whole_shares(most, potential.sharing(len(structures) * most))
    shape = len(structures), most
    species, real = np.zeros(shape, np.int32), np.zeros(shape, bool)
    positions = np.zeros((*shape, 3))
    for row, structure in enumerate(structures):
        n_atoms = len(structure)
        species[row, :n_atoms] = potential.species_of(structure)
        positions[row, :n_atoms] = structure.positions
        real[row, :n_atoms] = True
    cells = np.array([complete_cell(s.cell, s.pbc) for s in structures])
    # The completed cell of a slab has unit vectors where the slab's own say how much is empty.
    depth = np.array([s.volume for s in structures]) / np.abs(np.linalg.det(cells))
    return Systems(species, real, depth, grid), positions, cells


def moved(structures, positions, cells):
    """Structures at the positions and in the cells of a run; see `make_systems`."""
    positions, cells = np.asarray(positions), np.asarray(cells)
    return [
        replace(s, positions=positions[i, : len(s)], cell=np.where(s.pbc[:, None], cells[i], 0))
        for i, s in enumerate(structures)
    ]


def without_room(structures, positions, cells, going, needed, cutoff, skin):
    """The systems for which no room can be made: those without a plan, or else the fullest.

    Args:
      structures, positions, cells: see `moved`.
      going: [n_systems] False for systems that are not asked.
      needed: [n_systems, 3] see `mlip.simulation.neighbors.make_room`.
      cutoff, skin: Å.

    Returns:
      by the index of the system, what there is against it.
    """
    found = {}
    for index in np.flatnonzero(going).tolist():
        one = slice(index, index + 1)
        try:
            plan(moved(structures[one], positions[one], cells[one]), cutoff, skin)
        except (FloatingPointError, ValueError) as error:
            found[index] = str(error)
    if not found:
        slots = np.where(going, np.asarray(needed).max(axis=1), -1)
        found[int(slots.argmax())] = f"an atom would have {slots.max()} neighbours"
    return found


def sharing(potential, n_rows):
    """Devices that share the atoms of all systems, or None for one."""
    devices = potential.sharing(n_rows)
    while n_rows % len(devices):
        devices = devices[:-1]
    return devices if len(devices) > 1 else None


def make_setting(potential, starts, temperatures, config, systems):
    """`Setting` on the device, without a limit on the energy."""
    shape = systems.real.shape
    masses, free = np.ones((*shape, 1)), np.zeros((*shape, 1), bool)
    for index, start in enumerate(starts):
        n_atoms = len(start.structure)
        masses[index, :n_atoms, 0] = atomic_masses[start.structure.numbers]
        free[index, :n_atoms, 0] = ~is_fixed(start, config)
    n_free, n_atoms = free.sum(axis=(1, 2)), systems.real.sum(axis=1)
    centred = (n_free == n_atoms) & (n_atoms > 1) & config.rest_centre
    axes = "xyz" if config.cell_motion == "isotropic" else config.cell_axes
    bodies = Bodies(
        masses=masses,
        free=free,
        freedom=3.0 * n_free - 3.0 * centred,
        centred=centred,
        cell_mask=np.array([float(axis in axes) for axis in "xyz"]),
    )
    last = config.pressure if config.pressure_end is None else config.pressure_end
    pressure = GPA * np.array([config.pressure, last])
    course = Course(
        kt=units.kB * temperatures,
        pressure=np.repeat(pressure[:, None], len(starts), axis=1),
        steps=np.asarray(config.steps),
        timestep=np.asarray(config.timestep * units.fs),
        thermostat_time=np.asarray(config.thermostat_time * units.fs),
        barostat_time=np.asarray(config.barostat_time * units.fs),
    )
    limits = Limits(
        closest=np.asarray(config.min_distance),
        force=np.asarray(config.max_force),
        temperature=np.asarray(config.max_temperature * units.kB),
        energy=np.full(len(starts), np.inf),
    )
    return jax.device_put(Setting(potential.weights, systems, bodies, course, limits))


def first_momenta(setting, starts, key):
    """Momenta drawn at the first temperature, or those that a start came with."""
    bodies = setting.bodies
    momenta = np.array(draw_momenta(bodies, key, setting.course.kt[0]))
    for index, start in enumerate(starts):
        if start.velocities is not None:
            rows = slice(0, len(start.structure))
            velocities = np.where(bodies.free[index, rows], start.velocities, 0.0) / units.fs
            momenta[index, rows] = velocities * bodies.masses[index, rows]
    return rest_centre(bodies, jnp.asarray(momenta))
