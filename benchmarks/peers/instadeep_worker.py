"""InstaDeep's mlip as a worker; see `protocol.py`."""

import jax
from mlip.data.helpers.dynamically_batch import dynamically_batch
from mlip.graph import Graph
from mlip.models import ForceField, Mace
from mlip.models.loss import MSELoss
from mlip.models.model_io import load_model_from_zip, save_model_to_zip
from mlip.simulation.ase.mlip_ase_calculator import MLIPForceFieldASECalculator
from mlip.training.ema import exponentially_moving_average
from mlip.training.training_state import init_training_state
from mlip.training.training_step import make_train_step
from protocol import Model, Step, dynamics_by_ase, serve, set_velocities, through_ase

from mlip.data import ChemicalSystem, DatasetInfo
from mlip.training.optimizer import get_default_mlip_optimizer

PACKAGES = ("mlip", "jax", "jaxlib", "e3nn-jax", "numpy")


def build(task):
    force_field = load_model_from_zip(Mace, task["load"]) if "load" in task else network(task)
    if "save" in task:
        save_model_to_zip(task["save"], force_field)

    def calculator(atoms):
        return MLIPForceFieldASECalculator(
            atoms, edge_capacity_multiplier=1.1, force_field=force_field
        )

    prepare = {
        "inference": lambda: inference(force_field),
        "training": lambda: training(force_field),
        "calculator": lambda: through_ase(calculator),
        "dynamics": lambda: dynamics_by_ase(calculator, task["steps"]),
        "compiled dynamics": lambda: by_their_engine(force_field, task["steps"]),
    }[task["what"]]()
    count = sum(leaf.size for leaf in jax.tree.leaves(force_field.params))
    return Model(PACKAGES, count, jax.devices()[0].device_kind, prepare)


def network(task):
    """Their MACE with random weights and a skip connection in the first layer too."""
    settings = task["network"]
    info = DatasetInfo(
        atomic_energies_map={z: 0.0 for z in task["species"]},
        graph_cutoff_angstrom=task["cutoff"],
        avg_num_neighbors=task["average_neighbors"],
        avg_r_min_angstrom=1.0,
        scaling_stdev=task.get("scale", 1.0),
    )
    return ForceField.from_mlip_network(Mace(network_config(settings), info), seed=0)


def network_config(settings):
    return Mace.Config(
        num_layers=settings["layers"],
        num_channels=settings["channels"],
        l_max=settings["l_max"],
        node_symmetry=settings["hidden_l"],
        correlation=settings["correlation"],
        readout_irreps=(f"{settings['readout_width']}x0e", "0e"),
        num_rbf=settings["n_radial"],
        radial_mlp_hidden=settings["radial_widths"],
        residual_connection_first_layer=True,
    )


def batch_of(frames, force_field):
    """The frames as one padded batch on the device, and its number of edges."""
    graphs = [
        Graph.from_chemical_system(ChemicalSystem.from_ase_atoms(a), force_field.cutoff_distance)
        for a in frames
    ]
    n_edges = sum(len(graph.senders) for graph in graphs)
    n_atoms = sum(len(atoms) for atoms in frames)
    batch = next(
        dynamically_batch(graphs, n_node=n_atoms + 1, n_edge=n_edges + 1, n_graph=len(graphs) + 1)
    )
    return jax.device_put(batch), n_edges


def inference(force_field):
    def prepare(frames):
        graph, n_edges = batch_of(frames[:1], force_field)
        predict = jax.jit(force_field.predict)

        def call():
            return jax.block_until_ready(predict(graph)).forces

        return Step(call, {"edges": n_edges})

    return prepare


def by_their_engine(force_field, n_steps):
    """Their engine on jax-md, always from one start; it refuses boxes below twice the cutoff."""

    def prepare(frames):
        from mlip.simulation.enums import MDIntegrator
        from mlip.simulation.jax_md import JaxMDSimulationEngine

        config = JaxMDSimulationEngine.Config(
            num_steps=n_steps,
            num_episodes=1,
            snapshot_interval=n_steps,
            log_interval=n_steps,
            timestep_fs=1.0,
            temperature_kelvin=300.0,
            md_integrator=MDIntegrator.NVE_VELOCITY_VERLET,
        )
        atoms = frames[0].copy()
        set_velocities(atoms, 300.0)
        engine = JaxMDSimulationEngine(atoms, force_field, config)
        start = engine._internal_state

        def restart():
            # A call before may have made room, which the neighbours of the start lack.
            neighbors = engine._internal_state.system_state.neighbors.update(
                start.jax_md_state.position, box=engine._initial_box
            )
            system = start.system_state.set(neighbors=neighbors)
            engine._internal_state = start.set(system_state=system)

        def call():
            engine.run()
            state = engine._internal_state.jax_md_state
            return state.position, state.force

        return Step(call, {"steps": n_steps}, restart)

    return prepare


def training(force_field):
    def prepare(frames):
        batch, n_edges = batch_of(frames, force_field)
        optimizer, average = get_default_mlip_optimizer(), exponentially_moving_average(0.995)
        train_step = make_train_step(
            force_field.predictor,
            MSELoss(forces_weight_schedule=lambda _: 100.0),
            optimizer,
            average,
            avg_n_graphs_per_batch=len(frames),
        )
        state = init_training_state(force_field.params, optimizer, average)

        def call():
            nonlocal state
            state, metrics = train_step(state, batch, 1)
            jax.block_until_ready(state)
            return metrics["loss"]

        return Step(call, {"edges": n_edges})

    return prepare


if __name__ == "__main__":
    serve(build)
