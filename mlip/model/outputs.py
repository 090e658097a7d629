"""What a model gives for a batch: energies of atoms, and all that is derived or told besides."""

from dataclasses import dataclass, field

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outputs:
    """Of a padded batch. A model fills energies, quantities and features; derivatives the rest."""

    energies: jax.Array  # [n_atoms] of a model in units of the potential's scale; else eV
    forces: jax.Array | None = None  # [n_atoms, 3] eV/Å
    stress: jax.Array | None = None  # [n_structures, 3, 3] eV/Å³
    # By name, as the table of quantities has them: [n_atoms, ...] or [n_structures, ...].
    quantities: dict[str, jax.Array] = field(default_factory=dict)
    features: tuple[jax.Array, ...] = ()  # layer by layer, invariant, [n_atoms, channels]
