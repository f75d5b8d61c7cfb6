"""What README, docstrings and Makefile say: every command is one that its script takes, every link leads somewhere."""

import re
import shlex
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from test_house import is_entry_script, sources
from torch import nn
from torchvision.models import resnet18

from dataset_loader.splits import PARTS
from dataset_loader.xrays import open_xrays
from downstream_task.features import read_features
from self_sup_classes.backbones import save_backbone
from self_sup_classes.initialisation import random_backbone
from self_sup_classes.provenance import NOTHING_SEEN
from utils.config import REPO_ROOT
from utils.scripts import parse_flags

README = (REPO_ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (REPO_ROOT / "docs" / "GUIDE.md").read_text(encoding="utf-8")
DOCS = [path.read_text(encoding="utf-8") for path in sorted((REPO_ROOT / "docs").glob("*.md"))]
SCRIPTS = {path.relative_to(REPO_ROOT).as_posix() for path in sources() if is_entry_script(path)}
MAX_PICTURE_BYTES = 200_000


def commands(text: str) -> list[list[str]]:
    """The commands that run an entry script, each as its words, from the script on."""
    found = []
    text = re.sub(r"^```earlier\n.*?^```$", "", text, flags=re.S | re.M)  # of commits whose scripts had other keys
    lines = re.sub(r"\\+\n\s*", " ", text).replace("$k", "0")  # of a loop
    for line in re.findall(r"(?:^|`|\s)(?:\.venv/bin/)?(?:python|torchrun [^\n`]*?) (\w+/\w+\.py[^\n`#;]*)", lines):
        words = shlex.split(re.split(r"   +", line)[0].rstrip(".,"))
        if words[0] in SCRIPTS:
            found.append(words)
    return found


def documented() -> list[list[str]]:
    texts = [README, *DOCS]
    texts += [(REPO_ROOT / script).read_text(encoding="utf-8").split('"""')[1] for script in sorted(SCRIPTS)]
    variables = dict(re.findall(r"^(\w+) := (.*)$", makefile := (REPO_ROOT / "Makefile").read_text(), re.M))
    texts.append(re.sub(r"\$\((\w+)\)", lambda match: variables.get(match.group(1), ""), makefile))
    return [words for text in texts for words in commands(text)]


def test_every_documented_command_is_one_that_its_script_takes(script: Any) -> None:
    def parse_only(*arguments: Any) -> None:
        parse_flags(*arguments)
        raise SystemExit(0)

    found = documented()
    assert {words[0] for words in found} == SCRIPTS
    assert len(found) > 50
    no_scan = mock.patch("utils.scripts._best_values", return_value={})  # whose best.json --from names
    with no_scan, mock.patch("utils.scripts.parse_flags", parse_only):
        assert script("selfsup_task/train_barlow_twins.py", "--no-such-flag", "1").returncode != 0
        for words in found:
            ended = script(*words)
            assert ended.returncode == 0, f"{words}: {ended.stderr}"


def test_the_script_table_is_the_entry_scripts_on_disk() -> None:
    assert sorted(re.findall(r"^\| `(\w+/\w+\.py)` \|", README, re.M)) == sorted(SCRIPTS)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_links_lead_to_files_and_pictures_are_small() -> None:
    for page in [*REPO_ROOT.glob("*.md"), *(REPO_ROOT / "docs").glob("*.md")]:
        for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]+))?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
            other = page.parent / target if target else page
            assert not anchor or anchor in anchors(other), f"{page.name} links to {target}#{anchor}"
    pictures = re.findall(r"!\[([^\]]+)\]\((?:docs/)?([^)/]+)\)", "".join([README, *DOCS]))
    assert {name for _, name in pictures} == {path.name for path in (REPO_ROOT / "docs").glob("*.png")}
    for alt, name in pictures:
        assert len(alt) > 20, f"{name} has no words for who cannot see it"
        assert (REPO_ROOT / "docs" / name).stat().st_size < MAX_PICTURE_BYTES, name


def test_the_lines_on_using_the_weights_elsewhere_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = random_backbone("resnet18", 1, seed=0)
    save_backbone(tmp_path / "runs" / "<run_name>" / "resnet18_final_state_dict.pt", backbone, NOTHING_SEEN)
    code = next(block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.S) if "strict=True" in block)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    model = names["model"]
    assert isinstance(model, nn.Module)
    x = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    head, model.fc = model.fc, nn.Identity()  # type: ignore[assignment]
    assert isinstance(head, nn.Linear)
    torch.testing.assert_close(model.eval()(x), backbone.eval()(x))
    assert type(model) is type(resnet18())


def test_the_lines_on_features_work_and_their_table_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    films = tmp_path / "films"
    films.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 80, 80), dtype=np.uint8)
    for number, film in enumerate(pixels):
        Image.fromarray(film).save(films / f"{number}.png")
    rows = "".join(f"{number}.png,{'ab'[number % 2]},{PARTS[number // 2]}\n" for number in range(6))
    (films / "labels.csv").write_text(f"file,label,part\n{rows}")
    encoder = tmp_path / "tf_efficientnet_lite0_final_state_dict.pt"
    save_backbone(encoder, random_backbone("timm/tf_efficientnet_lite0", 1, seed=1), NOTHING_SEEN)
    code = next(block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.S) if "embed(" in block)
    for there, here in {
        "/data/my_xrays": films,
        "runs/pretrain/films/fold0/tf_efficientnet_lite0_final_state_dict.pt": encoder,
    }.items():
        assert code.count(there) == 1
        code = code.replace(there, str(here))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    xrays = open_xrays(names["films"], torch.device("cpu"))
    features = read_features(f"features:{tmp_path / 'features.csv'}", xrays)
    written = names["table"].set_index("file").loc[xrays.columns.paths].to_numpy(np.float32)
    np.testing.assert_array_equal(features.rows(np.arange(6)), written)
    assert written.shape == (6, 1280)
