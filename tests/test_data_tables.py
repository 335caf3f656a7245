"""Tables as people save them: encodings, separators, decimal commas; every fault with its line, all at once."""

import pytest
from test_data_sources import folder, jpeg

from fedskew.data.archives import open_store
from fedskew.data.faults import SHOWN
from fedskew.data.manifest import ManifestLayout
from fedskew.data.samples import DataError
from fedskew.data.sources import open_source
from fedskew.data.tables import header, read_table

GERMAN = "Bild;Diagnose;Alter;Ort\na.jpg;Nävus;61,5;Rücken\n"


def table(tmp_path, content, **options):
    return read_table(open_store(folder(tmp_path / "t", {"t.csv": content})), "t.csv", **options)


@pytest.mark.parametrize(
    ("codec", "told"),
    [("utf-8", "utf-8"), ("utf-8-sig", "utf-8"), ("cp1252", "cp1252"), ("latin-1", "cp1252"), ("utf-16", "utf-16"),
     ("utf-16-le-mark", "utf-16"), ("utf-16-be-mark", "utf-16")],
)  # fmt: skip
def test_encodings_are_recognised_and_named(tmp_path, codec, told):
    marks = {"utf-16-le-mark": ("utf-16-le", b"\xff\xfe"), "utf-16-be-mark": ("utf-16-be", b"\xfe\xff")}
    name, mark = marks.get(codec, (codec, b""))
    found = table(tmp_path, mark + GERMAN.encode(name))
    assert found.columns == ("bild", "diagnose", "alter", "ort")
    assert found.rows[0].values["ort"] == "Rücken"
    assert found.encoding == told
    assert header(open_store(tmp_path / "t"), "t.csv") == found.columns


def test_a_given_encoding_is_obeyed(tmp_path):
    content = "Bild;Ort\na.jpg;Rücken\n".encode("mac-roman")
    assert table(tmp_path, content, encoding="mac-roman").rows[0].values["ort"] == "Rücken"
    assert table(tmp_path, content).rows[0].values["ort"] != "Rücken", "which nobody can guess"
    with pytest.raises(DataError, match=r"encoding 'utf-9' is unknown; usual ones are utf-8"):
        table(tmp_path, content, encoding="utf-9")
    with pytest.raises(DataError, match="no text in ascii"):
        table(tmp_path, content, encoding="ascii")


@pytest.mark.parametrize(
    "text",
    [
        "a;b;c\n1;2,5;x\n",
        "a,b,c\n1,\"2,5\",x\n",
        "a\tb\tc\n1\t2,5\tx\n",
        "a|b|c\n1|2,5|x\n",
        "sep=|\na|b|c\n1|2,5|x\n",
        "SEP=;\r\na;b;c\r\n1;2,5;x\r\n",
        "a;b;c;;\n1;2,5;x;;\n",
        "a;b;c\n1;2,5;x;;;\n",
        "\n\na;b;c\n1;2,5;x\n",
        "a;b;c\r1;2,5;x\r",
        "\"a\";\"b\";\"c\"\n1;2,5;x\n",
    ],
)  # fmt: skip
def test_separators_and_what_spreadsheets_add(tmp_path, text):
    separator = "|" if text.startswith("a|") else None
    found = table(tmp_path, text.encode(), separator=separator)
    assert found.columns == ("a", "b", "c")
    assert [row.values for row in found.rows] == [{"a": "1", "b": "2,5", "c": "x"}]
    assert found.rows[0].number("b") == 2.5
    found.check()


def test_a_separator_inside_quotes_does_not_count(tmp_path):
    found = table(tmp_path, b'"size, in mm, largest";b\n3;4\n')
    assert found.columns == ("size, in mm, largest", "b")


@pytest.mark.parametrize(
    ("text", "years"), [("61,5", 61.5), ("61.5", 61.5), ("7,", 7.0), ("0,125", 0.125), ("k.A.", None), ("-", None)]
)
def test_ages_with_decimal_commas(tmp_path, text, years):
    found = table(tmp_path, f"i;age\na;{text}\n".encode())
    assert found.rows[0].age("age") == years
    found.check()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,234", "may be 1.234 or 1234"),
        ("131", "0 to 130"),
        ("-1", "0 to 130"),
        ("inf", "0 to 130"),
        ("nan1", "0 to 130"),
        ("6O", "0 to 130"),
    ],
)
def test_ages_that_are_none_are_named_with_their_line(tmp_path, text, words):
    found = table(tmp_path, f"i;age\nfirst;5\nb;{text}\n".encode())
    ages = [row.age("age") for row in found.rows]
    assert ages[0] == 5
    with pytest.raises(DataError) as error:
        found.check()
    assert str(error.value).startswith("t.csv, line 3: ")
    assert words in str(error.value)
    assert repr(text) in str(error.value)


def test_line_numbers_are_those_of_the_file(tmp_path):
    found = table(tmp_path, b'sep=;\n\na;b\n"two\nlines";1\n\nx;no number\n')
    assert found.rows[1].number("b") is None
    with pytest.raises(DataError, match=r"^t\.csv, line 7: b 'no number' is not a number"):
        found.check()


def test_faults_come_all_at_once_equal_ones_together_and_not_without_end(tmp_path):
    rows = [f"i{n}.jpg;{n if n % 2 else 'x'};mel" for n in range(10)]
    rows += [f"j{n}.jpg;old{n};mel" for n in range(30)]
    files = {f"i{n}.jpg": jpeg(n) for n in range(10)} | {"t.csv": "\n".join(["i;age;dx", *rows]).encode()}
    layout = ManifestLayout(file="t.csv", image="i", label="dx", age="age")
    with pytest.raises(DataError) as error:
        open_source(folder(tmp_path / "d", files), manifest=layout)
    head, *told, more = str(error.value).splitlines()
    assert head == "t.csv has 31 faults:"
    assert told[0].startswith("  lines 2, 4, 6 and 2 more: age 'x' is not a number of years")
    assert told[1].startswith("  line 12: age 'old0'")
    assert len(told) == SHOWN
    assert more == "  and 11 more"


def test_ham10000s_own_table_tells_all_faults_too(tmp_path):
    text = "image_id,dx,age\nISIC_1,,5\nISIC_2,nv,old\nISIC_3,nv\nISIC_4,nv,131\n"
    with pytest.raises(DataError) as error:
        open_source(folder(tmp_path / "d", {"HAM10000_metadata.csv": text.encode(), "ISIC_1.jpg": jpeg(1)}))
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()] == [
        "HAM10000_metadata.csv has 4 faults", "line 2", "line 3", "line 4", "line 5"]  # fmt: skip


@pytest.mark.parametrize("text", ["45 J.", "45 Jahre", "45J", "45 years", "45 yrs.", "45,0 Jahre", "45 y/o"])
def test_ages_with_their_unit(tmp_path, text):
    found = table(tmp_path, f"i;age\na;{text}\n".encode())
    assert found.rows[0].age("age") == 45
    found.check()


@pytest.mark.parametrize("text", ["45 Juni", "J.", "45 months", "45 M."])
def test_ages_with_another_unit_are_none(tmp_path, text):
    found = table(tmp_path, f"i;age\na;{text}\n".encode())
    assert found.rows[0].age("age") is None
    with pytest.raises(DataError, match="is not a number of years"):
        found.check()


def test_a_point_beside_decimal_commas_may_divide_thousands(tmp_path):
    found = table(tmp_path, b"i;mm;g\na;7,5;1.234\nb;1.234;2.5\nc;0.125;x\nd;-2.500;1,234\n")
    assert [row.number("mm") for row in found.rows[::2]] == [7.5, 0.125]
    assert found.rows[0].number("g") == 1.234, "no value of this column has a decimal comma beyond doubt"
    found.rows[1].number("mm"), found.rows[3].number("mm")
    with pytest.raises(DataError) as error:
        found.check()
    assert str(error.value).splitlines()[1:] == [
        "  line 3: '1.234' may be 1.234 or 1234: other values of mm have a decimal comma; write it with a decimal "
        "comma or without the point",
        "  line 5: '-2.500' may be -2.500 or -2500: other values of mm have a decimal comma; write it with a decimal "
        "comma or without the point",
    ]


@pytest.mark.parametrize("header_line", ['bild;dx;"Groesse, in mm, max"', 'bild,dx,"a; b; c; d"', '"a,b,c,d"\tx\ty'])
def test_separators_inside_a_quoted_name_do_not_win(tmp_path, header_line):
    rows = {";": "1;2;3", ",": "1,2,3", "\t": "1\t2\t3"}
    separator = next(mark for mark in ("\t", ";", ",") if mark in header_line.replace('"Groesse, in mm, max"', "")
                     .replace('"a; b; c; d"', ""))  # fmt: skip
    found = table(tmp_path, f"{header_line}\n{rows[separator]}\n".encode())
    assert len(found.columns) == 3
    assert list(found.rows[0].values.values()) == ["1", "2", "3"]


def test_a_mark_of_utf8_before_other_bytes_points_to_the_manifests_encoding(tmp_path):
    content = b"\xef\xbb\xbf" + GERMAN.encode("cp1252")
    with pytest.raises(DataError, match=r"no text in utf-8-sig as the mark at its start says .*encoding: cp1252"):
        table(tmp_path, content)
    found = table(tmp_path, content, encoding="cp1252")
    assert found.columns[0] == "bild"
    assert found.rows[0].values["diagnose"] == "Nävus"
