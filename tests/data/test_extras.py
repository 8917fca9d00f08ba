"""What rows tell the chat template: tools and template variables."""

import json
from typing import Any

import pytest

from agiledpo.data.extras import read_template_kwargs, read_tools

SCHEMA = {"type": "function", "function": {"name": "f", "parameters": {"x": {"default": None, "enum": [1, None]}}}}


@pytest.mark.parametrize(
    ("value", "tools"),
    [
        (None, None),
        ([], None),
        ("", None),
        (" ", None),
        ("null", None),
        # A null in JSON text is what somebody wrote; in Arrow's mappings it is a key of another row.
        (json.dumps([SCHEMA]), [SCHEMA]),
        ([json.dumps(SCHEMA)], [SCHEMA]),
        ([SCHEMA], [{"type": "function", "function": {"name": "f", "parameters": {"x": {"enum": [1, None]}}}}]),
        ([{"a": {"b": None}, "c": None}], [{"a": {}}]),
    ],
)
def test_tools(value: Any, tools: Any) -> None:
    assert read_tools(value, row=0, name="train") == tools


@pytest.mark.parametrize(
    ("value", "kwargs"),
    [
        (None, None),
        ({}, None),
        ("{}", None),
        ({"enable_thinking": False, "style": None}, {"enable_thinking": False}),
        ('{"enable_thinking": false}', {"enable_thinking": False}),
    ],
)
def test_template_variables(value: Any, kwargs: Any) -> None:
    assert read_template_kwargs(value, row=0, name="train") == kwargs
