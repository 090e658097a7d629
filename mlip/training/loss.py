"""The loss of a batch, its gradient by the parameters, and error sums."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from mlip.data.quantities import DERIVED, QUANTITIES, settings_of_quantities
from mlip.model.derivatives import outputs_and_pull, per_structure, with_derivatives

KINDS = ("mse", "huber")
STAGE_TWO_ENERGY_WEIGHT = 1000.0


_Weights = settings_of_quantities(
    "_Weights", {"weight": lambda quantity: (float, quantity.weight, quantity.weight_help)}
)


@dataclass(frozen=True)
class LossConfig(_Weights):
    """Weighted sum of mean errors: energy per atom, components of forces, stress and others.

    In the last part of the training the energy weight is raised: forces shape the surface first,
    the energies are fitted on it afterwards. If not given it is 1000 then, unless energies count
    for more already or not at all.
    """

    loss: str = "mse"  # mse or huber
    huber_delta: float = 0.01  # error where Huber's loss turns linear, in the units above
    stage_two: float = 0.75  # fraction of the training after which the second stage begins
    stage_two_energy_weight: float | None = None  # energy weight then; 0: as before; else 1000

    def __post_init__(self):
        names = [f"{name}_weight" for name in QUANTITIES]
        for name in [*names, "stage_two_energy_weight"]:
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be zero or positive")
        if not any(getattr(self, name) for name in names):
            raise ValueError("all loss weights are 0; give at least one of them a positive value")
        if self.loss not in KINDS:
            raise ValueError(f"loss is {self.loss!r}; choose one of {', '.join(KINDS)}")
        if not self.huber_delta > 0:
            raise ValueError(f"huber_delta is {self.huber_delta}; it must be positive")
        if not 0 <= self.stage_two <= 1:
            raise ValueError(f"stage_two is {self.stage_two}; it is a fraction between 0 and 1")

    def weights(self, progress):
        """{quantity: weight} when this fraction of the training is done."""
        found = {name: getattr(self, f"{name}_weight") for name in QUANTITIES}
        if progress >= self.stage_two:
            energy, given = self.energy_weight, self.stage_two_energy_weight
            raised = max(energy, STAGE_TWO_ENERGY_WEIGHT) if energy else 0.0
            found["energy"] = raised if given is None else given or energy
        return found

    def counted(self):
        """Names of the quantities that have a weight at some time."""
        times = [self.weights(progress) for progress in (0.0, 1.0)]
        return tuple(name for name in QUANTITIES if any(time[name] for time in times))


def label_counts(labels):
    """How many structures, or atoms, have each label."""
    return {name: weight.sum() for name, weight in labels.weights.items()}


def predicted(outputs, graph, name):
    """Values of a quantity in `Outputs`, as its labels are."""
    if name == "energy":
        return per_structure(graph, outputs.energies)
    return getattr(outputs, name) if name in DERIVED else outputs.quantities[name]


def batch_loss(config, weights, counts, graph, labels, outputs):
    """Loss of a batch, or of a part of it, and of each structure in it.

    Args:
      weights: {quantity: weight}.
      counts: `label_counts` of the whole batch.
      outputs: `Outputs` with forces and stress, energies without baseline.

    Returns:
      loss, and (its share by structure [n_structures], sums of squared errors and their counts).
    """
    n_atoms = jnp.maximum(graph.n_atoms, 1)
    shares, sums = 0.0, {}
    for name, label in labels.values.items():
        row, chosen = QUANTITIES[name], labels.weights[name]
        error = predicted(outputs, graph, name) - label
        error = error / n_atoms if row.per_atom else error
        axes = tuple(range(1, error.ndim))
        loss = _penalty(config, error)
        loss = loss.mean(axis=axes) * chosen if axes else loss * chosen
        loss = per_structure(graph, loss) if row.of == "atom" else loss
        shares += weights[name] * loss / jnp.maximum(counts[name], 1)
        wide = chosen.reshape(-1, *(1 for _ in axes))
        sums[name] = (wide * error**2).sum()
        sums[f"{name}_count"] = math.prod(row.shape) * chosen.sum()
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
    surface, config, loss_weights, weights, graph, labels, names=None, axis=None, turns=1
):
    """Loss of a batch and its gradient by the model's parameters, or those of some names.

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
        differentiate = outputs_by_reverse if surface.keeps(graph) else outputs_by_forward
        found, by_parameters = differentiate(surface, weights, moving, graph)

        def of_outputs(found):
            outputs = with_derivatives(found[0], graph, found[1])
            return batch_loss(config, loss_weights, counts, graph, labels, outputs)

        loss, pullback, (shares, sums) = jax.vjp(of_outputs, found, has_aux=True)
        return (by_parameters(*pullback(jnp.ones_like(loss))), loss, sums), shares

    found, shares = in_turns(of_part, turns, graph, labels)
    gradient, loss, sums = from_all(found, axis)
    return gradient, (loss, (shares, sums))


def outputs_by_reverse(surface, weights, moving, graph):
    """Outputs of a small part, and how the loss's derivatives by them become its gradient.

    Reverse-over-reverse, which stores the intermediates of all atoms.

    Args:
      moving: parameters by name for which the gradient is wanted.

    Returns:
      (`Outputs`, `Pull`), and a function of the loss's derivatives by both to its gradient, as
      `moving`.
    """
    at_once = surface.running(block=0)

    def outputs(parameters):
        inner = replace(weights, parameters=weights.parameters | parameters)
        return outputs_and_pull(at_once, inner, graph)

    found, pullback = jax.vjp(outputs, moving)
    return found, lambda cotangents: pullback(cotangents)[0]


def outputs_by_forward(surface, weights, moving, graph):
    """The same of a large part: reverse-over-forward, block by block, recomputing intermediates.

    With v the derivative of the loss by the edges' pull, the pull's share of the gradient is that
    of the energies' derivative along v: one forward-mode derivative inside one reverse pass.
    """

    def by_parameters(cotangents):
        by_outputs, by_pull = cotangents

        def along(parameters):
            inner = replace(weights, parameters=weights.parameters | parameters)

            def of_displacement(displacement):
                return surface.outputs(inner, replace(graph, displacement=displacement))

            along_pull = (graph.displacement,), (by_pull.edges,)
            outputs, derivative = jax.jvp(of_displacement, *along_pull)
            shares = jax.tree.map(lambda by, value: (by * value).sum(), by_outputs, outputs)
            return sum(jax.tree.leaves(shares)) + derivative.energies.sum()

        return jax.grad(along)(moving)

    return outputs_and_pull(surface, weights, graph), by_parameters
