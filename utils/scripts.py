"""An entry script's start: a flag for every key of its config dict, explained by the comments beside the keys."""

import ast
import difflib
import io
import sys
import tokenize
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import tyro

from utils.config import REPO_ROOT, UserError

# scripts whose dicts explain what the others only name
FINETUNING = REPO_ROOT / "downstream_task" / "trained_vs_no_trained_compare.py"
PRETRAINING = REPO_ROOT / "selfsup_task" / "train_barlow_twins.py"
SCANS = REPO_ROOT / "selfsup_task" / "scan_base.py"


def run_script(
    main: Callable[[dict[str, Any]], object], config: dict[str, Any], description: str | None, first: str = ""
) -> None:
    """Run an entry script: every key of `config` becomes a typed flag; a UserError becomes one line, exit 1.

    A first argument that is no flag is the value of the key `first`. `{dataset}` in a run_name stands for that key.
    """
    arguments = sys.argv[1:]
    if first and arguments and not arguments[0].startswith("-"):
        arguments = [f"--{first}", *arguments]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace", line_buffering=True)  # a Windows console may lack a sign
    try:
        chosen = parse_flags(config, description, arguments, Path(main.__code__.co_filename))
        if "dataset" in chosen:
            chosen["run_name"] = chosen["run_name"].replace("{dataset}", chosen["dataset"])
        main(chosen)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped by Ctrl-C; the same command goes on from the last checkpoint, if there is one yet.")


def parse_flags(
    config: dict[str, Any], description: str | None, arguments: Sequence[str], script: Path
) -> dict[str, Any]:
    """`config` with what the arguments change; --help prints `description` and the comments of `script`, and exits.

    What a script only names is explained by those of its kind.
    Raises UserError for a flag that does not exist, naming the nearest.
    """
    finetuning, pretraining, scans, own = (
        key_comments(path.read_text(encoding="utf-8")) for path in (FINETUNING, PRETRAINING, SCANS, script)
    )
    pretrains = script.resolve().parent == PRETRAINING.parent
    comments = {**({**pretraining, **scans} if pretrains else finetuning), **own}
    comments |= {f"finetune.{key}": comment for key, comment in {**finetuning, **scans}.items()}
    chosen, unknown = tyro.cli(
        _schema(config, comments),
        default=config,
        description=description,
        args=arguments,
        return_unknown_args=True,
    )
    if unknown:
        flag = unknown[0].partition("=")[0]
        close = difflib.get_close_matches(flag, _flags(config), n=1) if flag.startswith("--") else []
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"{flag!r} is no flag of {script.name}, and no value of one; {hint}--help lists them all.")
    return dict(chosen)


def key_comments(source: str) -> dict[str, str]:
    """{key: the comment at the end of its line} for the keys of the dict literals in Python source."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    keys = [key for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Dict) for key in node.keys]
    return {
        key.value: by_line[key.lineno]
        for key in keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and key.lineno in by_line
    }


def _schema(config: Mapping[str, Any], comments: Mapping[str, str], prefix: str = "") -> Any:
    """A TypedDict of the config's keys, which tyro makes flags of."""
    fields = {
        key: Annotated[_type(value, comments, f"{prefix}{key}."), tyro.conf.arg(help=comments.get(prefix + key, ""))]
        for key, value in config.items()
    }
    return TypedDict("Config", fields)  # type: ignore[operator]  # its keys are known only now


def _type(value: object, comments: Mapping[str, str], prefix: str) -> Any:
    if isinstance(value, dict):
        return _schema(value, comments, prefix)
    if isinstance(value, list):
        return list[type(value[0]) if value else str]
    return type(value)


def _flags(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """--num-epochs, --sanity-check, --no-sanity-check, --finetune.num-steps, ..."""
    flags = []
    for key, value in config.items():
        name = key.replace("_", "-")
        if isinstance(value, dict):
            flags += _flags(value, f"{prefix}{name}.")
        else:
            flags += [f"--{prefix}{name}", *([f"--{prefix}no-{name}"] if isinstance(value, bool) else [])]
    return flags
