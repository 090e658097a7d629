"""Imported models compute what mace-torch computes with them; others are refused by name."""

import dataclasses
import json
import sys
import types

import mace_cases
import numpy as np
import pytest

from mlip import cli
from mlip.data.structure import to_ase
from mlip.engines.ase import Calculator
from mlip.model.mace.from_torch import from_mace

torch = pytest.importorskip("torch", reason="torch and mace-torch are not installed")
pytest.importorskip("mace", reason="mace-torch is not installed")

STRUCTURES = mace_cases.structures()
# torch gives Chebyshev's polynomials no derivative, so that mace-torch's forces lack theirs.
WITHOUT_FORCES = {"agnesi chebyshev", "soft chebyshev"}


def structures_of(name):
    heavy = mace_cases.structures(mace_cases.HEAVY)
    return list((heavy if name == "89 elements" else STRUCTURES).values())


def head_of(options):
    return "other" if "heads" in options else None


@pytest.mark.parametrize("name", [*mace_cases.CASES, "old hidden vectors", "old MACE"])
def test_energies_forces_and_stress_equal_those_of_mace_torch(name):
    options = mace_cases.CASES[name.removeprefix("old ")]
    model, head = mace_cases.build(options), head_of(options)
    model = mace_cases.make_old(model) if name.startswith("old ") else model
    potential = from_mace(model, head)
    assert potential.dtype == "float64"
    structures = structures_of(name)
    for structure, mine in zip(structures, potential.predict(structures)):
        theirs = mace_cases.evaluate(model, structure, head or "Default")
        assert abs(mine.energy - theirs["energy"]) / len(structure) < 1e-9
        np.testing.assert_allclose(mine.energies, theirs["energies"], rtol=0, atol=1e-9)
        if name in WITHOUT_FORCES:
            assert_derivative_of_energy(mine.forces, model, structure)
            continue
        assert np.abs(theirs["forces"]).max() > 0.02
        np.testing.assert_allclose(mine.forces, theirs["forces"], rtol=0, atol=1e-8)
        if "stress" in theirs:
            np.testing.assert_allclose(mine.stress, theirs["stress"], rtol=0, atol=1e-9)


def assert_derivative_of_energy(forces, model, structure):
    direction, step = np.random.default_rng(0).normal(size=forces.shape), 2e-4

    def difference(h):
        low, high = (
            mace_cases.evaluate(
                model,
                dataclasses.replace(structure, positions=structure.positions + d * direction),
                forces=False,
            )["energy"]
            for d in (-h, h)
        )
        return (high - low) / (2 * h)

    # Richardson's extrapolation: the error is of fourth order in the step.
    along = -(4 * difference(step / 2) - difference(step)) / 3
    np.testing.assert_allclose((forces * direction).sum(), along, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("name", ["hidden vectors", "like mpa-0", "89 elements"])
def test_models_in_single_precision_agree_to_single_precision(name):
    model = mace_cases.build(mace_cases.CASES[name], "float32")
    potential = from_mace(model)
    assert {value.dtype for value in potential.parameters.values()} == {np.dtype("float32")}
    structures = structures_of(name)
    single, double = potential.predict(structures), from_mace(model, None, "float64")
    model = model.double()
    for structure, mine, more in zip(structures, single, double.predict(structures)):
        theirs = mace_cases.evaluate(model, structure)
        own = theirs["energies"] - potential.e0[potential.species_of(structure)]
        energy, force = np.abs(own).max(), np.abs(theirs["forces"]).max()
        for prediction, tolerance in ((mine, 1e-5), (more, 1e-6)):
            np.testing.assert_allclose(
                prediction.energies, theirs["energies"], rtol=0, atol=tolerance * energy
            )
            np.testing.assert_allclose(
                prediction.forces, theirs["forces"], rtol=0, atol=tolerance * force
            )
            if "stress" in theirs:
                largest = np.abs(theirs["stress"]).max()
                np.testing.assert_allclose(
                    prediction.stress, theirs["stress"], rtol=0, atol=tolerance * largest
                )


def test_a_file_is_imported_described_and_computed_with(tmp_path, capsys):
    options = mace_cases.CASES["like mpa-0"] | mace_cases.TWO_HEADS
    model = mace_cases.build(options)
    source, out = tmp_path / "foundation.model", tmp_path / "out.safetensors"
    torch.save(model, source)
    assert cli.main(["import-mace", str(source), str(out)]) == 2
    assert "the model has the heads dft, other; choose one by --head" in capsys.readouterr().err
    assert cli.main(["import-mace", str(source), str(out), "--head", "other"]) == 0
    assert cli.main(["info", str(out), "--json"]) == 0
    card = json.loads(capsys.readouterr().out.partition("species\n")[2])
    assert card["interactions"] == "plain-density, then residual-density"
    assert card["training head"] == "other"
    assert card["training imported"]["name"] == "foundation.model"
    structure = STRUCTURES["crystal"]
    theirs = mace_cases.evaluate(model, structure, "other")
    for folded in (True, False):
        atoms = to_ase(structure)
        atoms.calc = Calculator(out, folded=folded)
        forces = atoms.get_forces()
        np.testing.assert_allclose(forces, theirs["forces"], rtol=0, atol=1e-6)
        energy = atoms.get_potential_energy()
        np.testing.assert_allclose(energy, theirs["energy"], rtol=0, atol=1e-6)


def built(**options):
    return mace_cases.build({"max_ell": 1, "correlation": 1} | options)


def changed(change, **options):
    model = built(**options)
    with torch.no_grad():
        change(model)
    return model


class AtomicDipolesMACE(torch.nn.Module):
    pass


def reweighed(layer, name):
    """A change of the first path of a tensor product in a layer."""

    def change(model):
        instructions = getattr(model.interactions[layer], name).instructions
        instructions[0] = instructions[0]._replace(path_weight=2.0)

    return change


def exchange_paths(model):
    """Let the two paths to scalars write each where the other did."""
    instructions = model.interactions[1].conv_tp.instructions
    places = [n for n, i in enumerate(instructions) if i.i_out < 2]
    for n in places:
        instructions[n] = instructions[n]._replace(i_out=1 - instructions[n].i_out)


Foreign = type("Foreign", (torch.nn.Linear,), {"__module__": "cuequivariance_torch"})


def in_cuequivariance(model):
    model.products[0].linear = Foreign(1, 1)


def silu_like(x):
    return torch.nn.functional.silu(x)


REFUSED = {
    "AtomicDipolesMACE as its class": AtomicDipolesMACE,
    "use_so3": lambda: built(use_so3=True),
    "edge_irreps 2x0e": lambda: built(edge_irreps=irreps("2x0e")),
    "RealAgnosticAttResidualInteractionBlock as its interaction": lambda: built(
        interaction_cls="RealAgnosticAttResidualInteractionBlock"
    ),
    "NonLinearBiasReadoutBlock as its last readout": lambda: built(
        readout_cls=block("NonLinearBiasReadoutBlock")
    ),
    "joint_embedding": lambda: built(
        embedding_specs={
            "total_charge": {
                "type": "categorical",
                "per": "graph",
                "num_classes": 3,
                "emb_dim": 4,
            }
        }
    ),
    "hidden_irreps 4x0e+4x1e": lambda: built(hidden_irreps="4x0e+4x1e", max_ell=2),
    "different correlation in its products, [1, 2]": lambda: built(correlation=[1, 2]),
    "bessel_weights = ": lambda: changed(
        lambda model: model.radial_embedding.bessel_fn.bessel_weights.mul_(1.01)
    ),
    "silu_like as gate of the last readout": lambda: changed(
        lambda model: setattr(model.readouts[-1].non_linearity.acts[0], "f", silu_like)
    ),
    "hidden_irreps 4x0e+4x1o+4x2e beyond max_ell = 1": lambda: built(
        hidden_irreps="4x0e+4x1o+4x2e", correlation=2
    ),
    "hidden_irreps 4x0e+4x2e, which are not equally many": lambda: built(
        hidden_irreps="4x0e+4x2e", max_ell=2
    ),
    "cutoff_fn.r_max = 4 beside r_max = 4.5": lambda: changed(
        lambda model: model.radial_embedding.cutoff_fn.r_max.fill_(4.0)
    ),
    "bessel_fn.r_max = 4 beside r_max = 4.5": lambda: changed(
        lambda model: model.radial_embedding.bessel_fn.r_max.fill_(4.0)
    ),
    "use_sc = False in layer 2, whose block is residual": lambda: changed(
        lambda model: setattr(model.products[1], "use_sc", False)
    ),
    "2 readouts for 3 layers": lambda: changed(
        lambda model: setattr(model, "readouts", model.readouts[1:]), num_interactions=3
    ),
    "0 readouts for 1 layers": lambda: built(num_interactions=1, use_last_readout_only=True),
    "a path_weight of 2 in conv_tp of layer 2 where mace-torch has 1": lambda: changed(
        reweighed(1, "conv_tp")
    ),
    "a path_weight of 2 in skip_tp of layer 1 where mace-torch has 0.288675": lambda: changed(
        reweighed(0, "skip_tp")
    ),
    "the couplings of layer 2 in the order [(1, 1, 0), (0, 0, 0), ": lambda: changed(
        exchange_paths, hidden_irreps="4x0e+4x1o"
    ),
    "a ZBL repulsion that reaches to 1.52 Å with these elements": lambda: built(
        pair_repulsion=True, r_max=1.5
    ),
    "parts of cuequivariance": lambda: changed(in_cuequivariance),
    "parts that do not fit together (IndexError: ": lambda: changed(
        lambda model: setattr(model.readouts[-1].non_linearity, "acts", torch.nn.ModuleList())
    ),
    "E0 of shape (1, 3) for 2 heads and 3 elements": lambda: changed(
        lambda model: setattr(
            model.atomic_energies_fn, "atomic_energies", model.atomic_energies_fn.atomic_energies[0]
        ),
        **mace_cases.TWO_HEADS,
    ),
    "different average numbers of neighbours in its layers, [6.5, 7.0]": lambda: changed(
        lambda model: setattr(model.interactions[1], "avg_num_neighbors", 7.0)
    ),
}


def irreps(text):
    from e3nn import o3

    return o3.Irreps(text)


def block(name):
    from mace import modules

    return modules.readout_classes[name]


@pytest.mark.parametrize("part", REFUSED)
def test_a_part_that_we_lack_is_refused_by_its_name(part):
    with pytest.raises(ValueError) as raised:  # noqa: PT011, the message is looked at here
        from_mace(REFUSED[part]())
    assert f"the model has {part}" in str(raised.value)


def test_a_model_of_another_version_is_refused_by_what_it_lacks():
    model = mace_cases.build({})
    del model.radial_embedding.cutoff_fn.p
    with pytest.raises(ValueError, match="the model has no p, as one of another version"):
        from_mace(model)
    model = mace_cases.build({})
    del model.products
    with pytest.raises(ValueError, match="the model has no products, as one of another version"):
        from_mace(model)
    model = mace_cases.build({})
    model.radial_embedding.bessel_fn.bessel_weights = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"the model has bessel_weights = \[1. 1. 1.\] where"):
        from_mace(model)


def test_files_that_hold_no_model_are_refused(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.safetensors"
    (tmp_path / "text.model").write_text("energy = 3")
    torch.save({"model": {}, "optimizer": {}}, tmp_path / "checkpoint.pt")
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "compiled.model")
    with monkeypatch.context() as patch:  # a package that is not there when the file is read
        patch.setitem(sys.modules, Foreign.__module__, types.SimpleNamespace(Foreign=Foreign))
        torch.save(Foreign(1, 1), tmp_path / "foreign.model")
    for name, message in {
        "absent.model": "is no file; give a .model file of mace-torch",
        "text.model": "cannot be read by torch.load",
        "checkpoint.pt": "a dict of model, optimizer, as the checkpoints of a training are; give",
        "foreign.model": "turn it into one of e3nn first, by python -m mace.cli.convert_cueq_e3nn",
        "compiled.model": "give the .model file from which it was compiled",
    }.items():
        assert cli.main(["import-mace", str(tmp_path / name), str(out)]) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_zbl_repulsion_equals_that_of_mace_torch():
    import jax
    from mace.modules.radial import ZBLBasis

    from mlip.model.radial import zbl_energy

    numbers, others = np.array([1, 8, 14, 79]), np.array([1, 6, 14, 8])
    for distance in (0.05, 0.4, 1.0, 2.0):
        with mace_cases.torch_dtype("float64"):
            pairs = ZBLBasis(p=5)(
                torch.full((4, 1), distance),
                torch.eye(8),
                torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]]),
                torch.tensor([*numbers, *others]),
            )
        with jax.enable_x64(True):
            mine = zbl_energy(jax.numpy.full(4, distance, "float64"), numbers, others, order=5)
        # They count each pair once from either side.
        np.testing.assert_allclose(np.asarray(mine) / 2, pairs[4:], rtol=1e-12, atol=1e-12)
