"""Models of mace-torch with random weights, and what they say of a few structures."""

import contextlib

import numpy as np

from mlip.data.structure import Structure, to_ase

SPECIES = (1, 6, 8)
ELEMENTS = (*range(1, 84), *range(89, 95))  # the 89 of the models of the Materials Project
HEAVY = (8, 40, 79, 92)
PLAIN, RESIDUAL = "RealAgnosticInteractionBlock", "RealAgnosticResidualInteractionBlock"
DENSITY = "RealAgnosticDensityInteractionBlock"
DENSITY_RESIDUAL = "RealAgnosticDensityResidualInteractionBlock"
DEFAULTS = {
    "model": "ScaleShiftMACE",
    "r_max": 4.5,
    "num_bessel": 6,
    "num_polynomial_cutoff": 5,
    "max_ell": 2,
    "interaction_cls": RESIDUAL,
    "interaction_cls_first": RESIDUAL,
    "num_interactions": 2,
    "hidden_irreps": "4x0e",
    "MLP_irreps": "5x0e",
    "avg_num_neighbors": 6.5,
    "correlation": 2,
    "radial_MLP": [8, 8],
    "atomic_inter_scale": 200.0,
    "atomic_inter_shift": -1.3,
    "atomic_numbers": SPECIES,
}
TWO_HEADS = {
    "heads": ["dft", "other"],
    "atomic_inter_scale": [200.0, 150.0],
    "atomic_inter_shift": [-1.3, 0.4],
}
# Every option at least once, in networks as small as show it.
CASES = {
    "plain": {"max_ell": 3, "correlation": 3},
    "hidden vectors": {"hidden_irreps": "4x0e+4x1o", "correlation": 3},
    "hidden L=2": {"hidden_irreps": "3x0e+3x1o+3x2e", "correlation": 3},
    "like a medium MACE": {"hidden_irreps": "2x0e+2x1o", "max_ell": 3, "correlation": 3},
    "hidden L=3": {"hidden_irreps": "3x0e+3x1o+3x2e+3x3o", "max_ell": 3},
    "one layer, four-body products": {"num_interactions": 1, "correlation": 4, "max_ell": 1},
    "correlation 4": {"correlation": 4, "hidden_irreps": "3x0e+3x1o", "max_ell": 1},
    "three layers": {"num_interactions": 3, "hidden_irreps": "4x0e+4x1o"},
    "MACE": {"model": "MACE", "interaction_cls_first": PLAIN, "pair_repulsion": True},
    "plain throughout": {
        "interaction_cls": PLAIN,
        "interaction_cls_first": PLAIN,
        "hidden_irreps": "4x0e+4x1o",
    },
    "density first": {"interaction_cls_first": DENSITY, "hidden_irreps": "4x0e+4x1o"},
    "density residual": {
        "interaction_cls": DENSITY_RESIDUAL,
        "interaction_cls_first": DENSITY_RESIDUAL,
        "radial_type": "gaussian",
        "num_bessel": 128,  # what GaussianBasis has by default
    },
    "density throughout": {
        "interaction_cls": DENSITY,
        "interaction_cls_first": DENSITY,
        "radial_type": "gaussian",
        "distance_transform": "Soft",
        "apply_cutoff": False,
    },
    "soft bessel": {"distance_transform": "Soft", "num_polynomial_cutoff": 6},
    "agnesi chebyshev": {
        "distance_transform": "Agnesi",
        "radial_type": "chebyshev",
        "num_interactions": 1,
    },
    "soft chebyshev": {
        "distance_transform": "Soft",
        "radial_type": "chebyshev",
        "num_bessel": 2,  # polynomials of distances beyond 1 grow large
        "num_interactions": 1,
    },
    "gaussian agnesi": {
        "radial_type": "gaussian",
        "distance_transform": "Agnesi",
        "hidden_irreps": "4x0e+4x1o",
        "apply_cutoff": False,
    },
    "like mpa-0": {
        "interaction_cls": DENSITY_RESIDUAL,
        "interaction_cls_first": DENSITY,
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
        "hidden_irreps": "4x0e+4x1o",
        "correlation": 3,
    },
    "two heads": {**TWO_HEADS, "hidden_irreps": "4x0e+4x1o"},
    "two heads, one layer": {**TWO_HEADS, "num_interactions": 1},
    "agnostic product": {"use_agnostic_product": True},
    "last readout only": {"use_last_readout_only": True},
    "irreps to the end": {"keep_last_layer_irreps": True, "hidden_irreps": "4x0e+4x1o"},
    "89 elements": {
        "atomic_numbers": ELEMENTS,
        "interaction_cls": DENSITY_RESIDUAL,
        "interaction_cls_first": DENSITY,
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
        "r_max": 6.0,
        "hidden_irreps": "2x0e+2x1o",
        "max_ell": 1,
    },
    "many species": {
        "atomic_numbers": tuple(range(1, 17)),
        "hidden_irreps": "3x0e+3x1o",
        "interaction_cls_first": PLAIN,
    },
}


@contextlib.contextmanager
def torch_dtype(dtype):
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def atomic_energies(numbers):
    return -13.5 * np.asarray(numbers, float) ** 1.5


def build(options, dtype="float64", seed=0):
    """A model of mace-torch with random weights, in evaluation mode."""
    import torch
    from mace import modules  # before e3nn, which reads its tables in a way that mace allows

    from e3nn import o3  # isort: skip

    settings = DEFAULTS | options
    numbers = settings["atomic_numbers"]
    settings["hidden_irreps"] = o3.Irreps(settings["hidden_irreps"])
    settings["MLP_irreps"] = o3.Irreps(settings["MLP_irreps"])
    for name in ("interaction_cls", "interaction_cls_first"):
        settings[name] = modules.interaction_classes[settings[name]]
    e0 = atomic_energies(numbers)
    if "heads" in settings:
        e0 = np.stack([e0, 1.1 * e0])
    if settings["model"] == "MACE":
        del settings["atomic_inter_scale"], settings["atomic_inter_shift"]
    torch.manual_seed(seed)
    with torch_dtype(dtype):
        return getattr(modules, settings.pop("model"))(
            **settings,
            num_elements=len(numbers),
            atomic_energies=e0,
            gate=modules.gate_dict["silu"],
        )


def make_old(model):
    """Take away from a model what files of older versions of mace-torch lack; change types too."""
    import torch

    embedding = model.radial_embedding
    parts = {
        model: ("heads", "apply_cutoff", "use_so3", "use_agnostic_product", "oeq_config")
        + ("use_last_readout_only",),
        embedding: ("apply_cutoff",),
        **{part: ("use_agnostic_product",) for part in model.products},
        **{part: ("num_heads",) for part in model.readouts},
        **{part: ("oeq_config",) for part in model.interactions},
    }
    for part, names in parts.items():
        for name in names:
            part.__dict__.pop(name, None)
    embedding.cutoff_fn.p = embedding.cutoff_fn.p.to(model.r_max.dtype)
    weights = embedding.bessel_fn.__dict__["_buffers"].pop("bessel_weights")
    embedding.bessel_fn.bessel_weights = torch.nn.Parameter(weights)
    return model


def structures(species=SPECIES):
    """A molecule, a small skewed crystal, and a slab, by name."""
    rng = np.random.default_rng(3)
    cell = np.array([[3.4, 0.3, 0.1], [-0.6, 3.8, 0.2], [0.4, 0.9, 4.1]])
    molecule = rng.normal(scale=1.5, size=(6, 3))
    inside = rng.random((4, 3)) @ cell
    slab = cell * [[1], [1], [4]]
    return {
        "molecule": Structure(rng.choice(species, 6), molecule, np.zeros((3, 3)), [False] * 3),
        "crystal": Structure(rng.choice(species, 4), inside, cell, [True] * 3),
        "slab": Structure(rng.choice(species, 4), inside, slab, [True, True, False]),
    }


def evaluate(model, structure, head="Default", forces=True):
    """Energy, energies of the atoms, forces and stress by mace-torch, as NumPy arrays."""
    from mace.data import AtomicData, config_from_atoms
    from mace.tools import AtomicNumberTable, torch_geometric

    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    with torch_dtype(dtype):
        data = AtomicData.from_config(
            config_from_atoms(to_ase(structure), head_name=head),
            z_table=AtomicNumberTable(model.atomic_numbers.tolist()),
            cutoff=float(model.r_max),
            heads=getattr(model, "heads", None),
        )
        batch = next(iter(torch_geometric.dataloader.DataLoader([data], batch_size=1)))
        found = model(batch.to_dict(), compute_force=forces, compute_stress=forces)
    values = {
        "energy": found["energy"].item(),
        "energies": found["node_energy"].detach().numpy().astype(float),
    }
    if forces:
        values["forces"] = found["forces"].detach().numpy().astype(float)
        if np.isfinite(structure.volume):
            # Of slabs mace-torch inflates the cell, and with it the volume it divides by.
            virial = found["virials"].detach().numpy().astype(float)[0]
            values["stress"] = -virial / structure.volume
    return values
