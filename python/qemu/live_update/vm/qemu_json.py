# SPDX-License-Identifier: GPL-2.0-or-later
"""
Parse JSON as QEMU does

QEMU also takes strings in single quotes: {'driver': 'null-co'}.
"""
import json
import re
from typing import Any, Dict, Iterator, Tuple


STRING = re.compile(r'''"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*\'''', re.DOTALL)
# What is written in another way between double quotes.
OTHER = {"\\'": "'", '"': '\\"'}


def _in_double_quotes(string: 're.Match[str]') -> str:
    if string[0].startswith('"'):
        quoted = re.sub(r"\\(.)", lambda item: OTHER.get(item[0], item[0]),
                        string[0][1:-1], flags=re.DOTALL)
    else:
        quoted = re.sub(r'\\.|"', lambda item: OTHER.get(item[0], item[0]),
                        string[0][1:-1], flags=re.DOTALL)
    return f'"{quoted}"'


def parse_object(text: str) -> Dict[str, Any]:
    """Parse a JSON object; ValueError: it is none."""
    parsed = json.loads(STRING.sub(_in_double_quotes, text))
    if not isinstance(parsed, dict):
        raise ValueError(f'not a JSON object: {text}')
    return parsed


def flatten(value: object, prefix: str = '') -> Iterator[Tuple[str, object]]:
    """
    Join the keys of nested objects and lists by dots, as users do.

    {"a": {"b": 1}, "c": [2]} has the keys "a.b" and "c.0".
    """
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(item, f'{prefix}{key}.')
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from flatten(item, f'{prefix}{number}.')
    else:
        yield prefix[:-1], value
