"""Terms of the energy beside the model's: their derivatives, and where they cannot work."""

import math
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIGS, SPECIES, make_structure
from pairs import argon, crystal

import mlip
from mlip.data.structure import to_ase
from mlip.model.derivatives import per_structure


@dataclass(frozen=True)
class Springs:
    """Every pair of atoms of a structure, and its cell, on springs: a term without a cutoff."""

    strength: float = 0.1  # eV/Å²

    def reach(self, species):
        return math.inf

    def energies(self, weights, graph):
        here = graph.positions
        size = per_structure(graph, jnp.ones(len(here)))[graph.structure]
        centre = (per_structure(graph, here)[graph.structure]) / size[:, None]
        stretch = (graph.cell**2).sum(axis=(1, 2))[graph.structure] / size
        return self.strength * (size * ((here - centre) ** 2).sum(axis=1) + stretch)


@dataclass(frozen=True)
class Wide:
    """A term that reaches beyond the model's cutoff."""

    def reach(self, species):
        return 9.0


def potential_with(*terms):
    return mlip.untrained(
        CONFIGS["default"], SPECIES, 1, average_neighbors=8, dtype="float64", terms=terms
    )


@pytest.mark.parametrize("kind", ["molecule", "slab", "crystal"])
def test_forces_and_stress_of_a_term_without_cutoff_are_derivatives(kind):
    potential, structure = potential_with(Springs()), make_structure(kind)
    rng = np.random.default_rng(0)
    way, strain = rng.normal(size=(len(structure), 3)), rng.normal(size=(3, 3))
    strain = strain + strain.T
    found = potential.predict([structure, make_structure("primitive")])[0]
    assert abs(found.energy - potential_with()(structure).energy) > 0.1
    ends = [
        potential(replace(structure, positions=structure.positions + h * way)).energy
        for h in (-1e-5, 1e-5)
    ]
    np.testing.assert_allclose(
        (ends[0] - ends[1]) / 2e-5, (found.forces * way).sum(), rtol=1e-6, atol=1e-7
    )
    if found.stress is None:
        return
    ends = []
    for h in (-1e-5, 1e-5):
        stretch = np.eye(3) + h * strain
        moved = replace(
            structure, positions=structure.positions @ stretch, cell=structure.cell @ stretch
        )
        ends.append(potential(moved).energy)
    slope = (ends[1] - ends[0]) / 2e-5 / structure.volume
    np.testing.assert_allclose((found.stress * strain).sum(), slope, rtol=1e-6)


def test_the_calculator_gives_what_the_potential_gives():
    potential, structure = potential_with(Springs()), make_structure("crystal")
    atoms, expected = to_ase(structure), potential(structure)
    for folded in (True, False):
        atoms.calc = mlip.Calculator(potential, folded=folded)
        assert abs(atoms.get_potential_energy() - expected.energy) < 1e-6
        np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-5)


def test_a_term_without_cutoff_is_refused_by_name_where_it_cannot_work():
    potential = replace(argon(), terms=(Springs(),))
    config = mlip.DynamicsConfig(steps=2, save_every=2)
    with pytest.raises(ValueError, match="the term Springs has no cutoff .* dynamics"):
        mlip.run(potential, crystal(2), config, folded=False)
    with pytest.raises(ValueError, match="the term Springs has no cutoff .* relaxation"):
        mlip.relax(potential, crystal(2), folded=False)
    with pytest.raises(ValueError, match="the term Springs has no cutoff .* jax-md"):
        mlip.energy_fn(potential, crystal(2), folded=False)


def test_a_term_beyond_the_models_cutoff_is_refused():
    with pytest.raises(ValueError, match=r"the term Wide .* reaches to 9.00 Å, beyond the cutoff"):
        potential_with(Wide())


def test_terms_that_are_no_settings_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="are no settings; have them made by a TermsConfig"):
        mlip.save(potential_with(Springs()), tmp_path / "model.safetensors")
