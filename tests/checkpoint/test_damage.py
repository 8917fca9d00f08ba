"""Each file of a checkpoint damaged in turn: refused with its name, and the agent is as it was."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from agiledpo.adapters.files import AdapterFileError
from agiledpo.algorithms import DPO
from agiledpo.checkpoint import CheckpointError, merge, restore
from agiledpo.checkpoint.manifest import FORMAT_VERSION, Manifest
from tests.checkpoint.conftest import everything, same

FILES = (
    "manifest.json",
    "attributes.pt",
    "actor/adapter_model.safetensors",
    "actor/adapter_config.json",
    "actor/README.md",
    "reference/adapter_model.safetensors",
    "reference/adapter_config.json",
    "tokenizer/tokenizer.json",
)


class Exploit:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


@pytest.fixture
def checkpoint(make_trained, tiny_tokenizer, tmp_path) -> Path:
    make_trained().save_checkpoint(tmp_path / "c", tokenizer=tiny_tokenizer)
    return tmp_path / "c"


@pytest.fixture
def refused(make_trained, tiny_model):
    """Every way of loading refuses the checkpoint, names the file, and leaves the agent as it was."""
    agent = make_trained(seed=50)
    before = everything(agent)

    loads = {
        "hyperparameters": lambda path: agent.load_checkpoint(path, load_optimizer=True, load_hyperparameters=True),
        "adapters": agent.load_checkpoint,
        "restore": lambda path: restore(agent, path),
        "load": lambda path: DPO.load(path, actor_network=tiny_model()),
    }

    def check(path: Path, message: str, ways: Iterable[str] = tuple(loads)) -> None:
        for way in ways:
            with pytest.raises(CheckpointError, match=message):
                loads[way](path)
            assert same(everything(agent), before)

    return check


def rewritten(path: Path, **changes: object) -> None:
    """Write a manifest whose checksums fit what is there, as somebody who means harm would."""
    manifest = Manifest.read(path)
    (path / "manifest.json").unlink()
    Manifest(kind="agent", algorithm="DPO", base_model=manifest.base_model, **changes).write(path)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "deleted", "longer"])
def test_every_file_damaged_in_every_way(checkpoint, refused, file, damage):
    target = checkpoint / file
    content = target.read_bytes()
    if damage == "deleted":
        target.unlink()
    elif damage == "flipped":
        for position in {0, 1, len(content) // 3, len(content) // 2, len(content) - 2}:
            flipped = bytearray(content)
            flipped[position] ^= 0x10
            target.write_bytes(bytes(flipped))
            refused(checkpoint, file.replace(".", r"\."))
        return
    else:
        target.write_bytes({"truncated": content[:-7], "empty": b"", "longer": content + b"x"}[damage])
    refused(checkpoint, file.replace(".", r"\."))


def test_every_bit_of_the_manifest_counts(checkpoint):
    file = checkpoint / "manifest.json"
    content = file.read_bytes()
    said = Manifest.read(checkpoint)
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        file.write_bytes(bytes(flipped))
        try:
            read = Manifest.read(checkpoint)
        except CheckpointError:
            continue
        assert read == said  # a space became another one that JSON does not tell apart


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"format": "agiledpo-checkpoint", "versions": ' + "[" * 980 + "]" * 980 + "}"],
    ids=["deep", "as deep as can be read"],
)
def test_a_manifest_that_is_nested_too_deeply_is_a_damaged_one(checkpoint, refused, text):
    (checkpoint / "manifest.json").write_text(text)
    refused(checkpoint, r"manifest\.json is damaged")


def test_a_newer_format_is_refused(checkpoint, refused):
    file = checkpoint / "manifest.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "format_version": FORMAT_VERSION + 1, "news": True}))
    refused(checkpoint, rf"manifest\.json has format version {FORMAT_VERSION + 1}.*Install the version")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": float("nan")}, "lr=nan must be a finite number"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number"),
        ({"batch_size": "abc"}, "batch_size='abc' must be a whole number"),
        ({"batch_size": None}, "batch_size=None must be a whole number"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"use_weighting": 3}, "use_weighting=3 must be True or False"),
        ({"loss_type": ("nope",)}, "'nope' is unknown"),
        ({"loss_type": 7}, "loss_type=7 must be names"),
        ({"loss_weights": ("a",)}, "loss_weights"),
    ],
)
def test_hyperparameters_that_make_no_sense_are_refused(checkpoint, refused, changes, message):
    attributes = torch.load(checkpoint / "attributes.pt", weights_only=True)
    attributes["hyperparameters"].update(changes)
    torch.save(attributes, checkpoint / "attributes.pt")
    rewritten(checkpoint)
    refused(checkpoint, rf"attributes\.pt.*{re.escape(message)}", ways=("hyperparameters", "restore", "load"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "steps=None must be a list of at least one whole number"),
        ({"steps": []}, "steps=[] must be"),
        ({"index": "x"}, "index='x' must be a whole number"),
        ({"parent": 1.5}, "parent=1.5"),
        ({"fitness": "yes"}, "fitness='yes' must be a list of numbers"),
        ({"fitness_errors": [None]}, "fitness_errors=[None]"),
        ({"tie_break": "a"}, "tie_break='a'"),
        ({"held_out": {"loss": "low"}}, "held_out={'loss': 'low'}"),
        ({"diverged": 1}, "diverged=1"),
        ({"scores": (0.5,)}, "scores=(0.5,)"),
        ({"mut": 2}, "mut=2"),
        ({"optimizer_steps": -1}, "optimizer_steps=-1"),
        ({"reference_update_tracker": True}, "reference_update_tracker=True"),
        ({"applied": (1.0,)}, "applied=(1.0,)"),
        ({"seed": "x"}, "seed='x'"),
        ({"random_stream": {}}, "random_stream"),
        ({"random_stream": {"states": [torch.zeros(3, dtype=torch.uint8)]}}, "random_stream"),
        ({"hyperparameters": None}, "does not fit"),
    ],
)
def test_history_that_nobody_can_have_lived_through_is_refused(checkpoint, refused, changes, message):
    attributes = torch.load(checkpoint / "attributes.pt", weights_only=True)
    torch.save({**attributes, **changes}, checkpoint / "attributes.pt")
    rewritten(checkpoint)
    refused(checkpoint, rf"attributes\.pt.*{re.escape(message)}", ways=("restore", "load"))


@pytest.mark.parametrize("setting", ["lr", "weight_decay", "eps"])
@pytest.mark.parametrize("value", ["abc", float("nan"), None])
def test_settings_of_the_optimizer_that_make_no_sense_are_refused(checkpoint, refused, setting, value):
    attributes = torch.load(checkpoint / "attributes.pt", weights_only=True)
    attributes["optimizer"]["param_groups"][0][setting] = value
    torch.save(attributes, checkpoint / "attributes.pt")
    rewritten(checkpoint)
    refused(checkpoint, rf"attributes\.pt.*the optimizer's {setting} is {value!r}", ways=("restore", "load"))


def test_code_in_attributes_is_not_run_even_if_the_checksums_fit(checkpoint, refused, tmp_path):
    witness = tmp_path / "executed"
    attributes = torch.load(checkpoint / "attributes.pt", weights_only=True)
    torch.save({**attributes, "index": Exploit(witness)}, checkpoint / "attributes.pt")
    rewritten(checkpoint)
    refused(checkpoint, r"attributes\.pt cannot be read as tensors and plain values")
    (checkpoint / "attributes.pt").write_bytes(pickle.dumps(Exploit(witness)))
    rewritten(checkpoint)
    refused(checkpoint, r"attributes\.pt cannot be read")
    assert not witness.exists()
    pickle.loads((checkpoint / "attributes.pt").read_bytes())  # it would have been run
    assert witness.exists()


@pytest.mark.parametrize("name", ["stray.pkl", "actor/training_args.bin", "tokenizer/deep/x.PT", "x.ckpt", "x.joblib"])
def test_a_stray_pickle_is_refused(checkpoint, refused, name):
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_bytes(pickle.dumps([1]))
    refused(checkpoint, f"{Path(name).name} could be a pickle")


def test_a_harmless_stray_file_is_not(checkpoint, make_trained):
    (checkpoint / "notes.txt").write_text("ours")
    make_trained(seed=50).load_checkpoint(checkpoint)


def test_links_and_paths_that_lead_out_are_refused(checkpoint, refused, tmp_path):
    file = checkpoint / "actor" / "adapter_model.safetensors"
    shutil.move(file, tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    refused(checkpoint, r"adapter_model\.safetensors leads out")
    file.unlink()
    shutil.move(tmp_path / "elsewhere", file)
    (checkpoint / "link").symlink_to(tmp_path)
    refused(checkpoint, "link leads out")
    (checkpoint / "link").unlink()
    manifest = Manifest.read(checkpoint)
    for name in ("../outside.txt", "/etc/hostname", "actor/../../x", "attributes.pt\0"):
        (checkpoint / "manifest.json").write_text("{}")
        content = {**manifest.files, name: manifest.files["attributes.pt"]}
        write_raw(checkpoint, manifest, content)
        refused(checkpoint, "outside the directory")


def write_raw(path: Path, manifest: Manifest, files: dict) -> None:
    """Write a manifest that lists what we say, with a checksum of its own that fits."""
    from dataclasses import asdict

    from agiledpo.checkpoint.manifest import _checksum

    content = {"format": "agiledpo-checkpoint", **asdict(manifest)}
    content["files"] = {name: asdict(record) for name, record in files.items()}
    (path / "manifest.json").write_text(json.dumps({**content, "checksum": _checksum(content)}))


def moments(attributes, kind):
    return next(group for group in attributes["optimizer"]["tensors"] if group["kind"] == kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("random_stream"), r"attributes\.pt lacks random_stream"),
        (lambda a: a["optimizer_parameters"].pop(), r"attributes\.pt.*parameters"),
        (lambda a: moments(a, "exp_avg")["shapes"].append([2]), r"attributes\.pt.*exp_avg has"),
        (lambda a: moments(a, "exp_avg")["shapes"].reverse(), r"attributes\.pt.*exp_avg of .* does not have its shape"),
        (lambda a: a.update(optimizer=[]), r"attributes\.pt"),
        (lambda a: a["hyperparameters"].update(beta=-1.0) or a["init"].update(beta=-1.0), r"attributes\.pt.*beta"),
        (lambda a: a["hyperparameters"].update(batch_size="many") or a["init"].update(batch_size="many"), "batch_size"),
    ],
)
def test_what_fits_its_checksum_but_not_the_agent(checkpoint, make_trained, change, message):
    attributes = torch.load(checkpoint / "attributes.pt", weights_only=True)
    change(attributes)
    torch.save(attributes, checkpoint / "attributes.pt")
    rewritten(checkpoint)
    agent = make_trained(seed=50)
    before = everything(agent)
    with pytest.raises(CheckpointError, match=message):
        agent.load_checkpoint(checkpoint, load_optimizer=True, load_hyperparameters=True)
    assert same(everything(agent), before)
    if "beta" not in message and message != "batch_size":  # restore puts hyperparameters back as they are
        with pytest.raises(CheckpointError, match=message):
            restore(agent, checkpoint)
        assert same(everything(agent), before)


def test_a_rank_that_is_not_the_weights_takes_no_memory(checkpoint, make_trained, tiny_model, tmp_path, tiny_tokenizer):
    for role in ("actor", "reference"):
        file = checkpoint / role / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "r": 10**12}))
    rewritten(checkpoint)
    agent = make_trained(seed=50)
    before = everything(agent)
    for load in (
        lambda: agent.load_checkpoint(checkpoint, merge_lora_configs=True),
        lambda: DPO.load(checkpoint, actor_network=tiny_model()),
        lambda: merge(checkpoint, tmp_path / "out", base_model=tiny_model(), tokenizer=tiny_tokenizer),
    ):
        with pytest.raises(AdapterFileError, match=r"actor/adapter_model.safetensors has .* call for rank 10000000000"):
            load()
    assert same(everything(agent), before)


def test_a_missing_role_directory_is_refused(checkpoint, refused):
    shutil.rmtree(checkpoint / "actor")
    refused(checkpoint, r"actor.* is missing")
    rewritten(checkpoint)
    refused(checkpoint, "actor is missing from the manifest")
