"""Which completions of a step each process takes, where a prompt that several share is computed once."""

from collections.abc import Sequence


def consecutive_shares(
    completions: Sequence[int], owners: Sequence[int], prompts: Sequence[int], size: int
) -> list[tuple[int, int]]:
    """Cut completions, which lie prompt by prompt, into a piece for each process, the heaviest as light as possible.

    A piece weighs its completions, and each of their prompts once. The completions of a prompt are therefore taken
    apart only where that spares somebody more than the prompt costs once more.

    Args:
        completions: Tokens of each completion.
        owners: The place of each one's prompt; ascending.
        prompts: Tokens of each prompt; 0 where completions bring their prompts themselves.
        size: Number of processes.

    Returns:
        (start, stop) of each process's piece, one behind the other; some may be empty.
    """
    added = [weight + prompts[owner] for weight, owner in zip(completions, owners, strict=True)]
    least, most = max(added, default=0), sum(completions) + sum(prompts)

    def reach(start: int, limit: int) -> int:
        """Where a piece from ``start`` ends that weighs at most ``limit``."""
        load, stop = 0, start
        while stop < len(completions):
            again = stop > start and owners[stop] == owners[stop - 1]
            load += completions[stop] if again else added[stop]
            if load > limit:
                break
            stop += 1
        return stop

    def suffices(start: int, pieces: int, limit: int) -> bool:
        for _ in range(pieces):
            start = reach(start, limit)
        return start == len(completions)

    while least < most:
        middle = (least + most) // 2
        if suffices(0, size, middle):
            most = middle
        else:
            least = middle + 1

    shares, start = [], 0
    for others in reversed(range(size)):
        stop = reach(start, least)
        border = stop
        while start < border < len(completions) and owners[border] == owners[border - 1]:
            border -= 1
        if border > start and suffices(border, others, least):
            stop = border  # the limit can be kept without taking this prompt's completions apart
        shares.append((start, stop))
        start = stop
    return shares
