"""Memory that inference and training will take, read off the compiled programs."""

import math
from dataclasses import replace

import jax
import numpy as np

from mlip.data.graph import Graph, Labels
from mlip.data.quantities import DERIVED, QUANTITIES
from mlip.model.execution import peak_bytes
from mlip.model.fold import FoldedPotential, fold
from mlip.model.potential import double_sums, evaluate_graph, round_up
from mlip.training import optimizer
from mlip.training.loss import LossConfig
from mlip.training.optimizer import OptimizerConfig
from mlip.training.step import TrainState, train_step

SKIN = 0.5  # Å, of the calculator
KINDS = 4  # species of which the folded potential has tables
# Bytes of a slot on the host: of the `Table`, and with all that is there while it is laid out.
TABLE = 5 * 8 + 1
LAID_OUT = TABLE + 3 * 3 * 8 + 20


def memory(potential, n_atoms, density):
    """Peak memory of one evaluation and of one training step on a system of this size.

    The evaluation is that of `mlip.Calculator` with its default skin on atoms of at most four
    species, the training step that of the default loss and optimizer.

    Args:
      n_atoms: atoms of the system, or of all frames in a batch.
      density: atoms per Å³; 0.05 in silicon, 0.1 in water.

    Returns:
      dict with the number of neighbours assumed and the peaks in bytes: of the
      compiled programs, and for inference of the neighbour table on the host. Python and its
      libraries add a few hundred MB, compiling too.

    Raises:
      ValueError: a number of atoms or a density that is not positive, more neighbours than 32-bit
        indices count, or a potential that is folded.
    """
    if isinstance(potential, FoldedPotential):
        raise ValueError("the potential is folded; give the one that it came from")
    for name, value in {"atoms": n_atoms, "density": density}.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; it must be positive")
    cutoff = potential.cutoff
    width, wide = (_most_neighbors(density, cutoff + skin) for skin in (0.0, SKIN))
    slots = n_atoms * wide
    # The calculator leaves room for a tenth more neighbours than it finds.
    if n_atoms * round_up(math.ceil(1.1 * wide)) >= 2**31:
        raise ValueError(
            f"{n_atoms} atoms with {wide} neighbours are more than 32-bit indices count; "
            f"{int(2**31 / (1.1 * wide))} atoms are the most"
        )
    with potential.precision():
        folded = fold(potential, potential.species[:KINDS])
        graph, labels = _shapes(
            n_atoms, width, potential.dtype, (*DERIVED, *potential.model.quantities)
        )
        with double_sums():
            inference = evaluate_graph.compile(folded.surface, folded.weights, graph)
        training = _compile_training(potential, graph, labels)
    return {
        "atoms": n_atoms,
        "neighbors": width,
        "inference_bytes": max(peak_bytes(inference) + TABLE * slots, LAID_OUT * slots),
        "training_bytes": peak_bytes(training),
    }


def _most_neighbors(density, cutoff):
    """Neighbours of the atom that has most of them: their number scatters about the mean."""
    mean = density * 4 / 3 * math.pi * cutoff**3
    return math.ceil(mean + 3 * math.sqrt(mean))


def _shapes(n_atoms, width, dtype, names):
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
    rows = {name: 2 if QUANTITIES[name].of == "structure" else n_atoms for name in names}
    labels = Labels(
        {name: real(n, *QUANTITIES[name].shape) for name, n in rows.items()},
        {name: real(n) for name, n in rows.items()},
    )
    return graph, labels


def _compile_training(potential, graph, labels):
    parameters = potential.weights.parameters
    config = OptimizerConfig()
    moments = jax.eval_shape(optimizer.build(config).init, parameters)
    state = TrainState(parameters, moments, parameters, parameters)
    rates = (0.01, 0.005, LossConfig().weights(0.0))
    weights = replace(potential.weights, parameters=parameters)
    settings = potential.surface, LossConfig(), config, None, 1  # one device, at one turn
    return train_step.compile(*settings, state, weights, graph, labels, rates)
