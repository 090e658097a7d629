"""Memory that inference and training will take, read off the compiled programs."""

import math
from dataclasses import replace

import jax
import numpy as np

from mlip.data.graph import Graph, Labels
from mlip.deploy.fold import fold
from mlip.model.memory import peak_bytes
from mlip.model.potential import evaluate_graph, round_up
from mlip.training import optimizer
from mlip.training.loop import TrainState, train_step
from mlip.training.loss import LossConfig
from mlip.training.optimizer import OptimizerConfig


def memory(potential, n_atoms, density):
    """Peak memory of one evaluation and of one training step on a system of this size.

    Args:
      n_atoms: atoms of the system, or of all frames in a batch.
      density: atoms per Å³; 0.05 in silicon, 0.1 in water.

    Returns:
      dict with the number of neighbours assumed and the peaks in bytes; jax's own, to which the
      process adds a few hundred MB.

    Raises:
      ValueError: a number of atoms or a density that is not positive.
    """
    for name, value in {"atoms": n_atoms, "density": density}.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; it must be positive")
    neighbors = density * 4 / 3 * math.pi * potential.config.cutoff**3
    # The table is as wide as the largest number of neighbours, which scatters about the mean.
    width = round_up(math.ceil(min(neighbors + 3 * math.sqrt(neighbors), n_atoms * neighbors)))
    graph, labels = _shapes(n_atoms, width, potential.dtype)
    with potential.precision():
        folded = fold(potential)
        inference = evaluate_graph.lower(folded.network, folded.weights, graph).compile()
        training = _lower_training(potential, graph, labels).compile()
    return {
        "atoms": n_atoms,
        "neighbors": width,
        "inference_bytes": peak_bytes(inference),
        "training_bytes": peak_bytes(training),
    }


def _shapes(n_atoms, width, dtype):
    def real(*shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    def whole(*shape):
        return jax.ShapeDtypeStruct(shape, np.int32)

    table = n_atoms, width
    graph = Graph(
        species=whole(n_atoms),
        structure=whole(n_atoms),
        neighbors=whole(*table),
        reverse=whole(*table),
        displacement=real(*table, 3),
        volume=real(2),
        n_atoms=whole(2),
    )
    labels = Labels(real(2), real(n_atoms, 3), real(2, 3, 3), real(2), real(n_atoms), real(2))
    return graph, labels


def _lower_training(potential, graph, labels):
    parameters = potential.weights.parameters
    config = OptimizerConfig()
    moments = jax.eval_shape(optimizer.build(config).init, parameters)
    state = TrainState(parameters, moments, parameters, parameters)
    rates = (0.01, (1.0, 1.0, 1.0))
    weights = replace(potential.weights, parameters=parameters)
    return train_step.lower(
        potential.network, LossConfig(), config, state, weights, graph, labels, rates
    )
