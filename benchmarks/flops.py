"""Arithmetic of one evaluation as its jaxpr has it, and its memory, as JSON on stdout.

XLA's own count takes the body of a loop once and sees nothing of foreign functions; this one
multiplies by the number of rounds. It counts two operations for each multiply-add of a matrix
product, and one for each number that any other arithmetic gives.
"""

import json
import math
import sys

import structures
from jax.extend.core import ClosedJaxpr, Jaxpr

FREE = frozenset(
    "reshape broadcast_in_dim transpose squeeze slice dynamic_slice concatenate gather pad iota "
    "convert_element_type copy split rev select_n dynamic_update_slice stop_gradient".split()
)


def count(jaxpr):
    """Operations of a jaxpr, those of its inner ones included."""
    return sum(of_equation(equation) for equation in jaxpr.eqns)


def of_equation(equation):
    name = equation.primitive.name
    inner = [j for value in equation.params.values() for j in jaxprs(value)]
    if name == "dot_general":
        return of_product(equation)
    if name == "cond":
        return max(count(j) for j in inner)
    if name == "scan":
        return equation.params["length"] * count(inner[0])
    if inner:
        return sum(count(j) for j in inner)
    if name in FREE:
        return 0
    size = max((math.prod(v.aval.shape) for v in equation.outvars), default=0)
    if name.startswith("reduce") or name.startswith("scatter") or name == "argmax":
        size = max(math.prod(v.aval.shape) for v in equation.invars)
    return size


def of_product(equation):
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)


def jaxprs(value):
    """Jaxprs inside a parameter of an equation."""
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    if isinstance(value, (tuple, list)):
        return [j for item in value for j in jaxprs(item)]
    return []


def of_evaluation(wanted):
    """Operations of our evaluation of a structure, and the bytes that it touches at least once."""
    import mlip
    from mlip.data.graph import Shape, build_table, pad
    from mlip.data.structure import from_ase
    from mlip.model.execution import peak_bytes
    from mlip.model.potential import evaluate_graph

    atoms, _ = structures.make(wanted["structure"])
    config = mlip.NetworkConfig(cutoff=wanted["cutoff"], **wanted["network"])
    potential = mlip.untrained(config, {int(z) for z in atoms.numbers})
    if wanted["folded"]:
        from mlip.model.fold import fold

        potential = fold(potential)
    structure = from_ase(atoms)
    table = build_table(structure, config.cutoff)
    frame = (potential.species_of(structure), structure, table)
    graph = pad([frame], Shape(*table.size(), 2), config.cutoff)
    traced = evaluate_graph.jitted.trace(potential.surface, potential.weights, graph)
    compiled = traced.lower().compile()
    return {"flops": count(traced.jaxpr.jaxpr), "bytes": peak_bytes(compiled)}


if __name__ == "__main__":
    print(json.dumps(of_evaluation(json.loads(sys.argv[1]))))
