"""InstaDeep's mlip by its own training loop; prints a line of JSON after every epoch.

Called by `time_to_accuracy.py` with the task as JSON.
"""

import json
import math
import sys

from instadeep_worker import network_config
from mlip.data.chemical_systems_readers.extxyz_reader import ExtxyzReader
from mlip.data.graph_dataset_builder import GraphDatasetBuilder
from mlip.models import ForceField, Mace
from mlip.models.loss import MSELoss
from mlip.training.optimizer_config import OptimizerConfig
from mlip.training.training_io_handler import LogCategory, TrainingIOHandler
from mlip.training.training_loop import TrainingLoop

from mlip.training.optimizer import get_default_mlip_optimizer

ENDLESS = 1_000_000  # epochs; whoever called ends the process


def main(task):
    builder = GraphDatasetBuilder(
        {name: ExtxyzReader(task[name]) for name in ("train", "valid")},
        GraphDatasetBuilder.Config(
            graph_cutoff_angstrom=task["network"]["cutoff"], batch_size=task["batch_size"]
        ),
    )
    data = builder.get_datasets()
    info = builder.dataset_info.model_copy(
        update={"atomic_energies_map": {int(z): e for z, e in task["e0"].items()}}
    )
    field = ForceField.from_mlip_network(Mace(network_config(task["network"]), info), seed=0)
    rate = task["learning_rate"]
    optimizer = OptimizerConfig(
        init_learning_rate=rate, peak_learning_rate=rate, final_learning_rate=rate
    )

    def report(category, metrics, epoch):
        if category == LogCategory.EVAL_METRICS:
            forces = next(v for k, v in metrics.items() if k.endswith("mse_f"))
            print(json.dumps({"epoch": epoch, "rmse": math.sqrt(float(forces))}), flush=True)

    handler = TrainingIOHandler()
    handler.attach_logger(report)
    TrainingLoop(
        data["train"],
        data["valid"],
        field,
        MSELoss(forces_weight_schedule=lambda _: task["forces_weight"]),
        get_default_mlip_optimizer(optimizer),
        TrainingLoop.Config(num_epochs=ENDLESS, ema_decay=task["ema"], random_seed=task["seed"]),
        io_handler=handler,
    ).run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
