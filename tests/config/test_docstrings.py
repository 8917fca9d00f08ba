"""What docstrings say about parameters."""

from agiledpo.config.docstrings import first_sentence, in_yaml, parameter_help


def _documented() -> None:
    """Do something.

    Args:
        first: Said on one line.
        second: Said on
            two lines, of ``code`` and :class:`agiledpo.algorithms.DPO`. And more: much more.
        **rest: The rest.

    Returns:
        first: Not this.
    """


def _as_peft() -> None:
    """Do something.

    Args:
        r (`int`):
            The rank, see <a href='https://example.org'>a page</a> and [another](https://example.org/x).
        indices (`Optional[Union[List[int], dict[str, List[int]]]]`)
            Which ones.
        alpha (`int`): The alpha.
    """


def test_entries_are_read_whole() -> None:
    found = parameter_help(_documented)
    assert found == {
        "first": "Said on one line.",
        "second": "Said on two lines, of `code` and agiledpo.algorithms.DPO. And more: much more.",
        "rest": "The rest.",
    }


def test_the_style_of_peft_is_read() -> None:
    assert parameter_help(_as_peft) == {
        "r": "The rank, see a page and another.",
        "indices": "Which ones.",
        "alpha": "The alpha.",
    }


def test_a_sentence_ends_where_it_ends() -> None:
    assert first_sentence("AdamW's e.g. 0.1 of v2.0. Then more.") == "AdamW's e.g. 0.1 of v2.0"
    assert first_sentence("Alone") == "Alone"


def test_python_is_told_as_yaml() -> None:
    assert (
        in_yaml("None for no `limit`; True or False, but NoneType") == "null for no limit; true or false, but NoneType"
    )
