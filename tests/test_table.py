"""Tables with any number of labels to an image; those with one each are in test_dataset.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from headstart.data.dataset import open_data, open_table
from headstart.data.table import joined
from headstart.errors import DataError

LISTED = {
    "bars": "path,labels\na,sea|sand\nb,\nc,sky|sea\n",
    "semicolons": "path,tags\na,sea; sand\nb,\nc,sky;sea;sea\n",
    "commas": 'path,Labels\na,"sea,sand"\nb,\nc,"sky, sea"\n',
    "blanks": "path,labels\na,sea sand\nb,\nc,sky sea\n",
    "rows": "path,labels\na,sea\na,sand\nb,\nc,sky\nc,sea\n",
    "marks": "path,sky,sea,sand,note\na,0,1,1,x\nb,0,0,0,y\nc,1,1,0,z\n",
    "words": "path,sky,sea,sand\na,False,True,TRUE\nb,false,false,0\nc,true,1.0,0.0\n",
}


def table(folder: Path, text: str) -> Path:
    (folder / "t.csv").write_text(text)
    return folder / "t.csv"


@pytest.mark.parametrize("kind", LISTED)
def test_several_labels_may_stand_there_in_many_ways(tmp_path: Path, kind: str) -> None:
    data = open_data(table(tmp_path, LISTED[kind]))
    assert data.multi_label
    assert data.classes == ("sand", "sea", "sky")
    assert data.paths == ("a", "b", "c")
    assert data.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 1]]
    assert data.labels.dtype == np.int64
    assert data.label_names() == ["sand|sea", "", "sea|sky"]
    assert data.numbers() == [[0, 1], [], [1, 2]]
    assert "1 of 3 images bear no label: taken as pictures that show none of them" in data.notes
    assert ("blanks between them" in str(data.notes)) == (kind == "blanks")
    assert ("column(s) note not used" in str(data.notes)) == (kind == "marks")
    assert repr(data).endswith("3 labels, 3 images, no given splits)")


def test_a_list_in_a_parquet_table_is_a_list_of_labels(tmp_path: Path) -> None:
    labels = [["hot dog", "sauce"], [], ["sauce"]]
    parquet.write_table(pa.table({"path": ["a", "b", "c"], "labels": labels}), tmp_path / "t.parquet")
    data = open_data(tmp_path / "t.parquet")
    assert data.classes == ("hot dog", "sauce")
    assert data.labels.tolist() == [[1, 1], [0, 0], [0, 1]]


def test_one_label_with_any_number_of_images_that_bear_it_will_do(tmp_path: Path) -> None:
    data = open_data(table(tmp_path, "path,cat\na,1\nb,0\n"))
    assert data.classes == ("cat",)
    assert data.labels.tolist() == [[1], [0]]


def test_what_is_written_is_read_as_the_same(tmp_path: Path) -> None:
    for labels in ([["a b", "c,d"], []], [["a b"], ["c,d"], []], [["x; y"]]):
        cells = "\n".join(f'{i},"{cell}"' for i, cell in enumerate(joined(labels)))
        data = open_table(table(tmp_path, f"path,labels\n{cells}\n"))
        assert [[data.classes[i] for i in own] for own in data.numbers()] == labels


def test_splits_and_groups_go_with_several_labels(tmp_path: Path) -> None:
    text = "path,labels,split,group\nb,x|y,val,1\na,x,train,2\nc,,train,2\n"
    data = open_table(table(tmp_path, text))
    assert data.paths == ("a", "c", "b")
    assert data.splits == ("train", "train", "val")
    assert data.groups == ("2", "2", "1")
    assert "val: no image" not in str(data.notes)
    assert "train: no image of class y" in data.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,cat,dog\na,1,0\nb,0,2\nc,0,1\n", "row 3: 'dog' is '2'. Expected 0 or 1"),
        ("path,cat,dog\na,1,0\nb,0,\nc,0,1\n", "row 3: 'dog' is ''. Expected 0 or 1"),
        ("path,kind\na,x\nb,y\n", "no label column. Found: path, kind. Expected one named label,"),
        ("path,kind\na,x\nb,y\n", "labels, tags, with | between them, or a column of 0 and 1 for each."),
        ("path,labels\na,\nb,\n", "no image bears a label"),
        ("path,x|y\na,1\nb,0\n", "a label is named 'x|y'"),
        ("path,labels,split\na,x,train\na,y,val\nb,y,val\n", "row 3: a stands twice, as 'x (train)' and as 'y (val)'"),
        ("path,cat\na,1\na,0\n", "row 3: a stands twice, as 'cat' and as ''. Keep the row that is right."),
        ("path,label\na,x\na,y\n", "or name the column labels if it bears both"),
    ],
)
def test_faulty_tables_name_the_row_and_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as raised:
        open_table(table(tmp_path, text))
    assert message in str(raised.value)
