"""Equations of motion: velocity Verlet between half steps of a thermostat and a barostat.

One step is thermostat (half), kick (half), drift, kick (half), thermostat (half); at constant
pressure the cell's momenta are kicked and thermostatted likewise, on the outside. Every such step
is reversible or samples its ensemble exactly in each part, and has a conserved quantity.

- Langevin: exact Ornstein-Uhlenbeck half steps (Bussi and Parrinello, Phys. Rev. E 75, 056707,
  2007), without a push on the centre of mass.
- CSVR: stochastic rescaling of velocities (Bussi, Donadio and Parrinello, J. Chem. Phys. 126,
  014101, 2007, appendix).
- Nosé-Hoover chains, and their use at constant pressure with a flexible cell (Martyna, Tobias and
  Klein, J. Chem. Phys. 101, 4177, 1994; Tuckerman et al., J. Phys. A 39, 5629, 2006).

Units inside: eV, Å, amu, and the time in which they are consistent, Å (amu/eV)^½. All arrays are
float64 and have a leading axis over systems that do not interact.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

THERMOSTATS = ("langevin", "nose-hoover", "csvr")
CELL_MOTIONS = ("isotropic", "axes", "full")
# Yoshida, Phys. Lett. A 150, 262 (1990): three sub-steps that are right to fourth order.
_OUTER = 1 / (2 - 2 ** (1 / 3))
YOSHIDA = (_OUTER, 1 - 2 * _OUTER, _OUTER)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chain:
    """A chain of Nosé-Hoover thermostats."""

    position: jax.Array  # [n_systems, length]
    momentum: jax.Array  # [n_systems, length]

    @classmethod
    def at_rest(cls, n_systems, length):
        return cls(jnp.zeros((n_systems, length)), jnp.zeros((n_systems, length)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """All that the next step depends on."""

    positions: jax.Array  # [n_systems, n_atoms, 3] Å, never wrapped
    momenta: jax.Array  # [n_systems, n_atoms, 3]
    forces: jax.Array  # [n_systems, n_atoms, 3] eV/Å
    energy: jax.Array  # [n_systems] eV, potential
    stress: jax.Array  # [n_systems, 3, 3] eV/Å³, without the kinetic part
    cell: jax.Array  # [n_systems, 3, 3] Å
    cell_momenta: jax.Array  # [n_systems, 3, 3]
    chain: Chain  # on the atoms
    cell_chain: Chain
    heat: jax.Array  # [n_systems] eV that a stochastic thermostat has put in
    key: jax.Array  # [n_systems, 2] random keys
    step: jax.Array  # scalar


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bodies:
    """What does not change in a run."""

    masses: jax.Array  # [n_systems, n_atoms, 1] amu; 1 for padding
    free: jax.Array  # [n_systems, n_atoms, 1] True where an atom exists and may move
    freedom: jax.Array  # [n_systems] degrees of freedom of the momenta
    centred: jax.Array  # [n_systems] True where the centre of mass is at rest
    cell_mask: jax.Array  # [3] 1.0 for Cartesian axes along which the cell may strain


@dataclass(frozen=True)
class Method:
    """What is integrated, and how; static."""

    thermostat: str | None  # of THERMOSTATS; None at constant energy
    cell_motion: str | None  # of CELL_MOTIONS; None for a cell at rest
    chain_length: int  # of Nosé-Hoover chains


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Surroundings:
    """Heat bath and pressure at a step, in the units of the module."""

    kt: jax.Array  # [n_systems] eV
    pressure: jax.Array  # [n_systems] eV/Å³
    thermostat_time: jax.Array  # scalar
    barostat_time: jax.Array  # scalar


def kinetic_energy(bodies, momenta):
    """[n_systems], eV."""
    return (momenta**2 / bodies.masses).sum(axis=(1, 2)) / 2


def kinetic_tensor(bodies, momenta):
    """Σ p ⊗ p / m, [n_systems, 3, 3], eV."""
    return jnp.einsum("sni,snj->sij", momenta / bodies.masses, momenta)


def volume(cell):
    return jnp.abs(jnp.linalg.det(cell))


def rest_centre(bodies, momenta):
    """Momenta without the motion of the centre of mass, where it is to be at rest."""
    masses = jnp.where(bodies.free, bodies.masses, 0.0)
    velocity = momenta.sum(axis=1, keepdims=True) / masses.sum(axis=1, keepdims=True)
    return jnp.where(bodies.centred[:, None, None], momenta - masses * velocity, momenta)


def draw_momenta(bodies, key, kt):
    """Momenta of the Maxwell-Boltzmann distribution, [n_systems, n_atoms, 3].

    Args:
      key: [n_systems, 2].
      kt: [n_systems], eV.
    """
    shape = bodies.masses.shape[1], 3
    noise = jax.vmap(lambda k: jax.random.normal(k, shape, bodies.masses.dtype))(key)
    momenta = noise * jnp.sqrt(bodies.masses * kt[:, None, None])
    return rest_centre(bodies, jnp.where(bodies.free, momenta, 0.0))


def first_half(method, bodies, around, state, timestep):
    """The step up to where new forces are needed: positions and cell are those of the next step."""
    half = timestep / 2
    state = _thermostats(method, bodies, around, state, half)
    if method.cell_motion is None:
        momenta = state.momenta + half * jnp.where(bodies.free, state.forces, 0.0)
        positions = state.positions + timestep * momenta / bodies.masses
        return replace(state, momenta=momenta, positions=positions)
    state = _kick_cell(method, bodies, around, state, half)
    state = _kick_with_cell(bodies, around, state, half)
    return _drift_with_cell(bodies, around, state, timestep)


def second_half(method, bodies, around, state, timestep):
    """The rest of the step, once `state` holds the forces and stress of its positions."""
    half = timestep / 2
    if method.cell_motion is None:
        momenta = state.momenta + half * jnp.where(bodies.free, state.forces, 0.0)
        state = replace(state, momenta=momenta)
    else:
        state = _kick_with_cell(bodies, around, state, half)
        state = _kick_cell(method, bodies, around, state, half)
    state = _thermostats(method, bodies, around, state, half, mirrored=True)
    return replace(state, step=state.step + 1)


def conserved(method, bodies, around, state):
    """The quantity that exact integration would keep at constant surroundings, [n_systems], eV."""
    total = state.energy + kinetic_energy(bodies, state.momenta) - state.heat
    if method.thermostat == "nose-hoover":
        total += _chain_energy(state.chain, bodies.freedom, around.kt, around.thermostat_time)
    if method.cell_motion is not None:
        mass = _cell_mass(bodies, around)
        total += (state.cell_momenta**2).sum(axis=(1, 2)) / (2 * mass)
        total += around.pressure * volume(state.cell)
        freedom = cell_freedom(method, bodies)
        total += _chain_energy(state.cell_chain, freedom, around.kt, around.barostat_time)
    return total


# Thermostats -------------------------------------------------------------------------------------


def _thermostats(method, bodies, around, state, duration, mirrored=False):
    """Both thermostats for a time: first the cell's, or last in the mirrored half of a step."""
    if method.thermostat is None:
        return state
    acts = [_warm_cell, _warm_atoms] if method.cell_motion is not None else [_warm_atoms]
    for act in acts[::-1] if mirrored else acts:
        state = act(method, bodies, around, state, duration)
    return state


def _warm_cell(method, bodies, around, state, duration):
    twice = (state.cell_momenta**2).sum(axis=(1, 2)) / _cell_mass(bodies, around)
    freedom = cell_freedom(method, bodies)
    chain, scale = _pass_chain(
        state.cell_chain, twice, freedom, around.kt, around.barostat_time, duration
    )
    momenta = state.cell_momenta * scale[:, None, None]
    return replace(state, cell_chain=chain, cell_momenta=momenta)


def _warm_atoms(method, bodies, around, state, duration):
    if method.thermostat == "nose-hoover":
        twice = 2 * kinetic_energy(bodies, state.momenta)
        chain, scale = _pass_chain(
            state.chain, twice, bodies.freedom, around.kt, around.thermostat_time, duration
        )
        return replace(state, chain=chain, momenta=state.momenta * scale[:, None, None])
    key, now = jnp.moveaxis(jax.vmap(jax.random.split)(state.key), 1, 0)
    decay = jnp.exp(-duration / around.thermostat_time)
    if method.thermostat == "langevin":
        noise = draw_momenta(bodies, now, around.kt)
        momenta = rest_centre(bodies, decay * state.momenta) + jnp.sqrt(1 - decay**2) * noise
    else:
        kinetic = kinetic_energy(bodies, state.momenta)
        scale = jax.vmap(_csvr_scale, (0, 0, 0, 0, None))(
            now, kinetic, bodies.freedom, around.kt, decay
        )
        momenta = state.momenta * scale[:, None, None]
    gained = kinetic_energy(bodies, momenta) - kinetic_energy(bodies, state.momenta)
    return replace(state, key=key, momenta=momenta, heat=state.heat + gained)


def _csvr_scale(key, kinetic, freedom, kt, decay):
    """Factor on the momenta of one system. Source: eq. A7 and A8."""
    one, others = jax.random.split(key)
    normal = jax.random.normal(one, (), kinetic.dtype)
    # The sum of freedom - 1 squared normal numbers.
    squares = 2 * jax.random.gamma(others, jnp.maximum(freedom - 1, 1e-6) / 2, (), kinetic.dtype)
    part = (1 - decay) * kt / (2 * jnp.maximum(kinetic, 1e-12))
    cross = jnp.sqrt(decay * part)
    squared = decay + part * (normal**2 + squares) + 2 * normal * cross
    sign = jnp.sign(normal + jnp.sqrt(decay / part))
    return sign * jnp.sqrt(jnp.maximum(squared, 0.0))


def _chain_masses(chain, freedom, kt, time):
    """[n_systems, length]; the first thermostat carries all degrees of freedom."""
    many = jnp.ones_like(chain.position).at[:, 0].set(freedom)
    return many * (kt * time**2)[:, None]


def _chain_energy(chain, freedom, kt, time):
    masses = _chain_masses(chain, freedom, kt, time)
    potential = freedom * chain.position[:, 0] + chain.position[:, 1:].sum(axis=1)
    return kt * potential + (chain.momentum**2 / masses).sum(axis=1) / 2


def _pass_chain(chain, twice, freedom, kt, time, duration):
    """The chain after a time, and the factor on the momenta it acts on.

    Args:
      twice: [n_systems] twice the kinetic energy of these momenta, eV.

    Source: Tuckerman et al. (2006), section 4.
    """
    mass = jnp.unstack(_chain_masses(chain, freedom, kt, time), axis=1)
    place = list(jnp.unstack(chain.position, axis=1))
    speed = list(jnp.unstack(chain.momentum, axis=1))
    length, scale = len(mass), 1.0

    def push(j, delta):
        drag = jnp.exp(-delta / 4 * speed[j + 1] / mass[j + 1]) if j + 1 < length else 1.0
        if j == 0:
            force = twice * scale**2 - freedom * kt
        else:
            force = speed[j - 1] ** 2 / mass[j - 1] - kt
        speed[j] = (speed[j] * drag + delta / 2 * force) * drag

    for part in YOSHIDA:
        delta = part * duration
        for j in reversed(range(length)):
            push(j, delta)
        for j in range(length):
            place[j] = place[j] + delta * speed[j] / mass[j]
        scale = scale * jnp.exp(-delta * speed[0] / mass[0])
        for j in range(length):
            push(j, delta)
    return Chain(jnp.stack(place, axis=1), jnp.stack(speed, axis=1)), scale


# The cell ----------------------------------------------------------------------------------------


def cell_freedom(method, bodies):
    """Degrees of freedom of the cell's momenta."""
    axes = bodies.cell_mask.sum()
    return {"isotropic": 1.0 + 0 * axes, "axes": axes, "full": axes * (axes + 1) / 2}[
        method.cell_motion
    ]


def _cell_mass(bodies, around):
    return (bodies.freedom / 3 + 1) * around.kt * around.barostat_time**2


def _project(method, bodies, tensor):
    """The part of symmetric tensors that the cell is allowed to follow."""
    if method.cell_motion == "isotropic":
        trace = jnp.trace(tensor, axis1=1, axis2=2)
        return trace[:, None, None] / 3 * jnp.eye(3)
    if method.cell_motion == "axes":
        return tensor * jnp.diag(bodies.cell_mask)
    return tensor * bodies.cell_mask[:, None] * bodies.cell_mask[None]


def _kick_cell(method, bodies, around, state, duration):
    identity = jnp.eye(3)
    kinetic = kinetic_tensor(bodies, state.momenta)
    extra = jnp.trace(kinetic, axis1=1, axis2=2) / bodies.freedom
    outward = around.pressure[:, None, None] * identity
    force = kinetic - volume(state.cell)[:, None, None] * (state.stress + outward)
    force = _project(method, bodies, force + extra[:, None, None] * identity)
    return replace(state, cell_momenta=state.cell_momenta + duration * force)


def _rates(bodies, around, state):
    """Rates of strain of the cell along their own axes, [n_systems, 3], and these axes."""
    rates, axes = jnp.linalg.eigh(state.cell_momenta)
    return rates / _cell_mass(bodies, around)[:, None], axes


def _growth(x):
    """(exp(x) - 1) / x."""
    return jnp.where(jnp.abs(x) < 1e-7, 1 + x / 2, jnp.expm1(x) / jnp.where(x == 0, 1.0, x))


def _kick_with_cell(bodies, around, state, duration):
    rates, axes = _rates(bodies, around, state)
    drag = -duration * (rates + rates.sum(axis=1, keepdims=True) / bodies.freedom[:, None])
    momenta, forces = (
        jnp.einsum("sni,sij->snj", rows, axes)
        for rows in (state.momenta, jnp.where(bodies.free, state.forces, 0.0))
    )
    momenta = momenta * jnp.exp(drag)[:, None] + duration * forces * _growth(drag)[:, None]
    return replace(state, momenta=jnp.einsum("snj,sij->sni", momenta, axes))


def _drift_with_cell(bodies, around, state, duration):
    rates, axes = _rates(bodies, around, state)
    strain = duration * rates
    positions, velocities, cell = (
        jnp.einsum("sni,sij->snj", rows, axes)
        for rows in (state.positions, state.momenta / bodies.masses, state.cell)
    )
    moved = positions * jnp.exp(strain)[:, None] + duration * velocities * _growth(strain)[:, None]
    # Fixed atoms keep their places in the cell, not in space.
    cell = cell * jnp.exp(strain)[:, None]
    return replace(
        state,
        positions=jnp.einsum("snj,sij->sni", moved, axes),
        cell=jnp.einsum("snj,sij->sni", cell, axes),
    )
