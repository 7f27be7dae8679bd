"""What others wrote is repeated on one line, as a text that a terminal can show, and not at any length."""

import pytest

from piggyback_tf.foreign_text import counted, escaped, one_line, printable, reason, shown, some


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("birds", "birds"),
        ("vögel ⛵ 'a'", "vögel ⛵ 'a'"),
        ("", ""),
        (5, "5"),
        ("a\nb", r"'a\nb'"),
        ("\x1b]0;owned\x07", r"'\x1b]0;owned\x07'"),
        ("caf\udce9", r"'caf\udce9'"),
        ("a\u202eb", r"'a\u202eb'"),
    ],
)
def test_a_value_of_others_is_shown_as_it_is_or_in_quotes_with_escapes(value, expected):
    assert printable(value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a 'b' \\", "a 'b' \\"), ("\x1b[1mé\n", r"\x1b[1mé\n"), ("caf\udce9\u2028", r"caf\udce9\u2028")],
)
def test_only_what_cannot_be_printed_is_escaped(text, expected):
    assert escaped(text) == expected


def test_a_long_value_is_shown_without_its_middle():
    assert shown("a" * 100) == repr("a" * 100)
    assert shown("a" * 1000 + "b") == "'" + "a" * 57 + "..." + "a" * 57 + "b'"
    assert shown(list(range(100))) == "[0, 1, 2, 3, 4, 5, 6, 7, ...]"
    assert shown("\x1b") == r"'\x1b'"


def test_an_error_of_another_library_is_one_line():
    assert one_line(ValueError("first\n  second\tthird.")) == "first second third."
    assert one_line(ValueError("\x1b[2Jgone")) == r"\x1b[2Jgone"
    assert one_line(ValueError(" \n")) == "ValueError"
    assert one_line(ValueError("x" * 500)) == "x" * 400 + "..."
    assert (reason(ValueError("It is so..")), reason(ValueError("x" * 9), 5), reason("")) == ("It is so", "xxxxx", "")


def test_some_of_many_names():
    names = [f"n{number}" for number in range(1500)]
    assert some([]) == ""
    assert some(names[:5]) == "n0, n1, n2, n3, n4"
    assert some(names) == "n0, n1, n2, n3, n4 and 1,495 more"
    assert some(names[:3], 2, repr) == "'n0', 'n1' and 1 more"
    assert some(["\x1bc", "b"]) == r"'\x1bc', b"


def test_a_number_stands_with_its_noun():
    assert [counted(number, "image") for number in (0, 1, 1200)] == ["0 images", "1 image", "1,200 images"]
    assert [counted(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
