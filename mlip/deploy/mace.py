"""Trained models of mace-torch as potentials of ours: the same function of the same weights.

Every part of the model is looked at, and one that we do not have is refused by its name. Weights
are cut out of e3nn's modules by what these say of themselves, then checked by shape. The constants
of the radial functions are checked and then taken unrounded: a model made in float32 holds them to
7 digits, so that it agrees in float64 to about 1e-7 only.
"""

import hashlib
import math
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mlip.model.network import Network, NetworkConfig, parameter_shapes, paths
from mlip.model.potential import Potential
from mlip.model.radial import (
    AGNESI_A,
    AGNESI_P,
    AGNESI_Q,
    SILU_GAIN,
    SOFT_STEEPNESS,
    ZBL_EXPONENT,
    ZBL_WEIGHTS,
    covalent_radii,
)
from mlip.model.so3 import symmetric_coupling

INTERACTIONS = {
    "RealAgnosticInteractionBlock": "plain",
    "RealAgnosticResidualInteractionBlock": "residual",
    "RealAgnosticDensityInteractionBlock": "plain-density",
    "RealAgnosticDensityResidualInteractionBlock": "residual-density",
}
BASES = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}
TRANSFORMS = {"AgnesiTransform": "agnesi", "SoftTransform": "soft"}
SINGLE = 2e-6  # relative error of constants that were rounded to float32


def read_mace(path, head=None, dtype=None):
    """The potential in a file that mace-torch saved; needs torch and mace-torch.

    Such a file is a pickle, which may run any code: read only those of people you trust.

    Args:
      path: a `.model` file; TorchScript (`_compiled.model`, `-lammps.pt`) is refused.
      head: name of the head, where the model has several.
      dtype: "float32" or "float64"; by default that of the model.

    Raises:
      RuntimeError: torch or mace-torch is not installed.
      FileNotFoundError: no such file.
      ValueError: it is no model, or one with a part that we do not have; see `from_mace`.
    """
    try:
        import mace  # noqa: F401, its classes are named in the file
        import torch
    except ImportError as error:
        raise RuntimeError(
            f"{error}; reading MACE's models needs pip install 'mlip-jax[mace]'"
        ) from None
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; give a .model file of mace-torch")
    try:
        model = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a pickle may raise anything
        raise ValueError(f"{path} cannot be read by torch.load: {error}") from None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    training = {
        "imported": {"name": path.name, "sha256": digest},
        "by": f"mlip-jax {version('mlip-jax')}, mace-torch {version('mace-torch')}",
    }
    return from_mace(model, head, dtype, training)


def from_mace(model, head=None, dtype=None, training=None):
    """The potential that computes what a `MACE` or `ScaleShiftMACE` of mace-torch computes.

    Args:
      model: the module.
      head, dtype: see `read_mace`.
      training: where the model comes from, for the model file.

    Raises:
      ValueError: a part that we do not have, by name; a head that is not there, or several to
        choose from; weights whose shapes do not fit.
    """
    config = config_of(model)
    heads = list(getattr(model, "heads", None) or ["Default"])
    chosen = _choose(heads, head)
    numbers = _array(model.atomic_numbers).astype(int)
    e0 = np.atleast_2d(_array(model.atomic_energies_fn.atomic_energies))[chosen]
    scale, shift = 1.0, 0.0
    if hasattr(model, "scale_shift"):
        scale, shift = (
            np.atleast_1d(_array(getattr(model.scale_shift, name))) for name in ("scale", "shift")
        )
        scale, shift = (values[chosen if len(values) > 1 else 0] for values in (scale, shift))
    order = np.argsort(numbers)
    parameters = _parameters(model, config, len(heads), chosen)
    dtype = dtype or str(next(model.parameters()).dtype).removeprefix("torch.")
    for name, values in parameters.items():
        if name == "embedding" or name.startswith(("skip", "select")):
            values = values[order]
        elif name.startswith("product"):
            values = values[:, order]
        parameters[name] = np.ascontiguousarray(values, dtype)
    potential = Potential(
        config=config,
        species=tuple(numbers[order].tolist()),
        parameters=parameters,
        e0=e0[order],
        shift=np.full(len(numbers), shift),
        scale=np.full(len(numbers), scale),
        average_neighbors=_average_neighbors(model),
        dtype=dtype,
        training=(training or {}) | {"head": heads[chosen]},
    )
    for name, shape in parameter_shapes(Network(config, len(numbers))).items():
        if parameters[name].shape != shape:
            raise ValueError(
                f"the weights that make {name} have shape {parameters[name].shape}, but the parts "
                f"of the model ask for {shape}"
            )
    return potential


def _choose(heads, head):
    if head is None and len(heads) == 1:
        return 0
    if head not in heads:
        asked = "" if head is None else f", not {head!r}"
        raise ValueError(f"the model has the heads {', '.join(heads)}{asked}; choose one by --head")
    return heads.index(head)


def _average_neighbors(model):
    values = {float(_array(block.avg_num_neighbors)) for block in model.interactions}
    if len(values) > 1:
        _refuse(f"different average numbers of neighbours in its layers, {sorted(values)}")
    return values.pop()


def _refuse(part):
    raise ValueError(
        f"the model has {part}; MACE and ScaleShiftMACE with the blocks "
        f"{', '.join(INTERACTIONS)} and scalar readouts can be imported"
    )


def _require_type(module, name, *known):
    """Refuse a part that is none of the known classes; returns the name of its class."""
    found = type(module).__name__
    if found not in known:
        _refuse(f"{found} as its {name}")
    return found


def _require_constants(name, values, expected):
    if not np.allclose(_array(values), expected, rtol=SINGLE, atol=SINGLE):
        _refuse(f"{name} = {_array(values)} where mace-torch has {np.asarray(expected)}: trained")


def _array(values):
    """A tensor or number as NumPy in float64."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, float)


def config_of(model):
    """The `NetworkConfig` of a MACE model.

    Raises:
      ValueError: a part that we do not have, by name.
    """
    _require_type(model, "class", "MACE", "ScaleShiftMACE")
    for name in ("joint_embedding", "embedding_readout", "les"):
        if hasattr(model, name):
            _refuse(name)
    if getattr(model, "use_so3", False):
        _refuse("use_so3")
    l_max = int(model.spherical_harmonics._lmax)
    if l_max > 3:
        _refuse(f"spherical harmonics up to degree {l_max} (max_ell), of which 3 is the highest")
    blocks, last = list(model.interactions), model.readouts[-1]
    for block in blocks:
        _check_interaction(block)
    kinds = [INTERACTIONS[type(block).__name__] for block in blocks]
    if len(set(kinds[1:])) > 1:
        _refuse(f"different blocks after the first layer, {', '.join(kinds[1:])}")
    hidden = _require_type(last, "last readout", "LinearReadoutBlock", "NonLinearReadoutBlock")
    channels = blocks[0].node_feats_irreps.dim
    orders = {len(part.weights) + 1 for p in model.products for part in _contractions(p)}
    if len(orders) > 1:
        _refuse(f"different correlation in its products, {sorted(orders)}")
    widths = {tuple(block.conv_tp_weights.hs[1:-1]) for block in blocks}
    if len(widths) > 1:
        _refuse(f"different radial networks in its layers, {sorted(widths)}")
    n_heads = len(getattr(model, "heads", None) or [""])
    is_hidden = hidden == "NonLinearReadoutBlock"
    if is_hidden:
        _require_silu(last.non_linearity.acts[0], "gate of the last readout")
    between = blocks[1:] or blocks[:1]
    return NetworkConfig(
        channels=channels,
        l_max=l_max,
        hidden_l=_degrees(between[0].node_feats_irreps, channels, "hidden_irreps"),
        correlation=orders.pop(),
        layers=len(blocks),
        radial_widths=widths.pop(),
        readout_width=last.hidden_irreps.dim // n_heads if is_hidden else 16,
        hidden_readout=is_hidden,
        interaction=kinds[-1],
        first_interaction=kinds[0],
        **_radial_settings(model),
        **_zbl_settings(model),
    )


def _check_interaction(block):
    _require_type(block, "interaction", *INTERACTIONS)
    if block.linear_up.irreps_out != block.node_feats_irreps:
        _refuse(f"edge_irreps {block.linear_up.irreps_out}")
    _require_type(block.conv_tp, "conv_tp", "TensorProduct")
    for name in ("linear_up", "linear"):
        _require_type(getattr(block, name), name, "Linear")
    _require_type(block.skip_tp, "skip_tp", "FullyConnectedTensorProduct")
    _require_silu(block.conv_tp_weights.layer0.act, "activation of the radial network")


def _require_silu(activation, name):
    function = getattr(activation, "f", None)
    found = getattr(function, "__name__", type(function).__name__)
    if found not in ("silu", "SiLU"):
        _refuse(f"{found} as {name}")


def _contractions(product):
    _require_type(product.symmetric_contractions, "product", "SymmetricContraction")
    _require_type(product.linear, "linear map after the product", "Linear")
    return list(product.symmetric_contractions.contractions)


def _degrees(irreps, channels, name):
    """Highest degree of `channels` x (0e + 1o + 2e + …)."""
    expected = [(channels, l, (-1) ** l) for l in range(len(irreps))]
    if [(mul, ir.l, ir.p) for mul, ir in irreps] != expected:
        _refuse(f"{name} {irreps}, which are not equally many 0e, 1o, 2e, … without a gap")
    return len(irreps) - 1


def _radial_settings(model):
    embedding, cutoff = model.radial_embedding, _nominal(model.r_max)
    basis = embedding.bessel_fn
    kind = BASES[_require_type(basis, "radial basis", *BASES)]
    n_radial = int(embedding.out_dim)
    n = np.arange(1, n_radial + 1)
    if kind == "bessel":
        _require_constants("bessel_weights", basis.bessel_weights, np.pi * n / cutoff)
        _require_constants("prefactor", basis.prefactor, math.sqrt(2 / cutoff))
    elif kind == "gaussian":
        centers = np.linspace(0, cutoff, n_radial)
        _require_constants("gaussian_weights", basis.gaussian_weights, centers)
        _require_constants("coeff", basis.coeff, -((n_radial - 1) ** 2) / (2 * cutoff**2))
    else:
        _require_constants("n", basis.n, n[None])
    transform = getattr(embedding, "distance_transform", None)
    name = "none"
    if transform is not None:
        name = TRANSFORMS[_require_type(transform, "distance transform", *TRANSFORMS)]
        _require_constants("covalent_radii", transform.covalent_radii, covalent_radii)
        constants = {"a": AGNESI_A, "p": AGNESI_P, "q": AGNESI_Q}
        for key, value in (constants if name == "agnesi" else {"alpha": SOFT_STEEPNESS}).items():
            _require_constants(key, getattr(transform, key), value)
    _require_type(embedding.cutoff_fn, "cutoff", "PolynomialCutoff")
    return {
        "cutoff": cutoff,
        "cutoff_order": int(embedding.cutoff_fn.p),
        "n_radial": n_radial,
        "radial_basis": kind,
        "distance_transform": name,
        "cutoff_on": "basis" if getattr(embedding, "apply_cutoff", True) else "functions",
    }


def _nominal(value):
    """A tensor's number; of one in float32 the shortest decimal that rounds to it."""
    number = float(value)
    return float(str(np.float32(number))) if "float32" in str(value.dtype) else number


def _zbl_settings(model):
    if not hasattr(model, "pair_repulsion_fn"):
        return {}
    repulsion = model.pair_repulsion_fn
    _require_type(repulsion, "pair repulsion", "ZBLBasis")
    _require_constants("c", repulsion.c, ZBL_WEIGHTS)
    _require_constants("a_exp", repulsion.a_exp, ZBL_EXPONENT)
    _require_constants("a_prefactor", repulsion.a_prefactor, 0.4543)
    _require_constants("covalent_radii", repulsion.covalent_radii, covalent_radii)
    scaled = type(model).__name__ == "ScaleShiftMACE"
    return {"zbl": True, "zbl_order": int(repulsion.p), "zbl_scaled": scaled}


def _parameters(model, config, n_heads, head):
    """Parameters of a `Network` in float64, with the species in the model's order."""
    parameters = {"embedding": _by_degree(model.node_embedding.linear)[0]}
    for layer, (block, product) in enumerate(zip(model.interactions, model.products)):
        for l, weight in _by_degree(block.linear_up).items():
            parameters[f"up_{layer}_{l}"] = weight
        for l, weight in _by_degree(block.linear).items():
            parameters[f"mix_{layer}_{l}"] = weight
        for step, weight in enumerate(_radial_weights(block, config, layer)):
            parameters[f"radial_{layer}_{step}"] = weight
        if config.has_density(layer):
            parameters[f"density_{layer}"] = _array(block.density_fn.layer0.weight)
        l_out = 0 if layer == config.layers - 1 else config.hidden_l
        name = "skip" if config.is_residual(layer) else "select"
        for _, instruction, weight in block.skip_tp.weight_views(yield_instruction=True):
            l = block.skip_tp.irreps_in1[instruction.i_in1].ir.l
            if name == "select" or l <= l_out:
                parameters[f"{name}_{layer}_{l}"] = _array(weight).transpose(1, 0, 2)
        outs = _by_degree(product.linear)
        for l, contraction in enumerate(_contractions(product)[: l_out + 1]):
            parameters[f"out_{layer}_{l}"] = outs[l]
            for order in range(1, config.correlation + 1):
                parameters[f"product_{layer}_{l}_{order}"] = _product_weights(
                    contraction, config, l, order, len(parameters["embedding"])
                )
    return parameters | _readouts(model, config, n_heads, head)


def _by_degree(linear):
    """For each degree the weight of an e3nn `Linear`, [inputs, outputs], in our normalisation."""
    if getattr(linear, "bias_numel", 0):
        _refuse("a linear map with biases")
    parts = {}
    for _, instruction, weight in linear.weight_views(yield_instruction=True):
        l = linear.irreps_out[instruction.i_out].ir.l
        parts.setdefault(l, []).append(_array(weight) * instruction.path_weight)
    joined = {l: np.concatenate(weights) for l, weights in parts.items()}
    return {l: weight * math.sqrt(len(weight)) for l, weight in joined.items()}


def _radial_weights(block, config, layer):
    """Weights of the radial network, with the columns of the last in the order of our paths."""
    network, tensor_product = block.conv_tp_weights, block.conv_tp
    gain = network.layer0.act.cst / SILU_GAIN
    weights = [_array(getattr(network, f"layer{i}").weight) for i in range(len(network.hs) - 1)]
    weights = [weights[0], *(weight * gain for weight in weights[1:])]
    theirs = [
        (
            tensor_product.irreps_in1[instruction.i_in1].ir.l,
            tensor_product.irreps_in2[instruction.i_in2].ir.l,
            tensor_product.irreps_out[instruction.i_out].ir.l,
        )
        for instruction in tensor_product.instructions
    ]
    ours = paths(0 if layer == 0 else config.hidden_l, config.l_max)
    if sorted(theirs) != sorted(ours):
        _refuse(f"the couplings {theirs} in layer {layer + 1} where we have {ours}")
    last = weights[-1].reshape(-1, len(theirs), config.channels)
    weights[-1] = last[:, [theirs.index(path) for path in ours]].reshape(len(last), -1)
    return weights


def _product_weights(contraction, config, l_out, order, n_species):
    """MACE's product weights in our basis, [n_basis, n_species, channels]."""
    u_matrix = _array(getattr(contraction, f"U_matrix_{order}"))
    u_matrix = u_matrix.reshape(2 * l_out + 1, *[(config.l_max + 1) ** 2] * order, -1)
    weights = contraction.weights_max
    if order < config.correlation:
        weights = contraction.weights[config.correlation - 1 - order]
    change = change_of_basis(u_matrix, config.l_max, l_out, order)
    weights = np.einsum("kp,zpc->kzc", change, _array(weights))
    # use_agnostic_product: one set of weights for all species.
    return np.broadcast_to(weights, (len(weights), n_species, weights.shape[2]))


def change_of_basis(u_matrix, l_max, l_out, order):
    """Matrix that takes weights of MACE's products to ours, which span the same polynomials.

    Args:
      u_matrix: [2 l_out + 1, components (order times), n_paths]

    Returns:
      [n_basis, n_paths]
    """
    monomials, basis = symmetric_coupling(l_max, l_out, order)
    entries = np.argwhere(np.abs(u_matrix).max(axis=(0, -1)) > 1e-9)
    # Monomials that we lack stand behind ours; their terms cancel, or the rest below is not zero.
    position = {tuple(monomial): n for n, monomial in enumerate(monomials.tolist())}
    places = [position.setdefault(tuple(sorted(e)), len(position)) for e in entries.tolist()]
    theirs = np.zeros((len(position), 2 * l_out + 1, u_matrix.shape[-1]))
    np.add.at(theirs, places, np.moveaxis(u_matrix[:, *entries.T], 1, 0))
    ours = np.zeros((len(basis), 2 * l_out + 1, len(position)))
    ours[:, :, : len(monomials)] = basis
    ours = ours.swapaxes(1, 2).reshape(len(basis), -1)
    theirs = theirs.reshape(ours.shape[1], -1)
    change, *_ = np.linalg.lstsq(ours.T, theirs, rcond=None)
    rest = np.abs(ours.T @ change - theirs).max()
    if rest > 1e-5:
        _refuse(f"products of order {order} and degree {l_out} beyond our basis, by {rest:.1e}")
    return change


def _readouts(model, config, n_heads, head):
    """Weights of the readouts for one head; one that the model does not have is zero."""
    parameters, last = {}, config.layers - 1
    for layer in range(config.layers):
        # With use_last_readout_only there is one readout, of the last layer.
        index = layer - config.layers + len(model.readouts)
        if index < 0:
            parameters[f"readout_{layer}"] = np.zeros((config.channels, 1))
            continue
        readout = model.readouts[index]
        if not config.has_hidden_readout(layer):
            _require_type(readout, f"readout of layer {layer + 1}", "LinearReadoutBlock")
            parameters[f"readout_{layer}"] = _by_degree(readout.linear)[0][:, [head]]
    if config.has_hidden_readout(last):
        own = slice(head * config.readout_width, (head + 1) * config.readout_width)
        gain = readout.non_linearity.acts[0].cst / SILU_GAIN / math.sqrt(n_heads)
        parameters[f"readout_{last}_hidden"] = _by_degree(readout.linear_1)[0][:, own]
        parameters[f"readout_{last}"] = gain * _by_degree(readout.linear_2)[0][own][:, [head]]
    return parameters
