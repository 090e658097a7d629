"""Potential: energy, forces and stress of structures by one derivative of the network."""

import functools
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from mlip.data.graph import Graph, Shape, build_table, pack, pad
from mlip.data.structure import COVALENT_RADII, Structure, number_of, symbol
from mlip.model.blocks import block_size, collect_slots
from mlip.model.mace.network import Network, NetworkConfig, initialize
from mlip.model.memory import free_bytes, needed_bytes, require_room
from mlip.model.radial import in_float64, zbl_energy
from mlip.programs import note_computing, program

DTYPES = ("float32", "float64")
MOST_SLOTS = 200_000  # neighbour slots in one batch of predictions
MOST_STRUCTURES = 64
MANY_SLOTS = 1_000_000  # beyond which the memory is looked at before it is taken
LARGE_BLOCK = 2048  # atoms taken at a time where all at once do not fit


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    """Everything of a potential that a compiled function takes as an argument."""

    parameters: dict  # of the network
    scale: jax.Array  # [n_species] eV per unit of the network's energies
    numbers: jax.Array  # [n_species] atomic numbers
    average_neighbors: jax.Array  # scalar


@dataclass(frozen=True)
class Prediction:
    """What a potential says of one structure; NumPy float64."""

    energy: float  # eV
    energies: np.ndarray  # [n_atoms] eV
    forces: np.ndarray  # [n_atoms, 3] eV/Å
    stress: np.ndarray | None  # [3, 3] eV/Å³; None without a volume


def atom_energies(network, weights, graph):
    """Energies of the atoms above their baseline, [n_atoms], eV."""
    radii = jnp.asarray(COVALENT_RADII, graph.displacement.dtype)[weights.numbers]
    variables, config = {"params": weights.parameters}, network.config
    energies, _ = network.apply(variables, graph, weights.average_neighbors, radii)
    scale = weights.scale[graph.species]
    energies *= scale
    if config.zbl:
        number = weights.numbers[graph.species]
        others = weights.numbers[graph.species_of_senders()]
        distance = jnp.sqrt((graph.displacement**2).sum(axis=-1))
        pairs = zbl_energy(distance, number[:, None], others, config.zbl_order)
        energies += in_float64(pairs).sum(axis=1) / 2 * (scale if config.zbl_scaled else 1.0)
    return energies


def energies_and_pull(network, weights, graph, own=1.0):
    """Energies of the atoms, and the derivative of their sum by each displacement (eV/Å).

    Args:
      own: factor of each atom's energy, such as [n_atoms] 0 for those that others count.
    """

    def total(displacement):
        moved = replace(graph, displacement=displacement)
        energies = own * atom_energies(network, weights, moved)
        return energies.sum(), energies

    pull, energies = jax.grad(total, has_aux=True)(graph.displacement)
    return energies, pull


def forces_and_stress(graph, pull, axis=None):
    """Forces [n_atoms, 3] and symmetric stress [n_structures, 3, 3] from the edges' pull.

    Args:
      axis: of the devices over which the atoms are spread.
    """
    arriving = collect_slots(pull, graph.reverse, axis=axis)
    virial = jnp.einsum("nki,nkj->nij", graph.displacement, pull, precision="highest")
    virial = per_structure(graph, (virial + virial.mT) / 2)
    if axis is not None:
        # Both in one exchange: a row for each device, with its share of the one and all the other.
        n_devices = len(arriving) // len(pull)
        shares = arriving.reshape(n_devices, -1)
        repeated = jnp.broadcast_to(virial.ravel(), (n_devices, virial.size))
        sums = jax.lax.psum_scatter(jnp.concatenate([shares, repeated], axis=1), axis)
        arriving, total = jnp.split(sums, [shares.shape[1]])
        arriving, virial = arriving.reshape(-1, 3), total.reshape(virial.shape)
    forces = pull.sum(axis=1) - arriving
    return forces, virial / graph.volume[:, None, None]


def per_structure(graph, values):
    """Sum rows of atoms over the structures they belong to."""
    return jax.ops.segment_sum(
        values, graph.structure, graph.n_atoms.shape[0], indices_are_sorted=True
    )


@program(static_argnums=0)
def evaluate_graph(network, weights, graph):
    """Energies of the atoms, forces and stress of a padded batch."""
    energies, pull = energies_and_pull(network, weights, graph)
    return energies, *forces_and_stress(graph, pull)


def double_sums():
    """Context of predictions, in which float32 networks take readouts and sums in float64."""
    note_computing()
    return jax.enable_x64(True)


@dataclass(frozen=True)
class Potential:
    """A network with its parameters and all it needs to speak of real atoms.

    A potential is a function of a structure: `potential(structure)` gives a `Prediction`.
    """

    config: NetworkConfig
    species: tuple[int, ...]  # atomic numbers, ascending
    parameters: dict  # NumPy arrays
    e0: np.ndarray  # [n_species] eV, energies of the isolated atoms
    shift: np.ndarray  # [n_species] eV, added to every atom beside E0
    scale: np.ndarray  # [n_species] eV per unit of the network's energies
    average_neighbors: float
    dtype: str = "float32"
    training: dict = field(default_factory=dict)  # where it comes from; free of arrays
    block: int | None = None  # atoms taken at a time; 0 for all, None for what suits the device

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        if not self.species or tuple(sorted(set(self.species))) != tuple(self.species):
            raise ValueError(
                f"species are {self.species}; give ascending atomic numbers, each once"
            )
        for name in ("e0", "shift", "scale"):
            values = np.asarray(getattr(self, name), float)
            if values.shape != (len(self.species),) or not np.isfinite(values).all():
                raise ValueError(f"{name} is {values}; give {len(self.species)} finite energies")
            object.__setattr__(self, name, values)
        widest = 2 * max(COVALENT_RADII[z] for z in self.species)
        if self.config.zbl and widest > self.config.cutoff:
            raise ValueError(
                f"the ZBL repulsion of these species reaches to {widest:.2f} Å, beyond the "
                f"cutoff of {self.config.cutoff} Å; raise the cutoff or leave zbl away"
            )
        if not (np.isfinite(self.average_neighbors) and self.average_neighbors > 0):
            raise ValueError(f"average_neighbors is {self.average_neighbors}; it must be positive")

    @functools.cached_property
    def network(self):
        return Network(self.config, len(self.species), self.suitable_block(best_on_cpu=16))

    def suitable_block(self, best_on_cpu):
        """Atoms to take at a time on this device; see `block_size`."""
        columns = self.config.channels * (self.config.hidden_l + 1)
        return block_size(self.block, columns, best_on_cpu)

    @functools.cached_property
    def weights(self):
        """`Weights` on the device in this potential's precision."""
        with self.precision():
            # Cast before it is on the device, where every shape would be compiled; copied, or the
            # device would share the memory of NumPy's arrays.
            def cast(array):
                return jax.device_put(np.asarray(array, self.dtype), may_alias=False)

            return Weights(
                jax.tree.map(cast, self.parameters),
                cast(self.scale),
                jax.device_put(np.array(self.species, np.int32)),
                cast(self.average_neighbors),
            )

    @property
    def n_parameters(self):
        return sum(np.size(leaf) for leaf in jax.tree.leaves(self.parameters))

    def precision(self):
        """Context in which jax computes in this potential's precision."""
        note_computing()
        return jax.enable_x64(self.dtype == "float64")

    def with_dtype(self, dtype):
        """The same potential in another precision; None keeps it."""
        return self if dtype is None else replace(self, dtype=str(dtype))

    def species_of(self, structure):
        """Index of each atom's species, [n_atoms].

        Raises:
          ValueError: an element that the potential does not know, by name.
        """
        lookup = np.full(max(self.species) + 1, -1)
        lookup[list(self.species)] = np.arange(len(self.species))
        known = np.isin(structure.numbers, self.species)
        if not known.all():
            missing = ", ".join(symbol(z) for z in np.unique(structure.numbers[~known]))
            raise ValueError(
                f"{structure.name} holds {missing}, which this potential was not trained on; it "
                f"knows {', '.join(map(symbol, self.species))}. Train with frames of {missing}"
            )
        return lookup[structure.numbers].astype(np.int32)

    def baseline(self, structure):
        """Energy of the structure's atoms without the network, eV, in float64."""
        return float((self.e0 + self.shift)[self.species_of(structure)].sum())

    def __call__(self, structure: Structure) -> Prediction:
        return self.predict([structure])[0]

    def predict(self, structures):
        """`Prediction` of every structure, in batches padded to a geometric ladder of sizes."""
        frames = [(self.species_of(s), s, build_table(s, self.config.cutoff)) for s in structures]
        sizes = [table.size() for _, _, table in frames]
        order = sorted(range(len(frames)), key=lambda index: sizes[index])
        predictions = [None] * len(frames)
        batches = pack(sizes, order, MOST_STRUCTURES, MOST_SLOTS, MOST_SLOTS)
        for batch in batches:
            atoms = sum(sizes[i][0] for i in batch)
            width = max(sizes[i][1] for i in batch)
            shape = Shape(round_up(atoms), round_up(width), round_up(len(batch)) + 1)
            graph = pad([frames[i] for i in batch], shape, self.config.cutoff, self.dtype)
            outputs = self.evaluate(graph)
            for index, prediction in zip(batch, self.split(outputs, [frames[i] for i in batch])):
                predictions[index] = prediction
        return predictions

    def evaluate(self, graph: Graph):
        """Energies, forces and stress of a padded batch as NumPy arrays.

        Raises:
          MemoryError: the batch needs more memory than is free.
        """
        with double_sums():
            function, settings, arguments = self.evaluator(graph)
            if graph.neighbors.size > MANY_SLOTS:
                outputs = self.program(function, settings, arguments)(*arguments)
            else:
                outputs = function(*settings, *arguments)
        return [np.asarray(output, float) for output in outputs]

    def evaluator(self, graph):
        """The jitted function that predicts a graph, its static arguments, and the others.

        Those are weights and graph, on the devices that will compute.
        """
        return evaluate_graph, (self.network,), (self.weights, graph)

    def program(self, function, settings, arguments):
        """What `evaluator` gives, compiled for a large graph and known to fit into memory.

        Raises:
          MemoryError: it does not fit.
        """
        network, *others = settings
        graph = arguments[1]
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(graph))
        if shapes not in self.programs:
            n_atoms = len(graph.species)
            # Where all atoms are taken at once, blocks are the way to fit larger systems.
            smaller = network.block or min(LARGE_BLOCK, n_atoms // 8 + 1)
            for block in dict.fromkeys((network.block, smaller)):
                settings = replace(network, block=block), *others
                compiled = function.compile(*settings, *arguments)
                needed, free = needed_bytes(compiled, *others), free_bytes()
                if free is None or needed <= free:
                    break
            require_room(needed, free, n_atoms, "an evaluation")
            self.programs[shapes] = compiled
        return self.programs[shapes]

    @functools.cached_property
    def programs(self):
        """Compiled programs by the shapes of their graphs; a cache, which changes no result."""
        return {}

    def split(self, outputs, frames):
        """The predictions of single structures from the arrays of their batch."""
        energies, forces, stress = outputs
        start, predictions = 0, []
        for index, (kinds, structure, _) in enumerate(frames):
            rows = slice(start, start + len(structure))
            own = energies[rows] + (self.e0 + self.shift)[kinds]
            # An energy of displacements alone leaves no net force: what is left is rounding.
            pull = forces[rows] - forces[rows].mean(axis=0)
            if not (np.isfinite(own).all() and np.isfinite(pull).all()):
                raise FloatingPointError(
                    f"{structure.name}: the potential gives a number that is not finite; the "
                    "atoms are probably far closer than any it was trained on"
                )
            tensor = stress[index] if np.isfinite(structure.volume) else None
            predictions.append(Prediction(float(own.sum()), own, pull, tensor))
            start += len(structure)
        return predictions


def round_up(count):
    """The next size of a ladder with steps of at most one third: 1, 2, 3, 4, 5, 6, 8, 10, 12, …"""
    step = 1 << max(int(count - 1).bit_length() - 3, 0)
    return -(-count // step) * step


def untrained(config, species, seed=0, average_neighbors=15.0, e0=None, dtype="float32"):
    """A potential with random parameters, for tests and benchmarks.

    Args:
      config: a `NetworkConfig`.
      species: symbols or atomic numbers.
      e0: energies of the isolated atoms by symbol, eV; 0 where absent.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be zero or positive")
    numbers = tuple(sorted({number_of(s) for s in species}))
    e0 = {number_of(s): energy for s, energy in (e0 or {}).items()}
    zeros = np.zeros(len(numbers))
    return Potential(
        config=config,
        species=numbers,
        parameters=initialize(Network(config, len(numbers)), seed),
        e0=np.array([e0.get(z, 0.0) for z in numbers]),
        shift=zeros,
        scale=zeros + 1,
        average_neighbors=average_neighbors,
        dtype=dtype,
    )
