"""Minimisers of many functions side by side, each on its own course.

- FIRE: Guénolé et al., Comput. Mater. Sci. 175, 109584 (2020), with forces before a half step back
  used again after it.
- L-BFGS: Nocedal and Wright, Numerical Optimization (2006), algorithm 7.4; a step that raises the
  function is taken back and shortened.

A point has coordinates `x` (Å), a `gradient` (eV/Å), both [n_systems, n_rows, 3], and a `value`
[n_systems] (eV). All arrays are float64.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from mlip.simulation.engine import choose

STIFFNESS = 70.0  # eV/Å², curvature that L-BFGS assumes before it has seen any, as ASE does
PAIRS = 20  # of moves and changes of the gradient, from which L-BFGS knows the curvature


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fire:
    """Motion that is damped, and stopped where it goes uphill."""

    velocity: jax.Array  # [n_systems, n_rows, 3]
    moved: jax.Array  # [n_systems, n_rows, 3] Å, by the last velocity
    timestep: jax.Array  # [n_systems], of a particle of unit mass in eV and Å
    mixing: jax.Array  # [n_systems] share of the velocity turned into the force's direction
    downhill: jax.Array  # [n_systems] steps since motion went uphill

    # Mixing and delay of the first FIRE (Bitzek et al., Phys. Rev. Lett. 97, 170201, 2006): a
    # relaxation is too short for those of the second.
    TIMESTEP, LONGEST, SHORTEST = 0.1, 1.0, 0.002
    GROWTH, DECAY, MIXING, MIXING_DECAY, DELAY = 1.1, 0.5, 0.1, 0.99, 5

    @classmethod
    def begin(cls, x):
        n_systems, zeros = len(x), jnp.zeros_like(x)
        return cls(
            velocity=zeros,
            moved=zeros,
            timestep=jnp.full(n_systems, cls.TIMESTEP),
            mixing=jnp.full(n_systems, cls.MIXING),
            downhill=jnp.zeros(n_systems, jnp.int32),
        )

    def propose(self, point, max_step):
        """Where to go from a point, and the motion there.

        Args:
          point: see the module.
          max_step: Å, that no row goes beyond.

        Returns:
          coordinates [n_systems, n_rows, 3] Å, and the next `Fire`.
        """
        force = -point.gradient
        uphill = _dot(force, self.velocity) < 0
        downhill = jnp.where(uphill, 0, self.downhill + 1)
        late = downhill > self.DELAY
        longer = jnp.minimum(self.GROWTH * self.timestep, self.LONGEST)
        shorter = jnp.maximum(self.DECAY * self.timestep, self.SHORTEST)
        timestep = jnp.where(uphill, shorter, jnp.where(late, longer, self.timestep))
        mixing = jnp.where(late, self.MIXING_DECAY * self.mixing, self.mixing)
        mixing = jnp.where(uphill, self.MIXING, mixing)
        back = jnp.where(wide(uphill), -self.moved / 2, 0.0)
        velocity = jnp.where(wide(uphill), 0.0, self.velocity) + wide(timestep) * force
        along = force * wide(norm(velocity) / jnp.maximum(norm(force), 1e-300))
        velocity = wide(1 - mixing) * velocity + wide(mixing) * along
        # With the half step back, which is half of max_step at most.
        step = _limited(wide(timestep) * velocity, jnp.where(uphill, max_step / 2, max_step))
        return point.x + back + step, replace(
            self,
            velocity=velocity,
            moved=step,
            timestep=timestep,
            mixing=mixing,
            downhill=downhill,
        )

    def receive(self, old, new, max_step, rounding):
        """Memory after a step, and whether it is kept, [n_systems]; FIRE keeps all."""
        return self, jnp.ones(len(new.x), bool)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lbfgs:
    """What the last moves told of the curvature, and where it leads."""

    moves: jax.Array  # [n_systems, PAIRS, n_rows, 3] of x, the last one first
    changes: jax.Array  # likewise, of the gradient
    inverse: jax.Array  # [n_systems, PAIRS] 1 / (move · change); 0 for none
    scale: jax.Array  # [n_systems] Å²/eV, inverse curvature where none was seen
    direction: jax.Array  # [n_systems, n_rows, 3] Å, of a whole step
    fraction: jax.Array  # [n_systems] of the direction to go

    # Decrease of a step that was too long, and the fraction at which the curvature is forgotten.
    LEAST, MOST, FORGET = 0.1, 0.5, 0.01

    @classmethod
    def begin(cls, x):
        n_systems, pairs = len(x), jnp.zeros((len(x), PAIRS, *x.shape[1:]))
        return cls(
            moves=pairs,
            changes=pairs,
            inverse=jnp.zeros((n_systems, PAIRS)),
            scale=jnp.full(n_systems, 1 / STIFFNESS),
            direction=jnp.zeros_like(x),
            fraction=jnp.ones(n_systems),
        )

    def propose(self, point, max_step):
        """Where to go from a point; the memory changes when it is known what is there.

        Returns:
          coordinates [n_systems, n_rows, 3] Å, and this memory.
        """
        return point.x + wide(self.fraction) * self.direction, self

    def receive(self, old, new, max_step, rounding):
        """Memory after a step, and whether it is kept: its function is not higher.

        Args:
          old, new: points before and after the step.
          max_step: Å, that no row goes beyond in the next one.
          rounding: [n_systems] eV, within which a function is not higher.

        Returns:
          the next `Lbfgs`, and [n_systems] False where the step is to be taken back.
        """
        rise = new.value - old.value
        kept = rise <= rounding
        longer, shorter = self.learned(old, new, max_step), self.shortened(old, rise, max_step)
        return choose(kept, longer, shorter), kept

    def learned(self, old, new, max_step):
        """With one more pair, and the direction from the new point."""
        move, change = new.x - old.x, new.gradient - old.gradient
        product, square = _dot(move, change), _dot(change, change)
        # Curvature that is not positive says nothing about where the minimum is.
        curved = product > 1e-6 * norm(move) * norm(change)
        inverse = 1 / jnp.where(curved, product, 1.0)

        def add(past, last):
            longer = jnp.concatenate([last[:, None], past[:, :-1]], axis=1)
            return jnp.where(curved.reshape(-1, *[1] * (past.ndim - 1)), longer, past)

        memory = replace(
            self,
            moves=add(self.moves, move),
            changes=add(self.changes, change),
            inverse=add(self.inverse, inverse),
            scale=jnp.where(curved, product / jnp.where(curved, square, 1.0), self.scale),
            fraction=jnp.ones_like(self.fraction),
        )
        return replace(memory, direction=_limited(-memory.solve(new.gradient), max_step))

    def solve(self, gradient):
        """The inverse of the curvature times a gradient; algorithm 7.4 of the source."""

        def first(vector, pair):
            move, change, inverse = pair
            share = inverse * _dot(move, vector)
            return vector - wide(share) * change, share

        def second(vector, pair):
            move, change, inverse, share = pair
            return vector + wide(share - inverse * _dot(change, vector)) * move, None

        past = [jnp.moveaxis(a, 1, 0) for a in (self.moves, self.changes, self.inverse)]
        vector, shares = jax.lax.scan(first, gradient, past)
        vector = wide(self.scale) * vector
        return jax.lax.scan(second, vector, [*past, shares], reverse=True)[0]

    def shortened(self, old, rise, max_step):
        """A shorter step from the old point: to the lowest point of the parabola through both."""
        slope = _dot(old.gradient, self.direction) * self.fraction
        lowest = -slope / (2 * jnp.where(rise > slope, rise - slope, jnp.inf))
        fraction = self.fraction * jnp.clip(lowest, self.LEAST, self.MOST)
        # Where even small steps go uphill, the curvature is none that the function has.
        forget = fraction < self.FORGET
        scale = jnp.where(forget, 1 / STIFFNESS, self.scale)
        steepest = _limited(-wide(self.FORGET * scale) * old.gradient, max_step)
        return replace(
            self,
            inverse=jnp.where(forget[:, None], 0.0, self.inverse),
            scale=scale,
            direction=jnp.where(wide(forget), steepest, self.direction),
            fraction=jnp.where(forget, 1.0, fraction),
        )


OPTIMIZERS = {"fire": Fire, "lbfgs": Lbfgs}


def wide(values):
    return values[:, None, None]


def _dot(a, b):
    return (a * b).sum(axis=(1, 2))


def norm(a):
    return jnp.sqrt(_dot(a, a))


def _limited(move, longest):
    """A move of all rows alike, so that none goes farther than the longest, Å a system."""
    far = jnp.sqrt((move**2).sum(axis=2).max(axis=1))
    return move * wide(jnp.minimum(1.0, longest / jnp.maximum(far, 1e-300)))
