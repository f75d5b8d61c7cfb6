"""Configs: a dict of literals at the top of a script, checked against a TypedDict."""

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

REPO_ROOT = Path(__file__).resolve().parent.parent


class UserError(Exception):
    """A user's mistake: one sentence that says what was found, what was expected and what to do."""


def repo_path(path: str | Path) -> Path:
    """A path as configs write it: absolute, or relative to the repo root (never to the working directory)."""
    return (REPO_ROOT / Path(path).expanduser()).resolve()


def nearest(word: str, words: list[str]) -> str:
    """The end of an error sentence: the closest known word if there is one, and all of them."""
    close = difflib.get_close_matches(word, words, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(words)}."


def check_choice(key: str, value: str, choices: list[str]) -> None:
    """Raise UserError unless `value` is one of `choices`, naming the nearest one."""
    if value not in choices:
        raise UserError(f"{key} is {value!r}, which does not exist; {nearest(value, choices)}")


def check_at_least(key: str, value: float, least: float) -> None:
    """Raise UserError unless `value` is a finite number of at least `least`."""
    if not (math.isfinite(value) and value >= least):
        raise UserError(f"{key} is {value}; it must be at least {least}.")


def check_config(config: Mapping[str, Any], schema: type) -> None:
    """Raise UserError if a key is unknown or missing, or a value has another type than `schema` (a TypedDict)."""
    types = get_type_hints(schema)
    for key in config:
        if key not in types:
            raise UserError(f"config key {key!r} is unknown; {nearest(key, sorted(types))}")
    missing = [key for key in types if key not in config]
    if missing:
        raise UserError(f"config lacks {', '.join(missing)}; add it to the dict at the top of the script.")
    for key, expected in types.items():
        if is_typeddict(expected) and isinstance(config[key], dict):
            check_config(config[key], expected)
        elif not _has_type(config[key], expected):
            name = getattr(expected, "__name__", None) if get_origin(expected) is None else str(expected)
            raise UserError(f"config key {key!r} is {config[key]!r} ({type(config[key]).__name__}), expected {name}.")


def _has_type(value: Any, expected: Any) -> bool:
    if get_origin(expected) is list:
        return isinstance(value, list) and all(_has_type(item, get_args(expected)[0]) for item in value)
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, dict if is_typeddict(expected) else expected)
