from structseg.tables import TextTable


def test_columns_of_equal_width():
    table = TextTable(
        ("name", "mean\nof all", "n"), [("a", "1.25", "10"), ("across all of it, on its own",), ("long name", "-", "2")]
    )
    assert table.text().splitlines() == [
        "             mean",
        "name       of all   n",
        "---------  ------  --",
        "a            1.25  10",
        "across all of it, on its own",
        "long name       -   2",
    ]


def test_title_and_notes_and_no_lines():
    table = TextTable(("a", "b|c"), [], 2, "t", ["first", "second"])
    assert table.text() == "t\na  b|c\n-  ---\nfirst\nsecond"
    assert table.markdown() == "**t**\n\n| a | b\\|c |\n| --- | --- |\n\nfirst\n\nsecond"


def test_markdown_has_one_line_for_each():
    assert TextTable(("a\nb", "c"), [("x|y", "1")]).markdown() == "| a b | c |\n| --- | ---: |\n| x\\|y | 1 |"
