"""A system cut into parts: each part's own energies and their derivative add up to the whole."""

import jax
import numpy as np
import pytest
from conftest import CONFIGS, SPECIES, make_structure

import mlip
from mlip.data.graph import Graph
from mlip.data.structure import Structure, to_ase
from mlip.engines.halo import cut_out
from mlip.engines.lammps import evaluate_part

DEEP = mlip.NetworkConfig(
    channels=3, layers=3, l_max=1, hidden_l=1, correlation=2, radial_widths=(8,), cutoff=3.0
)


def evaluate(potential, part, n_own):
    """Energies of own atoms, their derivative as forces on all, and their virial."""
    structure, table = part.structure, part.table
    positions = part.spread(structure.positions)
    surface = potential.surface.running(rows=part.layer_rows())
    with potential.precision():
        graph = Graph(
            species=part.spread(potential.species_of(structure)),
            structure=np.zeros(len(table.neighbors), np.int32),
            neighbors=table.neighbors.astype(np.int32),
            reverse=table.reverse.astype(np.int32),
            displacement=table.displacement(positions, structure.cell, potential.cutoff),
            volume=np.ones(1),
            n_atoms=np.array([n_own]),
        )
        own = part.spread((np.arange(len(structure)) < n_own).astype(float))
        found = jax.device_get(evaluate_part(surface, potential.weights, graph, own))
    return part.collect(found.energies)[:n_own], part.collect(found.forces), found.stress[0]


@pytest.mark.parametrize("config", [CONFIGS["vectors"], DEEP], ids=["two layers", "three layers"])
def test_parts_add_up_to_the_whole(config):
    terms = mlip.TermsConfig(zbl=config is not DEEP)
    potential = mlip.untrained(config, SPECIES, 1, 8, dtype="float64", terms=terms)
    folded = mlip.fold(potential)
    atoms = to_ase(make_structure("crystal")) * (1, 2, 6)
    atoms.rattle(0.05, seed=1)
    whole = folded(mlip.from_ase(atoms))
    forces, stress = np.zeros((len(atoms), 3)), np.zeros((3, 3))
    height = atoms.get_scaled_positions()[:, 2]
    for inside in (height < 0.3, (height >= 0.3) & (height < 0.6), height >= 0.6):
        order = np.argsort(~inside, kind="stable")
        structure = Structure(atoms.numbers[order], atoms.positions[order], atoms.cell, atoms.pbc)
        n_own = int(inside.sum())
        room = (32, 40, 40, 40)[: config.layers + 1]  # one compiled program for all parts
        part = cut_out(structure, n_own, config.cutoff, 0.3, config.layers, room, width=40)
        assert part.room == room
        assert part.table.size()[1] == 40
        energies, found, virial = evaluate(folded, part, n_own)
        expected = whole.energies[inside] - (potential.e0 + potential.shift)[0]
        np.testing.assert_allclose(energies, expected, rtol=0, atol=1e-11)
        np.add.at(forces, order, found)
        stress += virial
    np.testing.assert_allclose(forces, whole.forces, rtol=0, atol=1e-11)
    np.testing.assert_allclose(stress / atoms.get_volume(), whole.stress, rtol=0, atol=1e-12)


def test_a_table_holds_until_atoms_or_cell_have_moved_too_far():
    structure = mlip.from_ase(to_ase(make_structure("crystal")) * (1, 1, 2))
    part = cut_out(structure, 5, 4.0, 0.4, 2)

    def holds(move=0.0, strain=0.0, n_own=5):
        stretch = np.diag([1.0, 1.0 + strain, 1.0])
        positions = structure.positions @ stretch
        positions[3, 1] += move
        moved = Structure(structure.numbers, positions, structure.cell @ stretch, structure.pbc)
        return part.holds(moved, n_own)

    assert holds(move=0.19)
    assert not holds(move=0.21)
    assert holds(strain=-0.99 * 0.4 / 4.4)
    assert not holds(strain=-1.01 * 0.4 / 4.4)
    assert holds(strain=0.5)  # what was far apart is farther now
    assert not holds(n_own=4)


def test_small_changes_of_a_part_keep_its_shape():
    structure = mlip.from_ase(to_ase(make_structure("crystal")) * (1, 1, 8))
    first = cut_out(structure, 20, 4.0, 0.3, 2)
    width = first.table.size()[1]
    second = cut_out(structure, 24, 4.0, 0.3, 2, first.room, width)
    assert second.room == first.room
    assert second.table.size() == first.table.size()
    third = cut_out(structure, 60, 4.0, 0.3, 2, first.room, width)
    assert all(new >= old for new, old in zip(third.room, first.room))
    assert third.room[0] >= 60
