"""Memory is predicted, and what does not fit is refused with the size that does."""

import contextlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import SPECIES, make_structure

import mlip
from mlip.cli import main
from mlip.data.graph import Shape, build_table, pad
from mlip.model.execution import free_bytes, peak_bytes
from mlip.model.mace.model import NetworkConfig
from mlip.model.potential import untrained
from mlip.quickstart import data_file
from mlip.training import loop
from mlip.training.estimate import memory
from mlip.training.setup import prepare

SMALL = NetworkConfig(channels=4, l_max=1, correlation=2, radial_widths=(8,), cutoff=4.0)


@pytest.fixture
def potential():
    return untrained(SMALL, SPECIES, average_neighbors=8)


def graph_of(potential, n_atoms, n_structures=2):
    structure = make_structure("crystal")
    frame = (potential.species_of(structure), structure, build_table(structure, 4.0))
    return pad([frame], Shape(n_atoms, 48, n_structures), 4.0)


def test_memory_grows_by_what_every_atom_holds(potential):
    small, large = (memory(potential, n, density=0.05) for n in (20_000, 80_000))
    assert small["neighbors"] == large["neighbors"]
    for key in ("inference_bytes", "training_bytes"):
        assert 3 < large[key] / small[key] < 4.1
    table = 80_000 * large["neighbors"] * (3 + 2) * 4  # displacements, senders and reverse slots
    assert table < large["inference_bytes"] < 10 * table
    assert table < large["training_bytes"] < 10 * table


@pytest.mark.parametrize(("n_atoms", "density"), [(0, 0.1), (-5, 0.1), (100, 0.0), (100, np.nan)])
def test_atoms_and_density_must_be_positive(potential, n_atoms, density):
    with pytest.raises(ValueError, match="must be positive"):
        memory(potential, n_atoms, density)


def test_a_program_that_does_not_fit_is_refused_with_the_size_that_does(potential):
    graph, folded = graph_of(potential, 400), mlip.fold(potential.running(many_slots=0))
    needed = peak_bytes(folded.compiled(*folded.evaluator(graph)))
    with pytest.raises(MemoryError, match="of 400 atoms needs") as refused:
        folded.running(memory=needed // 2).evaluate(graph)
    assert 190 <= int(re.search(r"about (\d+) atoms fit", str(refused.value))[1]) <= 200


def test_what_fits_only_in_blocks_is_taken_in_blocks(potential):
    potential = potential.running(many_slots=0, large_block=8)
    graph, at_once = graph_of(potential, 400), mlip.fold(potential, block=0)
    expected = at_once.evaluate(graph)
    needed = peak_bytes(at_once.compiled(*at_once.evaluator(graph)))
    in_blocks = at_once.running(memory=needed - 1)
    for found, value in zip(*map(jax.tree.leaves, (in_blocks.evaluate(graph), expected))):
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-5)
    assert peak_bytes(in_blocks.compiled(*in_blocks.evaluator(graph))) < needed


def test_programs_are_told_apart_by_all_shapes(potential):
    expected = potential.evaluate(graph_of(potential, 24))
    ahead = potential.running(many_slots=0)
    for n_structures in (2, 3):
        found = ahead.evaluate(graph_of(potential, 24, n_structures))
        np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=1e-6)


def test_more_than_32_bit_indices_count_is_refused(potential):
    with pytest.raises(ValueError, match="32-bit"):
        memory(potential, 10**9, density=0.1)


def test_the_machine_tells_how_much_is_free():
    free = free_bytes()
    assert free is None or 1e8 < free < 1e14


MEASURED = """
import re, sys
from pathlib import Path
import ase.build
import mlip
from mlip.training.estimate import memory
from mlip.training.setup import prepare

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

small, large = (ase.build.bulk("Si", cubic=True).repeat(n) for n in (3, 14))
for atoms in (small, large):
    atoms.rattle(0.1, seed=0)
    atoms.calc = mlip.Calculator(sys.argv[1])
density = len(large) / large.get_volume()
predicted = memory(mlip.load(sys.argv[1]), len(large), density)["inference_bytes"]
small.get_forces()
before = peak()
large.get_forces()
print(predicted / (peak() - before))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the peak memory of Linux")
def test_an_evaluation_takes_the_memory_that_was_predicted(tmp_path):
    potential = untrained(SMALL, [14], average_neighbors=17)
    mlip.save(potential, tmp_path / "model.safetensors")
    words = [sys.executable, "-c", MEASURED, str(tmp_path / "model.safetensors")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert 0.6 < float(done.stdout) < 1.6


def test_a_training_step_that_does_not_fit_is_refused(tmp_path):
    config = mlip.TrainConfig(
        str(data_file("silicon_train.xyz")), out=str(tmp_path), batch_size=8, network=SMALL
    )
    potential, frames, valid, _ = prepare(replace(config, check=False))
    batch, rates = frames.batch(range(8)), (0.01, 0.005, config.loss.weights(0.0))
    for memory_free, outcome in (
        (None, contextlib.nullcontext()),
        (1000, pytest.raises(MemoryError, match="a training step of .* a smaller --batch-size")),
    ):
        limited = potential.running(many_slots=0, memory=memory_free)
        with limited.precision():
            run = loop.Run(config, limited, frames, valid, None, loop.Silent(), 0.0)
            with outcome:
                run.program(*batch, rates)(run.state, run.weights, *batch, rates)


def test_info_tells_the_memory(potential, tmp_path, capsys):
    path = str(tmp_path / "model.safetensors")
    mlip.save(potential, path)
    assert main(["info", path, "--atoms", "20000", "--density", "0.05", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    expected = memory(potential, 20_000, density=0.05)
    assert {key: told[key] for key in expected} == expected
    assert main(["info", path, "--atoms", "20000", "--density", "0.05"]) == 0
    assert "memory of a training step" in capsys.readouterr().out
    assert main(["info", path, "--atoms", "-1"]) == 2
    assert "must be positive" in capsys.readouterr().err
