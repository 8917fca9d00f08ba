"""Layers together: sections merge, values replace, and what a choice above excludes is gone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agiledpo.config import ConfigError, load_config

_POPULATION = """
model: {name: x}
population: {size: 4}
evolution:
  hyperparameters:
    lr: {min: 1e-6, max: 1e-3, grow_factor: 1.5}
    beta: {log_uniform: [0.03, 1.0]}
  selection: {strategy: tournament, tournament_size: 2, elitism: true, rand_seed: 3}
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def load(files: list[str], *overrides: str) -> dict[str, Any]:
        paths = [tmp_path / f"{number}.yaml" for number in range(len(files))]
        for path, text in zip(paths, files, strict=True):
            path.write_text(text)
        return dict(load_config("dpo", paths, overrides).values)

    return load


@pytest.mark.parametrize("lower", ["trackers: {names: [], project: p}", "trackers: {project: p}", "trackers: wandb"])
@pytest.mark.parametrize(
    "upper", ["trackers: [tensorboard]", "trackers: tensorboard", "trackers: {names: [tensorboard]}"]
)
def test_what_stands_for_a_section_is_one_in_every_file(tmp_path: Path, load: Any, lower: str, upper: str) -> None:
    (tmp_path / "base.yaml").write_text(f"model: {{name: x}}\n{lower}\n")
    for files in ([f"defaults: [base]\n{upper}\n"], [(tmp_path / "base.yaml").read_text(), upper]):
        values = load(files)
        assert values["trackers"]["names"] == ["tensorboard"]
        assert values["trackers"]["project"] == (
            "p" if "project" in lower else load([], "model.name=x")["trackers"]["project"]
        )


def test_a_value_replaces_the_one_below_as_a_whole(load: Any) -> None:
    drawn = {"log_uniform": [1e-6, 1e-4]}
    values = load([_POPULATION], "evolution.hyperparameters.lr={log_uniform: [1e-6,1e-4]}")
    assert values["evolution"]["hyperparameters"] == {"lr": drawn, "beta": {"log_uniform": [0.03, 1.0]}}
    for values in (
        load([_POPULATION], "evolution.hyperparameters={lr: {log_uniform: [1e-6,1e-4]}}"),
        load([_POPULATION, "evolution: {hyperparameters: {lr: {log_uniform: [1e-6, 1e-4]}}}"]),
    ):
        assert values["evolution"]["hyperparameters"] == {"lr": drawn}
        assert values["evolution"]["selection"]["rand_seed"] == 3
    values = load([_POPULATION], "evolution.hyperparameters.lr.max=0.5", "evolution.hyperparameters.lr.min=0.1")
    assert values["evolution"]["hyperparameters"]["lr"] == {"min": 0.1, "max": 0.5, "grow_factor": 1.5}


def test_another_variant_leaves_the_parameters_of_the_former_behind(load: Any) -> None:
    for files, overrides in (
        ([_POPULATION], ["evolution.selection.strategy=truncation"]),
        ([_POPULATION, "evolution: {selection: {strategy: truncation}}"], []),
    ):
        selection = load(files, *overrides)["evolution"]["selection"]
        assert selection["strategy"] == "truncation"
        assert "tournament_size" not in selection
        assert selection["rand_seed"] == 3
    with pytest.raises(ConfigError, match="tournament_size"):
        load([_POPULATION], "evolution.selection.strategy=truncation", "evolution.selection.tournament_size=2")


@pytest.mark.parametrize(("lower", "upper"), [("num_epochs", "max_steps"), ("max_steps", "num_epochs")])
def test_the_length_set_last_counts(load: Any, lower: str, upper: str) -> None:
    below = f"model: {{name: x}}\ntrain: {{{lower}: 3}}\n"
    for values in (load([below], f"train.{upper}=2"), load([below, f"train: {{{upper}: 2}}"])):
        assert (values["train"][lower], values["train"][upper]) == (None, 2)
    assert load([below], f"train.{upper}=null")["train"][lower] == 3
    assert load([], f"train.{upper}=2")["train"][lower] is None  # the example's too
    with pytest.raises(ConfigError, match=r"command line: train\.num_epochs=2 and train\.max_steps=3 exclude"):
        load([below], "train.max_steps=3", "train.num_epochs=2")
    with pytest.raises(ConfigError, match=r"0\.yaml: train\.num_epochs=3 and train\.max_steps=3 exclude"):
        load([below.replace("3}", f"3, {upper}: 3}}")])


def test_overrides_are_one_layer(load: Any) -> None:
    for overrides in (["trackers=[wandb]", "trackers.project=p"], ["trackers.project=p", "trackers=wandb"]):
        trackers = load([], "model.name=x", *overrides)["trackers"]
        assert (trackers["names"], trackers["project"]) == (["wandb"], "p")
    for overrides in (["lora.r=4", "lora={lora_alpha: 8}"], ["lora={lora_alpha: 8}", "lora.r=4"]):
        lora = load([], "model.name=x", *overrides)["lora"]
        assert (lora["r"], lora["lora_alpha"]) == (4, 8)


@pytest.mark.parametrize("text", ["3", "{a: 1}", "[1]"])
def test_bases_are_names_of_files(load: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=r"0\.yaml: `defaults` lists files"):
        load([f"defaults: {text}\n"])
