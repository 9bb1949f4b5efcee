"""Documents as rows of token ids, ready for `holdfast.batches.collate`."""

import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from holdfast.batches import Row
from holdfast.data.documents import Documents
from holdfast.errors import HoldfastError
from holdfast.likelihood import IGNORED, bare
from holdfast.progress import track

BATCH = 256  # documents per call of the tokenizer
# Checkpoints pad their embeddings by up to 2 % and a few hundred rows; beyond both it is another vocabulary.
SPARE_ROWS, SPARE_SHARE = 1024, 0.1


def tokenise(documents: Documents, tokenizer: Any, *, length: int, progress: bool = True) -> list[Row]:
    """Rows of at most `length` tokens: `{"input_ids": (n,), "labels": (n,)}`, int64, without padding.

    **Texts** are tokenised with the special tokens that the tokenizer adds, ended by its end-of-sequence token
    where it has one, laid end to end and cut into blocks; `labels` are the `input_ids`. The last block is shorter;
    of one token alone, which could predict nothing, there is no row.

    **Pairs** make one row each: the prompt with the special tokens, the completion without, the end-of-sequence
    token. They are tokenised apart, so that no token straddles the border, with a newline after the prompt where
    neither side brings white space. `labels` are -100 on the prompt (newline and special tokens included). A prompt
    that does not fit loses its beginning, a beginning-of-sequence token excepted; a pair whose completion alone is
    longer than `length` is left out. Both are counted in a warning.

    Raises:
        HoldfastError: a length below 2, or no row at all.
    """
    if length < 2:
        raise HoldfastError(f"length is {length}", wanted="at least 2 tokens: one to predict the next from")
    if documents.paired:
        return _pairs(documents, tokenizer, length, progress)
    return _blocks(documents, tokenizer, length, progress)


def _blocks(documents: Documents, tokenizer: Any, length: int, progress: bool) -> list[Row]:
    end = _end(tokenizer)
    pieces = []
    for ids in _encode(tokenizer, documents.items, "tokenise", progress, add_special_tokens=True):
        # Some tokenizers add the end themselves.
        pieces.append(ids if ids[-1:].tolist() == end else torch.cat([ids, torch.tensor(end, dtype=torch.long)]))
    blocks = [block for block in torch.cat(pieces).split(length) if len(block) > 1]
    if not blocks:
        raise HoldfastError(f"{documents.name} is a single token", wanted="text of at least two tokens")
    return [{"input_ids": block, "labels": block} for block in blocks]


def _pairs(documents: Documents, tokenizer: Any, length: int, progress: bool) -> list[Row]:
    end = _end(tokenizer)
    joined = [_joined(prompt, completion) for prompt, completion in cast(tuple[tuple[str, str], ...], documents.items)]
    prompts = _encode(tokenizer, [prompt for prompt, _ in joined], "tokenise prompts", progress)
    completions = _encode(
        tokenizer, [completion for _, completion in joined], "tokenise completions", progress, add_special_tokens=False
    )
    rows: list[Row] = []
    longest, shortened = 0, 0
    for head, tail in zip(prompts, completions, strict=True):
        if len(head) > 1 and head[-1:].tolist() == end:  # a tokenizer that ends what it is given: too early here
            head = head[:-1]
        tail = torch.cat([tail, torch.tensor(end, dtype=torch.long)])
        longest = max(longest, len(head) + len(tail))
        if len(tail) > length:
            continue
        shortened += len(head) + len(tail) > length
        head = _last(head, length - len(tail), tokenizer.bos_token_id)
        labels = torch.cat([torch.full_like(head, IGNORED), tail])
        rows.append({"input_ids": torch.cat([head, tail]), "labels": labels})
    _report(documents, length, len(rows), shortened, longest)
    return rows


def _joined(prompt: str, completion: str) -> tuple[str, str]:
    apart = not prompt or prompt[-1].isspace() or completion[0].isspace()
    return prompt if apart else prompt + "\n", completion


def _last(head: Tensor, room: int, start: int | None) -> Tensor:
    """The last `room` tokens of a prompt; a beginning-of-sequence token stays in front."""
    if len(head) <= room:
        return head
    kept = head[:1] if room > 1 and head[0] == start else head[:0]
    return torch.cat([kept, head[len(head) - (room - len(kept)) :]])


def _report(documents: Documents, length: int, rows: int, shortened: int, longest: int) -> None:
    dropped = len(documents) - rows
    if rows == 0:
        raise HoldfastError(
            f"none of the {dropped} completions of {documents.name} fits into {length} tokens",
            remedy=f"raise the length; {longest} tokens hold every prompt and completion whole",
        )
    if dropped or shortened:
        warnings.warn(
            f"{documents.name}: of {len(documents):,} pairs, {dropped:,} left out (their completion alone is longer "
            f"than {length} tokens) and {shortened:,} prompts without their beginning; "
            f"a length of {longest} would hold all of them whole",
            stacklevel=4,  # where tokenise was called
        )


def _encode(
    tokenizer: Any, texts: Sequence[Any], what: str, progress: bool, *, add_special_tokens: bool = True
) -> list[Tensor]:
    encoded: list[Tensor] = []
    with track(what, len(texts), shown=progress, unit="document") as advance:
        for i in range(0, len(texts), BATCH):
            some = list(texts[i : i + BATCH])
            # Not verbose: it would warn of documents longer than the model takes, and they are cut later.
            ids = tokenizer(some, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
            encoded += [torch.tensor(one, dtype=torch.long) for one in ids]
            advance(len(some))
    return encoded


def _end(tokenizer: Any) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def check_tokenizer(tokenizer: Any, model: Any, *, length: int | None = None) -> None:
    """Refuse a tokenizer of another model, and rows of more tokens than the model has positions for.

    Raises:
        HoldfastError: ids beyond the model's embedding rows, far fewer ids than rows, or a length beyond the model's.
    """
    base: Any = bare(model)
    rows = base.get_input_embeddings().weight.shape[0]
    vocabulary = tokenizer.get_vocab()
    last = max(vocabulary, key=vocabulary.__getitem__)
    if vocabulary[last] >= rows:
        raise HoldfastError(
            f"the tokenizer gives {last!r} the id {vocabulary[last]}, but the model has {rows} embedding rows",
            causes=["the tokenizer is another model's", "tokens (a padding token?) were added to the tokenizer alone"],
            remedy="load this model's tokenizer, or call model.resize_token_embeddings(len(tokenizer)) and save it",
        )
    spare = rows - len(vocabulary)
    if spare > SPARE_ROWS and spare > SPARE_SHARE * rows:
        raise HoldfastError(
            f"the tokenizer knows {len(vocabulary)} tokens, but the model has {rows} embedding rows",
            causes=["the tokenizer is another model's"],
            remedy="load the tokenizer of this model",
        )
    positions = getattr(base.config, "max_position_embeddings", None)
    if length is not None and positions is not None and length > positions:
        raise HoldfastError(
            f"rows of {length} tokens, but the model takes at most {positions}", remedy=f"--length {positions} or less"
        )
