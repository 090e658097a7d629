"""A network of the user's own: trained, saved, loaded and used as ours; refused with a reason."""

import os
import subprocess
import sys
from dataclasses import replace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_structure, random_rotation

import mlip
from mlip.cli import main
from mlip.model.file import load_model, save_model
from mlip.quickstart import data_file
from mlip.training.setup import prepare


class Pairwise(nn.Module):
    """A sum over neighbours of a perceptron of the distance."""

    cutoff: float = 4.0
    features: int = 4
    n_species: int = 0

    def weight(self, distance):
        return mlip.smooth_cutoff(distance, self.cutoff, 5)

    def energies(self, messages):
        return messages.sum(axis=(1, 2))

    @nn.compact
    def __call__(self, graph):
        distance = jnp.sqrt((graph.displacement**2).sum(axis=-1, keepdims=True))
        kinds = nn.Embed(self.n_species, self.features)(graph.species)
        filters = nn.Dense(self.features)(nn.silu(nn.Dense(self.features)(distance)))
        messages = kinds[:, None] * kinds[graph.neighbors] * filters * self.weight(distance)
        return self.energies(messages)


class SeesPadding(Pairwise):
    def weight(self, distance):
        return jnp.ones_like(distance)


class OneEnergy(Pairwise):
    def energies(self, messages):
        return messages.sum()


class ManyDipoles(Pairwise):
    """Dipoles of atoms, where those of structures belong."""

    quantities = ("dipole",)

    def energies(self, messages):
        energies = messages.sum(axis=(1, 2))
        return mlip.Outputs(energies, quantities={"dipole": jnp.zeros((len(energies), 3))})


class HiddenDipoles(ManyDipoles):
    quantities = ()


class Tells(Pairwise):
    quantities = ("temper",)


class NoSpecies(nn.Module):
    cutoff: float = 4.0


class NoCutoff(nn.Module):
    n_species: int = 0


class WithState(Pairwise):
    def energies(self, messages):
        self.variable("state", "mean", lambda: jnp.zeros(()))
        return messages.sum(axis=(1, 2))


CONFIG = mlip.TrainConfig(
    train=str(data_file("ethanol_train.xyz")), max_epochs=1, batch_size=40, dtype="float64"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a short training of the network."""
    out = tmp_path_factory.mktemp("own") / "run"
    mlip.train(replace(CONFIG, out=str(out)), model=Pairwise(features=3))
    return out


def test_it_is_trained_saved_and_loaded_with_its_settings(trained):
    potential = mlip.load(trained / "model.safetensors", model=Pairwise)
    assert potential.config.features == 3
    assert potential.species == (1, 6, 8)
    again = trained / "again.safetensors"
    save_model(potential, again)
    structure = mlip.read(data_file("ethanol_test_300K.xyz"))[0]
    one, other = (p(structure) for p in (potential, load_model(again, model=Pairwise)))
    np.testing.assert_array_equal(one.forces, other.forces)


def test_forces_and_stress_are_derivatives_and_turn_with_the_structure():
    potential = mlip.untrained(Pairwise(), (1, 8, 14), dtype="float64")
    crystal, rng = make_structure("crystal"), np.random.default_rng(0)
    found, way = potential(crystal), rng.normal(size=(len(crystal), 3))
    ends = [
        potential(replace(crystal, positions=crystal.positions + h * way)) for h in (-1e-5, 1e-5)
    ]
    slope = (ends[1].energy - ends[0].energy) / 2e-5
    np.testing.assert_allclose(-(found.forces * way).sum(), slope, rtol=1e-7)
    strain = rng.normal(size=(3, 3))
    strain = (strain + strain.T) / 2
    ends = []
    for h in (-1e-5, 1e-5):
        stretch = np.eye(3) + h * strain
        moved = replace(crystal, positions=crystal.positions @ stretch, cell=crystal.cell @ stretch)
        ends.append(potential(moved).energy)
    slope = (ends[1] - ends[0]) / 2e-5 / crystal.volume
    np.testing.assert_allclose((found.stress * strain).sum(), slope, rtol=1e-6)
    turn = random_rotation(rng)
    turned = replace(crystal, positions=crystal.positions @ turn.T, cell=crystal.cell @ turn.T)
    np.testing.assert_allclose(potential(turned).forces, found.forces @ turn.T, atol=1e-10)


def test_code_that_a_file_names_is_not_imported(trained):
    program = f"import mlip; mlip.load({str(trained / 'model.safetensors')!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "no code that a file names is imported; give the class" in done.stderr
    assert "--model-class test_own_network:Pairwise" in done.stderr


def test_another_class_than_the_files_is_refused(trained, small_potential, tmp_path):
    with pytest.raises(ValueError, match=r"is test_own_network:Pairwise, not .*NoCutoff; give"):
        mlip.load(trained / "model.safetensors", model=NoCutoff)
    save_model(small_potential, tmp_path / "ours.safetensors")
    with pytest.raises(ValueError, match="of the MACE family, not .* load it without a class"):
        mlip.load(tmp_path / "ours.safetensors", model=Pairwise)


def test_a_configuration_file_names_it(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from test_own_network import Pairwise\nclass Mine(Pairwise):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "config.toml").write_text(
        f'train = "{CONFIG.train}"\nmax_epochs = 1\nbatch_size = 40\ndtype = "float64"\n'
        f'out = "{tmp_path / "run"}"\n[model]\nclass = "my_networks:Mine"\nfeatures = 2\n'
    )
    assert main(["train", str(tmp_path / "config.toml")]) == 0
    model = str(tmp_path / "run" / "model.safetensors")
    assert load_model(model).config.features == 2  # the run has registered the class
    assert main(["info", model, "--model-class", "my_networks:Mine"]) == 0
    data = str(data_file("ethanol_test_300K.xyz"))
    words = ["--out", str(tmp_path / "errors"), "--no-probe"]
    assert main(["evaluate", model, data, "--model-class", "my_networks:Mine", *words]) == 0


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (SeesPadding(), "SeesPadding sees padding: .* vanishes at the cutoff"),
        (OneEnergy(), r"OneEnergy gives energies of shape \(\) .* one energy for each atom"),
        (WithState(), "WithState has variables besides parameters: state"),
        (ManyDipoles(), r"gives a dipole of shape \(5, 3\) .* has to be \(2, 3\)"),
        (HiddenDipoles(), r"names the quantities \[\] and gives \['dipole'\]"),
        (Tells(), "Tells predicts temper, which the table of quantities does not have"),
        (NoSpecies(), "NoSpecies has no field n_species; add"),
        (NoCutoff(), "NoCutoff has cutoff = None; give it the attribute cutoff"),
    ],
)
def test_a_network_that_breaks_the_contract_is_refused(network, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        mlip.train(replace(CONFIG, out=str(tmp_path)), model=network)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"features": 3}, "it needs class"),
        ({"class": "nowhere:Mine"}, "cannot be imported"),
        ({"class": "pathlib:Path"}, "is no class of flax modules"),
        ({"class": "test_own_network:Pairwise", "width": 3}, "unexpected keyword argument 'width'"),
    ],
)
def test_a_section_that_names_no_network_is_refused(table, reason):
    with pytest.raises(ValueError, match=reason):
        prepare(replace(CONFIG, model=table))


class Deep(Pairwise):
    """Layers in the order of their names would be 1, 10, 2, …"""

    layers: int = 11
    widths: tuple[int, ...] = (3, 4)

    @nn.compact
    def __call__(self, graph):
        x = nn.Embed(self.n_species, self.features)(graph.species)
        for _ in range(self.layers):
            x = nn.Dense(self.features)(x)
        distance = jnp.sqrt((graph.displacement**2).sum(axis=-1, keepdims=True))
        return (x[graph.neighbors] * self.weight(distance)).sum(axis=(1, 2))


def test_fine_tuning_goes_on_with_its_network_and_moves_the_last_layers(trained, tmp_path):
    from mlip.training.finetune import adopt_network, names_that_move

    model = str(trained / "model.safetensors")
    for network in ({}, {"class": "test_own_network:Pairwise"}):
        config = replace(CONFIG, init=model, model=network, out=str(tmp_path / "more"))
        assert adopt_network(config).model["features"] == 3
    wrong = replace(CONFIG, init=model, model={"class": "test_own_network:Pairwise", "features": 9})
    with pytest.raises(ValueError, match="whose network is .*'features': 3.*leave the settings"):
        adopt_network(wrong)
    deep = mlip.untrained(Deep(), ["H"])
    moving = names_that_move("last", deep)
    assert {name.partition("/")[0] for name in moving} == {"Dense_10"}


def test_settings_that_are_tuples_come_back(tmp_path):
    potential = mlip.untrained(Deep(widths=(5, 6)), ["H"])
    mlip.save(potential, tmp_path / "deep.safetensors")
    assert mlip.load(tmp_path / "deep.safetensors", model=Deep).config.widths == (5, 6)


def test_a_single_precision_network_stays_single_where_sums_are_double():
    from mlip.model.contract import small_graph
    from mlip.model.execution import Execution
    from mlip.model.potential import double_sums

    potential = mlip.untrained(Pairwise(), ["H"], dtype="float32")
    with double_sums():
        graph = small_graph(potential.model)
        found = potential.model.outputs(potential.weights, graph, Execution())
    assert found.energies.dtype == "float32"


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Pairwise, "Pairwise is a class; give an instance"),
        (Deep(layers=0), "Deep has layers = 0; give the number"),
        (Deep(widths=[3]), "fields of the network Deep cannot be hashed"),
    ],
)
def test_descriptions_that_make_no_model_are_refused(network, reason):
    with pytest.raises(ValueError, match=reason):
        mlip.untrained(network, ["H"])


def test_a_class_of_the_same_name_elsewhere_is_not_taken_unasked(trained, tmp_path):
    """Of another version of a class the numbers would be others."""
    (tmp_path / "elsewhere.py").write_text(
        "import mlip, sys\nfrom test_own_network import Pairwise as Base\n"
        "class Pairwise(Base):\n    pass\n"
    )
    model = str(trained / "model.safetensors")
    program = f"import elsewhere, mlip; mlip.register(elsewhere.Pairwise); mlip.load({model!r})"
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    settings = {"env": os.environ | {"PYTHONPATH": paths}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", program], **settings)
    assert "no code that a file names is imported; give the class" in done.stderr
    words = ["-m", "mlip.cli", "info", model, "--model-class", "elsewhere:Pairwise"]
    done = subprocess.run([sys.executable, *words], **settings)
    assert done.returncode == 0, done.stderr
