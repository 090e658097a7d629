"""Potential: a model with its parameters, for structures of real atoms."""

import functools
from dataclasses import dataclass, field, replace

import jax
import numpy as np

from mlip.data.graph import Graph, Shape, build_table, pack, pad
from mlip.data.quantities import DERIVED, QUANTITIES
from mlip.data.structure import Structure, number_of, symbol
from mlip.model.contract import Weights, model_of
from mlip.model.derivatives import outputs_and_pull, with_derivatives
from mlip.model.execution import Execution, compile_within_memory
from mlip.model.terms import Term, TermsConfig, make_surface
from mlip.programs import note_computing, program

DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Prediction:
    """What a potential says of one structure; NumPy float64."""

    energy: float  # eV
    energies: np.ndarray  # [n_atoms] eV
    forces: np.ndarray  # [n_atoms, 3] eV/Å
    stress: np.ndarray | None  # [3, 3] eV/Å³; None without a volume
    others: dict[str, np.ndarray] = field(default_factory=dict)  # further quantities, by name

    def value(self, name):
        """The prediction of a quantity of the table, or None."""
        return getattr(self, name) if name in DERIVED else self.others.get(name)


@program(static_argnums=0)
def evaluate_graph(surface, weights, graph):
    """`Outputs` of a padded batch, with forces and stress."""
    outputs, pull = outputs_and_pull(surface, weights, graph)
    return with_derivatives(outputs, graph, pull)


def double_sums():
    """Context of predictions, in which float32 networks take readouts and sums in float64."""
    note_computing()
    return jax.enable_x64(True)


@dataclass(frozen=True)
class Potential:
    """A model with its parameters and all it needs to speak of real atoms.

    A potential is a function of a structure: `potential(structure)` gives a `Prediction`.
    """

    model: object  # a `Model`
    species: tuple[int, ...]  # atomic numbers, ascending
    parameters: dict  # NumPy arrays
    e0: np.ndarray  # [n_species] eV, energies of the isolated atoms
    shift: np.ndarray  # [n_species] eV, added to every atom beside E0
    scale: np.ndarray  # [n_species] eV per unit of the model's energies
    average_neighbors: float
    terms: TermsConfig | tuple[Term, ...] = TermsConfig()  # beside the model's energy
    dtype: str = "float32"
    training: dict = field(default_factory=dict)  # where it comes from; free of arrays
    execution: Execution = Execution()

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
        if not (np.isfinite(self.average_neighbors) and self.average_neighbors > 0):
            raise ValueError(f"average_neighbors is {self.average_neighbors}; it must be positive")
        _ = self.surface  # whose terms are checked

    @functools.cached_property
    def surface(self):
        """The `Surface`: all that compiled programs take as static."""
        terms = self.terms.terms() if isinstance(self.terms, TermsConfig) else self.terms
        return make_surface(self.model, terms, self.species, self.execution)

    def running(self, **changes):
        """The same potential, computed in another way; see `Execution`."""
        return replace(self, execution=replace(self.execution, **changes))

    @property
    def config(self):
        """The settings of the network: its `NetworkConfig`, or the flax module."""
        return getattr(self.model, "config", None) or self.model.module

    @property
    def cutoff(self):
        """Distance within which a structure's neighbours are found, Å."""
        return self.model.cutoff

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
        frames = [(self.species_of(s), s, build_table(s, self.cutoff)) for s in structures]
        sizes = [table.size() for _, _, table in frames]
        order = sorted(range(len(frames)), key=lambda index: sizes[index])
        predictions = [None] * len(frames)
        most = self.execution.most_slots
        batches = pack(sizes, order, self.execution.most_structures, most, most)
        for batch in batches:
            atoms = sum(sizes[i][0] for i in batch)
            width = max(sizes[i][1] for i in batch)
            shape = Shape(round_up(atoms), round_up(width), round_up(len(batch)) + 1)
            graph = self.graph([frames[i] for i in batch], shape)
            outputs = self.evaluate(graph)
            for index, prediction in zip(batch, self.split(outputs, [frames[i] for i in batch])):
                predictions[index] = prediction
        return predictions

    def graph(self, frames, shape):
        """The padded `Graph` of some (species, structure, table), with all that terms need."""
        return pad(frames, shape, self.cutoff, self.dtype, whole=not self.surface.local)

    def require_local(self, where):
        """Refuse terms without a cutoff where only neighbours are known.

        Args:
          where: they are not known, for the message.

        Raises:
          ValueError: a term that reaches everywhere, by name.
        """
        for term in self.surface.terms:
            if not term.reach(self.species) < np.inf:
                raise ValueError(
                    f"the term {type(term).__name__} has no cutoff and cannot be computed in "
                    f"{where}; use mlip.Calculator, or a potential without it"
                )

    def evaluate(self, graph: Graph):
        """`Outputs` of a padded batch as NumPy arrays in float64.

        Raises:
          MemoryError: the batch needs more memory than is free.
        """
        with double_sums():
            function, settings, arguments = self.evaluator(graph)
            if graph.neighbors.size > self.execution.many_slots:
                outputs = self.compiled(function, settings, arguments)(*arguments)
            else:
                outputs = function(*settings, *arguments)
        return jax.tree.map(lambda array: np.asarray(array, float), outputs)

    def sharing(self, n_atoms):
        """Devices that share a system of so many atoms: one, for only folded ones are spread."""
        return tuple(jax.local_devices()[:1])

    def evaluator(self, graph):
        """The `Program` that predicts a graph, its static arguments, and the others.

        Those are weights and graph, on the devices that will compute.
        """
        return evaluate_graph, (self.surface,), (self.weights, graph)

    def compiled(self, function, settings, arguments):
        """What `evaluator` gives, compiled for a large graph and known to fit into memory.

        Raises:
          MemoryError: it does not fit.
        """
        surface, *others = settings
        graph = arguments[1]
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(graph))
        if shapes not in self.programs:
            n_atoms = len(graph.species)
            # Where all atoms are taken at once, blocks are the way to fit larger systems.
            smaller = min(self.execution.large_block, n_atoms // 8 + 1)
            versions, in_blocks = [settings], surface.running(block=smaller)
            before, after = (s.model.block(s.execution) for s in (surface, in_blocks))
            if before is None and after is not None:
                versions.append((in_blocks, *others))
            self.programs[shapes] = compile_within_memory(
                function,
                versions,
                arguments,
                self.execution,
                n_atoms,
                "an evaluation",
                *others,
            )
        return self.programs[shapes]

    @functools.cached_property
    def programs(self):
        """Compiled programs by the shapes of their graphs; a cache, which changes no result."""
        return {}

    def split(self, outputs, frames):
        """The predictions of single structures from the arrays of their batch."""
        start, predictions = 0, []
        for index, (kinds, structure, _) in enumerate(frames):
            rows = slice(start, start + len(structure))
            own = outputs.energies[rows] + (self.e0 + self.shift)[kinds]
            # No outside field acts, so that there is no net force: what is left is rounding.
            pull = outputs.forces[rows] - outputs.forces[rows].mean(axis=0)
            if not (np.isfinite(own).all() and np.isfinite(pull).all()):
                raise FloatingPointError(
                    f"{structure.name}: the potential gives a number that is not finite; the "
                    "atoms are probably far closer than any it was trained on"
                )
            tensor = outputs.stress[index] if np.isfinite(structure.volume) else None
            others = {
                name: values[index if QUANTITIES[name].of == "structure" else rows]
                for name, values in outputs.quantities.items()
                if not (QUANTITIES[name].molecular and structure.pbc.any())
            }
            predictions.append(Prediction(float(own.sum()), own, pull, tensor, others))
            start += len(structure)
        return predictions


def round_up(count):
    """The next size of a ladder with steps of at most one third: 1, 2, 3, 4, 5, 6, 8, 10, 12, …"""
    step = 1 << max(int(count - 1).bit_length() - 3, 0)
    return -(-count // step) * step


def untrained(
    config, species, seed=0, average_neighbors=15.0, e0=None, dtype="float32", terms=TermsConfig()
):
    """A potential with random parameters, for tests and benchmarks.

    Args:
      config: a `NetworkConfig`, or an instance of a flax module; see `mlip.model.contract`.
      species: symbols or atomic numbers.
      seed: of the parameters.
      average_neighbors: by which sums over neighbours are divided.
      e0: energies of the isolated atoms by symbol, eV; 0 where absent.
      dtype: float32 or float64.
      terms: a `TermsConfig`, or the terms.

    Raises:
      ValueError: no species, a negative seed, or no network.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be zero or positive")
    numbers = tuple(sorted({number_of(s) for s in species}))
    e0 = {number_of(s): energy for s, energy in (e0 or {}).items()}
    zeros, model = np.zeros(len(numbers)), model_of(config, len(numbers))
    return Potential(
        model=model,
        species=numbers,
        parameters=model.initial(seed),
        e0=np.array([e0.get(z, 0.0) for z in numbers]),
        shift=zeros,
        scale=zeros + 1,
        average_neighbors=average_neighbors,
        terms=terms,
        dtype=dtype,
    )
