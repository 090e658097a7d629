"""Neighbours equal brute force for any cell, any periodicity, atoms anywhere."""

import numpy as np
import pytest
from conftest import make_structure

from mlip.data.graph import build_table
from mlip.data.neighbors import (
    _refuse_too_many,
    complete_cell,
    neighbor_list,
    table_holds,
)
from mlip.data.structure import Structure

CUTOFF = 3.5


def random_structure(seed):
    """1 to 8 atoms, often outside their cell; skewed, left-handed, flat; any periodic axes."""
    rng = np.random.default_rng(seed)
    n_atoms = rng.integers(1, 9)
    pbc = rng.random(3) < 0.6
    while True:
        cell = rng.normal(scale=3, size=(3, 3))
        heights = abs(np.linalg.det(cell)) / np.linalg.norm(
            np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]), axis=1
        )
        if heights.min() > 0.8:
            break
    if rng.random() < 0.2:
        cell[~pbc] = 0
    return Structure(rng.integers(1, 9, n_atoms), rng.normal(scale=6, size=(n_atoms, 3)), cell, pbc)


def brute_force(structure, cutoff):
    """{(receiver, sender, shift)} over all images that could be near."""
    cell = complete_cell(structure.cell, structure.pbc)
    normals = np.linalg.inv(cell).T  # 1/height of the cell along each axis is its length
    fractional = structure.positions @ np.linalg.inv(cell)
    reach = cutoff * np.linalg.norm(normals, axis=1) + np.ptp(fractional, axis=0)
    counts = np.where(structure.pbc, np.ceil(reach).astype(int) + 1, 0)
    grids = np.meshgrid(*(np.arange(-n, n + 1) for n in counts), indexing="ij")
    shifts = np.stack([g.ravel() for g in grids], axis=1)
    vectors = structure.positions[None, :, None] + (shifts @ cell)[None, None]
    distance = np.linalg.norm(vectors - structure.positions[:, None, None], axis=-1)
    itself = np.eye(len(structure), dtype=bool)[..., None] & ~shifts.any(axis=1)
    receivers, senders, images = np.nonzero((distance < cutoff) & ~itself)
    return set(zip(receivers.tolist(), senders.tolist(), map(tuple, shifts[images].tolist())))


@pytest.mark.parametrize("decade", range(25))
def test_neighbors_equal_brute_force(decade):
    for seed in range(10 * decade, 10 * decade + 10):
        structure = random_structure(seed)
        receivers, senders, shifts = neighbor_list(structure, CUTOFF)
        found = list(zip(receivers.tolist(), senders.tolist(), map(tuple, shifts.tolist())))
        assert len(found) == len(set(found)), seed
        assert set(found) == brute_force(structure, CUTOFF), seed


@pytest.mark.parametrize("seed", range(40))
def test_tables_hold_every_edge_once_and_know_its_opposite(seed):
    structure = random_structure(seed)
    table = build_table(structure, CUTOFF)
    assert table.used.sum() == len(neighbor_list(structure, CUTOFF)[0])
    vectors = table.displacement(structure.positions, structure.cell, CUTOFF).reshape(-1, 3)
    used, opposite = table.used.ravel(), table.reverse.ravel()
    np.testing.assert_allclose(vectors[opposite][used], -vectors[used], rtol=0, atol=1e-10)
    receiver = np.arange(len(used)) // table.used.shape[1]
    np.testing.assert_array_equal(receiver[opposite][used], table.neighbors.ravel()[used])
    assert (vectors[~used] == [2 * CUTOFF, 0, 0]).all()


@pytest.mark.parametrize("seeds", range(4))
def test_a_table_that_holds_lacks_no_pair(seeds):
    """Atoms moved, and cells strained with their atoms or without, by about half the skin."""
    rng, skin, held = np.random.default_rng(seeds), 0.5, 0
    for seed in range(50 * seeds, 50 * seeds + 50):
        old = random_structure(seed)
        amount = 10.0 ** rng.uniform(-3, 0)
        strain = np.eye(3) + 0.1 * amount * rng.normal(size=(3, 3))
        positions = old.positions @ (strain if rng.random() < 0.7 else np.eye(3))
        positions = positions + 0.2 * amount * rng.normal(size=positions.shape)
        new = Structure(old.numbers, positions, old.cell @ strain, old.pbc)
        if table_holds(old, new, CUTOFF, skin):
            held += 1
            known, needed = brute_force(old, CUTOFF + skin), brute_force(new, CUTOFF)
            assert set(needed) <= set(known)
    assert 5 < held < 45


def test_a_table_does_not_hold_where_a_pair_comes_through_a_shift_that_it_lacks():
    """Atoms 0.95 of the cell apart the other way: two cells on they come from outside the skin."""
    places = [[0.0, 0, 0], [-0.95 * 3.35, 0, 0]]
    old = Structure([1, 1], places, np.diag([3.35, 9.0, 9.0]), [True] * 3)
    new = Structure([1, 1], places, np.diag([3.35 - 0.08, 9.0, 9.0]), [True] * 3)
    assert np.abs(build_table(old, 3.5).shifts).max() == 1
    assert len(neighbor_list(new, 3.4)[0]) > build_table(old, 3.5).used.sum()
    assert not table_holds(old, new, 3.4, 0.1)


def test_small_periodic_cells_have_all_their_images():
    # Known coordination shells of diamond: 4 at √3/4 a, 12 at a/√2, 12 at √11/4 a.
    a = 5.43
    cell = a / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    diamond = Structure([14, 14], [[0, 0, 0], [a / 4] * 3], cell, [True] * 3)
    receivers, *_ = neighbor_list(diamond, 5.0)
    np.testing.assert_array_equal(np.bincount(receivers), [28, 28])


def test_atoms_without_neighbours_have_an_empty_list():
    for structure in (
        make_structure("atom"),
        Structure([1], [[0, 0, 0]], 20 * np.eye(3), [True] * 3),
        Structure([1, 1], [[0, 0, 0], [9, 0, 0]], np.zeros((3, 3)), [False] * 3),
    ):
        receivers, senders, shifts = neighbor_list(structure, CUTOFF)
        assert len(receivers) == len(senders) == len(shifts) == 0
        assert not build_table(structure, CUTOFF).used.any()


def test_coincident_atoms_are_refused():
    twice = Structure([1, 1], [[0, 0, 0], [0, 0, 1e-5]], np.zeros((3, 3)), [False] * 3, name="f#7")
    with pytest.raises(ValueError, match=r"f#7: atoms 0 and 1 are .* Å apart; remove one"):
        neighbor_list(twice, CUTOFF)


def test_a_cluster_with_too_many_pairs_is_refused_also_beside_a_distant_atom():
    cluster = 3.5 * np.random.default_rng(0).random((16_000, 3))
    for far in (0.0, 1e6):
        positions = np.vstack([cluster, [[far, 0, 0]]])
        dense = Structure([1] * 16_001, positions, np.zeros((3, 3)), [False] * 3)
        with pytest.raises(ValueError, match="would make about 2.6e[+]08 pairs, more than 2e[+]07"):
            neighbor_list(dense, 5.0)


@pytest.mark.parametrize("pbc", [True, False])
def test_a_million_atoms_at_the_density_of_matter_are_allowed(pbc):
    grid = 2.5 * np.stack(np.meshgrid(*[np.arange(100.0)] * 3), axis=-1).reshape(-1, 3)
    matter = Structure([14] * 10**6, grid, 250 * np.eye(3), [pbc] * 3)
    _refuse_too_many(matter, complete_cell(matter.cell, matter.pbc), 6.0)


def test_a_cutoff_with_too_many_pairs_is_refused_at_once():
    dense = Structure([1] * 20, np.random.default_rng(0).random((20, 3)), np.eye(3), [True] * 3)
    with pytest.raises(ValueError, match="would make about .* pairs"):
        neighbor_list(dense, 60.0)
