"""Reading DATA, turning it into rows, holding a part out."""

import csv
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from holdfast import HoldfastError
from holdfast.batches import collate
from holdfast.data import Columns, Documents, check_tokenizer, read, split_off, tokenise
from holdfast.likelihood import IGNORED

SHARED = Path(__file__).parents[2] / "shared" / "data"
TEXTS = ("one, two", 'a "quoted"\nline', "2020-01-01", "NA", "42", "é 🙂\u2028")
PAIRS = tuple((f"what is {i} and {i}?", f"it is {2 * i}") for i in range(40))


@pytest.fixture(scope="module")
def tokenizer():
    """Byte-level BPE: every text round-trips; <s> in front, </s> known."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["what is this and that? it is what it is"] * 4, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def bare_of(tokenizer, **special):
    """The same vocabulary with other special tokens, none added by the tokenizer itself."""
    bpe = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    bpe.post_processor = processors.TemplateProcessing(
        single=special.pop("single", "$A"), pair=None, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **special)


def write_parquet(path, rows):
    pytest.importorskip("datasets").Dataset.from_list(rows).to_parquet(path)


def write_delimited(path, rows, delimiter):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


WRITERS = {
    ".jsonl": lambda path, rows: path.write_text("\n\n".join(map(json.dumps, rows)) + "\n"),
    ".json": lambda path, rows: path.write_text(json.dumps(rows, indent=2)),
    ".csv": lambda path, rows: write_delimited(path, rows, ","),
    ".tsv": lambda path, rows: write_delimited(path, rows, "\t"),
    ".parquet": write_parquet,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_table_gives_the_same_texts_and_fingerprint(tmp_path, suffix):
    # Dates, numbers, "NA", quotes and newlines stay the text that was written.
    path = tmp_path / f"data{suffix}"
    WRITERS[suffix](path, [{"text": text} for text in TEXTS])
    documents = read(str(path))
    assert documents.items == TEXTS
    assert documents.columns == Columns(text="text")
    assert documents.description == f"{path}: 6 texts (column 'text'); columns guessed by their names"
    assert documents.sha256 == Documents(documents.items[::-1], "elsewhere").sha256
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_table_gives_pairs(tmp_path, suffix):
    path = tmp_path / f"data{suffix.upper()}"
    WRITERS[suffix](path, [{"id": str(i), "question": p, "answer": c} for i, (p, c) in enumerate(PAIRS)])
    guessed, named = read(str(path)), read(str(path), Columns(prompt="question", completion="answer"))
    assert guessed.paired
    assert guessed.items == named.items == PAIRS
    assert guessed.sha256 == named.sha256 != Documents((*PAIRS[1:], PAIRS[1]), "").sha256
    assert guessed.columns == named.columns
    assert "not read: id" in guessed.description


def test_other_shapes_of_json(tmp_path):
    lines, single = tmp_path / "lines.json", tmp_path / "single.json"
    lines.write_text('\ufeff{"Text": "a", "n": 1}\r\n{"Text": null, "n": "x"}\r\n{"m": [1], "Text": "b"}\r\n')
    single.write_text('{\n"content": "a"\n}')
    documents = read(str(lines))
    assert documents.items == ("a", "b")
    assert documents.notes == ("columns guessed by their names", "not read: n, m", "1 empty row left out")
    assert read(str(single)).items == ("a",)


def test_a_long_field_of_a_csv(tmp_path):
    write_delimited(tmp_path / "data.csv", [{"text": "word " * 50_000}], ",")
    assert read(str(tmp_path / "data.csv")).items == ("word " * 50_000,)


def test_text_file_and_folder(tmp_path):
    for name, text in {
        "b/two.md": "two\n",
        "a.txt": "\ufeffone\r\n",
        "b/c/three": "three",
        ".git/x.txt": "no",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    assert read(str(tmp_path / "a.txt")).items == ("one\n",)
    assert read(str(tmp_path)).items == ("one\n", "two\n", "three")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\xff")
    (tmp_path / "b" / "empty.txt").write_text(" \n")
    (tmp_path / "rows.jsonl").write_text('{"text": "not here"}')
    description = read(str(tmp_path)).description
    assert description == (
        f"{tmp_path}: 3 texts; 1 table (rows.jsonl) left out; 1 binary file (image.png) left out; "
        f"1 empty file ({Path('b/empty.txt')}) left out"
    )


@pytest.mark.parametrize("length", [2, 7, 64, 10_000])
def test_packing_loses_no_token(tokenizer, length):
    documents = Documents(tuple(prompt for prompt, _ in PAIRS), "questions")
    rows = tokenise(documents, tokenizer, length=length, progress=False)
    stream = [token for text in documents.items for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    packed = [token for row in rows for token in row["input_ids"].tolist()]
    assert packed == (stream[:-1] if len(stream) % length == 1 else stream)
    assert {len(row["input_ids"]) for row in rows[:-1]} <= {length}
    assert len(rows[-1]["input_ids"]) >= 2
    assert all(torch.equal(row["input_ids"], row["labels"]) for row in rows)


def test_packing_with_other_special_tokens(tokenizer):
    documents = Documents(("it is", "what"), "")
    plain = bare_of(tokenizer)(list(documents.items))["input_ids"]
    cases = {
        ("$A", None): plain[0] + plain[1],
        ("$A", "</s>"): [*plain[0], 1, *plain[1], 1],
        ("<s> $A </s>", "</s>"): [0, *plain[0], 1, 0, *plain[1], 1],
    }
    for (single, end), expected in cases.items():
        rows = tokenise(documents, bare_of(tokenizer, single=single, eos_token=end), length=100, progress=False)
        assert [row["input_ids"].tolist() for row in rows] == [expected]


@pytest.mark.parametrize("single", ["<s> $A", "<s> $A </s>", "$A"])
def test_masks_round_trip(tokenizer, single):
    mine = bare_of(tokenizer, single=single, bos_token="<s>", eos_token="</s>")
    pairs = (*PAIRS, ("ends in a newline\n", "a"), ("name:", " b"), ("", "no prompt"))
    rows = tokenise(Documents(pairs, ""), mine, length=200, progress=False)
    start = "<s>" if single.startswith("<s>") else ""
    for (prompt, completion), row in zip(pairs, rows, strict=True):
        ids, labels = row["input_ids"], row["labels"]
        scored = labels != IGNORED
        gap = "" if prompt in ("", "name:") or prompt.endswith("\n") else "\n"
        assert mine.decode(ids[~scored]) == start + prompt + gap
        assert mine.decode(ids[scored]) == completion + "</s>"
        assert torch.equal(labels[scored], ids[scored])
    scored = sum(int((row["labels"] != IGNORED).sum()) for row in rows)
    assert int((collate(rows)["labels"] != IGNORED).sum()) == scored


def test_long_pairs_are_cut_on_the_left_and_counted(tokenizer):
    pairs = (("p" * 50 + "XYZ", "ab"), ("short", "c" * 99), ("q", "d"), ("r" * 50, "e" * 11), ("", "f" * 12))
    with pytest.warns(
        UserWarning, match=r"5 pairs, 2 left out .* than 12 .* and 2 prompts .* length of 107"
    ) as caught:
        rows = tokenise(Documents(pairs, "data"), tokenizer, length=12, progress=False)
    assert [warning.filename for warning in caught] == [__file__]
    texts = [tokenizer.decode(row["input_ids"]) for row in rows]
    assert texts == ["<s>" + "p" * 4 + "XYZ\nab</s>", "<s>q\nd</s>", "e" * 11 + "</s>"]
    assert [int((row["labels"] == IGNORED).sum()) for row in rows] == [9, 3, 0]
    with pytest.raises(HoldfastError, match=r"none of the 5 completions .* fits into 2 tokens"):
        tokenise(Documents((("a", "bbb"),) * 5, "data"), tokenizer, length=2, progress=False)
    with pytest.raises(HoldfastError, match="length is 1"):
        tokenise(Documents(pairs, "data"), tokenizer, length=1)
    with pytest.raises(HoldfastError, match="single token"):
        tokenise(Documents(("a",), "data"), bare_of(tokenizer), length=8, progress=False)


@pytest.mark.parametrize("held_out", [0.25, 10])
def test_split_does_not_depend_on_order(tokenizer, held_out):
    documents = Documents(PAIRS, "data")
    train, held = split_off(documents, held_out, seed=3)
    again = split_off(Documents(PAIRS[::-1], "data"), held_out, seed=3)
    assert (train.items, held.items) == (again[0].items, again[1].items)
    assert (len(train), len(held)) == (30, 10)
    assert sorted(train.items + held.items) == sorted(PAIRS)
    assert set(held.items) != set(split_off(documents, held_out, seed=4)[1].items)
    assert held.description.endswith("the part of 40, 10 held out")
    rows = tokenise(documents, tokenizer, length=100, progress=False)
    kept, measured = split_off(rows, held_out)
    mirrored = split_off([{name: ids.tolist() for name, ids in row.items()} for row in rows[::-1]], held_out)
    assert [row["input_ids"].tolist() for row in measured] == [row["input_ids"] for row in mirrored[1]]
    assert len(kept) == len(mirrored[0]) == 30


def test_split_keeps_equal_documents_together():
    train, held = split_off(Documents(("a", "b", "c", "d") * 5, ""), 0.5)
    assert set(train.items).isdisjoint(held.items)
    assert (len(train), len(held)) == (10, 10)


@pytest.mark.parametrize(("items", "held_out"), [(("a",), 0.5), (("a",) * 9, 3), (("a", "b"), 2), (("a", "b"), 0)])
def test_split_needs_something_on_both_sides(items, held_out):
    with pytest.raises(HoldfastError, match=r"can't be held out|held_out is 0"):
        split_off(Documents(items, ""), held_out)


def test_tokenizer_and_model(tokenizer):
    def model(rows):
        shape = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
        return LlamaForCausalLM(LlamaConfig(vocab_size=rows, max_position_embeddings=32, **shape))

    check_tokenizer(tokenizer, model(len(tokenizer)), length=32)
    check_tokenizer(tokenizer, model(len(tokenizer) + 200))
    with pytest.raises(HoldfastError, match=rf"the id {len(tokenizer) - 1}, .* has {len(tokenizer) - 1} embedding"):
        check_tokenizer(tokenizer, model(len(tokenizer) - 1))
    with pytest.raises(HoldfastError, match=r"knows \d+ tokens, but the model has 3000"):
        check_tokenizer(tokenizer, model(3000))
    with pytest.raises(HoldfastError, match="33 tokens, but the model takes at most 32"):
        check_tokenizer(tokenizer, model(len(tokenizer)), length=33)


@pytest.mark.parametrize(
    ("name", "count", "paired", "columns"),
    [
        ("gsm8k/train.jsonl", 7473, True, Columns(prompt="question", completion="answer")),
        ("shakespeare/input.txt", 1, False, Columns()),
        ("banking77/train.csv", 10003, False, Columns(text="text")),
    ],
)
def test_real_data(tokenizer, name, count, paired, columns):
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not here")
    documents = read(str(SHARED / name))
    assert (len(documents), documents.paired, documents.columns) == (count, paired, columns)
    some = Documents(documents.items[:50] if count > 1 else (documents.items[0][:20_000],), name)
    rows = tokenise(some, tokenizer, length=1024, progress=False)
    scored = "".join(tokenizer.decode(row["labels"][row["labels"] != IGNORED]) for row in rows)
    expected = (completion for _, completion in some.items) if paired else (f"<s>{text}" for text in some.items)
    assert scored == "".join(f"{text}</s>" for text in expected)
