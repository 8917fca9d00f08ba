"""What cannot be is said before anything is opened or written."""

import re

import pytest

from agiledpo.config import load_config
from agiledpo.launch.checking import check
from agiledpo.launch.model import open_model
from agiledpo.launch.settings import generator_of

_EVOLVING = ["population.size=2", "evolution.evo_steps=2"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.test_fraction=1.5", "data.test_fraction=1.5 must be above 0 and below 1"),
        ("data.max_rows=-1", "data.max_rows=-1 must be at least 1"),
        ("data.seed=-1", "data.seed=-1 must be at least 0"),
        ("samples.max_new_tokens=0", "samples.max_new_tokens=0 must be at least 1"),
        ("samples.temperature=-1", "samples.temperature=-1.0 must be at least 0"),
        ("samples.seed=-3", "samples.seed=-3 must be at least 0"),
        ("seed=-1", "seed=-1 must be at least 0"),
        ("env.seed=-1", "env.seed=-1 must be at least 0"),
        ("lora.r=0", "lora.r=0 must be at least 1"),
        ("lora.lora_dropout=1", "lora.lora_dropout=1.0 must be at least 0 and below 1"),
        ("model.device=foo", "model.device='foo': there is no such device"),
        ("model.chat_template=no.jinja", "model.chat_template='no.jinja': there is no such file"),
        ("model.from_pretrained={dtype: float32}", "set model.dtype"),
        ("train.retention.metric_name=loss", "Set train.retention.keep_best=1"),
        ("evolution.selection.rand_seed=-1", "evolution.selection.rand_seed=-1 must be at least 0"),
        (
            "evolution.hyperparameters.lr={min: a, max: 3}",
            "hyperparameters.lr={'min': 'a', 'max': 3} must be",
        ),
        (
            "evolution.hyperparameters.lr={log_uniform: [a, b]}",
            "hyperparameters.lr={'log_uniform': ['a', 'b']} must",
        ),
        ("evolution.hyperparameters.lr={min: 1e-6, max: 1, grow_factor: x}", "'grow_factor': 'x'} must be"),
        ("evolution.hyperparameters.lr={min: 2, max: 1}", "evolution.hyperparameters.lr={'min': 2, 'max': 1}: "),
        ("evolution.hyperparameters.lr={min: 1, max: 2}", "evolution.hyperparameters.lr: lr=0.0001 is outside"),
    ],
)
def test_what_is_out_of_range_is_named_in_full(override: str, message: str) -> None:
    config = load_config("dpo", [], [*_EVOLVING, override])
    with pytest.raises(ValueError, match=re.escape(message)):
        check(config)
    check(load_config("dpo", [], _EVOLVING))


@pytest.mark.parametrize("reward", ["[]", "{}", "null"])
def test_no_reward_is_none(reward: str) -> None:
    with pytest.raises(ValueError, match=f"reward={re.escape(reward)}: nothing says what an answer is worth"):
        check(load_config("grpo", [], [f"reward={reward}"]))


def test_embedded_rows_with_an_own_model_need_a_column() -> None:
    with pytest.raises(ValueError, match=r"env\.response_column=chosen"):
        check(load_config("sft", [], ["model.name=x"]))
    with pytest.raises(ValueError, match=r"env\.answer_column=topic"):
        check(load_config("grpo", [], ["model.name=x", "reward=agiledpo.embedded.reward:short_answer"]))


def test_the_key_of_a_server_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "hush")
    config = load_config("grpo", [], ["generator={}"])
    generator = generator_of(config)
    assert generator is not None
    assert generator._server._client.headers["Authorization"] == "Bearer hush"
    generator.close()
    assert "hush" not in config.to_yaml()


def test_what_a_model_does_not_take_is_said() -> None:
    with pytest.raises(ValueError, match=re.escape("model.from_pretrained={'foo': 3} is not what embedded takes")):
        open_model(from_pretrained={"foo": 3})
