"""Tables and lists as text: cells below one another, and nothing in them that a terminal would obey."""

from piggyback_tf.evaluation.text import format_pairs, format_table, markdown_table

HEADER, ROWS = ["name", "count", "file"], [["a", "1,000", "x"], ["longer", "5", "a/b\x1b"]]


def test_a_table_in_plain_text():
    assert format_table(HEADER, ROWS, end=1).splitlines() == [
        "name    count  file",
        "------  -----  ---------",
        "a       1,000  x",
        "longer      5  'a/b\\x1b'",
    ]
    assert format_table(HEADER, ROWS, left=2).splitlines()[2:] == [
        "a       1,000          x",
        "longer  5      'a/b\\x1b'",
    ]


def test_a_table_in_markdown():
    assert markdown_table(HEADER, [*ROWS, ["a|b", "", "-"]]) == [
        "| name   | count |      file |",
        "| ------ | ----: | --------: |",
        "| a      | 1,000 |         x |",
        "| longer |     5 | 'a/b\\x1b' |",
        "| a\\|b   |       |         - |",
    ]


def test_names_and_values():
    assert format_pairs({"task": "birds", "a\n": 5}, indent=2) == ["  task   birds", "  'a\\n'  5"]
    assert format_pairs({}) == []
