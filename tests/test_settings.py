"""One settings object a stage: the same names, checks and messages from the command line and from Python."""

import pytest
import typer.main

from dtsf import api
from dtsf.cli.app import app
from dtsf.errors import ConfigError
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.training.settings import TrainSettings


@pytest.mark.parametrize(("command", "model"), [("preprocess", PreprocessSettings), ("train", TrainSettings)])
def test_settings__every_field_is_an_option(command, model):
    options = {p.opts[0]: p for p in typer.main.get_command(app).commands[command].params if p.opts}
    for name, field in model.model_fields.items():
        option = options[model.option(name)]
        assert option.help == field.description
        assert option.secondary_opts == []
        if isinstance(field.default, int | float):
            assert float(option.default) == field.default


def test_train_settings__epochs_is_a_key_of_the_recipe():
    assert TrainSettings.of(overrides=["model.depth=2"], epochs=3).changes() == ("model.depth=2", "train.epochs=3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "weights.pth", "resume": True}, "--init and --resume exclude each other"),
        ({"epoch": 3}, "unknown --epoch; did you mean --epochs"),
        ({"run": 3}, "--out 3"),
        ({"device": "tpu"}, "--device 'tpu'"),
        ({"epochs": 0}, "--epochs 0"),
    ],
)
def test_train__refuses_a_setting_before_it_opens_the_cache(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        api.train(tmp_path / "no cache", **changes)
