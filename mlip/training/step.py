"""One step on one batch, and the errors of one: pure functions, compiled once for each shape."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from mlip.model.derivatives import outputs_and_pull, with_derivatives
from mlip.programs import program
from mlip.training import optimizer
from mlip.training.loss import batch_loss, from_all, in_turns, loss_and_gradient

AXIS = "parts"  # of a batch, over devices
SAME, PART = PartitionSpec(), PartitionSpec(AXIS)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All arrays that a training run carries from step to step."""

    parameters: dict  # those that move
    optimizer: tuple
    average: dict  # running average of the parameters: what is validated and saved
    best: dict  # the average with the lowest validation loss so far


def shared(function, devices, out_specs):
    """`function(weights, graph, labels, *others)` of a batch whose parts devices take side by side.

    Args:
      devices: one for each part; None where all is one part.
      out_specs: which results are those of a part, and which are the same everywhere.
    """
    if devices is None:
        return function

    def over_devices(*arguments):
        specs, mesh = (SAME, PART, PART, *[SAME] * (len(arguments) - 3)), Mesh(devices, AXIS)
        return jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False
        )(*arguments)

    return over_devices


@program(training=True, static_argnums=(0, 1, 2, 3, 4), donate_argnums=5)
def train_step(
    surface, loss_config, optimizer_config, devices, turns, state, weights, graph, labels, rates
):
    """One step on one batch.

    Args:
      devices: that share the batch, see `shared`.
      turns: parts of the batch that each of them takes one after another.
      weights: the potential's `Weights`; those of its parameters that move are in the state.
      rates: (learning rate, share of the new parameters in the running average, {quantity:
        weight in the loss}).

    Returns:
      the next state, and (loss, (share of each structure, error sums)).
    """
    learning_rate, renewal, loss_weights = rates
    weights = replace(weights, parameters=weights.parameters | state.parameters)

    def of_share(weights, graph, labels, loss_weights):
        names, axis = tuple(state.parameters), None if devices is None else AXIS
        arguments = surface, loss_config, loss_weights, weights, graph, labels, names, axis, turns
        return loss_and_gradient(*arguments)

    outputs = SAME, (SAME, (PART, SAME))
    gradient, report = shared(of_share, devices, outputs)(weights, graph, labels, loss_weights)
    transformation = optimizer.build(optimizer_config)
    updates, moments = transformation.update(gradient, state.optimizer, state.parameters)
    parameters, average = optimizer.apply(
        updates, state.parameters, state.average, learning_rate, renewal
    )
    # A finite loss may have an infinite gradient; both stop the run.
    finite = jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)]))
    loss, details = report
    report = jnp.where(finite, loss, jnp.nan), details
    return TrainState(parameters, moments, average, state.best), report


@program(static_argnums=(0, 1, 2, 3))
def error_sums(surface, loss_config, devices, turns, weights, graph, labels):
    """Sums of squared errors of a batch, and their counts; arguments as of `train_step`."""

    def of_share(weights, graph, labels):
        def of_part(graph, labels):
            outputs, pull = outputs_and_pull(surface, weights, graph)
            outputs = with_derivatives(outputs, graph, pull)
            ones = dict.fromkeys(labels.values, 1.0)
            return batch_loss(loss_config, ones, ones, graph, labels, outputs)[1][1], ()

        sums, _ = in_turns(of_part, turns, graph, labels)
        return from_all(sums, None if devices is None else AXIS)

    return shared(of_share, devices, SAME)(weights, graph, labels)
