"""What a model is: all that training, dynamics, engines and reports know of one.

A model is a frozen, hashable object with the attributes of `Model`. A flax module becomes one by
`FlaxModel`: it needs a field `n_species`, which is filled in, an attribute `cutoff`, and a call

    module(graph) -> energies of the atoms, [n_atoms], or an `Outputs`

in any unit (the potential scales them). It may have `layers` (1 if not): how many times atoms
exchange messages, so that an atom matters up to layers × cutoff away; `quantities`, names of what
else it gives in `Outputs.quantities`; and `with_species(parameters, rows)`, the parameters for
other elements, without which it is not fine-tuned to new ones. It sees a `Graph`: species,
neighbours, displacements. Slots of padding hold a displacement of twice the cutoff, so that every
message has to vanish smoothly at the cutoff (`mlip.smooth_cutoff`); `require_contract` refuses a
model that sees them.
"""

import functools
import importlib
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mlip.data.graph import Graph
from mlip.data.quantities import DERIVED, QUANTITIES
from mlip.model.execution import Execution
from mlip.model.outputs import Outputs


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    """Everything of a potential that a compiled function takes as an argument."""

    parameters: dict[str, jax.Array]  # of the model
    scale: jax.Array  # [n_species] eV per unit of the model's energies
    numbers: jax.Array  # [n_species] atomic numbers
    average_neighbors: jax.Array  # scalar, of the training set


class Model:
    """Energies of atoms from the displacements of their neighbours.

    Frozen and hashable. Parameters are a flat dict of arrays by name, the same in the model file.
    The methods with a body suit models that have no layers to freeze, fold or block.
    """

    cutoff: float  # Å: atoms farther apart do not see each other within one layer
    reach: float  # Å: farthest atom on which an atom's energy depends, cutoff times layers
    n_species: int
    quantities = ()  # of the table, that it predicts besides energies

    def initial(self, seed: int) -> dict[str, np.ndarray]:
        """Random parameters, float32."""
        return {}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter."""
        return {name: value.shape for name, value in self.initial(0).items()}

    def outputs(self, weights: Weights, graph: Graph, execution: Execution) -> Outputs:
        """Energies in units of the potential's scale, and what it gives besides."""
        raise NotImplementedError

    def groups(self, names: list[str]) -> dict[str, list[str]]:
        """Names of parameters that can be frozen together, in order of depth."""
        return {"all": names}

    def with_species(self, parameters: dict, rows: list[list[int]]) -> tuple["Model", dict]:
        """The same model for other species, each the mean of some old ones, by their rows.

        Raises:
          ValueError: it knows only its own.
        """
        if rows == [[row] for row in range(self.n_species)]:
            return self, parameters
        raise ValueError(f"{self} cannot take other elements; train on those it knows")

    def folded(self, potential, kept: list[int]) -> tuple["Model", dict] | None:
        """An equal model for constant parameters and some of the species; None if it has none."""
        return None

    def block(self, execution: Execution) -> int | None:
        """Atoms it takes through a layer at a time; None for all."""
        return None

    def slots_at_once(self, execution: Execution) -> int | None:
        """Neighbour slots of a graph that it takes without blocks; None for any number."""
        return None

    def about(self) -> dict[str, object]:
        """What it is, by a word for each line, for people."""
        return {"cutoff": f"{self.cutoff} Å; atoms up to {self.reach} Å apart see each other"}

    def card(self) -> dict:
        """What its model file says of it: its `family`, and what makes it anew.

        Raises:
          ValueError: a file cannot keep it.
        """
        raise ValueError(f"{self} is no network that a model file can keep")


@dataclass(frozen=True)
class FlaxModel(Model):
    """A flax module as a model; see the module's docstring."""

    module: nn.Module
    n_species: int

    def __post_init__(self):
        name = type(self.module).__name__
        if "n_species" not in self.module.__dataclass_fields__:
            raise ValueError(
                f"the network {name} has no field n_species; add 'n_species: int = 0', which is "
                "filled in with the number of elements"
            )
        cutoff = getattr(self.module, "cutoff", None)
        if not (isinstance(cutoff, (int, float)) and 0 < cutoff <= 20):
            raise ValueError(
                f"the network {name} has cutoff = {cutoff!r}; give it the attribute cutoff in Å, "
                "positive and at most 20"
            )
        if unknown := set(self.quantities) - (set(QUANTITIES) - set(DERIVED)):
            raise ValueError(
                f"the network {name} predicts {', '.join(sorted(unknown))}, which the table of "
                "quantities does not have besides energies; add a row to mlip.data.quantities"
            )
        layers = getattr(self.module, "layers", 1)
        if not (isinstance(layers, int) and layers >= 1):
            raise ValueError(
                f"the network {name} has layers = {layers!r}; give the number of times that atoms "
                "exchange messages, since an atom matters up to layers times the cutoff away"
            )
        object.__setattr__(self, "module", self.module.clone(n_species=self.n_species))
        try:
            hash(self)
        except TypeError:
            raise ValueError(
                f"the fields of the network {name} cannot be hashed; use numbers, text and tuples"
            ) from None

    @property
    def cutoff(self):
        return float(self.module.cutoff)

    @property
    def reach(self):
        return self.cutoff * int(getattr(self.module, "layers", 1))

    @property
    def quantities(self):
        return tuple(getattr(self.module, "quantities", ()))

    def initial(self, seed):
        with jax.enable_x64(False):
            found = self._variables(seed)
        return {name: np.array(value, np.float32) for name, value in found.items()}

    def shapes(self):
        with jax.enable_x64(False):
            found = jax.eval_shape(lambda: self._variables(0))
        return {name: value.shape for name, value in found.items()}

    def _variables(self, seed):
        found = dict(self.module.init(jax.random.PRNGKey(seed), small_graph(self)))
        parameters = flatten_dict(found.pop("params", {}), sep="/")
        if found:
            raise ValueError(
                f"the network {type(self.module).__name__} has variables besides parameters: "
                f"{', '.join(sorted(found))}; it must be a pure function"
            )
        return parameters

    def outputs(self, weights, graph, execution):
        variables = {"params": unflatten_dict(weights.parameters, sep="/")}
        # Constants that a float32 network makes stay float32, as they were in its training.
        with jax.enable_x64(graph.displacement.dtype == np.float64):
            found = self.module.apply(variables, graph)
        return found if isinstance(found, Outputs) else Outputs(found)

    def groups(self, names):
        """By the first part of their names, in the order in which the module makes them."""
        found = {}
        for name in [name for name in self.initial(0) if name in names]:
            found.setdefault(name.partition("/")[0], []).append(name)
        return found

    def with_species(self, parameters, rows):
        if not hasattr(self.module, "with_species"):
            return super().with_species(parameters, rows)
        other = FlaxModel(self.module, len(rows))
        return other, self.module.with_species(parameters, rows)

    def about(self):
        settings = {f"setting {name}": v for name, v in self.card()["settings"].items()}
        return {**super().about(), "network": class_name(type(self.module)), **settings}

    def card(self):
        settings = {
            f.name: hashable(getattr(self.module, f.name))
            for f in fields(self.module)
            if f.init and f.name not in ("parent", "name", "n_species")
        }
        wrong = [name for name, value in settings.items() if not _is_plain(value)]
        if wrong:
            raise ValueError(
                f"the field {wrong[0]} of {type(self.module).__name__} is {settings[wrong[0]]!r}, "
                "which a model file cannot keep; use numbers, text and tuples of them"
            )
        return {"family": "flax", "class": class_name(type(self.module)), "settings": settings}


def _is_plain(value):
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def class_name(cls):
    """Where a class is found: "my_package.my_module:MyNetwork".

    A class of the script that runs is found under the script's name.
    """
    module = cls.__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec else Path(file).stem if file else module
    return f"{module}:{cls.__qualname__}"


def hashable(value):
    """Settings as a model file or TOML gives them, with tuples for lists."""
    if isinstance(value, dict):
        return {name: hashable(inner) for name, inner in value.items()}
    return tuple(map(hashable, value)) if isinstance(value, (list, tuple)) else value


_registered = {}  # classes of networks that model files may name, by `class_name`
_named = {}  # those that the user has named for this process, by their name without the module


def register(cls):
    """Allow model files to name a network class; usable as a decorator.

    A model file never has code imported: `mlip.load` knows the classes that are registered, or
    given to it.

    Args:
      cls: a flax module class.

    Returns:
      the class.
    """
    _registered[class_name(cls)] = cls
    return cls


def registered(name):
    """The class that was registered under a name, or None."""
    return _registered.get(name)


def named(name):
    """The class that the user has named for this process, in whichever module it is; or None."""
    return _named.get(bare(name))


def bare(name):
    """The name of a class without its module."""
    return name.rpartition(":")[2]


def import_class(name, for_all_files=False):
    """The class that a user names, such as "my_package.my_module:MyNetwork".

    Args:
      for_all_files: model files that have it in another module get it, too.

    Raises:
      ValueError: it cannot be imported, or is no flax module.
    """
    module, _, attribute = name.partition(":")
    try:
        found = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(
            f"the network class {name!r} cannot be imported ({error}); write it as "
            "my_package.my_module:MyNetwork, where Python finds the package (a folder of yours: "
            "PYTHONPATH=.)"
        ) from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{name} is no class of flax modules; a network is one")
    if for_all_files:
        _named[bare(name)] = found
    return register(found)


def model_of(described, n_species):
    """The model of a description: a flax module, or settings with a method `model`.

    Args:
      described: such as a `NetworkConfig`, or an instance of a flax module.
      n_species: how many species it is to know.

    Raises:
      ValueError: it is neither.
    """
    if isinstance(described, type) and issubclass(described, nn.Module):
        raise ValueError(
            f"{described.__name__} is a class; give an instance, {described.__name__}()"
        )
    if isinstance(described, nn.Module):
        return FlaxModel(described, n_species)
    if hasattr(described, "model"):
        return described.model(n_species)
    raise ValueError(
        f"{described!r} describes no network; give a NetworkConfig or an instance of a flax module"
    )


def small_graph(model, padding=1, dtype=np.float32):
    """A `Graph` of four atoms and their edges, with some columns and a row of padding."""
    species = np.arange(5, dtype=np.int32) % model.n_species
    places = 0.6 * model.cutoff * np.array([[0, 0, 0], [1, 0.2, 0], [0.1, 0.9, 0.3], [0.4, 0.5, 1]])
    neighbors = [[j for j in range(4) if j != i] for i in range(4)]
    width = 3 + padding
    table = np.arange(5, dtype=np.int32)[:, None].repeat(width, axis=1)
    reverse = np.arange(5 * width, dtype=np.int32).reshape(5, width)
    displacement = np.tile(np.array([2 * model.cutoff, 0, 0], dtype), (5, width, 1))
    for i, row in enumerate(neighbors):
        table[i, :3] = row
        reverse[i, :3] = [j * width + neighbors[j].index(i) for j in row]
        displacement[i, :3] = places[row] - places[i]
    return Graph(
        species=jnp.asarray(species),
        structure=jnp.array([0, 0, 0, 0, 1], jnp.int32),
        neighbors=jnp.asarray(table),
        reverse=jnp.asarray(reverse),
        displacement=jnp.asarray(displacement),
        volume=jnp.full(2, np.inf, dtype),
        n_atoms=jnp.array([4, 0], jnp.int32),
    )


def require_contract(model, weights):
    """Refuse a model that gives what has a wrong shape, is not finite, or sees padding.

    Raises:
      ValueError: which rule it breaks, and the remedy.
    """
    name = type(getattr(model, "module", model)).__name__
    found = [
        model.outputs(weights, small_graph(model, padding, weights.scale.dtype), Execution())
        for padding in (1, 4)
    ]
    for outputs in found:
        if jnp.shape(outputs.energies) != (5,):
            raise ValueError(
                f"the network {name} gives energies of shape {jnp.shape(outputs.energies)} for 5 "
                "atoms; it has to give one energy for each atom, [n_atoms]"
            )
    given = set(found[0].quantities)
    if given != set(model.quantities):
        raise ValueError(
            f"the network {name} names the quantities {sorted(model.quantities)} and gives "
            f"{sorted(given)}; name in `quantities` what Outputs.quantities holds"
        )
    for quantity in model.quantities:
        row, values = QUANTITIES[quantity], found[0].quantities[quantity]
        shape = (2 if row.of == "structure" else 5, *row.shape)
        if jnp.shape(values) != shape:
            raise ValueError(
                f"the network {name} gives a {quantity} of shape {jnp.shape(values)} for 5 atoms "
                f"in 2 structures, where it has to be {shape}"
            )
    for what in ("energies", *model.quantities):
        few, many = (
            np.asarray(o.energies if what == "energies" else o.quantities[what], float)
            for o in found
        )
        real = slice(4) if len(few) == 5 else slice(1)
        few, many = few[real], many[real]
        if not np.isfinite(few).all():
            raise ValueError(f"the network {name} gives {what} that are not finite: {few}")
        if not np.allclose(few, many, rtol=1e-4, atol=1e-6 * max(1.0, np.abs(few).max())):
            raise ValueError(
                f"the network {name} sees padding: with three more empty slots {what} change by "
                f"{np.abs(few - many).max():.2g}. Multiply every message by a function that "
                "vanishes at the cutoff, such as mlip.smooth_cutoff"
            )
