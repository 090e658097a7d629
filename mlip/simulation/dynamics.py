"""A potential in jax-md: an energy function of positions, and constant-energy dynamics with it.

Neighbour tables are built on the host and hold while no atom has moved half the skin. The compiled
loop watches that and ends before the first step that would need a new table, so that no step ever
lacks a neighbour.
"""

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from ase import units
from ase.data import atomic_masses
from jax_md import simulate

from mlip.data.graph import Graph, build_table
from mlip.deploy.fold import fold
from mlip.model.potential import Weights, atom_energies
from mlip.runtime import keep_compiled_programs

STRETCH = 50  # steps between frames


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Neighbors:
    """The neighbour table of a structure for jax-md, with the positions it was built at."""

    neighbors: jax.Array  # [n_atoms, max_neighbors]
    reverse: jax.Array  # [n_atoms, max_neighbors]
    offset: jax.Array  # [n_atoms, max_neighbors, 3] Å, lattice vectors crossed; far for padding
    species: jax.Array  # [n_atoms]
    weights: Weights
    reference: jax.Array  # [n_atoms, 3] Å
    skin: jax.Array  # scalar, Å

    def hold(self, positions):
        """True while the table has every pair within the cutoff."""
        moved = ((positions - self.reference) ** 2).sum(axis=-1).max()
        return moved < (self.skin / 2) ** 2


@dataclass(frozen=True)
class Trajectory:
    """Frames of a simulation; NumPy float64."""

    times: np.ndarray  # [n_frames] fs
    positions: np.ndarray  # [n_frames, n_atoms, 3] Å
    velocities: np.ndarray  # [n_frames, n_atoms, 3] Å/fs
    potential_energy: np.ndarray  # [n_frames] eV
    kinetic_energy: np.ndarray  # [n_frames] eV


def find_neighbors(potential, structure, skin=0.5, max_neighbors=0):
    """`Neighbors` of a structure, in the potential's precision.

    Args:
      skin: Å beyond the cutoff.
      max_neighbors: columns of the table at least, so that compiled programs can be kept.
    """
    cutoff = potential.config.cutoff
    table = build_table(structure, cutoff + skin)
    n_atoms, width = table.size()
    columns = max(width, max_neighbors)
    index = np.arange(n_atoms)[:, None]
    neighbors = np.repeat(index, columns, axis=1)
    reverse = np.arange(n_atoms * columns).reshape(n_atoms, columns)
    offset = np.zeros((n_atoms, columns, 3))
    offset[..., 0] = 2 * cutoff
    neighbors[:, :width] = table.neighbors
    rows, places = np.divmod(table.reverse, width)
    reverse[:, :width] = rows * columns + places
    offset[:, :width][table.used] = (table.shifts @ structure.cell)[table.used]
    with potential.precision():
        return Neighbors(
            jnp.asarray(neighbors.astype(np.int32)),
            jnp.asarray(reverse.astype(np.int32)),
            jnp.asarray(offset, potential.dtype),
            jnp.asarray(potential.species_of(structure)),
            potential.weights,
            jnp.asarray(structure.positions, potential.dtype),
            jnp.asarray(skin, potential.dtype),
        )


def energy_fn(network):
    """jax-md's `energy_fn(positions, neighbor)`: eV above the baseline of single atoms.

    Args:
      network: a potential's `network`.
    """

    def energy(positions, neighbor, **_):
        displacement = positions[neighbor.neighbors] + neighbor.offset - positions[:, None]
        graph = Graph(
            species=neighbor.species,
            structure=jnp.zeros_like(neighbor.species),
            neighbors=neighbor.neighbors,
            reverse=neighbor.reverse,
            displacement=displacement,
            volume=jnp.ones(1, positions.dtype),
            n_atoms=jnp.ones(1, neighbor.species.dtype),
        )
        return atom_energies(network, neighbor.weights, graph).sum()

    return energy


def _shift(positions, change, **_):
    return positions + change


@functools.partial(jax.jit, static_argnums=0)
def _stretch(network, steps, state, neighbor, timestep):
    """Up to `steps` of velocity Verlet, as long as the table holds; the state and steps done."""
    _, apply = simulate.nve(energy_fn(network), _shift, timestep)

    def more(carry):
        _, done, held = carry
        return (done < steps) & held

    def step(carry):
        state, done, _ = carry
        after = apply(state, neighbor=neighbor)
        held = neighbor.hold(after.position)
        kept = jax.tree.map(lambda new, old: jnp.where(held, new, old), after, state)
        return kept, done + held, held

    state, done, _ = jax.lax.while_loop(more, step, (state, 0, True))
    return state, done


@functools.partial(jax.jit, static_argnums=0)
def _energy_and_forces(network, positions, neighbor):
    energy, gradient = jax.value_and_grad(energy_fn(network))(positions, neighbor)
    return energy, -gradient


def run_nve(potential, structure, velocities, timestep, n_steps, skin=0.5, folded=True):
    """Dynamics at constant energy by jax-md's velocity Verlet; a frame every 50 steps.

    Args:
      potential: a `Potential`; its precision is that of the run.
      velocities: [n_atoms, 3], Å/fs.
      timestep: fs.
      skin: Å beyond the cutoff within which the neighbour table is kept.
      folded: compute with the folded potential (see `mlip.fold`), several times faster.

    Returns:
      `Trajectory`, the start included.

    Raises:
      ValueError: a time step, number of steps or skin that is not positive, or velocities that are
        not finite numbers of the right shape.
      FloatingPointError: an atom moves farther than half the skin in a single step.
    """
    for name, value in {"timestep": timestep, "n_steps": n_steps, "skin": skin}.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; it must be positive")
    if np.shape(velocities) != structure.positions.shape or not np.isfinite(velocities).all():
        raise ValueError(
            f"velocities have shape {np.shape(velocities)} or are not finite; give finite ones of "
            f"shape {structure.positions.shape}"
        )
    keep_compiled_programs()
    if folded:
        potential.species_of(structure)
        potential = fold(potential, set(structure.numbers.tolist()))
    network, masses = potential.network, atomic_masses[structure.numbers]
    with potential.precision():
        neighbor = find_neighbors(potential, structure, skin)
        state = _initial_state(network, structure, velocities, masses, neighbor)
        energy, _ = _energy_and_forces(network, state.position, neighbor)
        frames = [_frame(potential, structure, 0.0, state, energy)]
        done = 0
        while done < n_steps:
            target = min(done + STRETCH, n_steps)
            while done < target:
                args = (target - done, state, neighbor, timestep * units.fs)
                state, steps = _stretch(network, *args)
                if steps == 0 and bool((state.position == neighbor.reference).all()):
                    raise FloatingPointError(
                        f"{structure.name}: an atom moves more than {skin / 2} Å in one step after "
                        f"{done} steps; the time step is too long or the potential unstable here"
                    )
                done += int(steps)
                if done < target:
                    here = replace(structure, positions=np.asarray(state.position, float))
                    neighbor = find_neighbors(potential, here, skin, neighbor.neighbors.shape[1])
            energy, _ = _energy_and_forces(network, state.position, neighbor)
            frames.append(_frame(potential, structure, done * timestep, state, energy))
    return Trajectory(*(np.array(column) for column in zip(*frames)))


def _initial_state(network, structure, velocities, masses, neighbor):
    dtype = neighbor.reference.dtype
    mass = jnp.asarray(masses[:, None], dtype)
    momentum = jnp.asarray(np.asarray(velocities, float) / units.fs, dtype) * mass
    positions = jnp.asarray(structure.positions, dtype)
    _, forces = _energy_and_forces(network, positions, neighbor)
    return simulate.NVEState(positions, momentum, forces, mass)


def _frame(potential, structure, time, state, energy):
    momentum, mass = np.asarray(state.momentum, float), np.asarray(state.mass, float)
    return (
        time,
        np.asarray(state.position, float),
        momentum / mass * units.fs,
        float(energy) + potential.baseline(structure),
        float((momentum**2 / mass).sum() / 2),
    )
