"""The MACE family: NetworkConfig, and the models of its networks."""

import math
from dataclasses import asdict, dataclass

import jax.numpy as jnp
import numpy as np

from mlip.data.structure import COVALENT_RADII
from mlip.model.contract import Model
from mlip.model.derivatives import per_structure
from mlip.model.mace.folded import FoldedNetwork
from mlip.model.mace.merge import merge
from mlip.model.mace.network import Network, initialize, parameter_shapes
from mlip.model.outputs import Outputs
from mlip.model.radial import BASES, TRANSFORMS
from mlip.model.so3 import L_MAX

INTERACTIONS = ("residual", "plain", "residual-density", "plain-density")
CUTOFF_ON = ("basis", "functions")


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the network. The defaults suit a few hundred to a few thousand frames."""

    cutoff: float = 5.0  # Å: atoms farther apart do not see each other within one layer
    channels: int = 64  # features of each degree on an atom
    l_max: int = 3  # largest degree of the spherical harmonics on an edge, 0 to 3
    hidden_l: int = 0  # largest degree of the features passed from layer to layer, 0 to l_max
    correlation: int = 3  # order of the product basis: 3 couples four bodies in one layer
    layers: int = 2  # message-passing layers
    n_radial: int = 8  # Bessel functions of the distance
    radial_widths: tuple[int, ...] = (64,)  # hidden layers of the radial network; MACE: 64, 64, 64
    cutoff_order: int = 5  # p of the smooth cutoff
    readout_width: int = 16  # hidden width of the last readout; the others are linear
    radial_basis: str = "bessel"  # bessel, gaussian or chebyshev
    distance_transform: str = "none"  # before the basis: none, or by the elements agnesi or soft
    cutoff_on: str = "basis"  # what the smooth cutoff multiplies: basis, or the learned functions
    interaction: str = "residual"  # residual, plain, residual-density or plain-density
    first_interaction: str = "residual"  # the same for the first layer
    hidden_readout: bool | None = None  # hidden layer in the last readout; if layers > 1 by default
    dipoles: bool = False  # predict dipole moments, by vectors of the last layer

    def __post_init__(self):
        object.__setattr__(self, "radial_widths", tuple(self.radial_widths))
        choices = {
            "radial_basis": BASES,
            "distance_transform": TRANSFORMS,
            "cutoff_on": CUTOFF_ON,
            "interaction": INTERACTIONS,
            "first_interaction": INTERACTIONS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}"
                )
        limits = {
            "channels": (1, 4096),
            "l_max": (0, L_MAX),
            "hidden_l": (0, self.l_max),
            "correlation": (1, 4),
            "layers": (1, 10),
            "n_radial": (2 if self.radial_basis == "gaussian" else 1, 256),
            "cutoff_order": (3, 20),
            "readout_width": (1, 4096),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must lie between {low} and {high}")
        if not (math.isfinite(self.cutoff) and 0 < self.cutoff <= 20):
            raise ValueError(
                f"cutoff is {self.cutoff} Å; it must be positive and at most 20 Å (5 Å is usual)"
            )
        if self.dipoles and self.l_max == 0:
            raise ValueError("dipoles are vectors, which need l_max of at least 1, but it is 0")
        if not self.radial_widths or not all(1 <= w <= 4096 for w in self.radial_widths):
            raise ValueError(
                f"radial_widths is {self.radial_widths}; give one or more widths between 1 and 4096"
            )

    def is_residual(self, layer):
        """True where a layer adds the atoms' previous features; else their species mixes sums."""
        return self._interaction(layer).startswith("residual")

    def has_density(self, layer):
        """True where a layer divides its sums by a learned density, not by the mean count."""
        return self._interaction(layer).endswith("density")

    def _interaction(self, layer):
        return self.first_interaction if layer == 0 else self.interaction

    def model(self, n_species):
        """The `Mace` of these settings for so many species."""
        return Mace(self, n_species)

    def has_hidden_readout(self, layer):
        """True where a layer's readout has a hidden layer."""
        wanted = self.layers > 1 if self.hidden_readout is None else self.hidden_readout
        return wanted and layer == self.layers - 1


BY_SPECIES = ("embedding", "skip", "select")  # parameters [n_species, ...], scaled by their number


@dataclass(frozen=True)
class _Family(Model):
    """What networks of the family and their folded forms have in common."""

    config: NetworkConfig
    n_species: int

    @property
    def cutoff(self):
        return self.config.cutoff

    @property
    def reach(self):
        return self.config.layers * self.config.cutoff

    @property
    def columns(self):
        """Features of an atom."""
        return self.config.channels * (self.config.hidden_l + 1)


@dataclass(frozen=True)
class Mace(_Family):
    """The network as a model; see `Model`. Source: Batatia et al. 2022, arXiv:2206.07697."""

    @property
    def quantities(self):
        return ("dipole",) if self.config.dipoles else ()

    def network(self, execution):
        at_once = self.slots_at_once(execution)
        block = self.block(execution)
        return Network(self.config, self.n_species, block, execution.axis, at_once)

    def block(self, execution):
        return execution.block_size(self.columns, best_on_cpu=16)

    def slots_at_once(self, execution):
        block = self.block(execution)
        least = execution.least_slots if self.columns <= execution.few_columns else 0
        return block and max(execution.slots_at_once * block, least)

    def initial(self, seed):
        return initialize(Network(self.config, self.n_species), seed)

    def shapes(self):
        return parameter_shapes(Network(self.config, self.n_species))

    def outputs(self, weights, graph, execution):
        radii = jnp.asarray(COVALENT_RADII, graph.displacement.dtype)[weights.numbers]
        variables = {"params": weights.parameters}
        arguments = variables, graph, weights.average_neighbors, radii
        energies, vectors, features = self.network(execution).apply(*arguments)
        quantities = {"dipole": per_structure(graph, vectors)} if self.config.dipoles else {}
        return Outputs(energies, quantities=quantities, features=features)

    def groups(self, names):
        """The embedding, and each layer with its readout."""
        found = {"embedding": [name for name in names if name == "embedding"]}
        for layer in range(self.config.layers):
            own = [n for n in names if n != "embedding" and int(n.split("_")[1]) == layer]
            found[f"layer {layer + 1}"] = own
        return found

    def with_species(self, parameters, rows):
        # The network divides by the root of the number of species.
        growth = math.sqrt(len(rows) / self.n_species)

        def chosen(values, axis=0):
            values = np.moveaxis(np.asarray(values), axis, 0)
            return np.moveaxis(np.stack([values[row].mean(axis=0) for row in rows]), 0, axis)

        new = dict(parameters)
        for name, values in parameters.items():
            if name.startswith(BY_SPECIES):
                new[name] = (growth * chosen(values)).astype(values.dtype)
            elif name.startswith("product"):
                new[name] = np.ascontiguousarray(chosen(values, axis=1))
        return Mace(self.config, len(rows)), new

    def folded(self, potential, kept):
        """The energies alone."""
        return FoldedMace(self.config, len(kept)), merge(potential, kept)

    def about(self):
        config = self.config
        degrees = (f"{config.channels}x{l}{'eo'[l % 2]}" for l in range(config.hidden_l + 1))
        return {
            "cutoff": f"{config.cutoff} Å, {config.layers} layers: atoms up to "
            f"{self.reach} Å apart influence each other",
            "features": f"{' + '.join(degrees)}, l_max {config.l_max}, correlation "
            f"{config.correlation}",
            "interactions": f"{config.first_interaction}, then {config.interaction}",
            "radial functions": f"{config.n_radial} {config.radial_basis}, distance transform "
            f"{config.distance_transform}",
        }

    def card(self):
        return {"family": "mace", "settings": asdict(self.config)}


@dataclass(frozen=True)
class FoldedMace(_Family):
    """The network with constant parameters; see `FoldedNetwork`."""

    def block(self, execution):
        return execution.block_size(self.columns, best_on_cpu=8)

    def outputs(self, weights, graph, execution):
        network = FoldedNetwork(
            self.config, self.n_species, self.block(execution), execution.axis, execution.rows
        )
        return Outputs(network.energies(weights.parameters, graph))
