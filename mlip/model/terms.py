"""Terms of the energy beside the model's, and their sum.

To add a term: write its class here, give `TermsConfig` its settings, and have `terms` make it.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Protocol

import jax
import jax.numpy as jnp

from mlip.data.structure import COVALENT_RADII
from mlip.model.execution import Execution
from mlip.model.radial import in_float64, zbl_energy


class Term(Protocol):
    """An energy beside the model's; frozen and hashable."""

    def reach(self, species: tuple[int, ...]) -> float:
        """Distance in Å from which on atoms of these atomic numbers do not matter to one another.

        Infinite for a term that reads `graph.positions` and `graph.cell`; others see displacements
        within the model's cutoff, and must vanish smoothly at their reach.
        """

    def energies(self, weights, graph):
        """Energies of the atoms, [n_atoms], eV; arguments as of a model's `outputs`."""


@dataclass(frozen=True)
class Zbl:
    """Repulsion of screened nuclei below the sum of covalent radii; see `zbl_energy`."""

    order: int = 6
    scaled: bool = False

    def reach(self, species):
        return 2 * max(COVALENT_RADII[z] for z in species)

    def energies(self, weights, graph):
        number = weights.numbers[graph.species]
        others = weights.numbers[graph.species_of_senders()]
        distance = jnp.sqrt((graph.displacement**2).sum(axis=-1))
        pairs = in_float64(zbl_energy(distance, number[:, None], others, self.order))
        return pairs.sum(axis=1) / 2 * (weights.scale[graph.species] if self.scaled else 1.0)


ZBL = ("zbl", "zbl_order", "zbl_scaled")  # settings that the network had in earlier versions


@dataclass(frozen=True)
class TermsConfig:
    """Terms of the energy beside the network's."""

    zbl: bool = False  # add the ZBL repulsion of the nuclei below the sum of covalent radii
    zbl_order: int = 6  # p of its smooth cutoff
    zbl_scaled: bool = False  # multiply it by the potential's scale, as the network's energies

    def __post_init__(self):
        if not 3 <= self.zbl_order <= 20:
            raise ValueError(f"zbl_order is {self.zbl_order}; it must lie between 3 and 20")

    def terms(self):
        """The terms that are switched on."""
        return (Zbl(self.zbl_order, self.zbl_scaled),) if self.zbl else ()


@dataclass(frozen=True)
class Surface:
    """The potential energy surface: a model, the terms beside it, and how both are computed.

    Static in compiled programs.
    """

    model: object  # a `Model`
    terms: tuple[Term, ...] = ()
    execution: Execution = field(default_factory=Execution)
    local: bool = True  # False where a term reads positions and cell

    @property
    def cutoff(self):
        """Distance within which a graph holds neighbours, Å."""
        return self.model.cutoff

    def outputs(self, weights, graph, features=False):
        """`Outputs` of a graph, energies in eV above the baseline of single atoms.

        Args:
          features: True keeps the model's features.
        """
        # The hardware's reduced-precision products (TF32, bfloat16) would spoil the forces.
        with jax.default_matmul_precision("highest"):
            found = self.model.outputs(weights, graph, self.execution)
            energies = found.energies * weights.scale[graph.species]
            for term in self.terms:
                energies += term.energies(weights, graph)
        kept = found.features if features else ()
        return replace(found, energies=energies, features=kept)

    def keeps(self, graph):
        """True where training is to store the intermediates of all atoms of a graph."""
        block, how = self.model.block(self.execution), self.execution
        few = block is None or graph.neighbors.size <= how.kept_blocks * how.slots_at_once * block
        return few or not self.local

    def running(self, **changes):
        """The same surface with another execution."""
        return replace(self, execution=replace(self.execution, **changes))


def make_surface(model, terms, species, execution):
    """The `Surface` of a potential.

    Args:
      model: a `Model`.
      terms: of `Term`.
      species: atomic numbers.
      execution: an `Execution`.

    Raises:
      ValueError: a term that reaches beyond the model's cutoff, but not everywhere.
    """
    for term in terms:
        reach = term.reach(species)
        if model.cutoff < reach < math.inf:
            raise ValueError(
                f"the term {type(term).__name__} of these species reaches to {reach:.2f} Å, beyond "
                f"the cutoff of {model.cutoff} Å; raise the cutoff or leave it away"
            )
    local = all(term.reach(species) < math.inf for term in terms)
    return Surface(model, tuple(terms), execution, local)
