"""mace-torch as a worker; see `protocol.py`."""

import numpy as np
import torch
from e3nn import o3
from mace.calculators import MACECalculator
from mace.data import AtomicData, KeySpecification, config_from_atoms
from mace.modules import ScaleShiftMACE, WeightedEnergyForcesLoss, gate_dict, interaction_classes
from mace.tools import AtomicNumberTable, torch_geometric
from mace.tools.train import take_step
from protocol import Model, Step, dynamics_by_ase, serve, through_ase
from torch_ema import ExponentialMovingAverage

PACKAGES = ("mace-torch", "torch", "e3nn", "numpy")
DEVICES = {"cpu": "cpu", "gpu": "cuda"}
KEYS = KeySpecification(info_keys={"energy": "label"}, arrays_keys={"forces": "label"})


def build(task):
    torch.set_num_threads(task["threads"])
    torch.set_default_dtype(getattr(torch, task["dtype"]))
    torch.manual_seed(0)
    device = DEVICES[task["device"]]
    # weights_only would refuse: mace-torch's files hold whole modules.
    model = torch.load(task["load"], weights_only=False) if "load" in task else network(task)
    model = model.to(device)
    if "save" in task:
        torch.save(model, task["save"])

    def calculator(_):
        return MACECalculator(models=[model], device=device, default_dtype=task["dtype"])

    prepare = {
        "inference": lambda: inference(model, task),
        "training": lambda: training(model, task),
        "calculator": lambda: through_ase(calculator),
        "dynamics": lambda: dynamics_by_ase(calculator, task["steps"]),
    }[task["what"]]()
    count = sum(p.numel() for p in model.parameters())
    name = torch.cuda.get_device_name() if device == "cuda" else device
    return Model(PACKAGES, count, name, prepare)


def network(task):
    """ScaleShiftMACE with random weights and the residual block in both layers."""
    settings = task["network"]
    block = interaction_classes["RealAgnosticResidualInteractionBlock"]
    hidden = [f"{settings['channels']}x{l}{'eo'[l % 2]}" for l in range(settings["hidden_l"] + 1)]
    return ScaleShiftMACE(
        r_max=task["cutoff"],
        num_bessel=settings["n_radial"],
        num_polynomial_cutoff=settings["cutoff_order"],
        max_ell=settings["l_max"],
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=settings["layers"],
        num_elements=len(task["species"]),
        hidden_irreps=o3.Irreps("+".join(hidden)),
        MLP_irreps=o3.Irreps(f"{settings['readout_width']}x0e"),
        atomic_energies=np.zeros(len(task["species"])),
        avg_num_neighbors=task["average_neighbors"],
        atomic_numbers=task["species"],
        correlation=settings["correlation"],
        gate=gate_dict["silu"],
        radial_MLP=settings["radial_widths"],
        radial_type="bessel",
        atomic_inter_scale=task.get("scale", 1.0),
        atomic_inter_shift=0.0,
    )


def batch_of(frames, task, labels=False):
    for atoms in frames if labels else []:
        atoms.info["label"], atoms.arrays["label"] = (
            atoms.get_potential_energy(),
            atoms.get_forces(),
        )
    table = AtomicNumberTable(task["species"])
    data = [
        AtomicData.from_config(
            config_from_atoms(atoms, key_specification=KEYS),
            z_table=table,
            cutoff=task["cutoff"],
        )
        for atoms in frames
    ]
    loader = torch_geometric.dataloader.DataLoader(data, batch_size=len(data))
    return next(iter(loader)).to(DEVICES[task["device"]])


def inference(model, task):
    for parameter in model.parameters():
        parameter.requires_grad = False

    def prepare(frames):
        batch = batch_of(frames[:1], task)
        graph = batch.to_dict()

        def call():
            # `cpu` waits for a GPU.
            return model(graph, compute_force=True)["forces"].detach().cpu()

        return Step(call, {"edges": batch.edge_index.shape[1]})

    return prepare


def training(model, task):
    def prepare(frames):
        batch = batch_of(frames, task, labels=True)
        loss = WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=100.0)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.001, amsgrad=True)
        average = ExponentialMovingAverage(model.parameters(), decay=0.995)
        outputs = {"forces": True, "virials": False, "stress": False}

        def call():
            value, _ = take_step(
                model, loss, batch, optimizer, average, outputs, 10.0, batch.positions.device
            )
            return value.detach().cpu()

        return Step(call, {"edges": batch.edge_index.shape[1]})

    return prepare


if __name__ == "__main__":
    serve(build)
