"""Target task of the embedded demo: Python code.

The standard library's modules without docstrings and comments (they are the source task), printed by
`ast.unparse`; a fixed sample chosen by name, so that versions of Python differ little. One raw document:

    def insort_right(a, x, lo=0, hi=None, *, key=None):
        if key is None:
            lo = bisect_right(a, x, lo, hi)
        ...
"""

import ast
import warnings

from holdfast.tasks.standard_library import Split, fraction, modules, split_of

NAME = "code"
ITEM = "token"
SAMPLE = 0.5  # of the modules


def documents(split: Split) -> list[str]:
    """The stripped modules of one split."""
    chosen = ((name, text) for name, text in modules() if split_of(name) == split)
    stripped = (strip(text) for name, text in chosen if fraction(name, "sample") < SAMPLE)
    return [text for text in stripped if len(text) > 200]


def strip(source: str) -> str:
    """The module without docstrings and comments; empty when it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(source)
    except SyntaxError:
        return ""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, owners) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(ast.fix_missing_locations(tree))
