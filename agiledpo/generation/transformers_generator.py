"""Sampling completions with Transformers' ``generate``.

Transformers' continuous batching (``generate_batch``) is not used: on two CPU cores it is no faster
(benchmarking/results/generation.md), it knows no repetition penalty or fewest tokens, and the log-probabilities that it
returns are of what truncation leaves. Nor are AgileDPO's faster layers: they do not make single tokens faster, and
their float32 stream would make keys and values float32.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agiledpo.adapters.modes import modes
from agiledpo.generation.batches import prompt_batches
from agiledpo.generation.decoding import SampledRow, decode
from agiledpo.generation.limits import ending, rooms
from agiledpo.generation.probe import CacheTraits, cache_traits
from agiledpo.generation.sampling import Completions, SamplingSettings
from agiledpo.losses.checks import check_whole_number

if TYPE_CHECKING:
    from agiledpo.algorithms.core.llm import LLMAlgorithm
    from agiledpo.algorithms.core.randomness import TorchRandomStream
    from agiledpo.scoring.causal_lm import CausalLM

# Most rows of a batch, and the part of the device's memory that their keys and values may take, where nobody says. Of
# all memory, not of what is free: the size of a batch decides which draws are whose.
_ROWS = 256
_CACHE_SHARE = 1 / 8


class TransformersGenerator:
    """Samples from an agent's actor in this process.

    Prompts are sorted by length and go through the model in batches, left-padded; the prompt of a group is computed
    once. Rows that have ended leave the batch every ``segment`` tokens. Greedy completions depend on neither but for
    rounding. Sampled ones do, as each row draws when its turn comes: they are determined by the state of the agent's
    ``sampling_stream``, the prompts in their order, these two arguments and the machine.

    Args:
        batch_size: Most rows (completions) in a batch; None for as many as keep keys and values below an eighth of the
            device's memory, at most 256.
        segment: Tokens between two times that ended rows are taken out.

    Raises:
        ValueError: A number is below 1.
    """

    def __init__(self, batch_size: int | None = None, *, segment: int = 16) -> None:
        if batch_size is not None:
            check_whole_number("batch_size", batch_size)
        check_whole_number("segment", segment)
        self.batch_size = batch_size
        self.segment = segment
        self._traits: WeakKeyDictionary[PreTrainedModel, CacheTraits] = WeakKeyDictionary()

    def check(self, agent: "LLMAlgorithm") -> None:
        """Check that each process can sample from an agent's actor by itself.

        Args:
            agent: The agent.

        Raises:
            ValueError: Each holds only a part of the model's weights.
        """
        if agent.base.is_sharded:
            raise ValueError(
                f"Agent {agent.index}'s base model is sharded over {agent.team.size} processes (ZeRO stage 3), and "
                "TransformersGenerator samples in each of them by itself, for as many tokens as its own prompts take: "
                "they would wait for each other's weights for ever. Sample with generator=VLLMGenerator(...), or train "
                "with a ZeRO stage of at most 2, which leaves the model whole."
            )

    def generate(
        self,
        agent: "LLMAlgorithm",
        prompts: Sequence[Tensor],
        *,
        group_size: int,
        settings: SamplingSettings,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Completions:
        """Sample ``group_size`` completions for each prompt; see :class:`agiledpo.generation.Generator`.

        Args:
            agent: Whose actor answers, without dropout or gradient; it draws from ``agent.sampling_stream``.
            prompts: P prompts, int64 (prompt tokens,), of any lengths.
            group_size: G.
            settings: How; 0 as temperature draws nothing.
            tokenizer: Its end-of-sequence token ends completions beside the model's own; stop texts need it.

        Raises:
            ValueError: A prompt is empty or leaves no room within the model's longest sequence, stop texts lack a
                tokenizer, ``group_size`` is below 1, or the model is sharded.
        """
        self.check(agent)
        with (
            agent.adapters.evaluate("actor"),
            modes(agent.base, None, training=False, checkpointing=False),
        ):
            return self.sample(
                agent.lm,
                prompts,
                group_size=group_size,
                settings=settings,
                stream=agent.sampling_stream,
                tokenizer=tokenizer,
            )

    def sample(
        self,
        lm: "CausalLM",
        prompts: Sequence[Tensor],
        *,
        group_size: int,
        settings: SamplingSettings,
        stream: "TorchRandomStream",
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Completions:
        """Sample from a model that no agent has, with whatever adapter is active on it.

        Args:
            lm: The model, in evaluation mode.
            prompts: P prompts, int64 (prompt tokens,), of any lengths.
            group_size: G.
            settings: How.
            stream: What is drawn from.
            tokenizer: As for :meth:`generate`.

        Raises:
            ValueError: As for :meth:`generate`.
        """
        check_whole_number("group_size", group_size)
        room = rooms(prompts, settings, lm.max_positions)
        end = ending(lm.model, settings, tokenizer)
        groups: list[list[SampledRow]] = [[] for _ in prompts]
        with nullcontext() if settings.temperature == 0 else stream.active():
            traits = self._traits_of(lm)
            size = self.batch_size or _automatic_size(lm.model, traits, prompts, room)
            lengths = [len(prompt) for prompt in prompts]
            for batch in prompt_batches(lengths, room, group_size, size, pads=traits.shares):
                rows = decode(
                    lm.model,
                    [prompts[place] for place in batch.places],
                    batch.copies,
                    room=batch.room,
                    settings=settings,
                    ending=end,
                    segment=self.segment,
                    share=traits.shares,
                )
                taken = iter(rows)
                for place, count in zip(batch.places, batch.copies, strict=True):
                    groups[place] += [next(taken) for _ in range(count)]
        return Completions(
            tokens=[[row.tokens for row in group] for group in groups],
            logps=[[row.logps for row in group] for group in groups],
            finished=[[row.finished for row in group] for group in groups],
        )

    def _traits_of(self, lm: "CausalLM") -> CacheTraits:
        if lm.model not in self._traits:
            self._traits[lm.model] = cache_traits(lm.model, lm.vocabulary)
        return self._traits[lm.model]


def _automatic_size(
    model: PreTrainedModel, traits: CacheTraits, prompts: Sequence[Tensor], rooms: Sequence[int]
) -> int:
    """Rows whose keys and values take a fixed part of the device's memory."""
    if traits.token_bytes is None:
        return _ROWS
    device = model.device
    memory = (
        torch.cuda.get_device_properties(device).total_memory
        if device.type == "cuda"
        else psutil.virtual_memory().total
    )
    longest = max(len(prompt) + room for prompt, room in zip(prompts, rooms, strict=True))
    return max(1, min(_ROWS, int(memory * _CACHE_SHARE) // (longest * traits.token_bytes)))
