"""The model file: what is saved comes back, and what is damaged or foreign is refused."""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from conftest import make_structure, predict

from mlip.model.file import _digest, load_model, save_model
from mlip.model.mace.model import NetworkConfig
from mlip.model.potential import untrained


@pytest.fixture
def saved(tmp_path, small_potential):
    path = tmp_path / "model.safetensors"
    save_model(small_potential, path)
    return path


def rewritten(path, change):
    """The file with its metadata changed by `change(metadata, card)` and signed anew."""
    tensors = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    card = json.loads(metadata["mlip"])
    change(metadata, card)
    metadata["mlip"] = json.dumps(card, sort_keys=True)
    if "sha256" in metadata:
        metadata["sha256"] = _digest(metadata["mlip"], tensors)
    safetensors.numpy.save_file(tensors, path, metadata=metadata)


def test_a_model_comes_back_with_the_same_predictions(saved, small_potential):
    loaded = load_model(saved)
    assert loaded.config == small_potential.config
    assert loaded.species == small_potential.species
    structure = make_structure("crystal")
    one, other = (predict(p, [structure])[0] for p in (small_potential, loaded))
    assert one.energy == other.energy
    np.testing.assert_array_equal(one.forces, other.forces)
    assert load_model(saved, "float32").dtype == "float32"


def test_the_file_says_what_it_is_in_plain_json(saved):
    with safetensors.safe_open(saved, "numpy") as file:
        card = json.loads(file.metadata()["mlip"])
    assert card["format"] == "mlip-jax model"
    assert card["species"] == ["H", "O", "Si"]
    assert card["units"]["forces"] == "eV/Å"
    assert card["model"]["family"] == "mace"
    assert card["model"]["settings"]["cutoff"] == 5.0


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_truncated_files_are_refused(saved, fraction):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ValueError, match="truncated, damaged or no safetensors file"):
        load_model(saved)


def test_every_flipped_bit_of_the_payload_and_of_the_card_is_noticed(saved):
    content = saved.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    payload = np.random.default_rng(0).integers(header, len(content), 60)
    for place, bit in itertools.product([*range(header), *payload], range(8)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        saved.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged|no model of mlip-jax"):
            load_model(saved)


def test_foreign_files_are_refused(tmp_path, saved):
    safetensors.numpy.save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"is a safetensors file, but no model of mlip-jax"):
        load_model(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("energy = 3\n" * 50)
    with pytest.raises(ValueError, match="no safetensors file"):
        load_model(tmp_path / "text.safetensors")
    with pytest.raises(FileNotFoundError, match="is no file; give the model"):
        load_model(tmp_path / "absent.safetensors")
    rewritten(saved, lambda metadata, card: metadata.pop("sha256"))
    with pytest.raises(ValueError, match="do not match their sha256"):
        load_model(saved)


def test_models_of_a_future_format_are_refused_with_their_version(saved):
    def change(metadata, card):
        card["format_version"], card["package_version"] = 99, "7.0"

    rewritten(saved, change)
    with pytest.raises(ValueError, match=r"format version 99, written by mlip-jax 7.0; .* Update"):
        load_model(saved)


def test_tensors_that_do_not_fit_the_configuration_are_refused(tmp_path):
    from dataclasses import replace

    wide = untrained(NetworkConfig(channels=6, l_max=1, correlation=1), ["H"])
    narrow = untrained(NetworkConfig(channels=3, l_max=1, correlation=1), ["H"])
    save_model(replace(wide, parameters=narrow.parameters), tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"the tensor \w+ has shape .* asks"):
        load_model(tmp_path / "m.safetensors")


def test_kill_9_while_saving_leaves_a_loadable_file(tmp_path):
    script = """
import sys
from mlip.model.mace.model import NetworkConfig
from mlip.model.potential import untrained
from mlip.model.file import save_model
potential = untrained(NetworkConfig(channels=128, hidden_l=1), ["H", "O"])
print("ready", flush=True)
while True:
    save_model(potential, sys.argv[1])
"""
    path = tmp_path / "model.safetensors"
    rng = np.random.default_rng(0)
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        while not path.exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.wait()
        assert load_model(path).species == (1, 8)


def test_the_same_seed_gives_the_same_parameters():
    config = NetworkConfig(channels=4, l_max=1, correlation=2)
    one, same, other = (untrained(config, ["H"], seed=s).parameters for s in (0, 0, 1))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["embedding"], other["embedding"])


@pytest.mark.parametrize(
    ("field", "value", "phrase"),
    [
        ("cutoff", -1.0, "cutoff is -1.0 Å; it must be positive"),
        ("cutoff", float("nan"), "cutoff is nan"),
        ("channels", 0, "channels is 0; it must lie between 1 and"),
        ("l_max", 99, "l_max is 99; it must lie between 0 and 3"),
        ("hidden_l", 2, "hidden_l is 2; it must lie between 0 and 1"),
        ("correlation", 5, "correlation is 5; it must lie between 1 and 4"),
        ("layers", 0, "layers is 0"),
        ("radial_widths", (), "radial_widths is"),
    ],
)
def test_impossible_networks_are_refused(field, value, phrase):
    with pytest.raises(ValueError, match=phrase):
        NetworkConfig(**{"l_max": 1, field: value})


@pytest.mark.parametrize("name", ["vectors", "densities"])
def test_files_of_the_version_before_predict_what_they_predicted(name):
    """Files and predictions of version 2, whose terms were settings of the network."""
    folder = Path(__file__).parent / "fixtures"
    potential = load_model(folder / f"version_2_{name}.safetensors")
    assert potential.terms.zbl
    kept = np.load(folder / "version_2.npz")
    kinds = "molecule", "slab", "crystal", "primitive"
    for index, found in enumerate(potential.predict([make_structure(kind) for kind in kinds])):
        expected = {key: kept.get(f"{name}.u.{index}.{key}") for key in "efs"}
        np.testing.assert_allclose(found.energies, expected["e"], rtol=1e-12)
        largest = np.abs(expected["f"]).max()
        np.testing.assert_allclose(found.forces, expected["f"], rtol=0, atol=1e-11 * largest)
        assert (found.stress is None) == (expected["s"] is None)
        if found.stress is not None:
            largest = np.abs(expected["s"]).max()
            np.testing.assert_allclose(found.stress, expected["s"], rtol=0, atol=1e-11 * largest)
