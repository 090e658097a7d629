"""The compiled loop of molecular dynamics: many steps on the device, and why it came back.

Positions, momenta and sums are float64; only the network computes in the potential's precision.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from mlip.model.contract import Weights
from mlip.model.derivatives import forces_and_stress, outputs_and_pull, per_structure
from mlip.model.spread import evaluate_spread
from mlip.model.terms import Surface
from mlip.programs import program
from mlip.simulation import integrators
from mlip.simulation.integrators import Bodies, Method, State, Surroundings
from mlip.simulation.neighbors import Grid, Neighbors, Room, narrow, search

# Why a system was stopped, by its code; 0 goes on.
NOT_FINITE, TOO_CLOSE, TOO_STRONG, TOO_HOT, TOO_HIGH, COLLAPSED = range(1, 7)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Systems:
    """The atoms of all systems, padded to one number, and the bins to find their neighbours."""

    species: jax.Array  # [n_systems, n_atoms]
    real: jax.Array  # [n_systems, n_atoms] False for padding
    depth: jax.Array  # [n_systems] volume over that of the completed cell; infinite without one
    grid: Grid

    def volume(self, cell):
        """[n_systems], Å³, of completed cells."""
        return integrators.volume(cell) * self.depth


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Limits:
    """Limits beyond which a system is stopped."""

    closest: jax.Array  # Å
    force: jax.Array  # eV/Å
    temperature: jax.Array  # K times k_B, eV
    energy: jax.Array  # [n_systems] eV


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Course:
    """Temperature and pressure over the run, each linear in the step."""

    kt: jax.Array  # [2, n_systems] eV, at the start and at the end
    pressure: jax.Array  # [2, n_systems] eV/Å³
    steps: jax.Array  # scalar
    timestep: jax.Array  # scalar, in the time of `mlip.simulation.integrators`
    thermostat_time: jax.Array  # likewise
    barostat_time: jax.Array  # likewise

    def at(self, step):
        """`Surroundings` at a step."""
        done = jnp.clip(step / self.steps, 0.0, 1.0)
        # Without a ramp the same to the last bit, however many steps there are.
        kt, pressure = (first + (last - first) * done for first, last in (self.kt, self.pressure))
        return Surroundings(kt, pressure, self.thermostat_time, self.barostat_time)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Setting:
    """All arrays of a run that no step changes."""

    weights: Weights
    systems: Systems
    bodies: Bodies
    course: Course
    limits: Limits


@dataclass(frozen=True)
class Engine:
    """What is compiled for a run; static."""

    surface: Surface
    dtype: str
    devices: tuple | None  # that share a system; None for the one that jax takes
    method: Method
    room: Room
    skin: float  # Å
    log_every: int  # steps between rows of numbers
    most_rows: int  # of one call

    @property
    def cutoff(self):
        return self.surface.cutoff


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flight:
    """A run in the air: the state, and all that is known besides."""

    state: State
    table: Neighbors
    stopped: jax.Array  # [n_systems] code of why, 0 if not
    stopped_at: jax.Array  # [n_systems] step of the state in which a system was left
    closest: jax.Array  # [n_systems] Å, shortest distance
    fits: jax.Array  # False if the next step needs more room
    needed: jax.Array  # [n_systems, 3] the room it needs; see `make_room`


def evaluate(engine, weights, systems, positions, cell, table):
    """Energy [n_systems] above the baseline, forces, stress, and what was met on the way.

    Returns:
      energy [n_systems], forces [n_systems, n_atoms, 3], stress [n_systems, 3, 3], the closest
      distance [n_systems], and the room that all would have needed, [n_systems, 3] as
      `mlip.simulation.neighbors.make_room` takes it.
    """
    displacement = table.displacement(positions, cell, 2 * engine.cutoff)
    volume = systems.volume(cell)
    exact = table.graph(systems.species, displacement, volume)
    exact, within = narrow.inside(exact, engine.cutoff, engine.room.within)
    cast = jnp.dtype(engine.dtype)
    graph = replace(exact, displacement=exact.displacement.astype(cast), volume=volume.astype(cast))
    if engine.devices is None:
        outputs, pull = outputs_and_pull(engine.surface, weights, graph)
        # Opposite pulls cancel exactly in float64, so that the momentum is kept.
        pull = jax.tree.map(lambda array: array.astype(displacement.dtype), pull)
        energies, (forces, stress) = outputs.energies, forces_and_stress(exact, pull)
    else:
        outputs = evaluate_spread.inside(engine.surface, engine.devices, weights, graph)
        energies, forces, stress = (
            array.astype(displacement.dtype)
            for array in (outputs.energies, outputs.forces, outputs.stress)
        )
        # Sums of float32: what they leave of the total force would set the whole in motion.
        whose = systems.real.reshape(-1, 1)
        total = per_structure(exact, jnp.where(whose, forces, 0.0))
        share = total / systems.real.sum(axis=1, keepdims=True)
        forces = jnp.where(whose, forces - share[exact.structure], 0.0)
    shape = systems.real.shape
    energies = energies.reshape(shape).astype(displacement.dtype)
    energy = jnp.where(systems.real, energies, 0.0).sum(axis=1)
    closest = jnp.sqrt((displacement**2).sum(axis=-1).min(axis=(1, 2)))
    needed = jnp.column_stack([table.needed, within.reshape(shape).max(axis=1)])
    return energy, forces.reshape(*shape, 3), stress, closest, needed


@program(static_argnums=0)
def find(engine, systems, positions, cell):
    """`Neighbors` within the cutoff and the skin."""
    return search.inside(
        engine.cutoff + engine.skin, engine.room, systems.grid, positions, cell, systems.real
    )


def launch(engine, setting, positions, momenta, cell, key):
    """A `Flight` before step 0, in which forces are found and nothing moves."""
    n_systems, zeros = len(positions), jnp.zeros(len(positions))
    chain = integrators.Chain.at_rest(n_systems, engine.method.chain_length)
    state = State(
        positions=positions,
        momenta=momenta,
        forces=jnp.zeros_like(positions),
        energy=zeros,
        stress=jnp.zeros_like(cell),
        cell=cell,
        cell_momenta=jnp.zeros_like(cell),
        chain=chain,
        cell_chain=chain,
        heat=zeros,
        key=key,
        step=jnp.asarray(-1),
    )
    table = empty_table(engine.room, setting.systems.real.shape, cell.dtype)
    return Flight(
        state=state,
        table=table,
        stopped=jnp.zeros(n_systems, jnp.int32),
        stopped_at=jnp.zeros(n_systems, jnp.int64),
        closest=zeros,
        fits=jnp.asarray(True),
        needed=jnp.zeros((n_systems, 3), jnp.int32),
    )


def empty_table(room, shape, dtype):
    """`Neighbors` that hold nowhere, so that the first step finds new ones."""
    slots = *shape, room.neighbors
    return Neighbors(
        neighbors=jnp.zeros(slots, jnp.int32),
        reverse=jnp.zeros(slots, jnp.int32),
        shifts=jnp.zeros((*slots, 3), jnp.int32),
        used=jnp.zeros(slots, bool),
        positions=jnp.full((*shape, 3), jnp.nan, dtype),
        cell=jnp.full((shape[0], 3, 3), jnp.nan, dtype),
        needed=jnp.zeros((shape[0], 2), jnp.int32),
        complete=jnp.asarray(True),
    )


@program(static_argnums=0)
def advance(engine, setting, flight, until):
    """Steps until `until`, or until no system goes on, or the table lacks room.

    Args:
      until: step; not more than `engine.most_rows` rows of numbers away.

    Returns:
      the `Flight` after the last whole step, rows [most_rows, n_systems, 7] (see `row`), and
      which of them are filled and belong to a system that went on, [most_rows, n_systems].
    """
    n_systems = len(flight.stopped)
    rows = jnp.zeros((engine.most_rows, n_systems, 7))
    alive = jnp.zeros((engine.most_rows, n_systems), bool)

    def more(carry):
        flight, *_ = carry
        return (flight.state.step < until) & flight.fits & (flight.stopped == 0).any()

    def step(carry):
        flight, rows, alive, n_rows = carry
        after = one_step(engine, setting, flight)
        logged = after.fits & (after.state.step % engine.log_every == 0)
        index = jnp.where(logged, n_rows, engine.most_rows)
        rows = rows.at[index].set(row(engine, setting, after.state), mode="drop")
        told = (flight.stopped == 0) & (after.stopped != NOT_FINITE)
        alive = alive.at[index].set(told, mode="drop")
        return after, rows, alive, n_rows + logged

    flight, rows, alive, _ = jax.lax.while_loop(more, step, (flight, rows, alive, 0))
    return flight, rows, alive


def one_step(engine, setting, flight):
    """The `Flight` one step on; unchanged but for `fits` if the table lacks room."""
    course, bodies, systems = setting.course, setting.bodies, setting.systems
    state, halted = flight.state, flight.stopped > 0
    around = course.at(state.step)
    timestep = jnp.where(state.step < 0, 0.0, course.timestep)
    moved = integrators.first_half(engine.method, bodies, around, state, timestep)
    broken = ~jnp.isfinite(moved.positions.sum((1, 2)) + moved.cell.sum((1, 2)))
    moved = choose(halted | broken, state, moved)
    # Where a system was left its atoms may be in a heap, for which no room has to be made.
    moving = replace(systems, real=systems.real & ~halted[:, None])
    table = jax.lax.cond(
        flight.table.hold(moved.positions, moved.cell, engine.cutoff, engine.skin),
        lambda: flight.table,
        lambda: find.inside(engine, moving, moved.positions, moved.cell),
    )
    energy, forces, stress, closest, needed = evaluate(
        engine, setting.weights, systems, moved.positions, moved.cell, table
    )
    moved = replace(moved, energy=energy, forces=forces, stress=stress)
    after = integrators.second_half(engine.method, bodies, around, moved, timestep)
    why = jnp.where(broken, NOT_FINITE, judge(setting, after, closest))
    why = jnp.where(halted, flight.stopped, why)
    # A state with numbers that are not finite tells nothing: the one before is kept.
    after = choose(halted | (why == NOT_FINITE), replace(state, step=after.step), after)
    closest = jnp.where(halted, flight.closest, closest)
    fits = table.complete & (needed[:, 2] <= engine.room.within).all()
    at = jnp.where(why == NOT_FINITE, state.step, after.step)
    at = jnp.where(halted, flight.stopped_at, at)
    new = Flight(after, table, why, at, closest, fits, needed)
    kept = replace(flight, fits=fits, needed=needed)
    return choose(fits, new, kept)


def choose(chosen, one, other):
    """Systems from `one` where chosen, else from `other`.

    Args:
      chosen: [n_systems], or a scalar for all.
      one, other: trees of arrays with the axis of `chosen`; what lacks it comes from `other`.
    """

    def either(a, b):
        wide = chosen.reshape(chosen.shape + (1,) * (a.ndim - chosen.ndim))
        return b if a.ndim < chosen.ndim else jnp.where(wide, a, b)

    return jax.tree.map(either, one, other)


def judge(setting, state, closest):
    """Why each system must stop, [n_systems]; 0 if it goes on."""
    limits, bodies = setting.limits, setting.bodies
    hot = 2 * integrators.kinetic_energy(bodies, state.momenta) / bodies.freedom
    force = jnp.where(bodies.free, (state.forces**2).sum(axis=-1, keepdims=True), 0.0)
    force = jnp.sqrt(force.max(axis=(1, 2)))
    sums = state.energy + force + hot + state.positions.sum((1, 2)) + state.cell.sum((1, 2))
    why = jnp.zeros(len(closest), jnp.int32)
    for code, wrong in (
        (TOO_HIGH, state.energy > limits.energy),
        (TOO_HOT, hot > limits.temperature),
        (TOO_STRONG, force > limits.force),
        (TOO_CLOSE, closest < limits.closest),
        (NOT_FINITE, ~jnp.isfinite(sums)),
    ):
        why = jnp.where(wrong, code, why)
    return why


def row(engine, setting, state):
    """Step, potential, kinetic, temperature (k_B T), pressure, conserved, volume; in eV and Å."""
    bodies, systems = setting.bodies, setting.systems
    around = setting.course.at(state.step)
    kinetic = integrators.kinetic_energy(bodies, state.momenta)
    volume = systems.volume(state.cell)
    tensor = integrators.kinetic_tensor(bodies, state.momenta) / volume[:, None, None]
    pressure = jnp.trace(tensor - state.stress, axis1=1, axis2=2) / 3
    columns = (
        jnp.full_like(kinetic, 1) * state.step,
        state.energy,
        kinetic,
        2 * kinetic / bodies.freedom,
        pressure,
        integrators.conserved(engine.method, bodies, around, state),
        volume,
    )
    return jnp.stack(columns, axis=1)
