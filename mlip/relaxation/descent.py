"""The compiled loop of relaxation: many systems side by side, each until it has converged.

What is minimised is the enthalpy H = E + p V. The coordinates of a system are positions z in its
first cell, and how far the cell has strained since along each of the strains that are free:

    positions = z exp(U)        cell = cell₀ exp(U)        U = Σ_k q_k B_k / L

with symmetric B_k (see `free_strains`) and a length L that makes a strain weigh about as much as
the moves of atoms. With u the eigenvalues of U and in the basis of its eigenvectors,

    ∂H/∂z = −forces exp(U)      ∂H/∂U_ij = V (σ + p 1)_ij sinh(u_i − u_j) / (u_i − u_j)

These are the degrees of freedom of Tadmor et al., Phys. Rev. B 59, 235 (1999) in the logarithm of
the deformation, as in JuLIP.jl and ASE's FrechetCellFilter; the derivative of the exponential of
a symmetric matrix is that of Daleckii and Krein (Higham, Functions of Matrices, theorem 3.11).
A trace of U that is zero keeps the volume exactly. Atoms that are fixed keep their z: their place
in the cell.

All arrays are float64 and have a leading axis over systems; units eV and Å.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from mlip.model.contract import Weights
from mlip.model.terms import Surface
from mlip.programs import program
from mlip.relaxation.minimizers import OPTIMIZERS, Fire, Lbfgs, norm, wide
from mlip.simulation.engine import (
    NOT_FINITE,
    TOO_CLOSE,
    TOO_HIGH,
    Systems,
    choose,
    empty_table,
    evaluate,
    find,
)
from mlip.simulation.neighbors import Neighbors, Room

CELLS = ("fixed", "full", "hydrostatic", "shape")
STRAINS = ("xx", "yy", "zz", "yz", "xz", "xy")
# Why a system ended, besides the reasons of `mlip.simulation.engine`; 0 goes on.
CONVERGED, EXHAUSTED, RUNAWAY = -1, -2, -3
LONGEST = 2.0  # logarithm of the stretch of a cell, beyond which it would go on without end
# Relative error of energies, within which one is not higher than another.
ROUNDING = {"float32": 1e-6, "float64": 1e-12}


def free_strains(cell, names=()):
    """Orthonormal symmetric matrices that span the strains that a cell may take, [6, 3, 3].

    Args:
      cell: of CELLS; hydrostatic strains the chosen axes alike, shape keeps the volume.
      names: of STRAINS that are free; all if empty.

    Returns:
      the matrices in NumPy, those left over zero.

    Raises:
      ValueError: names that leave no strain.
    """
    basis = np.zeros((6, 3, 3))
    if cell == "fixed":
        return basis
    units = {}
    for name in names or STRAINS:
        row, column = ("xyz".index(axis) for axis in name)
        unit = np.zeros((3, 3))
        unit[row, column] = unit[column, row] = 1 if row == column else np.sqrt(0.5)
        units[name] = unit
    chosen = np.array(list(units.values()))
    traces = np.trace(chosen, axis1=1, axis2=2)
    if cell == "hydrostatic":
        chosen = np.tensordot(traces, chosen, 1)[None] / max(np.sqrt(traces.sum()), 1)
        chosen = chosen[:1] if traces.any() else chosen[:0]
    elif cell == "shape" and traces.any():
        # Right singular vectors after the first are orthogonal to the traces.
        chosen = np.tensordot(np.linalg.svd(traces[None])[2][1:], chosen, 1)
    if len(chosen) == 0:
        raise ValueError(
            f"the strains {' '.join(units)} leave nothing of a {cell} relaxation; name more of "
            f"{' '.join(STRAINS)}"
        )
    basis[: len(chosen)] = chosen
    return basis


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bodies:
    """What does not change of each system."""

    free: jax.Array  # [n_systems, n_atoms, 1] True where an atom exists and may move
    cell: jax.Array  # [n_systems, 3, 3] Å, at the start
    length: jax.Array  # [n_systems] Å, L of the module
    n_atoms: jax.Array  # [n_systems]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Terms:
    """When systems end, and what they are subject to."""

    basis: jax.Array  # [6, 3, 3] of `free_strains`
    pressure: jax.Array  # eV/Å³
    max_force: jax.Array  # eV/Å, at which a system has converged
    max_stress: jax.Array  # eV/Å³, likewise
    max_step: jax.Array  # Å, in one step
    steps: jax.Array  # after which a system ends
    closest: jax.Array  # Å, between any two atoms
    rise: jax.Array  # eV per atom of the enthalpy above the start


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Problem:
    """All arrays of a relaxation that no step changes."""

    weights: Weights
    systems: Systems
    bodies: Bodies
    terms: Terms


@dataclass(frozen=True)
class Descent:
    """What is compiled; static. `mlip.simulation.engine` reads the first five and the cutoff."""

    surface: Surface
    dtype: str
    devices: tuple | None
    room: Room
    skin: float  # Å
    strained: bool  # False if the cells stay as they are

    @property
    def cutoff(self):
        return self.surface.cutoff


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Point:
    """Where the systems are, and what was found there."""

    x: jax.Array  # [n_systems, n_atoms + 2, 3] Å, z and in the last two rows q
    gradient: jax.Array  # of the enthalpy by x, eV/Å
    value: jax.Array  # [n_systems] eV, enthalpy above the baseline; infinite before the first step
    energy: jax.Array  # [n_systems] eV above the baseline
    positions: jax.Array  # [n_systems, n_atoms, 3] Å
    cell: jax.Array  # [n_systems, 3, 3] Å
    forces: jax.Array  # [n_systems, n_atoms, 3] eV/Å
    stress: jax.Array  # [n_systems, 3, 3] eV/Å³
    force: jax.Array  # [n_systems] eV/Å, largest on a free atom
    excess: jax.Array  # [n_systems] eV/Å³, largest component of (∂H/∂U)/V on the free strains
    closest: jax.Array  # [n_systems] Å, shortest distance

    @classmethod
    def at(cls, positions, cell):
        """The start, where nothing is known yet."""
        n_systems, zeros = len(positions), jnp.zeros(len(positions))
        x = jnp.concatenate([positions, jnp.zeros((n_systems, 2, 3))], axis=1)
        return cls(
            x=x,
            gradient=jnp.zeros_like(x),
            value=zeros + jnp.inf,
            energy=zeros,
            positions=positions,
            cell=cell,
            forces=jnp.zeros_like(positions),
            stress=jnp.zeros_like(cell),
            force=zeros + jnp.inf,
            excess=zeros + jnp.inf,
            closest=zeros + jnp.inf,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """How far each system has come; every array has the leading axis."""

    point: Point
    memory: Fire | Lbfgs
    why: jax.Array  # [n_systems] code of why it ended, 0 while it goes on
    steps: jax.Array  # [n_systems] taken; -1 before the first evaluation
    first: jax.Array  # [n_systems] eV, enthalpy of the start


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flight:
    """Systems on their way."""

    state: State
    table: Neighbors  # if there was no room in it, for the step that could not be taken
    fits: jax.Array  # False if the next step needs more room
    needed: jax.Array  # [n_systems, 3] the room it needs; see `make_room`


def launch(optimizer, positions, cell):
    """A `State` before the first evaluation."""
    n_systems, point = len(positions), Point.at(positions, cell)
    memory = OPTIMIZERS[optimizer].begin(point.x)
    zeros = jnp.zeros(n_systems, jnp.int32)
    return State(point, memory, zeros, zeros - 1, jnp.full(n_systems, jnp.inf))


def aloft(room, state):
    """A `Flight` whose first step finds its neighbours."""
    shape = state.point.positions.shape[:2]
    needed = jnp.zeros((shape[0], 3), jnp.int32)
    return Flight(state, empty_table(room, shape, state.point.x.dtype), jnp.asarray(True), needed)


@program(static_argnums=0)
def advance(descent, problem, flight, steps, fewest):
    """The `Flight` some steps on, or as soon as not more than `fewest` systems go on.

    It comes back earlier if the table lacks room.
    """

    def more(carry):
        flight, taken = carry
        return (taken < steps) & flight.fits & ((flight.state.why == 0).sum() > fewest)

    def step(carry):
        flight, taken = carry
        return one_step(descent, problem, flight), taken + 1

    return jax.lax.while_loop(more, step, (flight, 0))[0]


def one_step(descent, problem, flight):
    """The `Flight` one step on; but for the table unchanged if that lacks room.

    Systems that have ended stay as they are. One whose step leads to numbers that are not finite
    ends at the point before it.
    """
    state, terms = flight.state, problem.terms
    going = state.why == 0
    x, memory = state.memory.propose(state.point, terms.max_step)
    x = jnp.where(wide(going), x, state.point.x)
    positions, cell, strain = place(descent, problem, x)
    table = jax.lax.cond(
        flight.table.hold(positions, cell, descent.cutoff, descent.skin),
        lambda: flight.table,
        lambda: find.inside(descent, problem.systems, positions, cell),
    )
    new, needed = measure(descent, problem, x, positions, cell, strain, table)
    rounding = ROUNDING[descent.dtype] * (jnp.abs(new.energy) + problem.bodies.n_atoms)
    memory, kept = memory.receive(state.point, new, terms.max_step, rounding)
    point = choose(kept, new, state.point)
    first = jnp.where(state.steps < 0, new.value, state.first)
    after = State(point, memory, jnp.zeros_like(state.why), state.steps + 1, first)
    finite = jnp.isfinite(new.value + norm(new.gradient) + norm(new.x))
    # A point with numbers that are not finite tells nothing: the one before stays.
    broken = replace(state, why=jnp.full_like(state.why, NOT_FINITE), steps=after.steps)
    after = choose(finite, replace(after, why=judge(descent, problem, after)), broken)
    after = choose(going, after, state)
    fits = table.complete & (needed[:, 2] <= descent.room.within).all()
    return Flight(choose(fits, after, state), table, fits, needed)


def judge(descent, problem, state):
    """Why each system ends, [n_systems]; 0 if it goes on."""
    terms, point = problem.terms, state.point
    converged = point.force <= terms.max_force
    if descent.strained:
        converged &= point.excess <= terms.max_stress
    why = jnp.zeros_like(state.why)
    for code, true in (
        (EXHAUSTED, state.steps >= terms.steps),
        (RUNAWAY, jnp.linalg.eigvalsh(strains(problem, point.x)).max(axis=1) > LONGEST),
        (CONVERGED, converged),
        (TOO_HIGH, point.value > state.first + terms.rise * problem.bodies.n_atoms),
        (TOO_CLOSE, point.closest < terms.closest),
    ):
        why = jnp.where(true, code, why)
    return why


def place(descent, problem, x):
    """What is at coordinates x, [n_systems, n_atoms + 2, 3] Å.

    Returns:
      positions [n_systems, n_atoms, 3] Å, cells [n_systems, 3, 3] Å, and eigenvalues [n_systems, 3]
      and eigenvectors [n_systems, 3, 3] of the strains U, or None where cells stay as they are.
    """
    bodies, z = problem.bodies, x[:, :-2]
    if not descent.strained:
        return z, bodies.cell, None
    values, axes = jnp.linalg.eigh(strains(problem, x))
    stretch = _stretch(values, axes)
    return z @ stretch, bodies.cell @ stretch, (values, axes)


def strains(problem, x):
    """U of the module, [n_systems, 3, 3]."""
    amounts = x[:, -2:].reshape(-1, 6) / problem.bodies.length[:, None]
    return jnp.einsum("sk,kij->sij", amounts, problem.terms.basis)


def _stretch(values, axes):
    """exp(U), [n_systems, 3, 3]."""
    return (axes * jnp.exp(values)[:, None]) @ axes.mT


def measure(descent, problem, x, positions, cell, strain, table):
    """The `Point` at coordinates, see the module, and the room that was needed to find it.

    Args:
      x, positions, cell, strain: see `place`.
      table: `Neighbors` that hold there.

    Returns:
      `Point`, and the room, [n_systems, 3]; see `mlip.simulation.neighbors.make_room`.
    """
    systems, bodies, terms = problem.systems, problem.bodies, problem.terms
    energy, forces, stress, closest, needed = evaluate(
        descent, problem.weights, systems, positions, cell, table
    )
    free = jnp.where(bodies.free, forces, 0.0)
    enthalpy, gradient, amounts, excess = energy, -free, jnp.zeros((len(x), 6)), jnp.zeros(len(x))
    if descent.strained:
        volume = systems.volume(cell)
        enthalpy = energy + terms.pressure * volume
        values, axes = strain
        gradient = -free @ _stretch(values, axes)
        difference = values[:, :, None] - values[:, None, :]
        small = jnp.abs(difference) < 1e-4
        ratio = jnp.sinh(difference) / jnp.where(small, 1.0, difference)
        ratio = jnp.where(small, 1 + difference**2 / 6, ratio)
        tensor = axes.mT @ (stress + terms.pressure * jnp.eye(3)) @ axes
        tensor = axes @ (ratio * tensor) @ axes.mT
        components = jnp.einsum("kij,sij->sk", terms.basis, tensor)
        tensor = jnp.einsum("sk,kij->sij", components, terms.basis)
        excess = jnp.abs(tensor).max(axis=(1, 2))
        amounts = components * (volume / bodies.length)[:, None]
    point = Point(
        x=x,
        gradient=jnp.concatenate([gradient, amounts.reshape(-1, 2, 3)], axis=1),
        value=enthalpy,
        energy=energy,
        positions=positions,
        cell=cell,
        forces=forces,
        stress=stress,
        force=jnp.sqrt((free**2).sum(axis=2).max(axis=1)),
        excess=excess,
        closest=closest,
    )
    return point, needed
