"""Padding, batching and the order of frames change nothing."""

import numpy as np
import pytest
from conftest import SHAPE, make_structure, predict

from mlip.data.graph import Shape, build_table, pack, pad, plan_ladder
from mlip.model.potential import round_up

KINDS = ("molecule", "atom", "slab", "crystal", "primitive")


def test_a_batch_gives_what_each_structure_gives_alone(small_potential):
    structures = [make_structure(kind, seed) for kind in KINDS for seed in range(2)]
    together = predict(small_potential, structures)
    backwards = predict(small_potential, structures[::-1])[::-1]
    alone = [predict(small_potential, [structure])[0] for structure in structures]
    library = small_potential.predict(structures)  # padded to its own ladder of sizes
    for one, *others in zip(alone, together, backwards, library):
        for other in others:
            np.testing.assert_allclose(other.energy, one.energy, rtol=0, atol=1e-10)
            np.testing.assert_allclose(other.forces, one.forces, rtol=0, atol=1e-10)
            if one.stress is not None:
                np.testing.assert_allclose(other.stress, one.stress, rtol=0, atol=1e-10)


def test_frames_of_a_batch_do_not_act_on_each_other(small_potential):
    first, second = make_structure("molecule"), make_structure("crystal")
    before = predict(small_potential, [first, second])[0]
    after = predict(small_potential, [first, make_structure("primitive")])[0]
    np.testing.assert_array_equal(before.forces, after.forces)


def test_padding_has_no_forces_and_no_stress(small_potential):
    structure = make_structure("crystal")
    kinds = small_potential.species_of(structure)
    table = build_table(structure, small_potential.cutoff)
    graph = pad([(kinds, structure, table)], SHAPE, small_potential.cutoff, "float64")
    found = small_potential.evaluate(graph)
    np.testing.assert_array_equal(found.forces[len(structure) :], 0)
    np.testing.assert_array_equal(found.stress[1:], 0)


def sizes_of_many(seed, count=400):
    rng = np.random.default_rng(seed)
    atoms = rng.integers(1, 60, count)
    atoms[7] = 700  # one large frame
    return [(int(n), int(k)) for n, k in zip(atoms, rng.integers(4, 40, count))]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_many_compositions_need_few_shapes_within_the_budget(batch_size):
    sizes = sizes_of_many(0)
    ladder = plan_ladder(sizes, batch_size)
    shapes, seen, padded = set(), [], 0
    for epoch in range(5):
        order = np.random.default_rng(epoch).permutation(len(sizes))
        for batch in ladder.pack(sizes, order):
            atoms, widths = zip(*(sizes[i] for i in batch))
            shape = ladder.shape(sum(atoms), max(widths))
            padded += shape.n_atoms * shape.max_neighbors
            shapes.add(shape)
            assert len(batch) <= batch_size
            assert len(batch) == 1 or sum(atoms) * max(widths) <= ladder.max_slots
            seen += batch
    assert len(shapes) <= 6
    assert padded < 3 * sum(n * k for n, k in sizes) * 5
    assert sorted(seen) == sorted([*range(len(sizes))] * 5)
    largest = max(n * k for n, k in sizes)
    assert max(s.n_atoms * s.max_neighbors for s in shapes) <= max(
        2 * largest, ladder.atoms[-1] * ladder.widths[-1]
    )


def test_equal_frames_need_one_shape():
    ladder = plan_ladder([(9, 8)] * 50, batch_size=4)
    assert ladder.shape(36, 8) == ladder.shape(9, 8) == Shape(36, 8, 5)


def test_one_large_frame_does_not_raise_the_limit_for_all():
    sizes = sizes_of_many(1)
    order = range(len(sizes))
    alone = [batch for batch in pack(sizes, order, 8, 300, 8000) if 7 in batch]
    assert alone == [[7]]


def test_sizes_grow_by_at_most_a_third():
    for count in range(1, 3000):
        assert count <= round_up(count) <= max(count + 1, 1.34 * count)
    assert len({round_up(count) for count in range(1, 3000)}) < 50


@pytest.mark.parametrize("width", [1, 2, 3])
def test_an_atom_alone_has_an_energy_in_the_smallest_graph(small_potential, width):
    atom = make_structure("atom")
    frame = (small_potential.species_of(atom), atom, build_table(atom, 5.0))
    graphs = [pad([frame], Shape(1, w, 2), 5.0, "float64") for w in (width, 8)]
    found, expected = (small_potential.evaluate(graph).energies for graph in graphs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_frames_of_almost_one_width_fill_whole_batches():
    sizes = [(27, width) for width in (23, 23, 24, 25, 22, 22, 23, 25, 23, 22)] * 3
    ladder = plan_ladder(sizes, batch_size=10)
    assert [len(batch) for batch in ladder.pack(sizes, range(30))] == [10, 10, 10]
