"""The code of AgileRL's DPO page runs with the package name, the model and the dataset replaced.

What the page documents beside its code, every method, parameter and default, is here too; where a default of ours is
another one on purpose, docs/coming-from-agilerl.md says so and why.
"""

import inspect
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerFast

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.registry import NetworkGroup
from agiledpo.llm_envs import PreferenceGym

DOCS = Path(__file__).parents[2] / "docs"

# The blocks of the page, as they stand there.
SETUP = """
from agilerl.algorithms import DPO
from agilerl.llm_envs import PreferenceGym
from accelerate import Accelerator
from datasets import load_dataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
import torch
# Instantiate the model and the associated tokenizer
model = AutoModelForCausalLM.from_pretrained(
"Qwen/Qwen2.5-3B",
torch_dtype=torch.bfloat16,
)
tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-3B")
# Instantiate an accelerator object for distributed training
accelerator = Accelerator()
# Load the dataset into a PreferenceGym environment
raw_dataset = load_dataset("HumanLLMs/Human-Like-DPO-Dataset", split="train").shuffle(seed=42)
train_test_split = raw_dataset.train_test_split(test_size=0.1)
train_dataset = train_test_split["train"]
test_dataset = train_test_split["test"]
env = PreferenceGym(
train_dataset=train_dataset,
test_dataset=test_dataset,
tokenizer=tokenizer,
data_batch_size_per_gpu=16,
accelerator=accelerator,
)
# Instantiate the agent
agent = DPO(
env.observation_space,
env.action_space,
actor_network=model,
pad_token_id=tokenizer.eos_token_id,
pad_token=tokenizer.eos_token,
device="cuda" if torch.cuda.is_available() else "cpu",
batch_size=32,
lr=0.000005,
beta=0.001,
update_epochs=1,
seed=42,
accelerator=accelerator,
)
"""
TRAINING = """
from agilerl.training.train_llm import finetune_llm_preference
finetune_llm_preference(
[agent],
env,
num_epochs=1,
checkpoint_steps=250,
accelerator=accelerator,
)
"""
SAVING = """
from agilerl.utils.utils import save_llm_checkpoint
save_llm_checkpoint(agent, "path/to/checkpoint")
"""
LOADING = """
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import PeftModel
import torch
base_model = AutoModelForCausalLM.from_pretrained(
"Qwen/Qwen2.5-3B",
torch_dtype=torch.bfloat16,
device_map="auto"
)
tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-3B")
model = PeftModel.from_pretrained(base_model, "path/to/model/directory")
"""


def test_every_block_of_the_page_runs(tmp_path, tiny_model, tiny_tokenizer, make_pairs, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("tiny-model")
    tiny_tokenizer.save_pretrained("tiny-model")
    Path("tiny-pairs").mkdir()
    make_pairs(80).to_json("tiny-pairs/train.jsonl")

    def run(block: str) -> None:
        code = block.replace("agilerl", "agiledpo")
        code = code.replace("Qwen/Qwen2.5-3B", "tiny-model")
        code = code.replace("HumanLLMs/Human-Like-DPO-Dataset", "tiny-pairs")
        code = code.replace("path/to/model/directory", "path/to/checkpoint/actor")  # what the page's last section says
        exec(compile(code, "the page", "exec"), names)

    names: dict[str, object] = {}
    with pytest.warns(UserWarning, match="No lora_config given; using LoraConfig\\(r=16"):
        run(SETUP)
    run(TRAINING)
    agent = names["agent"]
    assert isinstance(agent, DPO)
    assert agent.base.model is names["model"]
    assert agent.steps == [72]  # a tenth of 80 pairs is held out
    assert {int(state["step"]) for state in agent.optimizer.state.values()} == {3}  # 32 + 32 + 8
    assert len(agent.fitness) == 1
    run(SAVING)
    run(LOADING)
    loaded = names["model"]
    assert isinstance(loaded, PeftModel)
    trained = agent.base.parameters(agent.adapters.name("actor"))
    stored = {name.replace(".default", ""): p for name, p in loaded.named_parameters() if "lora_" in name}
    assert trained.keys() == stored.keys()
    assert all(torch.equal(trained[name].cpu(), stored[name].cpu()) for name in trained)
    assert any(bool(stored[name].any()) for name in stored if "lora_B" in name)  # which training moved from zero
    saved = {path.relative_to("saved_checkpoints").parts[0] for path in Path("saved_checkpoints").rglob("*.pt")}
    assert saved == {"step_72"}
    assert PeftModel.from_pretrained(tiny_model(), "saved_checkpoints/step_72/agents/agent_0/actor")


# What the page documents: parameters and defaults -------------------------------------------------------------------

REQUIRED = inspect.Parameter.empty
PAGE: dict[str, dict[str, object]] = {
    "DPO": {
        "pad_token_id": REQUIRED,
        "pad_token": REQUIRED,
        "model_name": None,
        "actor_network": None,
        "model_config": None,
        "hp_config": None,
        "index": 0,
        "batch_size": 16,
        "lr": 0.000005,
        "beta": 0.1,
        "nll_alpha": 1.0,
        "max_grad_norm": 0.1,
        "update_epochs": 1,
        "calc_position_embeddings": True,
        "micro_batch_size_per_gpu": None,
        "device": "cpu",
        "lora_config": None,
        "accelerator": None,
        "wrap": True,
        "clone": False,
        "seed": 42,
        "gradient_checkpointing": True,
        "torch_compiler": None,
        "use_liger_loss": False,
        "use_separate_reference_adapter": True,
    },
    "clone": {"index": None, "wrap": True},
    "copy_attributes": {"agent": REQUIRED, "clone": REQUIRED},
    "evolvable_attributes": {"networks_only": False},
    "get_action": {"obs": REQUIRED},
    "get_action_dim": {"action_space": REQUIRED},
    "get_policy": {},
    "get_state_dim": {"observation_space": REQUIRED},
    "inspect_attributes": {"agent": REQUIRED, "input_args_only": False},
    "learn": {"experiences": REQUIRED, "training": True},
    "load": {"path": REQUIRED, "device": "cpu", "accelerator": None},
    "load_checkpoint": {
        "path": REQUIRED,
        "load_optimizer": False,
        "overwrite_reference_adapter": False,
        "overwrite_critic_adapter": True,
        "merge_lora_configs": False,
    },
    "population": {
        "size": REQUIRED,
        "observation_space": REQUIRED,
        "action_space": REQUIRED,
        "wrapper_cls": None,
        "wrapper_kwargs": None,
    },
    "preprocess_observation": {"observation": REQUIRED},
    "recompile": {},
    "register_mutation_hook": {"hook": REQUIRED},
    "register_network_group": {"group": REQUIRED},
    "reinit_optimizers": {"optimizer": None},
    "save_checkpoint": {"path": REQUIRED, "lora_only": True, "save_optimizer": True},
    "select_adapter": {"adapter_name": REQUIRED},
    "set_reference_policy": {"reference_update_tracker": REQUIRED},
    "set_training_mode": {"training": REQUIRED},
    "test": {"env": REQUIRED, "loop": 1},
    "to_device": {},
    "update_lr": {"optimizer": REQUIRED, "lr": REQUIRED, "accelerator": None, "scheduler_config": None},
    "use_adapter": {"adapter_name": REQUIRED},
}
WITHOUT_AN_AGENT = {
    staticmethod: {"copy_attributes", "get_action_dim", "get_state_dim", "inspect_attributes", "update_lr"},
    classmethod: {"load", "population"},
}


def ours(name: str) -> dict[str, object]:
    """Parameters and defaults of a method, or of the constructor."""
    parameters = inspect.signature(DPO if name == "DPO" else inspect.getattr_static(DPO, name).__get__(None, DPO))
    return {parameter.name: parameter.default for parameter in parameters.parameters.values()}


def written(value: object) -> str:
    return "required" if value is REQUIRED else repr(value)


def test_every_parameter_of_the_page_is_there_with_its_default_or_the_docs_say_why_not() -> None:
    missing = {(name, parameter) for name, page in PAGE.items() for parameter in page.keys() - ours(name).keys()}
    assert missing == set()
    differing = {
        (name, parameter): (written(default), written(ours(name)[parameter]))
        for name, page in PAGE.items()
        for parameter, default in page.items()
        if written(ours(name)[parameter]) != written(default)
    }
    text = (DOCS / "coming-from-agilerl.md").read_text()
    section = text.split("## Defaults that differ", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `(\w+)\((\w+)=\)` \| `?(.+?)`? \| `?(.+?)`? \| (.+) \|$", section, re.MULTILINE)
    assert {(name, parameter): (page, default) for name, parameter, page, default, _ in rows} == differing
    assert all(len(reason) > 5 for *_, reason in rows)


def test_what_the_page_calls_without_an_agent_is_so_here() -> None:
    for kind, names in WITHOUT_AN_AGENT.items():
        for name in PAGE.keys() - {"DPO"}:
            assert isinstance(inspect.getattr_static(DPO, name), kind) is (name in names), name


@pytest.fixture
def env(make_pairs, tiny_tokenizer: PreTrainedTokenizerFast) -> PreferenceGym:
    pairs: Dataset = make_pairs(6)
    return PreferenceGym(pairs, pairs, tiny_tokenizer, data_batch_size_per_gpu=3)


@pytest.fixture
def agent(tiny_model, lora) -> DPO:
    return DPO(actor_network=tiny_model(), lora_config=lora, batch_size=3, lr=1e-2, gradient_checkpointing=False)


def test_every_method_of_the_page_does_what_the_page_says(agent: DPO, env: PreferenceGym, tmp_path: Path) -> None:
    calls: list[str] = []
    agent.register_mutation_hook(lambda: calls.append("hook"))
    agent.register_network_group(NetworkGroup("actor", policy=True))
    experiences = agent.to_device(agent.preprocess_observation(env.reset()))[0]
    measured = agent.learn(experiences, training=False)
    assert agent.steps == [0]
    learned = agent.learn(experiences)
    for metrics in (measured, learned):
        assert {"mean_loss", "mean_chosen_reward", "mean_rejected_reward"} <= metrics.keys()
    fitness = agent.test(env, loop=2)
    assert fitness.shape == ()
    assert float(fitness) == agent.fitness[-1]

    assert agent.evolvable_attributes(networks_only=True) == {"actor": agent.get_policy()}
    assert agent.evolvable_attributes()["optimizer"] is agent.optimizer
    assert DPO.get_action_dim(env.action_space) == (97,)
    assert "chosen_input_ids" in DPO.get_state_dim(env.observation_space)
    arguments = DPO.inspect_attributes(agent, input_args_only=True)
    assert arguments.keys() <= PAGE["DPO"].keys() | ours("DPO").keys()
    assert arguments["beta"] == 0.1
    with pytest.raises(RuntimeError, match="offline algorithm"):
        agent.get_action([])

    clone = agent.clone(index=5, wrap=False)
    assert (clone.index, clone.fitness, calls) == (5, agent.fitness, ["hook"])
    clone.beta = 0.7
    assert DPO.copy_attributes(agent, clone) is clone
    assert clone.beta == agent.beta
    clone.lr = 0.5
    clone.reinit_optimizers()
    assert clone.optimizer.param_groups[0]["lr"] == 0.5
    assert DPO.update_lr(clone.optimizer, 0.25) == (None, None)
    assert clone.optimizer.param_groups[0]["lr"] == 0.25

    actor = agent.adapters.parameters("actor")
    assert not equal(actor, agent.adapters.parameters("reference"))
    agent.set_reference_policy(1)
    assert equal(actor, agent.adapters.parameters("reference"))
    active = agent.get_policy().active_adapter
    with agent.select_adapter("reference") as model:
        assert model.active_adapter != active
    assert agent.base.peft.active_adapter == active
    agent.use_adapter("reference")
    assert agent.base.peft.active_adapter != active
    assert not any(parameter.requires_grad for parameter in agent.adapters.parameters("reference"))
    assert all(parameter.requires_grad for parameter in actor)
    agent.set_training_mode(True)
    assert agent.training is True
    agent.recompile()

    agent.save_checkpoint(str(tmp_path / "saved"))
    clone.load_checkpoint(str(tmp_path / "saved"), load_optimizer=True)
    assert equal(actor, clone.adapters.parameters("actor"))
    made = DPO.load(str(tmp_path / "saved"), "cpu", actor_network=agent.base.model)
    assert equal(actor, made.adapters.parameters("actor"))
    wrapped = DPO.population(
        2, env.observation_space, env.action_space, lambda agent, tag: (agent, tag), {"tag": "w"},
        actor_network=agent.base.model, lora_config=agent.lora_config,
    )  # fmt: skip
    assert [(agent.index, tag) for agent, tag in wrapped] == [(0, "w"), (1, "w")]


@pytest.mark.parametrize("lora_only", [True, False])
@pytest.mark.parametrize("save_optimizer", [True, False])
def test_the_grid_of_saving(agent: DPO, tmp_path: Path, lora_only: bool, save_optimizer: bool) -> None:
    agent.save_checkpoint(str(tmp_path / "saved"), lora_only=lora_only, save_optimizer=save_optimizer)
    for role in ("actor", "reference"):
        names = {path.name for path in (tmp_path / "saved" / role).iterdir()}
        assert {"adapter_model.safetensors", "adapter_config.json"} <= names
    attributes = torch.load(tmp_path / "saved/attributes.pt", weights_only=True)
    assert ("optimizer" in attributes) is save_optimizer
    size = sum(value.numel() for value in tensors(attributes))
    base = sum(parameter.numel() for name, parameter in agent.base.model.named_parameters() if "lora_" not in name)
    assert (size >= base) is not lora_only


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def tensors(value: object) -> list[torch.Tensor]:
    match value:
        case torch.Tensor():
            return [value]
        case dict():
            return [tensor for item in value.values() for tensor in tensors(item)]
        case list() | tuple():
            return [tensor for item in value for tensor in tensors(item)]
    return []
