"""One large system over several devices: every device takes its share of the atoms.

After every layer but the last the features of neighbours are gathered from all devices, and on
the way back the derivatives by them are summed over all, as are forces and virial in the end; all
else stays where the atoms are.
"""

import functools
from dataclasses import replace

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlip.data.graph import Graph
from mlip.model.derivatives import outputs_and_pull, with_derivatives
from mlip.model.outputs import Outputs
from mlip.programs import program

AXIS = "atoms"
ATOMS, EVERYWHERE = PartitionSpec(AXIS), PartitionSpec()
ROWS = Graph(
    species=ATOMS,
    structure=ATOMS,
    neighbors=ATOMS,
    reverse=EVERYWHERE,  # see `collect_slots`
    displacement=ATOMS,
    volume=EVERYWHERE,
    n_atoms=EVERYWHERE,
    sender_species=ATOMS,
)
SENT = replace(ROWS, species=EVERYWHERE)  # each device looks its senders' species up among all


def whole_shares(n_atoms, devices):
    """The smallest number of rows from `n_atoms` on that the devices can share."""
    return -(-n_atoms // len(devices)) * len(devices)


def spread_out(devices, arrays, specs=EVERYWHERE):
    """Arrays on the devices that will compute with them; by default all of them on each."""
    mesh = Mesh(devices, AXIS)
    return jax.device_put(arrays, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))


@program(static_argnums=(0, 1))
def evaluate_spread(surface, devices, weights, graph):
    """What `evaluate_graph` gives, from several devices that share the rows of atoms."""
    graph = replace(graph, sender_species=graph.species_of_senders())
    return jax.shard_map(
        functools.partial(_share, surface.running(axis=AXIS)),
        mesh=Mesh(devices, AXIS),
        in_specs=(EVERYWHERE, ROWS),
        out_specs=Outputs(energies=ATOMS, forces=ATOMS, stress=EVERYWHERE),
        check_vma=False,
    )(weights, graph)


def _share(surface, weights, graph):
    outputs, pull = outputs_and_pull(surface, weights, graph)
    return with_derivatives(outputs, graph, pull, AXIS)
