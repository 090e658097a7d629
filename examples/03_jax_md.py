"""A potential in jax-md's own integrators: constant energy, Nosé-Hoover, Langevin, pressure.

python examples/03_jax_md.py --steps 200
"""

import argparse
import functools

import jax
import jax.numpy as jnp
from ase import units
from ase.build import bulk
from ase.data import atomic_masses
from jax_md import quantity, simulate, space

import mlip

parser = argparse.ArgumentParser()
parser.add_argument("model", nargs="?", help="model.safetensors that knows silicon")
parser.add_argument("--steps", type=int, default=200)
args = parser.parse_args()

network = mlip.NetworkConfig(channels=8, radial_widths=(8,), cutoff=4.0)
zbl = mlip.TermsConfig(zbl=True)
potential = mlip.load(args.model) if args.model else mlip.untrained(network, ["Si"], terms=zbl)
potential = potential.with_dtype("float64")
structure = mlip.from_ase(bulk("Si", cubic=True))  # 8 atoms, 5.43 Å: smaller than twice the cutoff
timestep, kt = 1.0 * units.fs, 300 * units.kB


def simulation(name, shift, energy):
    """(init, apply) of one of jax-md's integrators."""
    if name == "nve":
        return simulate.nve(energy, shift, timestep)
    if name == "nose-hoover":
        return simulate.nvt_nose_hoover(energy, shift, timestep, kt)
    if name == "langevin":
        return simulate.nvt_langevin(energy, shift, timestep, kt, gamma=0.01 / units.fs)
    return simulate.npt_nose_hoover(energy, shift, timestep, 0.0, kt)


with jax.enable_x64(True):
    box = jnp.asarray(structure.cell.T)  # jax-md has lattice vectors as columns
    places = jnp.asarray(structure.positions) @ jnp.linalg.inv(box.T)
    mass = jnp.asarray(atomic_masses[structure.numbers])
    energy = mlip.energy_fn(potential, structure)
    neighbors = mlip.neighbor_fn(potential, structure, fractional_coordinates=True, skin=0.8)
    _, shift = space.periodic_general(box, fractional_coordinates=True)

    def box_of(state, name):
        return simulate.npt_box(state) if name == "npt" else box

    for name in ("nve", "nose-hoover", "langevin", "npt"):
        init, apply = simulation(name, shift, energy)
        table = neighbors.allocate(places, box=box)
        more = {"kT": kt} if name == "nve" else {}
        key = jax.random.PRNGKey(0)
        state = init(key, places, mass=mass, neighbor=table, box=box, **more)

        @functools.partial(jax.jit, compiler_options=mlip.compiler_options())
        def step(state, table, apply=apply, name=name):
            given = {} if name == "npt" else {"box": box}
            state = apply(state, neighbor=table, **given)
            return state, table.update(state.position, box=box_of(state, name))

        for _ in range(args.steps):
            state, table = step(state, table)
            if table.did_buffer_overflow:  # energies would not be numbers from here on
                table = neighbors.allocate(state.position, box=box_of(state, name))
        kelvin = quantity.temperature(momentum=state.momentum, mass=state.mass) / units.kB
        print(f"{name:12s} {float(kelvin):7.1f} K, {int(table.table.used.sum())} edges")
