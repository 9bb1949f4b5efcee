"""Source task of the embedded demo: English documentation prose.

The documentation topics of `pydoc` and the docstrings of the standard library (PSF licence), cleaned of
interpreter sessions, tables and signatures. One raw document:

    Return the number of non-overlapping occurrences of substring sub in the range [start, end]. ...
"""

import ast
import re
import textwrap
from functools import cache

from holdfast.tasks.standard_library import Split, modules, split_of

NAME = "prose"
ITEM = "token"
SHORTEST = 60  # characters; shorter docstrings ("Return self.") say nothing

_WORD = re.compile(r"[A-Za-z]{2,}")


def documents(split: Split) -> list[str]:
    """The cleaned documents of one split; a document's own text decides its side."""
    return [text for text in _documents() if split_of(text) == split]


@cache
def _documents() -> tuple[str, ...]:
    topics = (text for _, text in _topics())
    docstrings = (text for _, source in modules() for text in _docstrings(source))
    cleaned = dict.fromkeys(clean(text) for text in (*topics, *docstrings))
    return tuple(text for text in cleaned if len(text) >= SHORTEST)


def clean(text: str) -> str:
    """Keep the paragraphs that are prose: mostly words, no interpreter prompts, no tables."""
    paragraphs = re.split(r"\n\s*\n", textwrap.dedent(text.expandtabs()).strip())
    return "\n\n".join(" ".join(p.split()) for p in paragraphs if _is_prose(p))


def _is_prose(paragraph: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return (
        ">>>" not in paragraph
        and "+--" not in paragraph
        and "===" not in paragraph
        and letters > 0.75 * len(paragraph)
        and len(_WORD.findall(paragraph)) >= 5
    )


def _topics() -> list[tuple[str, str]]:
    from pydoc_data.topics import topics

    return sorted(topics.items())


def _docstrings(source: str) -> list[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, owners))
    return [text for text in found if text]
