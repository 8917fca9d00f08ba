"""The table of contents of a checkpoint."""

import hashlib
import os
import tracemalloc

import pytest
import torch

from agiledpo.checkpoint import CheckpointError, Manifest
from agiledpo.checkpoint.manifest import file_sha256
from agiledpo.data.fingerprint import tokenizer_sha256
from agiledpo.data.tokenization import isolated_copy


def test_it_lists_every_file_with_its_checksum_and_comes_back_as_it_was(make_trained, tiny_tokenizer, tmp_path):
    agent = make_trained()
    agent.save_checkpoint(tmp_path / "c", tokenizer=tiny_tokenizer)
    manifest = Manifest.verify(tmp_path / "c")
    listed = {
        str(file.relative_to(tmp_path / "c")): (file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in (tmp_path / "c").rglob("*")
        if file.is_file() and file.name != "manifest.json"
    }
    assert {name: (record.bytes, record.sha256) for name, record in manifest.files.items()} == listed
    assert (manifest.kind, manifest.algorithm, manifest.format_version) == ("agent", "DPO", 2)
    assert manifest.metrics == {"fitness": 0.75}
    assert manifest.versions["torch"] == torch.__version__
    assert manifest.versions.keys() == {"agiledpo", "torch", "transformers", "peft"}
    assert manifest.tokenizer == tokenizer_sha256(isolated_copy(tiny_tokenizer))
    assert manifest == Manifest.read(tmp_path / "c")


def test_the_tokenizers_digest_is_of_what_it_does(tiny_tokenizer):
    before = tokenizer_sha256(isolated_copy(tiny_tokenizer))
    tiny_tokenizer(["w4 w5", "w6"], truncation=True, max_length=1, padding=True)
    assert tokenizer_sha256(isolated_copy(tiny_tokenizer)) == before
    tiny_tokenizer.chat_template = "{{ messages }}"
    assert tokenizer_sha256(isolated_copy(tiny_tokenizer)) != before


def run_of(agent, path):
    """A run checkpoint with two agents, which share the file of their reference."""
    from agiledpo.checkpoint import write_agent, written_atomically

    linked = {}
    with written_atomically(path) as draft:
        for index in (0, 1):
            directory = draft / "agents" / f"{index}"
            directory.mkdir(parents=True)
            write_agent(agent, directory, linked=linked)
        (draft / "run.json").write_text("{}")
        Manifest(kind="run", algorithm="DPO").write(draft)


def test_a_run_lists_the_manifests_of_its_agents_which_list_the_rest(make_trained, tmp_path):
    run_of(make_trained(), tmp_path / "run")
    manifest = Manifest.verify(tmp_path / "run")
    assert set(manifest.files) == {"run.json", "agents/0/manifest.json", "agents/1/manifest.json"}
    assert manifest.nested == ("agents/0", "agents/1")
    one, other = (tmp_path / "run" / "agents" / f"{i}" / "reference" / "adapter_model.safetensors" for i in (0, 1))
    assert os.path.samefile(one, other)
    content = bytearray(other.read_bytes())
    content[-1] ^= 1
    other.unlink()
    other.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"agents/1/reference/adapter_model\.safetensors"):
        Manifest.verify(tmp_path / "run")
    Manifest.verify(tmp_path / "run" / "agents" / "0")


def test_agents_of_a_run_cannot_be_exchanged(make_trained, tmp_path):
    run_of(make_trained(), tmp_path / "a")
    run_of(make_trained(seed=50), tmp_path / "b")
    (tmp_path / "a" / "agents" / "0").rename(tmp_path / "other")
    (tmp_path / "b" / "agents" / "0").rename(tmp_path / "a" / "agents" / "0")
    with pytest.raises(CheckpointError, match=r"agents/0/manifest\.json has changed"):
        Manifest.verify(tmp_path / "a")


def test_a_pickle_beside_the_agents_of_a_run_or_in_one_that_is_not_listed(make_trained, tmp_path):
    run_of(make_trained(), tmp_path / "run")
    hidden = tmp_path / "run" / "agents" / "2"
    hidden.mkdir()
    (hidden / "manifest.json").write_bytes((tmp_path / "run" / "agents" / "0" / "manifest.json").read_bytes())
    (hidden / "x.pt").write_text("")
    with pytest.raises(CheckpointError, match=r"x\.pt could be a pickle"):
        Manifest.verify(tmp_path / "run")


def test_links_that_cannot_be_made_are_copies(make_trained, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    run_of(make_trained(), tmp_path / "run")
    Manifest.verify(tmp_path / "run")


def test_figures_that_json_does_not_know_are_left_out(tmp_path):
    (tmp_path / "c").mkdir()
    Manifest(kind="agent", algorithm="DPO", metrics={"a": float("nan"), "b": 1.5}).write(tmp_path / "c")
    assert Manifest.read(tmp_path / "c").metrics == {"b": 1.5}


def test_checksums_are_taken_piece_by_piece(tmp_path):
    file = tmp_path / "large"
    with file.open("wb") as handle:
        handle.truncate(64 * 2**20)
    tracemalloc.start()
    digest = file_sha256(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert digest == hashlib.sha256(bytes(64 * 2**20)).hexdigest()
    assert peak < 2**20
