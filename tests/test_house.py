"""How the repo is built: imports point down, nothing imports an entry script, files are short, the English is plain."""

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

from utils.config import REPO_ROOT

# Each floor may import itself and those below it.
FLOORS = [
    {"selfsup_task", "interpretability"},
    {"downstream_task"},
    {"self_sup_classes"},
    {"dataset_loader", "augmentations"},
    {"utils"},
]
PACKAGES = set().union(*FLOORS)
MAX_LINES, MAX_FILES = 260, 14  # of a file, in a folder

# Phrases that a native reader stumbles over -> what to write instead
PHRASES = {
    r"\banew\b": "again",
    r"\bbegun\b": "started",
    r"\balike\b": "the same, both",
    r"\bmerely\b": "only",
    r"\b(go|goes|going|gone|went) on\b": "resume, continue",
    r"\bas it stands\b": "by default",
    r"(?<!there )\b(is|are) no\b(?! longer| more)": "is not a",
    r"\b(is|are) none\b": "is not",
    r"\bat work on\b": "running",
    r"\blast words\b": "summary",
    r"\ba (row|folder|line|panel|marker|image|column|run) an? \w": "one row per trial",
    r"\bwhat tells\b": "say what it is",
    r"\btells?\b": "predicts, distinguishes, says",
    r"\bwithout a word\b": "without a result",
    r"\bthrows? away\b": "rejects",
    r"\b\w+ less random\b": "pretrained - random",
    r"\bby which choices were made\b": "used to make choices",
    r"\b(FEWEST|MOST)_": "MIN_, MAX_",
}


def sources() -> list[Path]:
    return [path for package in sorted(PACKAGES) for path in sorted((REPO_ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Dotted names of this repo's modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.split(".")[0] in PACKAGES}


def is_entry_script(path: Path) -> bool:
    return '\nif __name__ == "__main__":\n' in path.read_text(encoding="utf-8")


def test_imports_point_down() -> None:
    floor_of = {package: number for number, floor in enumerate(FLOORS) for package in floor}
    for path in sources():
        here = path.relative_to(REPO_ROOT).parts[0]
        for name in imported(path):
            there = name.split(".")[0]
            assert floor_of[there] >= floor_of[here], f"{path} imports {name} from a floor above"


def test_nothing_imports_an_entry_script() -> None:
    entries = {
        ".".join(path.relative_to(REPO_ROOT).with_suffix("").parts) for path in sources() if is_entry_script(path)
    }
    assert entries
    for path in sources():
        assert not imported(path) & entries, path


def test_entry_scripts_have_a_docstring_a_config_and_a_main() -> None:
    for path in filter(is_entry_script, sources()):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            name.id
            for node in tree.body
            if isinstance(node, ast.AnnAssign | ast.Assign)
            for name in ([node.target] if isinstance(node, ast.AnnAssign) else node.targets)
            if isinstance(name, ast.Name)
        }
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert "python " in (ast.get_docstring(tree) or ""), f"{path} does not say how it is run"
        assert "config" in names, path
        assert "main" in functions, path


def test_packages_are_listed_and_nobody_touches_the_import_path() -> None:
    listed = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {".".join(path.relative_to(REPO_ROOT).parent.parts) for path in sources()}
    assert set(listed["tool"]["setuptools"]["packages"]) == packages
    for path in sources():
        assert "sys.path" not in path.read_text(encoding="utf-8"), path


def code_lines(path: Path) -> list[str]:
    """The lines of an entry script's functions, without their docstrings."""
    source = path.read_text(encoding="utf-8")
    lines = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            first = node.body[1 if ast.get_docstring(node) else 0].lineno
            lines += source.splitlines()[first - 1 : node.end_lineno]
    return [line.strip() for line in lines]


def test_no_two_entry_scripts_share_six_lines() -> None:
    seen: dict[tuple[str, ...], Path] = {}
    for path in filter(is_entry_script, sources()):
        lines = code_lines(path)
        for first in range(len(lines) - 5):
            six = tuple(lines[first : first + 6])
            assert seen.setdefault(six, path) == path, f"{path} and {seen[six]} share {six}: move them down"


def test_files_and_folders_are_small() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert not {str(path): count for path, count in lines.items() if count > MAX_LINES}
    files = [*sources(), *sorted((REPO_ROOT / "tests").rglob("*.py"))]
    folders = [path.parent for path in files if path.name != "__init__.py"]
    assert not {str(folder): folders.count(folder) for folder in folders if folders.count(folder) > MAX_FILES}


def words_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and text: of a page all of it, of Python its comments and strings, docstrings too, and constants."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        constant = token.type == tokenize.NAME and token.string.isupper()
        if constant or token.type in (tokenize.COMMENT, tokenize.STRING) or "FSTRING" in tokenize.tok_name[token.type]:
            yield from enumerate(token.string.splitlines(), token.start[0])


def test_the_english_is_plain() -> None:
    pages = [path for folder in (".", "runs", "datasets") for path in sorted((REPO_ROOT / folder).glob("*.md"))]
    files = [*sources(), *sorted((REPO_ROOT / "tests").rglob("*.py")), *pages]
    found = [
        f"{path.relative_to(REPO_ROOT)}:{line}: {match[0]!r}; write: {instead}"
        for path in files
        if path != Path(__file__)
        for line, text in words_of(path)
        for phrase, instead in PHRASES.items()
        if (match := re.search(phrase, text, 0 if phrase.isupper() else re.IGNORECASE))
    ]
    assert not found, "\n".join(found)
