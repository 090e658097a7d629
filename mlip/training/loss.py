"""The loss of a batch, its gradient by the parameters, and error sums."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from mlip.model.mace.network import SLOTS_AT_ONCE
from mlip.model.potential import atom_energies, energies_and_pull, forces_and_stress, per_structure

KINDS = ("mse", "huber")
STAGE_TWO_ENERGY_WEIGHT = 1000.0
# Of so many blocks of atoms, keeping all intermediates was measured to cost no more than making
# them again block by block (64x0e: cells of 64 to 512 atoms; 128x0e+128x1o: of 64, not of 192).
KEPT = 16


@dataclass(frozen=True)
class LossConfig:
    """Weighted sum of mean errors: energy per atom, force components, stress components.

    In the last part of the training the energy weight is raised: forces shape the surface first,
    the energies are fitted on it afterwards. If not given it is 1000 then, unless energies count
    for more already or not at all.
    """

    energy_weight: float = 1.0  # per (eV/atom)²
    forces_weight: float = 100.0  # per (eV/Å)²
    stress_weight: float = 1e4  # per (eV/Å³)²; 0.1 eV/Å³ is 16 GPa
    loss: str = "mse"  # mse or huber
    huber_delta: float = 0.01  # error where Huber's loss turns linear, in the units above
    stage_two: float = 0.75  # fraction of the training after which the second stage begins
    stage_two_energy_weight: float | None = None  # energy weight then; 0: as before; else 1000

    def __post_init__(self):
        names = "energy_weight", "forces_weight", "stress_weight", "stage_two_energy_weight"
        for name in [name for name in names if getattr(self, name) is not None]:
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be zero or positive")
        if self.energy_weight == self.forces_weight == self.stress_weight == 0:
            raise ValueError("all loss weights are 0; give at least one of them a positive value")
        if self.loss not in KINDS:
            raise ValueError(f"loss is {self.loss!r}; choose one of {', '.join(KINDS)}")
        if not self.huber_delta > 0:
            raise ValueError(f"huber_delta is {self.huber_delta}; it must be positive")
        if not 0 <= self.stage_two <= 1:
            raise ValueError(f"stage_two is {self.stage_two}; it is a fraction between 0 and 1")

    def weights(self, progress):
        """Weights of energy, forces and stress when this fraction of the training is done."""
        energy = self.energy_weight
        if progress >= self.stage_two:
            raised = max(energy, STAGE_TWO_ENERGY_WEIGHT) if energy else 0.0
            given = self.stage_two_energy_weight
            energy = raised if given is None else given or energy
        return energy, self.forces_weight, self.stress_weight


def label_counts(labels):
    """How many structures have energies, atoms forces, and structures stress."""
    return labels.energy_weight.sum(), labels.forces_weight.sum(), labels.stress_weight.sum()


def batch_loss(config, weights, counts, graph, labels, energies, forces, stress):
    """Loss of a batch, or of a part of it, and of each structure in it.

    Args:
      weights: of energy, forces and stress.
      counts: `label_counts` of the whole batch.
      energies: of the atoms without baseline, [n_atoms], eV.

    Returns:
      loss, and (its share by structure [n_structures], sums of squared errors and their counts).
    """
    n_atoms = jnp.maximum(graph.n_atoms, 1)
    energy_error = (per_structure(graph, energies) - labels.energy) / n_atoms
    forces_error = forces - labels.forces
    stress_error = stress - labels.stress
    n_frames, n_forces, n_stress = (jnp.maximum(n, 1) for n in counts)
    forces_loss = _penalty(config, forces_error).mean(axis=1) * labels.forces_weight
    shares = weights[0] * _penalty(config, energy_error) * labels.energy_weight / n_frames
    shares += weights[1] * per_structure(graph, forces_loss) / n_forces
    shares += (
        weights[2] * _penalty(config, stress_error).mean(axis=(1, 2)) * labels.stress_weight
    ) / n_stress
    sums = {
        "energy": (labels.energy_weight * energy_error**2).sum(),
        "energy_count": labels.energy_weight.sum(),
        "forces": (labels.forces_weight[:, None] * forces_error**2).sum(),
        "forces_count": 3 * labels.forces_weight.sum(),
        "stress": (labels.stress_weight[:, None, None] * stress_error**2).sum(),
        "stress_count": 9 * labels.stress_weight.sum(),
    }
    return shares.sum(), (shares, sums)


def from_all(values, axis):
    """Sums of the values over the devices along an axis."""
    if axis is None:
        return values
    flat, restore = ravel_pytree(values)  # one exchange for all
    return restore(jax.lax.psum(flat, axis))


def in_turns(function, turns, *batch):
    """What `function` gives of the parts of a batch, taken one after another.

    Args:
      function: of a part's arrays to a pair of pytrees.
      turns: number of parts.
      batch: pytrees of arrays whose rows are those of the parts, one after another.

    Returns:
      sums of the first over the parts; rows of the second one after another.
    """
    if turns == 1:
        return function(*batch)
    parts = jax.tree.map(lambda rows: rows.reshape(turns, -1, *rows.shape[1:]), batch)
    first, _ = jax.eval_shape(function, *jax.tree.map(lambda rows: rows[0], parts))

    def take(total, part):
        found, rows = function(*part)
        return jax.tree.map(jnp.add, total, found), rows

    zero = jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), first)
    total, rows = jax.lax.scan(take, zero, parts)
    return total, jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), rows)


def _penalty(config, error):
    if config.loss == "mse":
        return error**2
    # Twice Huber's function, so that small errors weigh as in mse.
    size, delta = jnp.abs(error), config.huber_delta
    return jnp.where(size < delta, error**2, delta * (2 * size - delta))


def loss_and_gradient(
    network, config, loss_weights, weights, graph, labels, names=None, axis=None, turns=1
):
    """Loss of a batch and its gradient by the network's parameters, or those of some names.

    Args:
      axis: of the devices that share the batch; all give the same, but for the shares of the
        structures, which are those of their own.
      turns: parts of the batch that a device takes one after another.

    Returns:
      gradient (as `weights.parameters`, of the names only), and what `batch_loss` returns.
    """
    counts = from_all(label_counts(labels), axis)
    moving = {name: weights.parameters[name] for name in names or weights.parameters}

    def of_part(graph, labels):
        # Without blocks nothing is made again in either way.
        few = not network.block or graph.neighbors.size <= KEPT * SLOTS_AT_ONCE * network.block
        differentiate = outputs_by_reverse if few else outputs_by_forward
        energies, pull, by_parameters = differentiate(network, weights, moving, graph)

        def of_outputs(energies, pull):
            outputs = energies, *forces_and_stress(graph, pull)
            return batch_loss(config, loss_weights, counts, graph, labels, *outputs)

        loss, pullback, (shares, sums) = jax.vjp(of_outputs, energies, pull, has_aux=True)
        return (by_parameters(*pullback(jnp.ones_like(loss))), loss, sums), shares

    found, shares = in_turns(of_part, turns, graph, labels)
    gradient, loss, sums = from_all(found, axis)
    return gradient, (loss, (shares, sums))


def outputs_by_reverse(network, weights, moving, graph):
    """Outputs of a part, and how the loss's derivatives by them become its gradient.

    By a reverse pass of the reverse pass, which finds the intermediates of all atoms where they
    were left.

    Args:
      moving: parameters by name for which the gradient is wanted.

    Returns:
      energies [n_atoms] without baseline, eV; the edges' pull [n_atoms, max_neighbors, 3], eV/Å;
      and a function of the loss's derivatives by both to its gradient, as `moving`.
    """

    def outputs(parameters):
        inner = replace(weights, parameters=weights.parameters | parameters)
        return energies_and_pull(replace(network, block=None), inner, graph)

    (energies, pull), pullback = jax.vjp(outputs, moving)
    return energies, pull, lambda *cotangents: pullback(cotangents)[0]


def outputs_by_forward(network, weights, moving, graph):
    """The same where intermediates are not kept but made again, block by block.

    With v the derivative of the loss by the edges' pull, the pull's share of the gradient is that
    of the energies' derivative along v: one forward-mode derivative inside one reverse pass.
    """

    def by_parameters(by_energies, by_pull):
        def along(parameters):
            inner = replace(weights, parameters=weights.parameters | parameters)

            def of_displacement(displacement):
                return atom_energies(network, inner, replace(graph, displacement=displacement))

            energies, derivative = jax.jvp(of_displacement, (graph.displacement,), (by_pull,))
            return (by_energies * energies).sum() + derivative.sum()

        return jax.grad(along)(moving)

    return *energies_and_pull(network, weights, graph), by_parameters
