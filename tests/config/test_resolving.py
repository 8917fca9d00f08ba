"""Configurations read back as they are, and what is wrong in them is said."""

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agiledpo.config import ConfigError, load_config
from agiledpo.config.algorithms import ALGORITHMS, schema_of
from agiledpo.config.kinds import is_plain
from agiledpo.config.printing import plain_yaml
from agiledpo.config.schema import Parameter, Section

_TEXTS = st.text(string.ascii_letters + string.digits + " :-#'\"[]{},&*!|>%@`\\/._=é", max_size=12)
_OWN = ["model.name=x"]  # not the example


def _values(hint: Any) -> st.SearchStrategy[Any]:
    """Values that a type hint allows."""
    parts = [part for part in get_args(hint) if is_plain(part) or part is NoneType]
    kind = get_origin(hint) or hint
    if hint is Any:
        return st.none() | st.booleans() | st.integers() | _TEXTS
    if kind is Literal:
        return st.sampled_from(get_args(hint))
    if hint in (bool, int, float, str, NoneType, None):
        plain: dict[Any, st.SearchStrategy[Any]] = {
            bool: st.booleans(),
            int: st.integers(-(2**40), 2**40),
            float: st.floats(allow_nan=False, allow_infinity=False),
            str: _TEXTS,
        }
        return plain.get(hint, st.none())
    if isinstance(kind, type) and issubclass(kind, Mapping):
        item = _values(parts[1]) if len(parts) == 2 else _TEXTS
        return st.dictionaries(st.text(string.ascii_letters, min_size=1, max_size=5), item, max_size=2)
    if kind is tuple and parts:
        return st.tuples(*map(_values, parts)).map(list)
    if isinstance(kind, type) and issubclass(kind, Sequence):
        return st.lists(_values(parts[0]) if parts else _TEXTS, max_size=3)
    if isinstance(kind, type) and not parts:
        return _TEXTS  # a path
    return st.one_of([_values(part) for part in parts])


def _parameters(algorithm: str) -> list[tuple[str, Parameter]]:
    return [
        (path, entry)
        for path, entry in schema_of(algorithm).walk()
        if isinstance(entry, Parameter) and not path.startswith(("evolution.selection", "model.name"))
    ]


def _at(values: Mapping[str, Any], path: str) -> Any:
    found: Any = values
    for name in path.split("."):
        found = found[name]
    return found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_value_survives_yaml(algorithm: str, data: st.DataObject, tmp_path: Path) -> None:
    path, parameter = data.draw(st.sampled_from(_parameters(algorithm)), label="parameter")
    value = data.draw(_values(parameter.hint), label="value")
    inner: Any = value
    for name in reversed(path.split(".")):
        inner = {name: inner}
    first = tmp_path / "first.yaml"
    first.write_text(_written(inner), encoding="utf-8")
    config = load_config(algorithm, [first], _OWN)
    assert _at(config.values, path) == value
    second = tmp_path / "second.yaml"
    second.write_text(config.to_yaml(), encoding="utf-8")
    again = load_config(algorithm, [second])
    assert again.values == config.values
    assert again.to_yaml() == config.to_yaml()


def _written(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, allow_unicode=True)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_misspelt_name_is_recognised(data: st.DataObject) -> None:
    known = [path for path, _ in _parameters("dpo") if len(path.rpartition(".")[2]) >= 6]
    path = data.draw(st.sampled_from(known))
    section, dot, name = path.rpartition(".")
    place = data.draw(st.integers(0, len(name) - 2))
    edit = data.draw(st.sampled_from(["swap", "drop", "double", "dash"]))
    edited = {
        "swap": name[:place] + name[place + 1] + name[place] + name[place + 2 :],
        "drop": name[:place] + name[place + 1 :],
        "double": name[: place + 1] + name[place:],
        "dash": name.replace("_", "-"),
    }[edit]
    names = {known.rpartition(".")[2] for known, _ in _parameters("dpo")}
    if edited in names or not edited[0].isalpha():
        return
    with pytest.raises(ConfigError) as caught:
        load_config("dpo", [], [*_OWN, f"{section}{dot}{edited}=1"])
    assert f"command line: {section}{dot}{edited} is no parameter; did you mean {path}?" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.rnak=8", "did you mean lora.r?"),
        ("lora.rank=8", "did you mean lora.r?"),
        ("max_steps=8", "did you mean train.max_steps?"),
        ("learning_rate=1", "did you mean lr?"),
        ("lora.alpha=1", "did you mean lora.lora_alpha?"),
        ("epochs=1", "did you mean train.num_epochs?"),
        ("output_dir=runs", "it is --run here"),
        ("samples.what=1", "samples has count, max_new_tokens, temperature, seed."),
        ("lora.xyzzy=1", "--print-config shows what there is"),
        ("policy.model_name=x", "policy.model_name is model.name here"),
        ("dpo.reference_policy_kl_penalty=1", "dpo.reference_policy_kl_penalty is beta here"),
        ("evolution.selection.fraction=0.1", "it goes with evolution.selection.strategy=truncation"),
        ("batch_size=true", "batch_size=true is not allowed; batch_size must be a whole number"),
        ("beta=strong", "command line: beta='strong' is not allowed; beta must be a number"),
        ("lora.r=null", "lora.r=null is not allowed"),
        ("lora=8", "lora is a section"),
        ("train.parallel=both", "must be one of data, population"),
        ("~lora", "set lora=null"),
        ("beta", "Write beta=VALUE"),
        ("mine.yaml", "--config mine.yaml"),
        ("--beta=0.1", "without dashes: beta=0.1"),
        ("lora.target_modules=[q_proj", "in quotes"),
        ("beta=${gamma}", "gamma"),
    ],
)
def test_what_is_wrong_is_said(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("dpo", [], [*_OWN, override])
    assert message in str(caught.value)


def test_overrides_are_read_as_they_are_typed() -> None:
    overrides = ["beta=0.05", "lr=5e-6", "+lora.r=32", "++train.max_steps=64", "lora.target_modules=[q_proj,v_proj]"]
    overrides += [
        "model.revision=1234567",
        "data.train=2024",
        "sft_loss_weight=${beta}",
        "model.name=a:b",
    ]
    values = load_config("dpo", [], overrides).values
    assert (values["beta"], values["lr"], values["lora"]["r"], values["train"]["max_steps"]) == (0.05, 5e-6, 32, 64)
    assert values["lora"]["target_modules"] == ["q_proj", "v_proj"]
    # Where a text is wanted, what was typed is one.
    assert (values["model"]["revision"], values["data"]["train"]) == ("1234567", "2024")
    assert values["sft_loss_weight"] == 0.05
    assert values["model"]["name"] == "a:b"


def test_files_come_one_over_the_other(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "first.yaml").write_text("model: {name: m, dtype: float32}\nbeta: 0.5\nlora: {r: 4}\n")
    (tmp_path / "second.yaml").write_text("defaults:\n  - base/first\nbeta: 0.25\nlora:\n  lora_alpha: 8\n")
    (tmp_path / "third.yaml").write_text("lr: 1e-3\nbeta: 0.125\n")
    values = load_config("dpo", [tmp_path / "second.yaml"]).values
    assert (values["beta"], values["lora"]["r"], values["lora"]["lora_alpha"]) == (0.25, 4, 8)
    values = load_config("dpo", [tmp_path / "second.yaml", tmp_path / "third.yaml"], ["lr=1e-2"]).values
    assert (values["beta"], values["lr"], values["model"]["dtype"]) == (0.125, 1e-2, "float32")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta: 0.1\nlora:\n  rnak: 8\n", "mine.yaml, line 3: lora.rnak is no parameter; did you mean lora.r?"),
        ("\n\nbatch_size: many\n", "mine.yaml, line 3: batch_size='many' is not allowed"),
        ("defaults: [other]\n", "There is no configuration file"),
        ("defaults: [mine]\n", "goes on from itself"),
        ("- a\n- b\n", "holds no mapping"),
        ("beta: [0.1\n", "is not valid YAML"),
    ],
)
def test_a_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config("dpo", [tmp_path / "mine.yaml"], _OWN)
    assert message in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("dpo", [], ["beta=strong", "lora.r=high", "seed=1.5"])
    assert len(str(caught.value).splitlines()) == 3


def test_the_example_is_for_whoever_gives_neither_model_nor_data() -> None:
    assert load_config("dpo", [], ["beta=0.7"]).is_example
    assert load_config("dpo", [], ["beta=0.7"]).values["lr"] == 1e-4
    for own in ("model.name=embedded", "data.train=embedded"):
        config = load_config("dpo", [], [own])
        assert not config.is_example
        assert config.values["lr"] == 5e-6


def test_a_section_that_is_empty_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {name: x}\nlora:\nevolution: {}\n")
    values = load_config("dpo", [tmp_path / "mine.yaml"]).values
    assert values["lora"]["r"] == 16
    assert values["evolution"]["selection"]["strategy"] == "tournament"
    assert load_config("dpo", [], _OWN).values["evolution"] is None


def test_seeds_follow_the_run() -> None:
    config = load_config("dpo", [], [*_OWN, "seed=7", "data.seed=3", "evolution.evo_steps=2"])
    assert config.seeded("env")["seed"] == 7
    assert config.seeded("data")["seed"] == 3
    assert config.seeded("evolution")["selection"]["rand_seed"] == 7
    assert config.values["env"]["seed"] is None


def test_a_list_stands_for_a_section(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {name: x}\ntrackers: [tensorboard]\n")
    values = load_config("dpo", [tmp_path / "mine.yaml"], ["trackers.project=p"]).values
    assert (values["trackers"]["names"], values["trackers"]["project"]) == (["tensorboard"], "p")
    assert load_config("dpo", [], [*_OWN, "trackers=wandb"]).values["trackers"]["names"] == ["wandb"]


def test_sections_are_what_they_say() -> None:
    assert all(isinstance(schema_of(name).entries["lora"], Section) for name in ALGORITHMS)


@pytest.mark.parametrize("text", ["#c", "a #b", "a:#b", "x${y}", "a\\${b}", "a\\\\${b}", "\\", "${", "a\\"])
def test_text_is_read_as_it_is_typed_or_written(tmp_path: Path, text: str) -> None:
    typed = text if "$" not in text else plain_yaml(text)
    config = load_config("dpo", [], [*_OWN, f"model.tokenizer={typed}"])
    assert config.values["model"]["tokenizer"] == text
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config("dpo", [tmp_path / "again.yaml"]).values == config.values


@pytest.mark.parametrize(
    ("algorithm", "override", "message"),
    [
        ("grpo", "generator.api_key=hush", "VLLM_API_KEY"),
        ("dpo", "model.from_pretrained={token: hush}", "model.from_pretrained.token is a secret"),
        ("dpo", "model.from_pretrained.token=hush", "HF_TOKEN"),
        ("dpo", "model.token=hush", "HF_TOKEN"),
        ("dpo", "trackers.init_kwargs={wandb: {settings: {api_key: hush}}}", "WANDB_API_KEY"),
    ],
)
def test_secrets_are_refused_and_not_shown(algorithm: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(algorithm, [], [*_OWN, override])
    assert message in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_missing_value_is_refused() -> None:
    for override in ("batch_size=???", "model.name=???"):
        with pytest.raises(ConfigError, match=r"=\?\?\? stands for a value that is still to be given"):
            load_config("dpo", [], [*_OWN, override])
