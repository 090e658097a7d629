"""The network computes what mace-torch's ScaleShiftMACE computes, its constants included."""

import numpy as np
import pytest

from mlip.data.structure import Structure, to_ase
from mlip.model.network import NetworkConfig, paths
from mlip.model.potential import untrained
from mlip.model.radial import SILU_GAIN
from mlip.model.so3 import symmetric_coupling

torch = pytest.importorskip("torch", reason="torch and mace-torch are not installed")
mace = pytest.importorskip("mace", reason="mace-torch is not installed")

SPECIES = (1, 6, 8)
AVERAGE_NEIGHBORS, SCALE, SHIFT = 6.5, 0.7, -1.3
E0 = (-13.5, -1027.0, -2038.0)


def reference_model(config):
    from e3nn import o3
    from mace.modules import ScaleShiftMACE, gate_dict, interaction_classes

    block = interaction_classes["RealAgnosticResidualInteractionBlock"]
    hidden = " + ".join(f"{config.channels}x{l}{'eo'[l % 2]}" for l in range(config.hidden_l + 1))
    return ScaleShiftMACE(
        r_max=config.cutoff,
        num_bessel=config.n_radial,
        num_polynomial_cutoff=config.cutoff_order,
        max_ell=config.l_max,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=config.layers,
        num_elements=len(SPECIES),
        hidden_irreps=o3.Irreps(hidden),
        MLP_irreps=o3.Irreps(f"{config.readout_width}x0e"),
        atomic_energies=np.array(E0),
        avg_num_neighbors=AVERAGE_NEIGHBORS,
        atomic_numbers=list(SPECIES),
        correlation=config.correlation,
        gate=gate_dict["silu"],
        radial_MLP=list(config.radial_widths),
        radial_type="bessel",
        atomic_inter_scale=SCALE,
        atomic_inter_shift=SHIFT,
    )


def linear_blocks(flat, blocks):
    """Cut e3nn's flat weights of a linear map into its [rows, columns] blocks."""
    sizes = np.cumsum([rows * columns for rows, columns in blocks])
    parts = np.split(flat, sizes[:-1])
    return [part.reshape(block) for part, block in zip(parts, blocks)]


def symmetric_weights(u_matrix, weights, l_max, l_out, order):
    """MACE's product weights in our basis, which spans the same polynomials.

    u_matrix: [2 l_out + 1, components (order times), n_paths]; weights: [n_species, n_paths, c].
    """
    monomials, basis = symmetric_coupling(l_max, l_out, order)
    position = {tuple(monomial): n for n, monomial in enumerate(monomials.tolist())}
    theirs = np.zeros((u_matrix.shape[-1], 2 * l_out + 1, len(monomials)))
    for index in np.argwhere(np.abs(u_matrix).max(axis=(0, -1)) > 1e-9):
        n = position.get(tuple(sorted(index.tolist())))
        if n is not None:
            theirs[:, :, n] += u_matrix[(slice(None), *index)].T
    ours = basis.reshape(len(basis), -1)
    change, *_ = np.linalg.lstsq(ours.T, theirs.reshape(len(theirs), -1).T, rcond=None)
    np.testing.assert_allclose(change.T @ ours, theirs.reshape(len(theirs), -1), atol=1e-6)
    return np.einsum("kp,zpc->kzc", change, weights)


def converted(model, config):
    """Our parameters from the weights of a ScaleShiftMACE."""
    state = {k: v.detach().numpy().astype(float) for k, v in model.state_dict().items()}
    channels, n_species, l_max = config.channels, len(SPECIES), config.l_max
    parameters = {"embedding": state["node_embedding.linear.weight"].reshape(n_species, channels)}
    for layer in range(config.layers):
        name = f"interactions.{layer}."
        l_in = 0 if layer == 0 else config.hidden_l
        last = layer == config.layers - 1
        l_out = 0 if last else config.hidden_l
        square = (channels, channels)
        ups = linear_blocks(state[name + "linear_up.weight"], [square] * (l_in + 1))
        for l, weight in enumerate(ups):
            parameters[f"up_{layer}_{l}"] = weight

        routes = paths(l_in, l_max)
        gain = model.interactions[layer].conv_tp_weights.layer0.act.cst / SILU_GAIN
        for step in range(len(config.radial_widths) + 1):
            weight = state[f"{name}conv_tp_weights.layer{step}.weight"]
            parameters[f"radial_{layer}_{step}"] = weight * (gain if step else 1.0)
        # e3nn orders the paths by the degree they lead to; the sort is stable.
        order = sorted(range(len(routes)), key=lambda r: routes[r][2])
        final = parameters[f"radial_{layer}_{len(config.radial_widths)}"]
        blocks = final.reshape(len(final), len(routes), channels)
        theirs = np.empty_like(blocks)
        theirs[:, order] = blocks
        parameters[f"radial_{layer}_{len(config.radial_widths)}"] = theirs.reshape(final.shape)

        counts = [sum(route[2] == l for route in routes) for l in range(l_max + 1)]
        mixes = linear_blocks(
            state[name + "linear.weight"], [(count * channels, channels) for count in counts]
        )
        for l, weight in enumerate(mixes):
            parameters[f"mix_{layer}_{l}"] = weight
        skips = state[name + "skip_tp.weight"].reshape(-1, channels, n_species, channels)
        for l, weight in enumerate(skips):
            parameters[f"skip_{layer}_{l}"] = weight.transpose(1, 0, 2)

        name = f"products.{layer}."
        for l in range(l_out + 1):
            contraction = f"{name}symmetric_contractions.contractions.{l}."
            for order in range(1, config.correlation + 1):
                u_matrix = state[f"{contraction}U_matrix_{order}"]
                u_matrix = u_matrix.reshape(2 * l + 1, *[(l_max + 1) ** 2] * order, -1)
                highest = order == config.correlation
                entry = "weights_max" if highest else f"weights.{config.correlation - 1 - order}"
                parameters[f"product_{layer}_{l}_{order}"] = symmetric_weights(
                    u_matrix, state[contraction + entry], l_max, l, order
                )
        outs = linear_blocks(state[name + "linear.weight"], [square] * (l_out + 1))
        for l, weight in enumerate(outs):
            parameters[f"out_{layer}_{l}"] = weight

        name = f"readouts.{layer}."
        if last and layer > 0:
            width = config.readout_width
            gain = model.readouts[layer].non_linearity.acts[0].cst / SILU_GAIN
            parameters[f"readout_{layer}_hidden"] = state[name + "linear_1.weight"].reshape(
                -1, width
            )
            parameters[f"readout_{layer}"] = (
                state[name + "linear_2.weight"].reshape(width, 1) * gain
            )
        else:
            parameters[f"readout_{layer}"] = state[name + "linear.weight"].reshape(channels, 1)
    return parameters


def structures():
    rng = np.random.default_rng(3)
    cell = np.array([[3.4, 0.3, 0.1], [-0.6, 3.8, 0.2], [0.4, 0.9, 4.1]])
    molecule = rng.normal(scale=1.5, size=(6, 3))
    yield "molecule", Structure(rng.choice(SPECIES, 6), molecule, np.zeros((3, 3)), [False] * 3)
    inside = rng.random((4, 3)) @ cell
    yield "crystal", Structure(rng.choice(SPECIES, 4), inside, cell, [True] * 3)
    cell = cell.copy()
    cell[2] *= 4
    yield "slab", Structure(rng.choice(SPECIES, 4), inside, cell, [True, True, False])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hidden_l": 1, "l_max": 2},
        {"hidden_l": 2, "correlation": 2},
        {"layers": 1, "l_max": 1, "correlation": 4},
        {"layers": 3, "hidden_l": 1, "l_max": 1, "correlation": 1},
    ],
    ids=str,
)
def test_energy_forces_and_stress_equal_those_of_mace_torch(options):
    from dataclasses import replace

    from mace.data import AtomicData, config_from_atoms
    from mace.tools import AtomicNumberTable, torch_geometric

    config = NetworkConfig(channels=6, radial_widths=(12, 12), **options)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = reference_model(config)
        ours = replace(
            untrained(config, SPECIES, dtype="float64", average_neighbors=AVERAGE_NEIGHBORS),
            parameters=converted(model, config),
            e0=np.array(E0),
            shift=np.full(3, SHIFT),
            scale=np.full(3, SCALE),
        )
        names, frames = zip(*structures())
        for name, structure, mine in zip(names, frames, ours.predict(frames)):
            data = AtomicData.from_config(
                config_from_atoms(to_ase(structure)),
                z_table=AtomicNumberTable(list(SPECIES)),
                cutoff=config.cutoff,
            )
            batch = next(iter(torch_geometric.dataloader.DataLoader([data], batch_size=1)))
            theirs = model(batch.to_dict(), compute_force=True, compute_stress=True)
            error = abs(mine.energy - theirs["energy"].item()) / len(structure)
            assert error < 1e-9, name
            forces = theirs["forces"].detach().numpy()
            np.testing.assert_allclose(mine.forces, forces, rtol=0, atol=1e-8, err_msg=name)
            if name == "crystal":
                stress = theirs["stress"].detach().numpy()[0]
                np.testing.assert_allclose(mine.stress, stress, rtol=0, atol=1e-9, err_msg=name)
    finally:
        torch.set_default_dtype(default)


def test_the_zbl_repulsion_equals_that_of_mace_torch():
    import jax
    from mace.modules.radial import ZBLBasis

    from mlip.model.radial import zbl_energy

    numbers, others = np.array([1, 8, 14, 79]), np.array([1, 6, 14, 8])
    for distance in (0.05, 0.4, 1.0, 2.0):
        attributes = torch.eye(8, dtype=torch.float64)
        edges = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
        theirs = ZBLBasis(p=6).to(torch.float64)(
            torch.full((4, 1), distance, dtype=torch.float64),
            attributes,
            edges,
            torch.tensor([*numbers, *others]),
        )
        with jax.enable_x64(True):
            mine = zbl_energy(jax.numpy.full(4, distance, "float64"), numbers, others)
        # They count each pair once from either side, with constants rounded to float32.
        np.testing.assert_allclose(np.asarray(mine) / 2, theirs[4:], rtol=1e-6, atol=1e-9)
