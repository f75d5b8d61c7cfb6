"""CheXpert's table and tree, as they come and as they go wrong."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from folders import touch

from dataset_loader.readers.chexpert_dataset import FINDINGS, read_chexpert, read_chexpert_table
from utils.config import UserError

HEADER = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)
P1 = "train/patient00001/study1/view1_frontal.jpg"
P2 = "train/patient00002/study2/view1_frontal.jpg"
P2_AGAIN = "train/patient00002/study3/view2_frontal.jpg"
P2_LATERAL = "train/patient00002/study2/view2_lateral.jpg"


def make_table(prefix: str = "CheXpert-v1.0-small/") -> pd.DataFrame:
    """Three frontal rows and a lateral one, not in alphabetical order."""
    table = pd.DataFrame(
        [
            [prefix + P2_AGAIN, "Unknown", 0, "Frontal", "LL"],
            [prefix + P1, "Female", 68, "Frontal", "AP"],
            [prefix + P2_LATERAL, "Male", 87, "Lateral", None],
            [prefix + P2, "Male", 87, "Frontal", "PA"],
        ],
        columns=HEADER[:5],
    )
    for finding in FINDINGS:
        table[finding] = np.nan
    table.loc[1, ["No Finding", "Pleural Effusion"]] = 1.0, 0.0
    table.loc[3, "Edema"] = -1.0
    return table


def make_tree(root: Path, table: pd.DataFrame) -> Path:
    touch(root, P1, P2, P2_AGAIN, P2_LATERAL)
    table.to_csv(root / "train.csv", index=False)
    return root


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0-small/", "CheXpert-v1.0/", "", "/data/x/CheXpert-v1.0/"])
def test_frontal_images_with_their_labels_whatever_the_prefix(tmp_path: Path, prefix: str):
    root = make_tree(tmp_path / "CheXpert-v1.0-small", make_table(prefix))
    columns = read_chexpert(root)
    assert columns.paths.tolist() == [P1, P2, P2_AGAIN]
    assert columns.groups.tolist() == ["patient00001", "patient00002", "patient00002"]
    assert columns.label_names == FINDINGS and columns.labels.dtype == np.float32
    expected = np.full((3, 14), np.nan, dtype=np.float32)
    expected[0, 0], expected[0, 10], expected[1, 5] = 1, 0, -1
    np.testing.assert_array_equal(columns.labels, expected)
    assert columns.masks.tolist() == [None] * 3
    details = columns.details
    assert details["study"].tolist() == ["study1", "study2", "study3"]
    assert details["view"].tolist() == ["AP", "PA", "LL"]
    assert details["sex"].tolist() == ["Female", "Male", "Unknown"]
    assert details["age"].tolist() == [68, 87, 0]


def test_columns_are_found_by_name_and_some_may_lack(tmp_path: Path):
    table = make_table()
    root = make_tree(tmp_path / "plain", table)
    shuffled = table[["Age", *FINDINGS[::-1], "AP/PA", "Path", "Frontal/Lateral", "Sex"]]
    indexed = make_tree(tmp_path / "indexed", shuffled.rename_axis("").reset_index())
    np.testing.assert_array_equal(read_chexpert(indexed).labels, read_chexpert(root).labels)
    pd.testing.assert_frame_equal(read_chexpert(indexed).details, read_chexpert(root).details)
    bare = make_tree(tmp_path / "bare", table.drop(columns=["Sex", "Age", "AP/PA"]))
    assert np.isnan(read_chexpert(bare).details["age"].to_numpy()).all()


def test_the_images_of_valid_csv_are_the_test_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_tree(tmp_path / "small", make_table())
    checked = make_table().replace("/train/", "/valid/", regex=True)
    checked.to_csv(root / "valid.csv", index=False)
    assert set(read_chexpert(root).named_parts) == {""}, "a table without its images"
    shutil.copytree(root / "train", root / "valid")
    columns = read_chexpert(root)
    assert columns.paths.tolist() == [P1, P2, P2_AGAIN, *(p.replace("train", "valid") for p in (P1, P2, P2_AGAIN))]
    assert columns.named_parts.tolist() == ["", "", "", "test", "test", "test"]
    assert "the 3 images of" in capsys.readouterr().err


def test_a_few_missing_files_are_counted_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = [f"train/patient{n:05d}/study1/v.jpg" for n in range(40)]
    root = make_tree(tmp_path / "x", pd.concat([make_table().iloc[[1]].assign(Path=file) for file in files]))
    touch(root, *files[:36])
    assert len(read_chexpert(root)) == 36
    told = capsys.readouterr().err
    assert "4 of 40" in told and "train/patient00036/study1/v.jpg" in told
    (root / files[0]).unlink()
    with pytest.raises(UserError, match=r"5 of 40 frontal images.*patient00000.*more than 10%"):
        read_chexpert(root)


FIRST, SECOND = "CheXpert-v1.0 batch 1 (validate & csv)", "CheXpert-v1.0 batch 2 (train 1)"
THIRD = "CheXpert-v1.0 batch 3 (train 2)"


def make_batches(root: Path) -> Path:
    """As Stanford AIMI hands them out: patients directly in their batch, those of validation in the tables' folder."""
    valid = P1.replace("train", "valid")
    inside = [path.removeprefix("train/") for path in (P1, P2, P2_AGAIN)]
    touch(root, f"{SECOND}/{inside[0]}", f"{THIRD}/{inside[1]}", f"{THIRD}/{inside[2]}", f"{FIRST}/{valid}")
    table = make_table("CheXpert-v1.0/")
    table.to_csv(root / FIRST / "train.csv", index=False)
    table.iloc[[1]].assign(Path=f"CheXpert-v1.0/{valid}").to_csv(root / FIRST / "valid.csv", index=False)
    return root


def test_the_batches_that_aimi_hands_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_batches(tmp_path / "chexpertchestxrays-u20210408")
    (root / SECOND / "patient00009").mkdir()
    (root / FIRST / "train_cheXbert.csv").touch()
    columns = read_chexpert(root)
    inside = [path.removeprefix("train/") for path in (P1, P2, P2_AGAIN)]
    batches = [f"{SECOND}/{inside[0]}", f"{THIRD}/{inside[1]}", f"{THIRD}/{inside[2]}"]
    assert columns.paths.tolist() == [f"{FIRST}/valid/{inside[0]}", *batches]
    assert columns.named_parts.tolist() == ["test", "", "", ""]
    assert columns.groups.tolist() == ["patient00001", "patient00001", "patient00002", "patient00002"]
    assert columns.labels[1, 0] == 1 and columns.labels[2, 5] == -1
    assert all((columns.root / path).is_file() for path in columns.paths)
    told = capsys.readouterr().err
    assert "1 lateral images" in told and "1 patients' folders" in told and "train_cheXbert.csv) in" in told
    for other in (tmp_path, root / FIRST):  # a level too high, and the tables' folder
        again = read_chexpert(other)
        assert (again.root, again.paths.tolist()) == (root, columns.paths.tolist())
    with pytest.raises(UserError, match=f"did you mean {root}"):
        read_chexpert(root / SECOND)


def test_the_test_set_is_the_test_part_and_valid_the_validation_part(tmp_path: Path) -> None:
    root = make_batches(tmp_path)
    touch(root / "CheXpert", *(path.replace("train", "test") for path in (P1, P2, P2_AGAIN, P2_LATERAL)))
    test = make_table("").drop(columns=["Sex", "Age", "Frontal/Lateral", "AP/PA"]).replace("train", "test", regex=True)
    test.to_csv(root / "CheXpert" / "test_labels.csv", index=False)
    columns = read_chexpert(root)
    assert columns.named_parts.tolist() == ["val", "", "", "", "test", "test", "test"]
    assert columns.paths[-1] == f"CheXpert/{P2_AGAIN.replace('train', 'test')}"


def test_a_root_one_level_off_is_read_or_pointed_out(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "CheXpert-v1.0-small", make_table())
    assert read_chexpert(tmp_path).root == root
    with pytest.raises(UserError, match=f"did you mean {root}"):
        read_chexpert(root / "train")
    other = make_tree(tmp_path / "CheXpert-v1.0", make_table())
    with pytest.raises(UserError, match=f"2 train.csv below {tmp_path}; did you mean {other} or {root}"):
        read_chexpert(tmp_path)


def drop(column: str):
    return lambda table: table.drop(columns=column)


def put(column: str, value: object):
    return lambda table: table.astype({column: object}).assign(**{column: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("No Finding"), r"lacks the column 'No Finding'; it has Path, Sex, Age, Frontal/Lateral, AP/PA"),
        (drop("Edema"), "'Edema'"),
        (drop("Path"), "'Path'"),
        (put("Edema", 2), "'2' as 'Edema' in line 2"),
        (put("Edema", "seen"), "'seen' as 'Edema' in line 2"),
        (put("Frontal/Lateral", "Lateral"), "no frontal image"),
        (put("Path", "view1_frontal.jpg"), "holds the path 'view1_frontal.jpg'"),
        (put("Path", ""), "holds the path ''"),
        (put("Path", P1), "2 frontal images more than once"),
    ],
)
def test_a_table_that_is_not_chexperts_is_a_users_error(tmp_path: Path, damage, message: str):
    root = make_tree(tmp_path / "x", damage(make_table()))
    with pytest.raises(UserError, match=message):
        read_chexpert(root)


@pytest.mark.slow
def test_the_real_label_table(real_xrays: Path):
    rows = read_chexpert_table(real_xrays / "chexpert_labels/train.csv.gz")
    assert (len(rows), rows["patient"].nunique()) == (191_027, 64_534)
    assert rows["view"].value_counts().to_dict() == {"AP": 161_590, "PA": 29_420, "LL": 16, "RL": 1}
    assert rows["path"].tolist() == sorted(rows["path"])
    assert rows["path"].tolist()[0] == P1
    assert rows["sex"].tolist().count("Unknown") == 1
    assert rows["Pleural Effusion"].tolist().count(1) == 76_899
    assert set(rows["Edema"].dropna()) == {-1, 0, 1}


def test_the_real_images_in_chexperts_layout(real_xrays: Path, capsys: pytest.CaptureFixture[str]):
    columns = read_chexpert(real_xrays / "CheXpert-v1.0-small")
    assert (len(columns), len(set(columns.groups))) == (5_424, 4_708)
    assert np.nansum(columns.labels[:, 0] == 1) == 853
    assert np.isnan(columns.labels[:, 1:]).all()
    assert capsys.readouterr().err == ""
