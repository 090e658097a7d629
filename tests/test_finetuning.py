"""Starting from a trained potential: what stays, what moves, new elements and new energies."""

from dataclasses import dataclass, field, replace

import ase.io
import numpy as np
import pytest
from conftest import make_structure, predict
from test_training import TINY, config_for, rows_of

from mlip import cli
from mlip.data.dataset import read
from mlip.data.structure import Structure, from_ase, number_of
from mlip.model.file import load_model, save_model
from mlip.model.mace.model import NetworkConfig
from mlip.model.potential import Prediction, untrained
from mlip.quickstart import data_file
from mlip.training.finetune import (
    adopt_network,
    covering,
    estimate_atomic_energies,
    names_that_move,
    with_species,
)
from mlip.training.loop import train
from mlip.training.optimizer import OptimizerConfig
from mlip.training.setup import prepare


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model file of some seconds of training, and its run."""
    config = config_for(tmp_path_factory.mktemp("trained"), max_epochs=200)
    train(config)
    return f"{config.out}/model.safetensors", rows_of(config.out)


class Lines:
    def __init__(self):
        self.texts = []

    def line(self, text):
        self.texts.append(text)

    def update(self, progress, fraction, row):
        pass


def test_a_run_starts_from_the_errors_of_its_potential_and_lowers_them(tmp_path, trained):
    path, before = trained
    show = Lines()
    ase.io.write(tmp_path / "train.xyz", ase.io.read(data_file("ethanol_train.xyz"), "200:224"))
    gentle = OptimizerConfig(learning_rate=0.004, warmup_steps=0)
    config = config_for(tmp_path, init=path, e0="keep", max_epochs=30, optimizer=gentle)
    potential = train(config, show=show)
    after = [row["valid_forces_rmse_mev_per_A"] for row in rows_of(config.out)]
    (line,) = (text for text in show.texts if text.startswith("before training: "))
    initial = float(line.partition("forces_rmse_mev_per_A ")[2].split(",")[0])
    assert initial < 0.5 * before[0]["valid_forces_rmse_mev_per_A"]
    assert after[0] < 1.05 * initial
    assert after[-1] < 0.97 * initial
    assert potential.config == TINY
    assert potential.training["init"]["name"] == "model.safetensors"
    train(replace(config, max_epochs=31), resume=True)
    assert len(rows_of(config.out)) == 31
    with pytest.raises(ValueError, match="trainable = '2'"):
        train(replace(config, trainable="2"), resume=True)


def test_a_start_that_no_epoch_betters_is_kept(tmp_path, trained):
    show, spoiling = Lines(), OptimizerConfig(learning_rate=1.0, warmup_steps=0, decay="none")
    config = config_for(tmp_path, init=trained[0], e0="keep", max_epochs=2, optimizer=spoiling)
    potential = train(config, show=show)
    assert all(not row["best"] for row in rows_of(config.out))
    assert potential.training["best_epoch"] == 0
    assert "no epoch was better than the model at the start, which is kept" in show.texts
    start = load_model(trained[0])
    for name, value in start.parameters.items():
        np.testing.assert_array_equal(potential.parameters[name], value, err_msg=name)
    (line,) = (text for text in show.texts if text.startswith("before training: "))
    assert f"{potential.training['valid_forces_rmse_mev_per_A']:.2f}" in line


@pytest.mark.parametrize(
    ("trainable", "moves"),
    [
        ("last", lambda name: name != "embedding" and name.split("_")[1] == "1"),
        ("readouts", lambda name: name.startswith("readout")),
        ("1", lambda name: name != "embedding"),
    ],
)
def test_parameters_that_do_not_move_stay_bit_for_bit(tmp_path, trained, trainable, moves):
    gentle = OptimizerConfig(learning_rate=0.004, warmup_steps=0)  # that betters the start
    settings = {"trainable": trainable, "max_epochs": 3, "optimizer": gentle}
    config = config_for(tmp_path, init=trained[0], **settings)
    before, after = load_model(trained[0]), train(config)
    moving = set(names_that_move(trainable, before))
    assert {"readout_1"} < moving < set(before.parameters)
    assert moving == set(filter(moves, before.parameters))
    for name, value in before.parameters.items():
        assert np.array_equal(after.parameters[name], value) == (name not in moving), name


def test_other_species_leave_the_energies_of_known_structures_as_they_were(small_potential):
    structures = [make_structure(kind) for kind in ("molecule", "crystal")]
    parameters = {name: value.astype(float) for name, value in small_potential.parameters.items()}
    small_potential = replace(small_potential, parameters=parameters)
    more = with_species(small_potential, {1, 6, 8, 14, 26})
    assert more.species == (1, 6, 8, 14, 26)
    some = [replace(s, numbers=np.where(s.numbers == 8, 1, s.numbers)) for s in structures]
    for potential, frames in ((more, structures), (with_species(more, {1, 14}), some)):
        for one, other in zip(predict(potential, frames), predict(small_potential, frames)):
            np.testing.assert_allclose(one.energies, other.energies, rtol=0, atol=1e-12)
            np.testing.assert_allclose(one.forces, other.forces, rtol=0, atol=1e-12)


def test_energies_of_single_atoms_are_found_again(small_potential):
    structures = [make_structure(k, seed) for k in ("molecule", "crystal") for seed in range(4)]
    wanted = {1: -13.5, 8: -2040.0, 14: 7.25}
    structures = [
        replace(s, energy=p.energy + sum(wanted[z] for z in s.numbers.tolist()))
        for s, p in zip(structures, predict(small_potential, structures))
    ]
    found = estimate_atomic_energies(small_potential, structures)
    assert not found.note
    assert found.values == pytest.approx(wanted, rel=0, abs=1e-8)
    water = [replace(s, numbers=np.array([8, 1, 1, 8, 1, 1])) for s in structures[:4]]
    water = [
        replace(s, energy=p.energy + 5) for s, p in zip(water, predict(small_potential, water))
    ]
    found = estimate_atomic_energies(small_potential, water)
    assert "the smallest that fit" in found.note
    assert found.values == pytest.approx({1: 1.0, 8: 0.5}, rel=0, abs=1e-8)


@dataclass(frozen=True)
class Alone:
    """A potential in which atoms know nothing of each other."""

    species: tuple[int, ...]
    e0: np.ndarray = field(default_factory=lambda: np.zeros(9))

    def predict(self, structures):
        energy = dict(zip(self.species, self.e0))
        sums = (sum(energy[z] for z in s.numbers.tolist()) for s in structures)
        return [Prediction(float(total), None, None, None) for total in sums]


def frame_of(composition, wanted=None, error=0.0):
    """Atoms of some elements, such as {"H": 2, "O": 1}; error in eV/atom; None for no energy."""
    numbers = np.repeat([number_of(s) for s in composition], list(composition.values()))
    positions = np.arange(3.0 * len(numbers)).reshape(-1, 3)
    energy = None
    if wanted is not None:
        energy = sum(wanted[s] * n for s, n in composition.items()) + error * len(numbers)
    return Structure(numbers, positions, np.zeros((3, 3)), [False] * 3, energy=energy)


WATER, PEROXIDE, RUST = {"H": 2, "O": 1}, {"H": 2, "O": 2}, {"Fe": 1, "O": 1}
WANTED = {"H": -13.5, "O": -2040.0, "Fe": -3450.0}


@pytest.mark.parametrize(
    "compositions",
    [
        [WATER, PEROXIDE] * 501 + [RUST] * 501,
        [WATER] + [RUST] + [WATER] * 1200 + [PEROXIDE],
        [WATER] * 1200 + [PEROXIDE, RUST],
    ],
    ids=["in turn", "rare and early", "rare and late"],
)
def test_every_element_with_an_energy_has_its_e0_estimated(compositions):
    frames = [frame_of(c, WANTED) for c in compositions]
    for unseen in ([], [26]):
        found = estimate_atomic_energies(Alone((1, 8, 26)), frames, unseen)
        expected = {number_of(s): e for s, e in WANTED.items()}
        assert found.values == pytest.approx(expected, rel=0, abs=1e-7)
        assert not found.note


def test_frames_are_chosen_for_elements_and_compositions():
    many = [(a, b, c) for a in range(1, 13) for b in range(1, 13) for c in range(1, 13)]
    frames = [frame_of({"H": a, "C": b, "O": c}) for a, b, c in many] + [frame_of(RUST)]
    chosen = covering(frames)
    assert len(chosen) == 1000
    assert chosen[-1] is frames[-1]
    chosen = covering([frame_of(WATER)] * 3000 + [frame_of(PEROXIDE)] * 100)
    assert len(chosen) == 1000
    assert sum(len(s) == 4 for s in chosen) == 100


def test_elements_without_energies_keep_their_e0_or_are_refused():
    frames = [frame_of(c, WANTED) for c in (WATER, PEROXIDE)] * 3 + [frame_of(RUST)]
    potential = Alone((1, 8, 26), np.array([0.0, 0.0, -7.0]))
    found = estimate_atomic_energies(potential, frames)
    assert found.values == pytest.approx({1: -13.5, 8: -2040.0, 26: -7.0}, rel=0, abs=1e-8)
    assert found.note == "no frame with Fe has an energy; E0 of the initial potential is kept"
    with pytest.raises(ValueError, match=r"E0 of Fe cannot be estimated.*; give E0 of all elem"):
        estimate_atomic_energies(potential, frames, unseen=[26])
    silent = [frame_of(RUST)]
    assert estimate_atomic_energies(potential, silent).values == {8: 0.0, 26: -7.0}
    with pytest.raises(ValueError, match=r"E0 of Fe cannot be estimated"):
        estimate_atomic_energies(potential, silent, unseen=[26])


@pytest.mark.parametrize("seed", range(4))
def test_new_elements_explain_the_energies_before_known_ones(seed):
    errors = np.random.default_rng(seed).normal(scale=0.02, size=30)
    old, new = {"Si": -100.0, "O": 0.0}, {"Si": -100.0, "O": -2040.0}
    frames = [frame_of({"Si": 2, "O": 4}, new, error) for error in errors]
    potential = Alone((1, 8, 14), np.array([-13.5, old["O"], old["Si"]]))
    found = estimate_atomic_energies(potential, frames, unseen=[8])
    assert found.values[14] == pytest.approx(-100.0, rel=0, abs=1e-9)
    assert found.values[8] == pytest.approx(-2040.0 + 1.5 * errors.mean(), rel=0, abs=1e-7)
    assert set(found.values) == {8, 14}
    assert "after O explained what new elements can; of known elements Si changed" in found.note
    both = estimate_atomic_energies(potential, frames)
    assert "of known elements O changed most, by -1.63e+03 eV" in both.note


@pytest.mark.parametrize("seed", range(4))
def test_what_compositions_hardly_determine_stays_where_it_was(seed):
    errors = np.random.default_rng(seed).normal(scale=0.02, size=100)
    errors[-1] = 0.03  # of the only frame that lacks an atom
    wanted = {"Si": -100.0, "O": -2040.0}
    compositions = [{"Si": 16, "O": 32}] * 99 + [{"Si": 16, "O": 31}]
    frames = [frame_of(c, wanted, e) for c, e in zip(compositions, errors)]
    counts = np.array([list(c.values()) for c in compositions])
    plain = np.linalg.lstsq(counts, errors * counts.sum(axis=1))[0]
    assert np.abs(plain).max() > 1
    found = estimate_atomic_energies(Alone((8, 14), np.array([-2040.0, -100.0])), frames)
    assert found.values == pytest.approx({8: -2040.0, 14: -100.0}, rel=0, abs=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_changes_that_compositions_determine_are_found_within_the_noise(seed):
    rng = np.random.default_rng(seed)
    shares = rng.integers(1, 9, (200, 2)).tolist()
    errors = rng.normal(scale=0.02, size=200)
    frames = [frame_of({"H": h, "O": o}, WANTED, e) for (h, o), e in zip(shares, errors)]
    found = estimate_atomic_energies(Alone((1, 8)), frames)
    assert found.values == pytest.approx({1: -13.5, 8: -2040.0}, rel=0, abs=0.02)
    # A single frame says what its only element is worth, in full.
    found = estimate_atomic_energies(Alone((1,)), [frame_of({"H": 2}, WANTED)])
    assert found.values == pytest.approx({1: -13.5}, rel=1e-3)


def start_with_energies(tmp_path, e0, shift, **training):
    """A run on ethanol with isolated atoms, from a potential that hardly tells structures apart."""
    base = untrained(TINY, ["H", "C", "O"], e0=e0)
    base = replace(base, scale=base.scale * 1e-3, shift=base.shift + shift, training=training)
    save_model(base, tmp_path / "base.safetensors")
    config = config_for(tmp_path, init=tmp_path / "base.safetensors", e0="auto")
    frames = ase.io.read(config.train, ":") + ase.io.read(isolated_atoms(), ":")
    ase.io.write(config.train, frames)
    return adopt_network(config)


def isolated_atoms():
    return data_file("ethanol_isolated_atoms.xyz")


def energies_of_ethanol():
    """E0 of the isolated atoms, and the cohesive energy, eV/atom."""
    atoms = {s.get_chemical_symbols()[0]: s for s in ase.io.read(isolated_atoms(), ":")}
    e0 = {name: atom.get_potential_energy() for name, atom in atoms.items()}
    energies = [s.energy for s in read(data_file("ethanol_train.xyz"))[:24]]
    return e0, (np.mean(energies) - 6 * e0["H"] - 2 * e0["C"] - e0["O"]) / 9


def test_isolated_atoms_are_refused_where_e0_hold_the_cohesion(tmp_path):
    isolated, cohesion = energies_of_ethanol()
    assert cohesion < -3
    fitted = {name: energy + cohesion for name, energy in isolated.items()}
    config = start_with_energies(tmp_path, fitted, 0.0)
    off = f"{abs(cohesion):.3g}"
    with pytest.raises(ValueError, match=rf"is off by {off} eV/atom, .*; move them with --e0 fit"):
        prepare(config)
    potential, *_ = prepare(replace(config, e0="fit"))
    expected = [fitted[name] for name in ("H", "C", "O")]
    np.testing.assert_allclose(potential.e0, expected, rtol=0, atol=0.1)
    potential, *_ = prepare(replace(config, e0=str(isolated_atoms())))
    np.testing.assert_allclose(potential.e0, [isolated[n] for n in "HCO"], rtol=0, atol=1e-9)


def test_isolated_atoms_are_taken_where_e0_are_theirs(tmp_path):
    isolated, cohesion = energies_of_ethanol()
    elsewhere = {name: energy + 0.5 for name, energy in isolated.items()}
    source = {"imported": {"name": "a.model", "sha256": "1"}, "head": "dft", "by": "somebody"}
    potential, *_ = prepare(start_with_energies(tmp_path, elsewhere, cohesion, **source))
    np.testing.assert_allclose(potential.e0, [isolated[n] for n in "HCO"], rtol=0, atol=1e-9)
    # The tuned potential tells what its start was imported from, and is no import itself.
    assert {key: potential.training[key] for key in source} == source
    assert potential.training["init"]["name"] == "base.safetensors"


@pytest.mark.parametrize("e0", ["keep", "auto", "fit"])
def test_energies_of_single_atoms_of_the_potential_are_not_judged_by_the_data(tmp_path, e0):
    base = untrained(TINY, ["H", "C", "O"], e0={"H": -13.6, "C": -1030.0, "O": -2040.0})
    base = replace(base, average_neighbors=77.0)
    save_model(base, tmp_path / "base.safetensors")
    config = config_for(tmp_path, init=tmp_path / "base.safetensors", e0=e0)
    potential, frames, _, lines = prepare(adopt_network(config))
    assert "energies of other compositions" not in "\n".join(lines)
    if e0 == "keep":
        np.testing.assert_array_equal(potential.e0, base.e0)
    # The line tells the neighbours in these data, not those of the initial potential's.
    counted = np.mean([table.used.sum() / len(table.used) for table in frames.tables])
    assert f", {counted:.1f} neighbours an atom within 3.0 Å" in "\n".join(lines)


def test_unseen_elements_are_refused_or_added(tmp_path):
    base = untrained(TINY, ["H", "C"], e0={"H": -13.6, "C": -1030.0})
    save_model(base, tmp_path / "base.safetensors")
    config = config_for(tmp_path, init=tmp_path / "base.safetensors", e0="auto", max_epochs=1)
    with pytest.raises(ValueError, match=r"holds O, which .*base\.safetensors was not trained on"):
        train(config)
    with pytest.raises(ValueError, match=r"E0 of O cannot be kept"):
        train(replace(config, unseen="add", e0="keep"))
    potential = train(replace(config, unseen="add"))
    assert potential.species == (1, 6, 8)
    frame = ase.io.read(data_file("ethanol_train.xyz"), "0")
    predicted = potential(from_ase(frame)).energy
    assert abs(predicted - frame.get_potential_energy()) < 5


def test_species_that_the_data_lacks_stay_or_go(tmp_path):
    base = untrained(TINY, ["H", "C", "O", "Fe"], e0={"Fe": -3.0})
    save_model(base, tmp_path / "base.safetensors")
    config = config_for(tmp_path, init=tmp_path / "base.safetensors", max_epochs=1)
    potential = train(config)
    assert potential.species == (1, 6, 8, 26)
    assert potential.e0[3] == -3.0
    config = replace(config, keep_species=False, out=str(tmp_path / "other"))
    assert train(config).species == (1, 6, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainable": "some", "init": "x"}, "trainable is 'some'; choose one of all, last"),
        ({"trainable": "last"}, "trainable is 'last', which needs a potential to start from"),
        ({"e0": "keep"}, "e0 is 'keep', which needs a potential"),
        ({"unseen": "guess"}, "unseen is 'guess'; choose one of refuse, add"),
        (
            {"unseen": "add", "trainable": "last", "init": "x"},
            "trainable is 'last', which leaves the embedding of new .* train with trainable all",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config_for(tmp_path, **options)


def test_another_network_than_that_of_the_potential_is_refused(tmp_path, trained):
    other = NetworkConfig(channels=5, l_max=1)
    with pytest.raises(ValueError, match=r"leave the settings of the network away"):
        train(config_for(tmp_path, init=trained[0], network=other))
    with pytest.raises(ValueError, match=r"trainable is 7, but the network has 2 layers"):
        train(config_for(tmp_path, init=trained[0], trainable=7))


def test_settings_equal_to_those_of_the_potential_are_no_others(tmp_path, trained, capsys):
    config = config_for(tmp_path, init=trained[0], network=NetworkConfig(cutoff=3.0))
    assert adopt_network(config, {"cutoff"}).network == TINY
    # Given and default, 5 Å are still not the 3 Å of the potential.
    toml = tmp_path / "run.toml"
    toml.write_text("[network]\ncutoff = 5\n")
    for given in (["--cutoff", "5.0"], [str(toml)]):
        options = ["--train", config.train, "--init", trained[0], "--out", str(tmp_path / "run")]
        assert cli.main(["train", *given, *options]) == 2
        assert "cutoff is 5.0, but the run starts from" in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_a_trained_potential_learns_at_a_tenth_of_the_rate(tmp_path, optimizer):
    plain, given = OptimizerConfig(optimizer), OptimizerConfig(optimizer, learning_rate=0.02)
    scratch = config_for(tmp_path, optimizer=plain).optimizer.highest_rate
    tuned = config_for(tmp_path, optimizer=plain, init="x").optimizer.highest_rate
    assert tuned == pytest.approx(scratch / 10)
    assert config_for(tmp_path, optimizer=given, init="x").optimizer.highest_rate == 0.02
