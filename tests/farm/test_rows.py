"""Tables of tasks: what they may hold, and what is said of those that hold something else."""

import pytest

from piggyback_tf.farm import FarmError, read_rows

COLUMNS = {"task", "data", "epochs", "baseline"}


@pytest.fixture(name="table")
def _table(tmp_path):
    def write(text):
        path = tmp_path / "tasks.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_a_row_is_a_command_line(table):
    path = table('\ufefftask,data,--epochs,baseline\r\ncats, folder:a b ,3,"x,y"\r\n\r\ndögs,digits,,\r\n')
    first, second = read_rows(path, COLUMNS)
    assert (first.task, first.line) == ("cats", 2)
    assert first.flags == ("--task=cats", "--data=folder:a b", "--epochs=3", "--baseline=x,y")
    assert (second.task, second.line, second.flags) == ("dögs", 4, ("--task=dögs", "--data=digits"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no column 'task' and no column 'data'"),
        ("task,epochs\na,1\n", "names no column 'data'"),
        ("task,data\n", "has no tasks"),
        ("task,data,epoch\na,b,1\n", "Column 'epoch' of .* is no flag of `train`. Did you mean 'epochs'"),
        ("task,data,data\na,b,c\n", "names a column more than once: data"),
        ("task,data\na,digits:0,1\n", "Line 2 of .* has 3 cells for 2 columns. A value with a comma is put in quotes"),
        ("task,data\na,\n", "Line 2 of .* has nothing in the column 'data'"),
        ("task,data\n../a,digits\n", "Line 2 of .*: A task's name is part of a file name"),
        ("task,data\na,digits\nb,digits\na,folder:x\n", "Lines 2 and 4 of .* name the same task, 'a'"),
        (b"task,data\n\xff,digits\n", "is no CSV file in UTF-8"),
        ('task,data\n"a,digits\n', "is no CSV file in UTF-8"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(table, text, message):
    with pytest.raises(FarmError, match=message):
        read_rows(table(text), COLUMNS)
