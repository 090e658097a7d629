"""Settings: what is unknown, misspelt, misplaced or of a wrong type is refused by name."""

from dataclasses import asdict

import pytest

from mlip.cli import build_parser
from mlip.config import from_flags, from_table, from_toml, leaves, to_toml
from mlip.training.setup import TrainConfig


def config_of(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    return from_toml(TrainConfig, path)


def test_a_toml_file_and_the_same_flags_give_the_same_settings(tmp_path):
    from_file = config_of(
        tmp_path,
        'train = "a.xyz"\nvalid = 0.2\nmax_minutes = 5\n[network]\nchannels = 32\n'
        "radial_widths = [16, 16]\n[terms]\nzbl = true\n[optimizer]\nlearning_rate = 1e-3\n",
    )
    flags = build_parser("train").parse_args(
        "train --train a.xyz --valid 0.2 --max-minutes 5 --channels 32 --zbl "
        "--radial-widths 16 16 --learning-rate 1e-3".split()
    )
    assert from_flags(TrainConfig, flags) == from_file
    assert from_file.network.radial_widths == (16, 16)
    assert from_file.optimizer.learning_rate == 1e-3


def test_flags_override_the_file(tmp_path):
    base = {"train": "a.xyz", "network": {"channels": 32, "l_max": 2}}
    flags = build_parser("train").parse_args(["train", "config.toml", "--channels", "8"])
    config = from_flags(TrainConfig, flags, base)
    assert (config.network.channels, config.network.l_max) == (8, 2)


def test_written_settings_read_back_the_same(tmp_path):
    config = TrainConfig(train='odd "name"\\.xyz', e0="H=-13.6, O=-2041", max_minutes=1.5)
    assert config_of(tmp_path, to_toml(config)) == config


def test_an_e0_table_may_be_a_toml_table(tmp_path):
    config = config_of(tmp_path, 'train = "a.xyz"\ne0 = {H = -13.6, O = -2041.0}\n')
    assert config.e0 == "H=-13.6, O=-2041.0"


def test_without_a_limit_there_are_200_epochs():
    assert TrainConfig(train="a.xyz").max_epochs == 200
    assert TrainConfig(train="a.xyz", max_minutes=3).max_epochs is None


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("chanels = 3", "'chanels' is no setting; did you mean channels"),
        ("[network]\nlearning_rat = 3", "'learning_rat' is no setting"),
        ("channels = 3", r"channels belongs in the section \[network\]"),
        ("[netwrk]\nchannels = 3", "did you mean network"),
        ("network = 3", r"network is 3; it is a section, written \[network\]"),
        ("[network]\nchannels = 'many'", "channels is 'many'; give an integer"),
        ("[network]\nchannels = 3.5", "channels is 3.5; give an integer"),
        ("[network]\nchannels = true", "channels is True; give an integer"),
        ("[terms]\nzbl = 1", "zbl is 1; give true or false"),
        ("[network]\nradial_widths = 64", r"radial_widths is 64; give a list"),
        ("[optimizer]\nlearning_rate = -1", "learning_rate is -1.0; it must be positive"),
        ("[optimizer]\noptimizer = 'sgd'", "optimizer is 'sgd'; choose one of muon, adam, adamw"),
        (
            "[optimizer]\noptimizer = 'adam'\nweight_decay = 0.1",
            "weight_decay is 0.1, but adam has none; .* take optimizer muon or adamw",
        ),
        ("[optimizer]\namsgrad = true", "amsgrad is True, but muon has none; .*adam or adamw"),
        ("[optimizer]\ndecay = 'step'", "decay is 'step'; choose one of cosine, linear, none"),
        ("[optimizer]\nema = 1.0", r"ema is 1.0; it must lie in \[0, 1\)"),
        ("[loss]\nloss = 'mae'", "loss is 'mae'; choose one of mse, huber"),
        ("[loss]\nforces_weight = -1", "forces_weight is -1.0; it must be zero or positive"),
        ("[keys]\nstress_unit = 'Pa'", "stress_unit is 'Pa'; choose one of"),
        ("batch_size = 0", "batch_size is 0; it must be positive"),
        ("max_minutes = -3", "max_minutes is -3.0; it must be positive"),
        ("dtype = 'float16'", "dtype is 'float16'; choose one of float32, float64"),
        ("seed = -1", "seed is -1"),
        ("= 3", "is not valid TOML"),
    ],
)
def test_bad_settings_are_refused(tmp_path, text, phrase):
    with pytest.raises(ValueError, match=phrase):
        config_of(tmp_path, f'train = "a.xyz"\n{text}\n' if text[0] != "=" else text)


def test_a_setting_without_default_must_be_given(tmp_path):
    with pytest.raises(ValueError, match="train is not given; it has no default"):
        from_table(TrainConfig, {})
    with pytest.raises(FileNotFoundError, match="is no file"):
        from_toml(TrainConfig, tmp_path / "absent.toml")


def test_names_of_settings_are_unique_so_that_flags_need_no_section():
    count = sum(
        len(value) if isinstance(value, dict) and value else 1
        for value in asdict(TrainConfig(train="a")).values()
    )
    assert len(leaves(TrainConfig)) == count


def test_every_flag_has_a_help_text():
    train = build_parser("train")._subparsers._group_actions[0].choices["train"]
    for action in train._actions:
        assert len(action.help or "") > 8, action.option_strings


def test_a_file_of_an_earlier_version_keeps_its_meaning(tmp_path):
    before = 'train = "a.xyz"\n[network]\nchannels = 8\nzbl = true\nzbl_order = 5\n'
    config = config_of(tmp_path, before)
    assert (config.network.channels, config.terms.zbl, config.terms.zbl_order) == (8, True, 5)
    assert config_of(tmp_path, to_toml(config)) == config
