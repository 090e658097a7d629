"""Forces and stress: the one place where energies are differentiated.

    pull   = dE/d(displacement)                    per edge, eV/Å
    forces = sum of pull at the receiver − sum of pull at the sender
    stress = (1/V) Σ_edges displacement ⊗ pull     symmetrised

Terms without a cutoff speak of positions and cell, and add −dE/d(positions) and (1/V) dE/d(strain).
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlip.model.blocks import collect_slots


class Pull(NamedTuple):
    """Derivatives of the energy by all that the graph says of geometry."""

    edges: jax.Array  # [n_atoms, max_neighbors, 3] by the displacements, eV/Å
    positions: jax.Array | None = None  # [n_atoms, 3] eV/Å; None where no term has a say
    strain: jax.Array | None = None  # [n_structures, 3, 3] eV


def outputs_and_pull(surface, weights, graph, own=1.0):
    """`Outputs` without forces and stress, and the derivative of the sum of their energies.

    Args:
      surface: a `Surface`.
      weights: its `Weights`.
      own: factor of each atom's energy, such as [n_atoms] 0 for those that others count.

    Returns:
      `Outputs`, `Pull`.
    """
    if surface.local:

        def total(displacement):
            moved = replace(graph, displacement=displacement)
            outputs = surface.outputs(weights, moved)
            outputs = replace(outputs, energies=own * outputs.energies)
            return outputs.energies.sum(), outputs

        pull, outputs = jax.grad(total, has_aux=True)(graph.displacement)
        return outputs, Pull(pull)

    def total(displacement, positions, strain):
        stretch = jnp.eye(3, dtype=positions.dtype) + (strain + strain.mT) / 2
        where = jnp.einsum("ni,nij->nj", positions, stretch[graph.structure], precision="highest")
        cell = jnp.matmul(graph.cell, stretch, precision="highest")
        moved = replace(graph, displacement=displacement, positions=where, cell=cell)
        outputs = surface.outputs(weights, moved)
        outputs = replace(outputs, energies=own * outputs.energies)
        return outputs.energies.sum(), outputs

    at = graph.displacement, graph.positions, jnp.zeros_like(graph.cell)
    pull, outputs = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(*at)
    return outputs, Pull(*pull)


def forces_and_stress(graph, pull, axis=None):
    """Forces [n_atoms, 3] and symmetric stress [n_structures, 3, 3] from the `Pull`.

    Args:
      axis: of the devices over which the atoms are spread.
    """
    edges = pull.edges
    arriving = collect_slots(edges, graph.reverse, axis=axis)
    virial = jnp.einsum("nki,nkj->nij", graph.displacement, edges, precision="highest")
    virial = per_structure(graph, (virial + virial.mT) / 2)
    if axis is not None:
        # Both in one exchange: a row for each device, with its share of the one and all the other.
        n_devices = len(arriving) // len(edges)
        shares = arriving.reshape(n_devices, -1)
        repeated = jnp.broadcast_to(virial.ravel(), (n_devices, virial.size))
        sums = jax.lax.psum_scatter(jnp.concatenate([shares, repeated], axis=1), axis)
        arriving, total = jnp.split(sums, [shares.shape[1]])
        arriving, virial = arriving.reshape(-1, 3), total.reshape(virial.shape)
    forces = edges.sum(axis=1) - arriving
    if pull.positions is not None:
        forces, virial = forces - pull.positions, virial + pull.strain
    return forces, virial / graph.volume[:, None, None]


def with_derivatives(outputs, graph, pull, axis=None):
    """The `Outputs` with forces and stress."""
    forces, stress = forces_and_stress(graph, pull, axis)
    return replace(outputs, forces=forces, stress=stress)


def per_structure(graph, values):
    """Sum rows of atoms over the structures they belong to."""
    return jax.ops.segment_sum(
        values, graph.structure, graph.n_atoms.shape[0], indices_are_sorted=True
    )
