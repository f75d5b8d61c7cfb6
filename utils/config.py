"""Configs: the dict at the top of a script becomes a frozen dataclass, checked once, at the door."""

import dataclasses
import difflib
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

REPO_ROOT = Path(__file__).resolve().parent.parent


def _root(variable: str, default: str) -> Path:
    """Return the folder that an environment variable names, or that of the repo; `~` is the home folder."""
    path = os.path.expanduser(os.environ.get(variable) or REPO_ROOT / default)
    if path.startswith("~"):
        raise SystemExit(f"error: {variable} is {path!r}, the home of a user whom nobody knows; give a folder.")
    return Path(path).resolve()


# The environment variables put results and data elsewhere: on a larger disk, or, in tests, into a temporary folder.
RUNS_ROOT = _root("CXR_RUNS", "runs")
DATASETS_ROOT = _root("CXR_DATASETS", "datasets")

VERSION = 2  # of config.json; Config.later says what it changed
PLACES = ("data_root", "also", "exclude")  # keys that say where data are; a run compares what it found there instead
# keys that change no result; threads are compared as part of the device, on resuming
PACE = ("threads", "jobs", "checkpoint_minutes")

MAX_NAME = 200  # bytes of a part of a run's name; file systems take 255, some of them for temporary files
MAX_PART, MAX_TEXT = 255, 3000  # bytes of a text in a config between two slashes, and of all of it: it may be a path
MAX_SHOWN = 120  # characters of a value in a message
MAX_THREADS = 1024  # more than any machine has cores; many more cannot be started
MAX_NUMBER = 2**53  # of a config; larger ones are not exact in JSON


class UserError(Exception):
    """A user's mistake, in one sentence: what was found, what was expected, what to do."""


class Gone(UserError):
    """What a run has read is not there any more: a folder that was moved, a disk that is not connected."""


def nearest(word: str, words: list[str]) -> str:
    """Return the end of an error message: the closest of the known words, if there is one, and all of them."""
    close = difflib.get_close_matches(word, words, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(words)}."


def check_choice(key: str, value: str, choices: list[str]) -> None:
    """Raise UserError unless `value` is one of `choices`, naming the nearest one."""
    if value not in choices:
        raise UserError(f"{key} is {value!r}, which does not exist; {nearest(value, choices)}")


Bound = Callable[[str, Any], None]  # raises UserError for a key whose value is out of bounds


def bound(holds: Callable[[Any], bool], otherwise: str) -> Bound:
    """Return a bound; `otherwise` ends the sentence about a value for which it does not hold."""

    def check(key: str, value: Any) -> None:
        if not holds(value):
            raise UserError(f"{key} is {'empty' if value == [] else value}; {otherwise}.")

    return check


def at_least(least: float) -> Bound:
    """Return a bound on numbers."""
    return bound(lambda value: value >= least, f"it must be at least {least}")


def between(least: float, most: float) -> Bound:
    """Return a bound on numbers, both ends included."""
    return bound(lambda value: least <= value <= most, f"it must be from {least} to {most}")


def one_of(choices: Collection[str]) -> Bound:
    """Return a bound on words, whose message names the nearest one."""
    return lambda key, value: check_choice(key, value, [*choices])


above_zero = bound(lambda value: value > 0, "it must be above 0")
each_once = bound(lambda values: len(set(values)) == len(values), "give each value once")

Device = Annotated[str, one_of(["auto", "cuda", "mps", "cpu"])]
Item = TypeVar("Item")
Count = Annotated[int, at_least(1)]
Natural = Annotated[int, at_least(0)]
Positive = Annotated[float, above_zero]
NotNegative = Annotated[float, at_least(0)]
Distinct = Annotated[list[Item], bound(bool, "give at least one"), each_once]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A config whose values have the types of its fields and keep their bounds, as in Annotated[int, at_least(1)].

    `later` of a class holds the fields that stored configs may lack, or mean otherwise, each with the value that does
    what was done before: for a field that is new, a value; where it depends on others, or the meaning of the field has
    changed, a function of the stored config.
    """

    later: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        """Raise UserError for a value that cannot be used; subclasses add what concerns several fields."""
        bounded = get_type_hints(type(self), include_extras=True)
        for key, expected in _types(type(self)).items():
            value = getattr(self, key)
            if not _has_type(value, expected):
                name = expected.__name__ if get_origin(expected) is None else str(expected)
                raise UserError(f"config key {key!r} is {value!r} ({type(value).__name__}), expected {name}.")
            for item in value if isinstance(value, list) else [value]:
                _check_item(key, item)
            _check_bounds(key, value, bounded[key])


AnyConfig = TypeVar("AnyConfig", bound=Config)


def make_config(kind: type[AnyConfig], values: Mapping[str, Any]) -> AnyConfig:
    """Return a config of the dataclass `kind` from a dict of its keys, nested configs as dicts.

    Raises UserError if a key is missing or unknown, naming the nearest one, or a value cannot be used.
    """
    types = _types(kind)
    for key in values:
        if key not in types:
            raise UserError(f"config key {key!r} is unknown; {nearest(key, sorted(types))}")
    missing = [key for key in types if key not in values]
    if missing:
        raise UserError(f"config lacks {', '.join(missing)}; add it to the dict at the top of the script.")
    nested = {
        key: make_config(inner, values[key])
        for key, inner in _nested_configs(kind).items()
        if isinstance(values[key], Mapping)
    }
    return kind(**{**values, **nested})


def up_to_date(kind: type[Config], stored: Mapping[str, Any], version: int | None = None) -> dict[str, Any]:
    """Return a stored config, of this `version` or that which it names, as `kind` would write it today.

    Keys that it lacks take the value that does what was done before (Config.later); unknown ones are kept.
    """
    version = version or int(stored.get("version", 1))
    values = {key: value for key, value in stored.items() if key != "version"}
    for parent in reversed(kind.__mro__):
        for key, value in vars(parent).get("later", {}).items():
            if key not in stored or (callable(value) and version < VERSION):
                values[key] = value(stored) if callable(value) else value
    for key, inner in _nested_configs(kind).items():
        if isinstance(values.get(key), Mapping):
            values[key] = up_to_date(inner, values[key], version)
    return values


def open_config(kind: type[AnyConfig], stored: Mapping[str, Any]) -> AnyConfig:
    """Return the config of a finished run, of whatever version; keys that this one does not know are left out."""
    return make_config(kind, _known(kind, up_to_date(kind, stored)))


def _known(kind: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    nested = _nested_configs(kind)
    known = {key: values[key] for key in _types(kind) if key in values}
    return {key: _known(nested[key], value) if key in nested else value for key, value in known.items()}


def _types(kind: type[Config]) -> dict[str, Any]:
    """Return the types of the fields."""
    types = get_type_hints(kind)
    return {field.name: types[field.name] for field in dataclasses.fields(kind)}


def _nested_configs(kind: type[Config]) -> dict[str, type[Config]]:
    types = _types(kind)
    return {key: inner for key, inner in types.items() if isinstance(inner, type) and issubclass(inner, Config)}


def part_of(config: Config, kind: type[Config]) -> dict[str, Any]:
    """Return the values of those fields of `config` that the dataclass `kind` has, by name."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name in names}


def as_dict(config: "Config | Mapping[str, Any]") -> dict[str, Any]:
    """Return a config as a plain dict, nested ones too, as config.json holds it."""
    if isinstance(config, Config):
        return dataclasses.asdict(config)
    return {key: as_dict(value) if isinstance(value, Config) else value for key, value in config.items()}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config's values by their full keys: {"finetune.num_steps": 40, ...}."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values


def differences(there: Mapping[str, Any], now: Mapping[str, Any], leave_out: Collection[str] = ()) -> list[str]:
    """Return how two configs differ, one text per key, such as "lr (0.1 there, 0.2 now)"; keys `leave_out` may."""

    def shown(config: Mapping[str, Any], key: str) -> str:
        return json.dumps(config[key]) if key in config else "absent"

    def short(text: str) -> str:
        return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."

    there, now = flat(there), flat(now)
    keys = [key for key in sorted({*there, *now}) if key.rpartition(".")[2] not in leave_out]
    changed = [key for key in keys if shown(there, key) != shown(now, key)]
    return [f"{key} ({short(shown(there, key))} there, {short(shown(now, key))} now)" for key in changed]


def launched_processes() -> int:
    """Return the number of processes that torchrun has started, whether they have joined yet or not; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def repo_path(path: str | Path) -> Path:
    """Return the absolute path of one in a config, which is relative to the repo root, never to the working directory.

    Paths under runs/ and datasets/ are below RUNS_ROOT and DATASETS_ROOT. Raises UserError for ~user of nobody.
    """
    roots = {"runs": RUNS_ROOT, "datasets": DATASETS_ROOT}
    try:
        path = Path(path).expanduser()
        if path.parts and path.parts[0] in roots:
            return roots[path.parts[0]].joinpath(*path.parts[1:]).resolve()
        return (REPO_ROOT / path).resolve()
    except RuntimeError as error:  # a user whom nobody knows, or links in a circle
        raise UserError(f"the path {path} cannot be resolved ({error}); give another.") from error


def check_run_name(name: str, runs_root: Path) -> None:
    """Raise UserError unless `name` is a folder below `runs_root` that has one name, which the system can hold."""
    _check_item("run_name", name)
    parts = Path(name).parts
    outside = ".." in parts or not (runs_root / name).resolve().is_relative_to(runs_root.resolve())
    if outside or not parts or any(part != part.strip() or len(part.encode()) > MAX_NAME for part in parts):
        raise UserError(
            f"run_name is {name[:100]!r}; it must be a folder below {runs_root}, such as 'covid/first', without '..', "
            f"spaces at the ends, and parts of more than {MAX_NAME} bytes."
        )


def _check_item(key: str, item: Any) -> None:
    """Raise UserError for a number or a text that cannot be stored, computed with, or be a path."""
    if isinstance(item, int | float) and not abs(item) <= MAX_NUMBER:
        raise UserError(f"{key} is {str(item)[:30]}; it must be a number between -{MAX_NUMBER} and {MAX_NUMBER}.")
    if not isinstance(item, str):
        return
    try:
        encoded = item.encode()
    except UnicodeEncodeError:
        raise UserError(f"{key} is {item[:60]!r}, which is not UTF-8; rename what it names.") from None
    if b"\0" in encoded or len(encoded) > MAX_TEXT or max(map(len, encoded.split(b"/"))) > MAX_PART:
        raise UserError(
            f"{key} is {item[:60]!r}... of {len(item)} characters; it may have {MAX_TEXT} bytes, {MAX_PART} of them "
            "between two slashes."
        )


def _has_type(value: Any, expected: Any) -> bool:
    if get_origin(expected) is list:
        return isinstance(value, list) and all(_has_type(item, get_args(expected)[0]) for item in value)
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, int | float if expected is float else expected)


def _check_bounds(key: str, value: Any, expected: Any) -> None:
    """Raise UserError if `value`, or an item of it, is out of the bounds in its type."""
    if get_origin(expected) is Annotated:
        expected, *bounds = get_args(expected)
        for check in bounds:
            check(key, value)
    if get_origin(expected) is list:
        for item in value:
            _check_bounds(key, item, *get_args(expected))


@dataclass(frozen=True, kw_only=True)
class MachineConfig(Config):
    """The device and the number of CPU threads, 0 to leave it to torch."""

    device: Device
    threads: Annotated[int, between(0, MAX_THREADS)]
