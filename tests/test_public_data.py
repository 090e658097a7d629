"""Public DFT data of many kinds is read whole and trained on with a handful of programs."""

import json

import numpy as np
import pytest

from mlip.data.dataset import read
from mlip.data.labels import LabelKeys
from mlip.model.mace.model import NetworkConfig
from mlip.training.loop import train
from mlip.training.setup import TrainConfig
from mlip.training.step import error_sums, train_step

FRAMES = {
    "3bpa/train_300K.xyz": 500,
    "3bpa/train_mixedT.xyz": 500,
    "acac/train_300K.xyz": 500,
    "acac/test_MD_300K.xyz": 650,
    "mlearn/Si/train.xyz": 214,
    "mlearn/Mo/train.xyz": 194,
    "water/data_0.xyz": 80,
}


@pytest.mark.parametrize("name", FRAMES)
def test_every_frame_comes_with_its_labels(shared_data, name):
    frames = read(shared_data / name)
    assert len(frames) == FRAMES[name]
    assert all(f.energy is not None and f.forces is not None for f in frames)
    assert np.isfinite(frames[0].volume) == (not name.startswith(("3bpa", "acac")))


def test_stress_of_vasp_is_found_by_its_key_and_has_ases_sign(shared_data):
    # The key does not end in "stress", so that it must be named; VASP prints the pressure's sign.
    keys = LabelKeys(stress_key="vasp_stress_kbar", stress_unit="-kbar")
    frames = read(shared_data / "mlearn" / "Si" / "train.xyz", keys)
    elastic = [f for f in frames if f.group == "Elastic"]
    pressures = [-np.trace(f.stress) / 3 for f in elastic]
    densities = [len(f) / f.volume for f in elastic]
    assert np.corrcoef(pressures, densities)[0, 1] > 0.7


def test_crystals_of_2_to_64_atoms_train_with_a_handful_of_programs(shared_data, tmp_path):
    before = train_step.jitted._cache_size(), error_sums.jitted._cache_size()
    config = TrainConfig(
        train=str(shared_data / "mlearn" / "Mo" / "train.xyz"),
        out=str(tmp_path / "run"),
        max_epochs=2,
        batch_size=8,
        network=NetworkConfig(channels=2, l_max=1, correlation=2, radial_widths=(4,), cutoff=4.0),
    )
    train(config)
    after = train_step.jitted._cache_size(), error_sums.jitted._cache_size()
    assert after[0] - before[0] <= 4
    assert after[1] - before[1] <= 4
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert rows[1]["valid_forces_rmse_mev_per_A"] < rows[0]["valid_forces_rmse_mev_per_A"]
