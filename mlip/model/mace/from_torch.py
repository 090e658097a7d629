"""Trained models of mace-torch as potentials of ours: the same function of the same weights.

Every part of the model is looked at, and one that we do not have is refused by its name; weights
are checked by shape. The constants of the radial functions are checked and then taken unrounded: a
model made in float32 holds them to 7 digits, so that it agrees in float64 to about 1e-7 only.
"""

import hashlib
import math
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mlip.data.structure import COVALENT_RADII
from mlip.model.mace.model import Mace, NetworkConfig
from mlip.model.mace.torch_weights import (
    INTERACTIONS,
    array,
    contractions,
    parameters_of,
    refuse,
    require_type,
)
from mlip.model.potential import DTYPES, Potential
from mlip.model.radial import (
    AGNESI_A,
    AGNESI_P,
    AGNESI_Q,
    SOFT_STEEPNESS,
    ZBL_EXPONENT,
    ZBL_WEIGHTS,
)
from mlip.model.terms import TermsConfig

BASES = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}
TRANSFORMS = {"AgnesiTransform": "agnesi", "SoftTransform": "soft"}
# Packages that run MACE's models, and the programs of mace-torch that undo it.
CONVERTED = {"cuequivariance": "convert_cueq_e3nn", "openequivariance": "convert_oeq_e3nn"}
SINGLE = 2e-6  # relative error of constants that were rounded to float32


def read_mace(path, head=None, dtype=None):
    """The potential in a file that mace-torch saved; needs torch and mace-torch.

    Such a file is a pickle, which may run any code: read only those of people you trust.

    Args:
      path: a `.model` file; TorchScript (`_compiled.model`, `-lammps.pt`), checkpoints and models
        of cuEquivariance are refused.
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
        if isinstance(error, ModuleNotFoundError):
            _refuse_converted(error.name)
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
      ValueError: a part that we do not have, by name, or one that its class had not yet; a head
        that is not there, or several to choose from; weights whose shapes do not fit.
    """
    try:
        return _potential_of(model, head, dtype, training)
    except AttributeError as error:  # a pickle holds its class by name only
        refuse(f"no {error.name or error}, as one of another version of mace-torch", cause=error)
    except (IndexError, KeyError, TypeError) as error:
        refuse(f"parts that do not fit together ({type(error).__name__}: {error})", cause=error)


def _potential_of(model, head, dtype, training):
    config = config_of(model)
    heads = list(getattr(model, "heads", None) or ["Default"])
    numbers = array(model.atomic_numbers).astype(int)
    e0 = np.atleast_2d(array(model.atomic_energies_fn.atomic_energies))
    if e0.shape != (len(heads), len(numbers)):
        refuse(f"E0 of shape {e0.shape} for {len(heads)} heads and {len(numbers)} elements")
    chosen = _choose(heads, head)
    e0 = e0[chosen]
    scale, shift = 1.0, 0.0
    if hasattr(model, "scale_shift"):
        scale, shift = (
            np.atleast_1d(array(getattr(model.scale_shift, name))) for name in ("scale", "shift")
        )
        scale, shift = (values[chosen if len(values) > 1 else 0] for values in (scale, shift))
    widest, terms = 2 * max(COVALENT_RADII[numbers]), _terms(model)
    if terms.zbl and widest > config.cutoff:
        refuse(
            f"a ZBL repulsion that reaches to {widest:.2f} Å with these elements, beyond r_max of "
            f"{config.cutoff} Å",
            "its own energy jumps where atoms come within r_max, so that it is not imported",
        )
    order = np.argsort(numbers)
    parameters = parameters_of(model, config, len(heads), chosen)
    dtype = dtype or str(next(model.parameters()).dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    for name, values in parameters.items():
        if name == "embedding" or name.startswith(("skip", "select")):
            values = values[order]
        elif name.startswith("product"):
            values = values[:, order]
        parameters[name] = np.ascontiguousarray(values, dtype)
    own = Mace(config, len(numbers))
    potential = Potential(
        model=own,
        species=tuple(numbers[order].tolist()),
        parameters=parameters,
        e0=e0[order],
        shift=np.full(len(numbers), shift),
        scale=np.full(len(numbers), scale),
        average_neighbors=_average_neighbors(model),
        terms=terms,
        dtype=dtype,
        training=(training or {}) | {"head": heads[chosen]},
    )
    expected = own.shapes()
    found = {name: values.shape for name, values in parameters.items()}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"the weights that make {name} have shape {found.get(name)}, but the parts of the "
                f"model ask for {expected.get(name)}"
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
    values = {float(array(block.avg_num_neighbors)) for block in model.interactions}
    if len(values) > 1:
        refuse(f"different average numbers of neighbours in its layers, {sorted(values)}")
    return values.pop()


def _require_constants(name, values, expected):
    values, expected = np.ravel(array(values)), np.ravel(expected)
    if values.shape != expected.shape or not np.allclose(
        values, expected, rtol=SINGLE, atol=SINGLE
    ):
        refuse(f"{name} = {values} where mace-torch has {expected}: trained")


def _refuse_converted(name):
    """Refuse by its name a class or module that is no e3nn, with the way back to one."""
    for package, program in CONVERTED.items():
        if package in name:
            refuse(
                f"parts of {package}",
                f"turn it into one of e3nn first, by python -m mace.cli.{program}",
            )


def _require_model(model):
    """Refuse what else mace-torch saves, with the remedy."""
    if isinstance(model, dict):
        keys = ", ".join(map(str, list(model)[:3]))
        raise ValueError(
            f"this is no model but a dict of {keys}, as the checkpoints of a training are; give "
            "the .model file that the run wrote beside them"
        )
    if type(model).__name__ == "RecursiveScriptModule":
        refuse("TorchScript as its class", "give the .model file from which it was compiled")
    for part in model.modules() if hasattr(model, "modules") else ():
        _refuse_converted(type(part).__module__)


def config_of(model):
    """The `NetworkConfig` of a MACE model.

    Raises:
      ValueError: a part that we do not have, by name.
    """
    _require_model(model)
    require_type(model, "class", "MACE", "ScaleShiftMACE")
    for name in ("joint_embedding", "embedding_readout", "les"):
        if hasattr(model, name):
            refuse(name)
    if getattr(model, "use_so3", False):
        refuse("use_so3")
    l_max = int(model.spherical_harmonics._lmax)
    if l_max > 3:
        refuse(f"spherical harmonics up to degree {l_max} (max_ell), of which 3 is the highest")
    blocks = list(model.interactions)
    if len(model.readouts) not in (1, len(blocks)):
        refuse(f"{len(model.readouts)} readouts for {len(blocks)} layers")
    last = model.readouts[-1]
    for block in blocks:
        _check_interaction(block)
    kinds = [INTERACTIONS[type(block).__name__] for block in blocks]
    if len(set(kinds[1:])) > 1:
        refuse(f"different blocks after the first layer, {', '.join(kinds[1:])}")
    hidden = require_type(last, "last readout", "LinearReadoutBlock", "NonLinearReadoutBlock")
    channels = blocks[0].node_feats_irreps.dim
    orders = {len(part.weights) + 1 for p in model.products for part in contractions(p)}
    if len(orders) > 1:
        refuse(f"different correlation in its products, {sorted(orders)}")
    widths = {tuple(block.conv_tp_weights.hs[1:-1]) for block in blocks}
    if len(widths) > 1:
        refuse(f"different radial networks in its layers, {sorted(widths)}")
    n_heads = len(getattr(model, "heads", None) or [""])
    is_hidden = hidden == "NonLinearReadoutBlock"
    if is_hidden:
        _require_silu(last.non_linearity.acts[0], "gate of the last readout")
    between = (blocks[1:] or blocks[:1])[0].node_feats_irreps
    if between.lmax > l_max:
        refuse(f"hidden_irreps {between} beyond max_ell = {l_max}")
    return NetworkConfig(
        channels=channels,
        l_max=l_max,
        hidden_l=_degrees(between, channels, "hidden_irreps"),
        correlation=orders.pop(),
        layers=len(blocks),
        radial_widths=widths.pop(),
        readout_width=last.hidden_irreps.dim // n_heads if is_hidden else 16,
        hidden_readout=is_hidden,
        interaction=kinds[-1],
        first_interaction=kinds[0],
        **_radial_settings(model),
    )


def _check_interaction(block):
    require_type(block, "interaction", *INTERACTIONS)
    if block.linear_up.irreps_out != block.node_feats_irreps:
        refuse(f"edge_irreps {block.linear_up.irreps_out}")
    require_type(block.conv_tp, "conv_tp", "TensorProduct")
    for name in ("linear_up", "linear"):
        require_type(getattr(block, name), name, "Linear")
    require_type(block.skip_tp, "skip_tp", "FullyConnectedTensorProduct")
    _require_silu(block.conv_tp_weights.layer0.act, "activation of the radial network")


def _require_silu(activation, name):
    function = getattr(activation, "f", None)
    found = getattr(function, "__name__", type(function).__name__)
    if found not in ("silu", "SiLU"):
        refuse(f"{found} as {name}")


def _degrees(irreps, channels, name):
    """Highest degree of `channels` x (0e + 1o + 2e + …)."""
    expected = [(channels, l, (-1) ** l) for l in range(len(irreps))]
    if [(mul, ir.l, ir.p) for mul, ir in irreps] != expected:
        refuse(f"{name} {irreps}, which are not equally many 0e, 1o, 2e, … without a gap")
    return len(irreps) - 1


def _radial_settings(model):
    embedding, cutoff = model.radial_embedding, _nominal(model.r_max)
    basis = embedding.bessel_fn
    kind = BASES[require_type(basis, "radial basis", *BASES)]
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
        name = TRANSFORMS[require_type(transform, "distance transform", *TRANSFORMS)]
        _require_constants("covalent_radii", transform.covalent_radii, COVALENT_RADII)
        constants = {"a": AGNESI_A, "p": AGNESI_P, "q": AGNESI_Q}
        for key, value in (constants if name == "agnesi" else {"alpha": SOFT_STEEPNESS}).items():
            _require_constants(key, getattr(transform, key), value)
    require_type(embedding.cutoff_fn, "cutoff", "PolynomialCutoff")
    for part in ("cutoff_fn", "bessel_fn"):
        own = getattr(getattr(embedding, part), "r_max", None)
        if own is not None and not math.isclose(float(own), cutoff, rel_tol=SINGLE):
            refuse(f"{part}.r_max = {float(own):g} beside r_max = {cutoff:g}")
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


def _terms(model):
    if not hasattr(model, "pair_repulsion_fn"):
        return TermsConfig()
    repulsion = model.pair_repulsion_fn
    require_type(repulsion, "pair repulsion", "ZBLBasis")
    _require_constants("c", repulsion.c, ZBL_WEIGHTS)
    _require_constants("a_exp", repulsion.a_exp, ZBL_EXPONENT)
    _require_constants("a_prefactor", repulsion.a_prefactor, 0.4543)
    _require_constants("covalent_radii", repulsion.covalent_radii, COVALENT_RADII)
    scaled = type(model).__name__ == "ScaleShiftMACE"
    return TermsConfig(zbl=True, zbl_order=int(repulsion.p), zbl_scaled=scaled)
