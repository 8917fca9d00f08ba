"""What sequences begin with in common."""

from hypothesis import given
from hypothesis import strategies as st

from agiledpo.data.prefixes import common_prefix_length


@given(start=st.text("ab", max_size=40), rests=st.lists(st.text("ab", max_size=5), min_size=1, max_size=4))
def test_as_counted_element_by_element(start: str, rests: list[str]) -> None:
    texts = [start + rest for rest in rests]
    expected = 0
    while expected < min(map(len, texts)) and len({text[expected] for text in texts}) == 1:
        expected += 1
    assert common_prefix_length(*texts) == expected >= len(start)
    assert common_prefix_length(*map(list, texts)) == expected
