"""Weights of mace-torch's modules in our form, and the refusal of parts that have none.

They are cut out of e3nn's modules by what these say of themselves.
"""

import math

import numpy as np

from mlip.model.mace.layer import paths
from mlip.model.radial import SILU_GAIN
from mlip.model.so3 import symmetric_coupling

INTERACTIONS = {
    "RealAgnosticInteractionBlock": "plain",
    "RealAgnosticResidualInteractionBlock": "residual",
    "RealAgnosticDensityInteractionBlock": "plain-density",
    "RealAgnosticDensityResidualInteractionBlock": "residual-density",
}


CAN = (
    f"MACE and ScaleShiftMACE with the blocks {', '.join(INTERACTIONS)} and scalar readouts can be "
    "imported"
)


def refuse(part, remedy=CAN, cause=None):
    """Refuse a model for a part, such as "use_so3".

    Args:
      cause: the error that showed it.

    Raises:
      ValueError: always.
    """
    raise ValueError(f"the model has {part}; {remedy}") from cause


def require_type(module, name, *known):
    """Refuse a part that is none of the known classes; returns the name of its class."""
    found = type(module).__name__
    if found not in known:
        refuse(f"{found} as its {name}")
    return found


def array(values):
    """A tensor or number as NumPy in float64."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, float)


def contractions(product):
    require_type(product.symmetric_contractions, "product", "SymmetricContraction")
    require_type(product.linear, "linear map after the product", "Linear")
    return list(product.symmetric_contractions.contractions)


def parameters_of(model, config, n_heads, head):
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
            parameters[f"density_{layer}"] = array(block.density_fn.layer0.weight)
        l_out = 0 if layer == config.layers - 1 else config.hidden_l
        if config.is_residual(layer) and not product.use_sc:
            refuse(f"use_sc = {product.use_sc} in layer {layer + 1}, whose block is residual")
        name = "skip" if config.is_residual(layer) else "select"
        _require_norms(block.skip_tp, "skip_tp", layer)
        for _, instruction, weight in block.skip_tp.weight_views(yield_instruction=True):
            l = block.skip_tp.irreps_in1[instruction.i_in1].ir.l
            if name == "select" or l <= l_out:
                parameters[f"{name}_{layer}_{l}"] = array(weight).transpose(1, 0, 2)
        outs = _by_degree(product.linear)
        for l, contraction in enumerate(contractions(product)[: l_out + 1]):
            parameters[f"out_{layer}_{l}"] = outs[l]
            for order in range(1, config.correlation + 1):
                parameters[f"product_{layer}_{l}_{order}"] = _product_weights(
                    contraction, config, l, order, len(parameters["embedding"])
                )
    return parameters | _readouts(model, config, n_heads, head)


def _by_degree(linear):
    """For each degree the weight of an e3nn `Linear`, [inputs, outputs], in our normalisation."""
    if getattr(linear, "bias_numel", 0):
        refuse("a linear map with biases")
    parts = {}
    for _, instruction, weight in linear.weight_views(yield_instruction=True):
        l = linear.irreps_out[instruction.i_out].ir.l
        parts.setdefault(l, []).append(array(weight) * instruction.path_weight)
    joined = {l: np.concatenate(weights) for l, weights in parts.items()}
    return {l: weight * math.sqrt(len(weight)) for l, weight in joined.items()}


def _radial_weights(block, config, layer):
    """Weights of the radial network, with the columns of the last in the order of our paths."""
    network, tensor_product = block.conv_tp_weights, block.conv_tp
    gain = network.layer0.act.cst / SILU_GAIN
    weights = [array(getattr(network, f"layer{i}").weight) for i in range(len(network.hs) - 1)]
    weights = [weights[0], *(weight * gain for weight in weights[1:])]
    theirs = [_degrees_of(tensor_product, i) for i in tensor_product.instructions]
    ours = paths(0 if layer == 0 else config.hidden_l, config.l_max)
    if sorted(theirs) != sorted(ours):
        refuse(f"the couplings {theirs} in layer {layer + 1} where we have {ours}")
    _require_norms(tensor_product, "conv_tp", layer)
    # What they give is the linear map's input, whose rows we take in the order of our paths.
    outputs = sorted(tensor_product.instructions, key=lambda i: i.i_out)
    outputs = [_degrees_of(tensor_product, i) for i in outputs]
    inputs = [i.i_in for i in block.linear.instructions]
    same = block.linear.irreps_in.simplify() == tensor_product.irreps_out.simplify()
    if outputs != sorted(ours, key=lambda path: path[2]) or inputs != sorted(inputs) or not same:
        refuse(f"the couplings of layer {layer + 1} in the order {outputs} before its linear map")
    last = weights[-1].reshape(-1, len(theirs), config.channels)
    weights[-1] = last[:, [theirs.index(path) for path in ours]].reshape(len(last), -1)
    return weights


def _degrees_of(tensor_product, instruction):
    """(l_1, l_2, l_out) of a path."""
    return (
        tensor_product.irreps_in1[instruction.i_in1].ir.l,
        tensor_product.irreps_in2[instruction.i_in2].ir.l,
        tensor_product.irreps_out[instruction.i_out].ir.l,
    )


def _require_norms(tensor_product, name, layer):
    """Refuse paths that are not normalised as ours: by components, and by inputs summed over."""
    for instruction in tensor_product.instructions:
        summed = math.prod(instruction.path_shape[:2]) if name == "skip_tp" else 1
        expected = math.sqrt((2 * _degrees_of(tensor_product, instruction)[2] + 1) / summed)
        if not math.isclose(instruction.path_weight, expected, rel_tol=1e-6):
            refuse(
                f"a path_weight of {instruction.path_weight:.6g} in {name} of layer {layer + 1} "
                f"where mace-torch has {expected:.6g}"
            )


def _product_weights(contraction, config, l_out, order, n_species):
    """MACE's product weights in our basis, [n_basis, n_species, channels]."""
    u_matrix = array(getattr(contraction, f"U_matrix_{order}"))
    u_matrix = u_matrix.reshape(2 * l_out + 1, *[(config.l_max + 1) ** 2] * order, -1)
    weights = contraction.weights_max
    if order < config.correlation:
        weights = contraction.weights[config.correlation - 1 - order]
    change = change_of_basis(u_matrix, config.l_max, l_out, order)
    weights = np.einsum("kp,zpc->kzc", change, array(weights))
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
        refuse(f"products of order {order} and degree {l_out} beyond our basis, by {rest:.1e}")
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
            require_type(readout, f"readout of layer {layer + 1}", "LinearReadoutBlock")
            parameters[f"readout_{layer}"] = _by_degree(readout.linear)[0][:, [head]]
    if config.has_hidden_readout(last):
        own = slice(head * config.readout_width, (head + 1) * config.readout_width)
        gain = readout.non_linearity.acts[0].cst / SILU_GAIN / math.sqrt(n_heads)
        parameters[f"readout_{last}_hidden"] = _by_degree(readout.linear_1)[0][:, own]
        parameters[f"readout_{last}"] = gain * _by_degree(readout.linear_2)[0][own][:, [head]]
    return parameters
