"""How the repo is built: imports point down, nothing imports an entry script."""

import ast
import tomllib
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


def test_no_two_places_draw_from_one_stream() -> None:
    """Each place that draws names its purpose once; the phantoms, whose seeds are tuples, number theirs."""
    purposes: dict[str, str] = {}
    for path in (path for path in sources() if "phantoms" not in path.parts):
        for call in (
            node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        ):
            name, place = ast.unparse(call.func).split(".")[-1], f"{path}:{call.lineno}"
            if name in ("default_rng", "manual_seed"):
                assert "mixed_seed(" in (seed := ast.unparse(call)) or "noise_seed" in seed, (
                    f"{place} draws for no purpose"
                )
            if name in ("mixed_seed", "step_generator", "fixed_order", "_sample"):
                purpose = str(call.args[0].value) if isinstance(call.args[0], ast.Constant) else ""
                assert ast.unparse(call.args[0]) in (repr(purpose), "purpose"), place
                assert not purpose or purposes.setdefault(purpose, place) == place, f"{place} and {purposes[purpose]}"
    assert len(purposes) > 15
