"""What a run records about its data and weights, and what has changed since."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from utils.config import flat

LISTED = "listed"  # of `data`: facts by name, such as "labels", that tables and names give without a look at a pixel
_WHERE = ("data_root", "root")  # facts that say where data are, not what


def fact(count: int, lines: Iterable[str | bytes], of: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Return a fact about a list: its length, a hash of its lines, and the lengths of its parts `of`, by name."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line if isinstance(line, bytes) else line.encode("utf-8", "surrogateescape") + b"\n")
    return {"count": count, "hash": digest.hexdigest()[:16], "of": dict(of or {})}


def changes_since(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return how facts differ, a text for each, such as "labels (400 then, 399 now; COVID 120 then, 119 now)".

    Facts that one side lacks are not compared, but for those that are listed about the data. If these differ, what was
    derived from them is left out.
    """
    listed, listed_now = (side.get("data", {}).get(LISTED) for side in (there, now))
    texts = _changes_listed(listed, listed_now) if listed is not None and listed_now is not None else []
    before, here = map(_without_lists, (there, now))
    derived = [key for key in here if texts and (key.startswith("data.") or "." not in key)]
    named = [key for key in here if key in before and key not in derived and _what(before[key]) != _what(here[key])]
    return texts + [name.replace("weights.", "weights in ", 1) for name in named]


def _without_lists(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts by their full keys, without the lists and the places of the data."""
    data = {key: value for key, value in facts.get("data", {}).items() if key not in (LISTED, *_WHERE)}
    return flat({**facts, "data": data})


def _what(value: Any) -> Any:
    """Return a fact without the places in it."""
    if isinstance(value, list):
        return [_what(item) for item in value]
    return {key: item for key, item in value.items() if key not in _WHERE} if isinstance(value, dict) else value


def _changes_listed(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    nothing, texts = fact(0, []), []
    for name in {**there, **now}:
        before, here = there.get(name, nothing), now.get(name, nothing)
        if before == here:
            continue
        parts = {**before["of"], **here["of"]}
        counts = [(part, before["of"].get(part, 0), here["of"].get(part, 0)) for part in parts]
        shown = [f"{part} {old:,} then, {new:,} now" for part, old, new in counts if old != new]
        total = f"{before['count']:,} then, {here['count']:,} now"
        if before["count"] == here["count"]:
            total = f"{here['count']:,} then and now, but not the same ones"
        name = name.removeprefix("official ")  # which records of "official parts" keep, for runs of before
        texts.append(f"{name} ({'; '.join([total, *shown])})")
    return texts
