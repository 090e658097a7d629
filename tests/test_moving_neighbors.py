"""Neighbours found on the device are those of brute force, in any cell, and none is lost."""

import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import make_structure

from mlip.data.graph import Shape, build_table, pad
from mlip.data.neighbors import complete_cell, neighbor_list
from mlip.data.structure import Structure
from mlip.simulation.neighbors import NO_ROOM, narrow, plan, search

pytestmark = [pytest.mark.usefixtures("optimized"), pytest.mark.versions]
CUTOFF = 3.0
N_ATOMS, N_SYSTEMS = 12, 24


def random_structure(rng):
    """A few atoms anywhere in and around a skewed cell, on any mix of periodic axes."""
    while True:
        cell = np.diag(rng.uniform(1.5, 9, 3)) + rng.normal(0, rng.uniform(0, 1.5), (3, 3))
        n_atoms = rng.integers(1, N_ATOMS + 1)
        positions = rng.uniform(-2, 3, (n_atoms, 3)) @ cell
        pbc = rng.integers(0, 2, 3)
        try:
            structure = Structure(np.full(n_atoms, 14), positions, cell, pbc)
            neighbor_list(structure, CUTOFF)
            plan([structure], CUTOFF)
        except (ValueError, FloatingPointError):  # no cell, or one atom on another
            continue
        return structure


def padded(structures):
    shape = len(structures), N_ATOMS
    positions, real = np.zeros((*shape, 3)), np.zeros(shape, bool)
    for row, structure in enumerate(structures):
        positions[row, : len(structure)] = structure.positions
        real[row, : len(structure)] = True
    cells = np.array([complete_cell(s.cell, s.pbc) for s in structures])
    return positions, cells, real


def edges_of(table, row):
    """Every edge of one system as (receiver, sender, shift)."""
    used = np.asarray(table.used[row])
    receivers = np.nonzero(used)[0]
    columns = receivers, np.asarray(table.neighbors[row])[used], np.asarray(table.shifts[row])[used]
    return sorted(map(tuple, np.column_stack(columns).tolist()))


@pytest.fixture(scope="module")
def found():
    """240 random structures, and their tables from one compiled search with room for all."""
    rng = np.random.default_rng(0)
    batches = [[random_structure(rng) for _ in range(N_SYSTEMS)] for _ in range(10)]
    plans = [plan(batch, CUTOFF) for batch in batches]
    room = NO_ROOM
    for _, one in plans:
        room = room.joined(one)
    with jax.enable_x64(True):
        tables = [
            jax.device_get(search(CUTOFF, room, grid, *padded(batch)))
            for batch, (grid, _) in zip(batches, plans)
        ]
    return batches, tables


def test_pairs_are_those_of_the_host(found):
    for batch, table in zip(*found):
        assert table.complete
        for row, structure in enumerate(batch):
            receivers, senders, shifts = neighbor_list(structure, CUTOFF)
            expected = np.column_stack([receivers, senders, shifts]).tolist()
            assert edges_of(table, row) == sorted(map(tuple, expected)), structure


def test_pairs_are_those_of_brute_force(found):
    rows = [(table, row, s) for batch, table in zip(*found) for row, s in enumerate(batch)]
    assert len(rows) >= 200
    for table, row, structure in rows:
        inverse = np.linalg.inv(complete_cell(structure.cell, structure.pbc))
        apart = np.ptp(structure.positions @ inverse, axis=0)
        most = np.ceil(CUTOFF * np.linalg.norm(inverse, axis=0) + apart) * structure.pbc
        images = np.array(list(itertools.product(*(range(-int(n), int(n) + 1) for n in most))))
        vectors = structure.positions[None] - structure.positions[:, None]
        vectors = vectors[:, :, None] + images @ np.where(structure.pbc[:, None], structure.cell, 0)
        near = (vectors**2).sum(axis=-1) < CUTOFF**2
        itself = np.eye(len(structure), dtype=bool)[..., None] & ~images.any(axis=1)
        i, j, k = np.nonzero(near & ~itself)
        expected = sorted(map(tuple, np.column_stack([i, j, images[k]]).tolist()))
        assert edges_of(table, row) == expected


def test_a_few_atoms_far_away_do_not_crowd_the_bins_of_the_others():
    rng = np.random.default_rng(0)
    places = np.array(list(itertools.product(range(10), repeat=3))) * 2.0
    places = places + rng.uniform(-0.3, 0.3, places.shape)
    places[::100] += rng.normal(0, 400, (10, 3))
    structure = Structure(np.full(1000, 14), places, np.zeros((3, 3)), [False] * 3)
    grid, room = plan([structure], CUTOFF)
    assert room.members < 60
    with jax.enable_x64(True):
        cell = complete_cell(structure.cell, structure.pbc)[None]
        table = search(CUTOFF, room, grid, places[None], cell, np.ones((1, 1000), bool))
    assert table.complete
    expected = np.column_stack(neighbor_list(structure, CUTOFF)).tolist()
    assert len(expected) > 5000
    assert edges_of(table, 0) == sorted(map(tuple, expected))


def test_every_edge_knows_its_reverse(found):
    for _, table in zip(*found):
        width = table.neighbors.shape[-1]
        for row in range(N_SYSTEMS):
            neighbors, reverse, shifts, used = (
                getattr(table, name)[row].reshape(N_ATOMS * width, -1).squeeze()
                for name in ("neighbors", "reverse", "shifts", "used")
            )
            slots = np.arange(N_ATOMS * width)
            np.testing.assert_array_equal(reverse[reverse], slots)
            np.testing.assert_array_equal(neighbors[reverse][used], slots[used] // width)
            np.testing.assert_array_equal(shifts[reverse][used], -shifts[used])
            np.testing.assert_array_equal(reverse[~used], slots[~used])


@pytest.mark.parametrize("scarce", ["neighbors", "members"])
def test_a_search_without_room_says_so(found, scarce):
    batch = found[0][0]
    grid, room = plan(batch, CUTOFF)
    small = replace(room, **{scarce: 2})
    with jax.enable_x64(True):
        table = search(CUTOFF, small, grid, *padded(batch))
    assert not table.complete
    assert table.needed[:, ["neighbors", "members"].index(scarce)].max() > 2


def test_bins_that_have_become_too_narrow_are_noticed():
    structure = Structure([14] * 2, [[0, 0, 0], [1, 5, 1]], 10 * np.eye(3), [True] * 3)
    grid, room = plan([structure], CUTOFF)
    positions, cells, real = padded([structure])
    with jax.enable_x64(True):
        assert search(CUTOFF, room, grid, positions, cells, real).complete
        assert not search(CUTOFF, room, grid, 0.2 * positions, 0.2 * cells, real).complete


@pytest.mark.parametrize("seed", range(20))
def test_a_table_that_holds_has_every_pair(seed):
    """Strain the cell and move atoms until the table gives up; before that no pair is missing."""
    rng, skin = np.random.default_rng(seed), 0.6
    cell = np.diag(rng.uniform(4, 6, 3)) + rng.normal(0, 0.7, (3, 3))
    numbers, places = np.full(N_ATOMS, 14), rng.uniform(0, 1, (N_ATOMS, 3))
    structure = Structure(numbers, places @ cell, cell, [True] * 3)
    grid, room = plan([structure], CUTOFF, skin)
    room = replace(room, neighbors=256, members=16, bins=8, reach=(2, 2, 2))
    strain, drift = rng.normal(0, 0.01, (3, 3)), rng.normal(0, 0.02, (N_ATOMS, 3))
    with jax.enable_x64(True):
        table = search(CUTOFF + skin, room, grid, *padded([structure]))
        assert table.complete
        for step in range(100):
            moved = cell @ (np.eye(3) + step * strain)
            here = structure.positions @ np.linalg.inv(cell) @ moved + step * drift
            if not table.hold(here[None], moved[None], CUTOFF, skin):
                break
            vectors = np.asarray(table.displacement(here[None], moved[None], 2 * CUTOFF))
            near = (np.linalg.norm(vectors, axis=-1) < CUTOFF).sum()
            now = Structure(numbers, here, moved, [True] * 3)
            assert near == len(neighbor_list(now, CUTOFF)[0])
    assert 0 < step < 99


@pytest.mark.parametrize("kind", ["molecule", "slab", "crystal", "primitive"])
def test_narrower_rows_hold_the_edges_within_the_cutoff(kind):
    structure, cutoff, skin = make_structure(kind), 3.2, 1.5
    wide, exact = (build_table(structure, reach) for reach in (cutoff + skin, cutoff))
    n_atoms = len(structure)
    frame = [(np.zeros(n_atoms, int), structure, wide)]
    graph = pad(frame, Shape(n_atoms + 3, wide.size()[1], 2), cutoff, np.float64)
    with jax.enable_x64(True):
        found, within = narrow(graph, cutoff, 40)
        vectors = np.asarray(found.displacement)
        used = np.linalg.norm(vectors, axis=-1) < cutoff
        assert used.sum() == exact.used.sum()
        np.testing.assert_array_equal(used.sum(axis=1), within)
        senders = structure.positions[np.asarray(found.neighbors)[:n_atoms]]
        crossed = (vectors[:n_atoms] - senders + structure.positions[:, None])[used[:n_atoms]]
        if structure.pbc.all():
            turns = crossed @ np.linalg.inv(structure.cell)
            np.testing.assert_allclose(turns, np.round(turns), rtol=0, atol=1e-9)
        flat, reverse = vectors.reshape(-1, 3), np.asarray(found.reverse).ravel()
        np.testing.assert_array_equal(reverse[reverse], np.arange(len(reverse)))
        np.testing.assert_array_equal(flat[reverse][used.ravel()], -flat[used.ravel()])
        assert narrow(graph, cutoff, 2)[1].max() > 2
