"""One large system over several devices: every device takes its share of the atoms.

Once a layer the features of neighbours are gathered from all devices, and the derivatives that go
back to them summed over all; all else stays where the atoms are.
"""

import functools
from dataclasses import replace

import jax
from jax.sharding import Mesh, PartitionSpec

from mlip.data.graph import Graph
from mlip.model.potential import energies_and_pull, forces_and_stress

AXIS = "atoms"
# Fewer atoms than this on each device are faster on one.
WORTHWHILE = {"cpu": 48, "gpu": 2000, "tpu": 2000}


def devices_for(n_atoms):
    """Devices of this process over which a system of so many atoms is best spread."""
    devices = jax.local_devices()
    share = WORTHWHILE.get(devices[0].platform, WORTHWHILE["gpu"])
    return tuple(devices[: max(1, n_atoms // share)])


def whole_shares(n_atoms, devices):
    """The smallest number of rows from `n_atoms` on that the devices can share."""
    return -(-n_atoms // len(devices)) * len(devices)


@functools.partial(jax.jit, static_argnums=(0, 1))
def evaluate_spread(network, devices, weights, graph):
    """What `evaluate_graph` gives, from several devices that share the rows of atoms."""
    one = functools.partial(_share, replace(network, axis=AXIS))
    atoms, everywhere = PartitionSpec(AXIS), PartitionSpec()
    rows = Graph(
        species=atoms,
        structure=atoms,
        neighbors=atoms,
        reverse=everywhere,  # see `collect_slots`
        displacement=atoms,
        volume=everywhere,
        n_atoms=everywhere,
    )
    return jax.shard_map(
        one,
        mesh=Mesh(devices, AXIS),
        in_specs=(everywhere, rows),
        out_specs=(atoms, atoms, everywhere),
        check_vma=False,
    )(weights, graph)


def _share(network, weights, graph):
    energies, pull = energies_and_pull(network, weights, graph)
    return energies, *forces_and_stress(graph, pull, network.axis)
