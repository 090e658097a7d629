"""What a report tries out on a potential: dimers, symmetries, derivatives, dynamics, speed."""

import statistics
import time
from dataclasses import dataclass, replace

import numpy as np

from mlip.data.checks.sample import VACUUM, gaps_of
from mlip.data.graph import Shape, build_table
from mlip.data.structure import Structure, symbol
from mlip.model.fold import fold
from mlip.model.mace.tables import NoTables
from mlip.model.potential import round_up
from mlip.simulation.dynamics import run
from mlip.simulation.setup import DynamicsConfig
from mlip.units import GPA, MEV

NEAREST = 0.5  # Å
STEP = 1e-4  # Å, and strain, of finite differences
AROUND = 0.2  # Å around the cutoff
SCALES = np.linspace(0.94, 1.06, 13)  # of the lengths of a crystal
STEPS = 1000  # of the dynamics, for up to 100 atoms


@dataclass(frozen=True)
class Dimer:
    """Two atoms alone."""

    distances: np.ndarray  # [n] Å, from below 1 Å to the cutoff
    energies: np.ndarray  # [n] eV above two atoms far apart
    around: np.ndarray  # [m] Å, in fine steps through the cutoff
    forces: np.ndarray  # [m] eV/Å there, positive where they repel


def dimers(potential, kinds):
    """`Dimer` by name, such as "H-O".

    Args:
      potential: in float64.
      kinds: pairs of atomic numbers.
    """
    cutoff = potential.cutoff
    distances = np.arange(NEAREST, cutoff + 0.025, 0.025)
    around = cutoff + np.linspace(-AROUND, AROUND / 4, 51)
    places = [*distances, *around, 2 * cutoff]
    frames = [_dimer(*pair, r) for pair in kinds for r in places]
    spare = -len(frames) % potential.execution.most_structures
    frames += frames[:1] * spare  # batches of one shape
    predictions, found = potential.predict(frames), {}
    for n, (first, second) in enumerate(kinds):
        *own, apart = predictions[n * len(places) : (n + 1) * len(places)]
        curve, ends = own[: len(distances)], own[len(distances) :]
        found[f"{symbol(first)}-{symbol(second)}"] = Dimer(
            distances,
            np.array([p.energy for p in curve]) - apart.energy,
            around,
            np.array([p.forces[1, 0] for p in ends]),
        )
    return found


def _dimer(first, second, distance):
    positions = [[0.0, 0.0, 0.0], [distance, 0.0, 0.0]]
    return Structure([first, second], positions, np.zeros((3, 3)), np.zeros(3), name="dimer")


def self_checks(potential, structure):
    """Deviations from what every potential must obey, on one structure.

    Args:
      potential: in float64.

    Returns:
      {what is compared: (deviation, unit)}.
    """
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]  # proper or not: energies are even
    order = rng.permutation(len(structure))
    there = structure.positions + rng.normal(0, 1e-3, structure.positions.shape)
    base = replace(structure, positions=there)
    variants = [
        base,
        _transformed(base, rotation),
        replace(
            base, numbers=base.numbers[order], positions=there[order], energy=None, forces=None
        ),
        replace(base, positions=there + rng.normal(size=3)),
    ]
    atom, axis = int(rng.integers(len(base))), int(rng.integers(3))
    for sign in (1, -1):
        moved = there.copy()
        moved[atom, axis] += sign * STEP
        variants.append(replace(base, positions=moved))
    strain = STEP * _symmetric(rng.normal(size=(3, 3)))
    if np.isfinite(base.volume):
        variants += [_transformed(base, np.eye(3) + sign * strain) for sign in (1, -1)]
    at, turned, renumbered, shifted, up, down, *strained = potential.predict(variants)
    size = len(base)
    found = {
        "energy after turning all": (abs(turned.energy - at.energy) / size, "eV/atom"),
        "forces after turning all": (_largest(turned.forces - at.forces @ rotation.T), "eV/Å"),
        "forces after renumbering": (_largest(renumbered.forces - at.forces[order]), "eV/Å"),
        "forces after moving all": (_largest(shifted.forces - at.forces), "eV/Å"),
        "sum of the forces": (_largest(at.forces.sum(axis=0)), "eV/Å"),
        "force against finite difference": (
            abs(-(up.energy - down.energy) / (2 * STEP) - at.forces[atom, axis]),
            "eV/Å",
        ),
    }
    if strained:
        work = (strained[0].energy - strained[1].energy) / 2
        difference = work - base.volume * (at.stress * strain).sum()
        found["stress against finite difference"] = (
            abs(difference) / base.volume / np.linalg.norm(strain),
            "eV/Å³",
        )
    return found


def _transformed(structure, matrix):
    return replace(
        structure,
        positions=structure.positions @ matrix.T,
        cell=structure.cell @ matrix.T,
        forces=None,
        stress=None,
    )


def _symmetric(matrix):
    return (matrix + matrix.T) / 2


def _largest(values):
    return float(np.abs(values).max())


def short_run(potential, structure, temperature=300.0):
    """Constant-energy dynamics from one structure.

    Returns:
      times (ps), energies above the first (meV/atom), and facts with the drift; or, where the
      structure cannot be simulated, None twice and facts with the reason.
    """
    light = structure.numbers.min() == 1
    config = DynamicsConfig(
        ensemble="nve",
        temperature=(temperature,),
        timestep=0.5 if light else 1.0,
        steps=max(200, min(STEPS, 100 * STEPS // len(structure))),
        log_every=5,
        save_every=1000,
    )
    facts = {"atoms": len(structure), "start": structure.name, "timestep_fs": config.timestep}
    try:
        trajectory = run(potential, structure, config)
    except (ValueError, FloatingPointError) as error:
        return None, None, facts | {"reason": str(error)}
    if len(trajectory.thermo) < 3:
        return None, None, facts | {"reason": trajectory.stopped}
    times, energies = trajectory.column("time_ps"), trajectory.column("conserved_eV")
    energies = MEV * (energies - energies[0]) / len(structure)
    slope, offset = np.polyfit(times, energies, 1)
    facts |= {
        "picoseconds": times[-1],
        "mean_temperature_K": trajectory.column("temperature_K").mean(),
        "drift_meV_per_atom_per_ps": slope,
        "fluctuation_meV_per_atom": (energies - slope * times - offset).std(),
    }
    return times, energies, facts | ({"ended": trajectory.stopped} if trajectory.stopped else {})


def crystal_of(potential, structures):
    """The periodic structure without vacuum of the lowest energy per atom above E0, or None."""
    crystals = [
        s
        for s in structures
        if s.pbc.all() and s.energy is not None and (gaps_of(s) < VACUUM).all()
    ]
    return min(crystals, key=lambda s: (s.energy - potential.baseline(s)) / len(s), default=None)


def volumes(potential, crystal):
    """Energy of a crystal against its volume, and what follows from it.

    The atoms keep their places in the cell. Volume and bulk modulus are those of a polynomial of
    third degree in V^(-2/3), which is the form of Birch, Phys. Rev. 71, 809 (1947).

    Returns:
      volumes (Å³/atom), energies (eV/atom), and facts; without a minimum in between, its reason.
    """
    frames = [_transformed(crystal, scale * np.eye(3)) for scale in SCALES]
    volume = np.array([frame.volume for frame in frames]) / len(crystal)
    energy = np.array([p.energy for p in potential.predict(frames)]) / len(crystal)
    facts = {"crystal": crystal.name, "atoms": len(crystal)}
    polynomial = np.poly1d(np.polyfit(volume ** (-2 / 3), energy, 3))
    roots = polynomial.deriv().roots
    inside = [
        r.real
        for r in roots
        if abs(r.imag) < 1e-9
        and volume[-1] ** (-2 / 3) < r.real < volume[0] ** (-2 / 3)
        and polynomial.deriv(2)(r.real) > 0
    ]
    if not inside:
        return volume, energy, facts | {"reason": "no minimum between these volumes"}
    place = inside[0]
    at = place ** (-3 / 2)
    # With x = V^(-2/3) and E'(x) = 0: V E''(V) = V (dx/dV)² E''(x).
    modulus = at * (2 / 3 * at ** (-5 / 3)) ** 2 * polynomial.deriv(2)(place)
    return volume, energy, facts | {"volume_A3_per_atom": at, "bulk_modulus_GPa": modulus / GPA}


def speed(potential, structure, repeats=5):
    """Time of energy, forces and stress of one structure, without finding neighbours.

    Returns:
      facts: atoms, milliseconds (median), microseconds an atom.
    """
    try:
        folded = fold(potential, set(structure.numbers.tolist()))
    except NoTables:
        folded = potential
    frame = (folded.species_of(structure), structure, build_table(structure, folded.cutoff))
    atoms, width = frame[2].size()
    graph = folded.graph([frame], Shape(atoms, round_up(width), 2))
    folded.evaluate(graph)  # compiles
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        folded.evaluate(graph)
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds)
    return {
        "atoms": atoms,
        "milliseconds": 1e3 * median,
        "microseconds_per_atom": 1e6 * median / atoms,
    }
