"""Bad DATA: each gives one message that names what is wrong and the way out."""

import re
import sys
from pathlib import Path

import pytest

from holdfast import HoldfastError
from holdfast.data import Columns, library, read

JSONL = '{"text": "a"}\n{"text": "b"}\n'
CSV = "text,label\na,1\nb,2\n"


def refused(data, *parts, columns=None, split="train"):
    """Reading raises one HoldfastError whose message holds every part."""
    with pytest.raises(HoldfastError) as caught:
        read(str(data), columns or Columns(), split=split)
    message = str(caught.value)
    missing = [part for part in parts if part not in message]
    assert missing == [], message
    return message


# name of the file, its content, what the message says
MALFORMED = {
    "empty text": ("a.txt", b" \n", ["a.txt is empty"]),
    "empty json": ("a.jsonl", b"", ["a.jsonl is empty"]),
    "latin-1": ("a.txt", "one\ncafé".encode("latin-1"), ["not UTF-8", "0xe9 at line 2 (offset 7)", "iconv"]),
    "utf-16": ("a.txt", "one".encode("utf-16"), ["not UTF-8", "NUL bytes"]),
    "latin-1 csv": ("a.csv", "text\ncafé".encode("latin-1"), ["not UTF-8", "line 2"]),
    "compressed": ("a.jsonl.gz", b"\x1f\x8b\x08\0\0", ["not UTF-8", "unpack it"]),
    "cut json line": (
        "a.jsonl",
        (JSONL + '\n{"text": "c').encode(),
        ["line 4, column 10: not JSON", "mend or remove"],
    ),
    "cut json array": ("a.json", b'[{"text": "a"},\n{"text": "b"', ["line 2", "not JSON"]),
    "json value": ("a.jsonl", b'{"text": "a"}\n\n"b"', ["line 3: a str stands where a row"]),
    "json array of texts": ("a.json", b'["a"]', ["row 1: a str stands"]),
    "json of columns": ("a.json", b'{"text": ["a", "b"]}', ["'text' holds a list, not text"]),
    "json of rows in a key": ("a.json", b'{\n"rows": [{"text": "a"}]}', ["it has rows", "one big JSON object"]),
    "surrogate": ("a.jsonl", b'{"text": "a"}\n{"text": "\\ud83d"}', ["line 2", "half of a surrogate"]),
    "number": (
        "a.jsonl",
        b'{"text": "a"}\n{"text": 1}',
        ["line 2", "'text' holds a number, not text", "columns are text"],
    ),
    "chat": ("a.jsonl", b'{"messages": [{"role": "user"}]}', ["it has messages", "chat template"]),
    "no known column": ("a.csv", b"body,label\na,1", ["not clear which column", "body, label"]),
    "no header": ("a.csv", b"how are you?,greeting\nbye,farewell", ["how are you?, greeting", "its header"]),
    "header only": ("a.csv", b"text,label\n", ["has no rows"]),
    "header twice": ("a.csv", b"text,text\na,b", ["names text more than once"]),
    "short row": ("a.csv", (CSV + '"c\nd"\n').encode(), ["at line 4: 1 fields under a header of 2"]),
    "long row": ("a.csv", (CSV + "c,d,3\n").encode(), ["at line 4: 3 fields", "not in double quotes"]),
    "long rows": ("a.csv", b"text,label\na,b,1\nc,d,2\n", ["at line 2: 3 fields"]),
    "open quote": ("a.csv", (CSV + '"c,3\nd,4\n').encode(), ["at line 4: unexpected end", "doubled"]),
    "tabs in a csv": ("a.csv", b"text\tlabel\na\t1", ["it has text\tlabel"]),
    "all rows empty": ("a.jsonl", b'{"text": ""}\n{"text": null}\n{"text": " "}', ["all 3 rows", "are empty"]),
    "no completion": ("a.csv", b"prompt,completion\na,\nb,\n", ["all 2 rows", "'completion'"]),
    "two readings": ("a.csv", b"text,prompt,completion\na,b,c", ["two ways", "text 'text'"]),
    "context": ("a.csv", b"instruction,input,output\na,,c\na,b,c", ["two ways", "'input'", "write them into one"]),
    "not parquet": ("a.parquet", b"PAR1 but not really", ["could not be read as Parquet", "again"]),
    "empty parquet": ("a.parquet", b"", ["a.parquet is empty"]),
}


@pytest.mark.parametrize(("name", "content", "parts"), MALFORMED.values(), ids=list(MALFORMED))
def test_malformed_files(tmp_path, name, content, parts):
    if name.endswith(".parquet"):
        pytest.importorskip("datasets")
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, *parts)


def test_blank_context_is_no_second_reading(tmp_path):
    (tmp_path / "a.csv").write_text("instruction,input,output\na,,c\n")
    assert read(str(tmp_path / "a.csv")).items == (("a", "c"),)


def test_nothing_there(tmp_path, monkeypatch):
    (tmp_path / "train.jsonl").write_text(JSONL)
    refused(tmp_path / "trian.jsonl", f"no file or folder {tmp_path / 'trian.jsonl'}", "holds train.jsonl")
    refused(tmp_path / "sub" / "folder" / "train.jsonl", f"{tmp_path} holds train.jsonl")
    refused("x" * 5000, "no file or folder")
    refused("", "no data is named")
    monkeypatch.chdir(tmp_path)
    refused("trainjsonl", "holds train.jsonl")
    message = refused("data/train.jsonl", f"no file or folder {tmp_path / 'data' / 'train.jsonl'}")
    assert "the hub:" not in message  # owner/name, but with the suffix of a file: the hub is not asked


def test_folders_without_text(tmp_path):
    refused(tmp_path, "holds no text file: it is empty")
    (tmp_path / "train.jsonl").write_text(JSONL)
    refused(tmp_path, "only 1 table (train.jsonl)", f"name a table itself: {tmp_path / 'train.jsonl'}")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    refused(tmp_path, "latin.txt is not UTF-8")


def test_unreadable(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")

    def denied(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", denied)
    refused(tmp_path / "a.txt", "a.txt can't be read: Permission denied")
    refused(tmp_path, "a.txt can't be read: Permission denied")


def test_columns(tmp_path):
    (tmp_path / "a.csv").write_text("sentence,label\nx,1\n")
    (tmp_path / "a.txt").write_text("text")
    refused(tmp_path / "a.csv", "no column 'sentense'; did you mean 'sentence'?", columns=Columns(text="sentense"))
    refused(tmp_path / "a.csv", "columns: sentence, label", columns=Columns(prompt="sentence", completion="answer"))
    refused(tmp_path / "a.txt", "text without columns, but body was named", columns=Columns(text="body"))
    refused(tmp_path / "a.csv", "'test'", "has no splits", split="test")
    with pytest.raises(HoldfastError, match=r"a prompt column .* is named, but no completion column"):
        Columns(prompt="question")
    with pytest.raises(HoldfastError, match=r"a completion column .* is named, but no prompt column"):
        Columns(text="a", completion="answer")
    with pytest.raises(HoldfastError, match="are both named"):
        Columns(text="a", prompt="question", completion="answer")


def test_damaged_parquet(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "data [1].parquet"
    datasets.Dataset.from_list([{"text": "a", "n": 1}] * 100).to_parquet(path)
    assert read(str(path)).items == ("a",) * 100
    refused(path, "row 1: column 'n' holds a number", columns=Columns(text="n"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "could not be read as Parquet", "cut off")
    path.write_bytes(whole[:4] + b"\xff" * 40 + whole[44:])
    refused(path, "could not be read as Parquet")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_library_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "a.jsonl").write_text(JSONL)
    refused(tmp_path / "a.parquet", 'pip install "holdfast[lm]"')
    refused("owner/name", 'pip install "holdfast[lm]"')
    assert read(str(tmp_path / "a.jsonl")).items == ("a", "b")


def test_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    asked = []

    def load(name, config, *, split):
        asked.append((name, config, split))
        if config == "wrong":
            raise ValueError("BuilderConfig 'wrong' not found.\nAvailable: ['main']")
        if name == "owner/absent":
            raise ConnectionError("Couldn't reach 'owner/absent' on the Hub")
        return datasets.Dataset.from_list([{"question": "a", "answer": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    documents = read("owner/name:main", split="test")
    assert documents.items == (("a", "b"),)
    assert documents.description.startswith("owner/name:main [test]: 1 pair ")
    message = refused(
        "owner/absent", "Couldn't reach 'owner/absent'", "no file or folder", "hf auth login", "local file"
    )
    assert re.search(r"Traceback|Retrying", message) is None
    refused("owner/name:wrong", "Available: ['main']", "choose one of those listed")
    assert asked == [("owner/name", "main", "test"), ("owner/absent", None, "train"), ("owner/name", "wrong", "train")]


def test_the_library_is_as_loud_as_before(tmp_path):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list([{"text": "a"}]).to_parquet(path)
    before = datasets.logging.get_verbosity(), datasets.is_progress_bar_enabled()
    library.parquet(path)
    assert (datasets.logging.get_verbosity(), datasets.is_progress_bar_enabled()) == before
