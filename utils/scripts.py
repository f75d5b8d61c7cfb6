"""What an entry script reads and shows on the terminal: a flag for each config key, one-line errors, progress."""

import argparse
import ast
import difflib
import errno
import io
import json
import re
import shlex
import sys
import tokenize
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

from utils.config import REPO_ROOT, AnyConfig, UserError, flat, launched_processes, make_config, repo_path
from utils.signals import Stopped, stop_on_signals

SECONDS_BETWEEN_LINES = 30  # of progress, where output is a file
NO_TORCHRUN = "this script does not run under torchrun; start it with python, once for each GPU: they share its trials."
ANYWHERE: dict[str, Any] = {"device": "auto", "threads": 0, "data_root": ""}  # defaults that all scripts have
CURSOR_UP = "\x1b[A"  # how tqdm returns from a nested bar

Item = TypeVar("Item")


def flags(
    config: Mapping[str, Any],
    description: str | None,
    *files: str,
    first: str = "",
    real_xrays: Mapping[str, Any] | None = None,
    torchrun: bool = False,
    best: str = "",
) -> dict[str, Any]:
    """Return a script's config with what the command line changes.

    Each key becomes a typed flag, `--num-epochs 20`; --help shows it with the comment at the end of its line in the
    Python `files`, the script's own first, and exits. A first argument that is not a flag is the value of `first`.
    Where `dataset` is not a phantom, the values of `real_xrays` replace those of `config`, and flags win over both;
    --help shows them too. `--from FILE ...` takes the values of `best`, such as "pretraining", from the best.json of
    scans; flags win over them as well. `{dataset}` in run_name and encoders becomes the value of that key. An unknown
    flag or a value of the wrong type ends the script with one sentence, and so does torchrun, unless the script expects
    it.
    From here on a signal ends the script without a traceback; see utils.signals.
    """
    stop_on_signals()
    arguments = sys.argv[1:]
    if first and arguments and not arguments[0].startswith("-"):
        arguments = [f"--{first}", *arguments]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace", line_buffering=True)  # a Windows console may lack a character
    comments: dict[str, str] = {}
    for path in reversed(files):
        comments |= key_comments(Path(path).read_text(encoding="utf-8-sig"))
    try:
        if launched_processes() > 1 and not torchrun:
            raise UserError(NO_TORCHRUN)
        chosen = parse_flags(config, comments, description, arguments, real_xrays or {}, best)
    except UserError as error:
        _end(f"error: {error}")
    if "dataset" in chosen and "run_name" in chosen:
        chosen["run_name"] = chosen["run_name"].replace("{dataset}", chosen["dataset"])
    if "dataset" in chosen and "encoders" in chosen:
        chosen["encoders"] = [encoder.replace("{dataset}", chosen["dataset"]) for encoder in chosen["encoders"]]
    return chosen


def run_script(main: Callable[[AnyConfig], object], kind: type[AnyConfig], config: Mapping[str, Any]) -> None:
    """Call `main` with the config as the dataclass `kind`; a UserError becomes one line and exit 1."""
    try:
        main(make_config(kind, config))
    except UserError as error:
        _end(f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        from utils.hardware import is_out_of_memory  # it imports torch

        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0][:150]
        _end(f"error: memory ran out ({reason}); try a smaller batch_size, img_res or projector, or fewer images.")
    except OSError as error:  # TensorBoard's events, which no library of the repo writes
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EROFS):
            raise
        _end(f"error: a file cannot be written ({error.strerror}); make room: the same command resumes.")
    except Stopped:
        _end("stopped; the same command resumes from the last checkpoint, if there is one yet.", Stopped().code)


def _end(message: str, code: int | str | None = 1) -> NoReturn:
    with suppress(OSError):  # the terminal may be closed
        print(message, file=sys.stderr, flush=True)
    sys.exit(code)


def parse_flags(
    config: Mapping[str, Any],
    comments: Mapping[str, str],
    description: str | None,
    arguments: Sequence[str],
    real_xrays: Mapping[str, Any] | None = None,
    best: str = "",
) -> dict[str, Any]:
    """Return `config` with what the arguments change; --help prints `description` and the comments, and exits.

    `real_xrays` replaces values of `config` where `dataset` is not a phantom; `--from` is a flag where `best` says
    which of its values to take. Raises UserError for a flag that does not exist, naming the nearest, for a value of
    another type, and for a file that scans have not written.
    """
    values, real = flat(config), flat(real_xrays or {})
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser._negative_number_matcher = re.compile(r"-\.?\d")  # argparse's own does not know -1e-3
    for key, value in values.items():
        text = _help(key, values, real, comments).replace("%", "%%")
        parser.add_argument(_flag(key), dest=key, default=value, help=text, **_parsing(value))
    if best:
        parser.add_argument(
            "--from", nargs="*", default=[], metavar="FILE", help=f"take {best} from a scan's best.json"
        )
    normal = [re.sub("^--[^=]+", lambda flag: flag[0].replace("_", "-"), word) for word in arguments]  # --num_epochs
    found, unknown = parser.parse_known_args(normal)
    if unknown:
        raise UserError(_unknown(unknown[0].partition("=")[0], list(parser._option_string_actions)))
    if real and not found.dataset.startswith("phantom"):
        parser.set_defaults(**real)
    if best:
        parser.set_defaults(**_best_values(found.__dict__["from"], best, values))
    chosen = vars(parser.parse_args(normal))
    chosen.pop("from", None)
    return _nested(chosen)


def key_comments(source: str) -> dict[str, str]:
    """Return {key: the comment at the end of its line} for the keys of the dict literals in Python source.

    Keys of a dict in a dict have its key before them, "finetune.lr", and those of a dict real_xrays its name.
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    comments: dict[str, str] = {}

    def read(node: ast.AST, prefix: str) -> None:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            prefix = "real_xrays." if node.target.id.lower() == "real_xrays" else ""
        if not isinstance(node, ast.Dict):
            for child in ast.iter_child_nodes(node):
                read(child, prefix)
            return
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant):
                if key.lineno in by_line:
                    comments[f"{prefix}{key.value}"] = by_line[key.lineno]
                read(value, f"{prefix}{key.value}.")

    read(ast.parse(source), "")
    return comments


def _best_values(files: Sequence[str], best: str, known: Collection[str]) -> dict[str, Any]:
    """Return the values of `best` in the best.json of scans; of two files, those of the last."""
    values: dict[str, Any] = {}
    for file in files:
        try:
            found = json.loads(repo_path(file).read_text(encoding="utf-8-sig"))
            chosen = found[best]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"--from names {file}, which cannot be read ({error!r}); expected the best.json of a scan, with values "
                f"of {best}."
            ) from error
        if unknown := [key for key in chosen if key not in known]:
            raise UserError(f"--from names {file}, whose {unknown[0]!r} this script does not have.")
        values |= chosen
    return values


def _unknown(word: str, flags: list[str]) -> str:
    close = difflib.get_close_matches(word, flags, n=1, cutoff=0.8) if word.startswith("--") else []
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{word!r} is not a flag or a value of one; {hint}--help lists them all."


def command(script: str, values: Mapping[str, Any], defaults: Mapping[str, Any] = ANYWHERE) -> str:
    """Return the command that runs an entry script of the repo with these values of its config, ready to be pasted.

    Values that equal those of `defaults` are left out.
    """
    here = Path.cwd().resolve() == REPO_ROOT
    words = ["python", script if here else str(REPO_ROOT / script)]
    for key, value in values.items():
        if key in defaults and value == defaults[key]:
            continue
        if isinstance(value, bool):
            words.append(_flag(key) if value else f"--no-{_flag(key)[2:]}")
        else:
            words += [_flag(key), *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def progress_bar(total: int, description: str, done: int = 0, show: bool = True, unit: str = "img") -> "tqdm[Any]":
    """Return a bar with rate and time left over `total` units, `done` of them done; the caller closes it.

    On a terminal it is drawn in place; where output is a file, it is a line every SECONDS_BETWEEN_LINES.
    """
    style: dict[str, Any] = {"dynamic_ncols": True}
    if not sys.stderr.isatty():
        interval = SECONDS_BETWEEN_LINES
        style = {"file": _Lines(), "ascii": True, "ncols": 100, "mininterval": interval, "maxinterval": interval}
    return tqdm(total=total, initial=done, desc=description, unit=unit, disable=not show, **style)


def tracked(items: Collection[Item], description: str, unit: str) -> Iterator[Item]:
    """Yield the items under a progress bar."""
    with progress_bar(len(items), description, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()


class _Lines:
    """stderr for a bar that writes lines instead of drawing over itself."""

    def write(self, text: str) -> None:
        line = text.replace(CURSOR_UP, "").strip()
        if line:
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        flag, _, problem = message.removeprefix("argument ").partition(": ")
        raise UserError(f"{flag}: {problem}; --help lists the flags." if problem else f"{message}; see --help.")


def _help(key: str, values: Mapping[str, Any], real: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """What a key is, its default, and its value for real X-rays with the reason."""

    def shown(value: object) -> str:
        return " ".join(map(str, value)) if isinstance(value, list) else str(value)

    comment = comments.get(key, comments.get(key.rpartition(".")[2], ""))
    defaults = [f"default: {shown(values[key])}"]
    if key in real:
        reason = comments.get(f"real_xrays.{key}")
        defaults.append(f"real X-rays: {shown(real[key])}" + (f" ({reason})" if reason else ""))
    return f"{comment} ({'; '.join(defaults)})"


def _parsing(value: object) -> dict[str, Any]:
    """What argparse does with a flag whose default is `value`."""
    if isinstance(value, bool):
        return {"action": argparse.BooleanOptionalAction}
    if isinstance(value, list):
        kinds = {type(item) for item in value} or {str}
        return {"nargs": "*", "type": _typed(kinds.pop()) if len(kinds) == 1 else _number_or_word, "metavar": "VALUE"}
    return {"type": _typed(type(value)), "metavar": "VALUE"}


def _typed(kind: type) -> Callable[[str], Any]:
    names = {int: "a whole number", float: "a number"}

    def convert(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {names[kind]}") from None

    return convert


def _number_or_word(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        outer, _, inner = key.rpartition(".")
        (nested.setdefault(outer, {}) if outer else nested)[inner] = value
    return nested
