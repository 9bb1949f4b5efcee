"""Which room may know of which, read off the imports; and what no room may do."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast
from holdfast import catalogue

PACKAGE = Path(holdfast.__file__).parent
MODULES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
HEAVY = ("torch", "transformers", "peft", "optuna", "sqlalchemy", "scipy", "plotly", "matplotlib")
HOOKS = (
    "register_hook",
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
    "register_module_forward_hook",
)
# Room or module -> what it may import of the house; a module's own line comes before its room's. What is missing here
# may import everything but the command line.
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "layers": {"errors"},
    "rows": {"rows", "layers", "errors"},
    "sparse_matrix": set(),
    "factors": {"factors", "sparse_matrix", "errors"},
    "statistics": {"layers", "rows", "errors"},
    "targets": {"layers", "errors"},
    "likelihood": {"likelihoods", "errors"},
    "likelihoods": {"likelihoods", "errors"},
    "parts": {"curvature", "layers", "targets", "errors"},
    "fingerprint": set(),
    "curvature": {"curvature", "factors", "rows", "sparse_matrix", "errors"},
    "adapters": {"adapters", "layers", "targets", "errors"},
    "shifts": {"shifts", "layers", "sparse_matrix", "targets", "errors"},
    "sift": {
        "sift",
        "adapters",
        "batches",
        "evaluation",
        "files",
        "fingerprint",
        "layers",
        "likelihood",
        "measuring",
        "pretrained",
        "progress",
        "targets",
        "errors",
    },
    "tuners": {"tuners", "adapters", "layers", "recipe", "sift", "targets", "errors"},
    "tasks": {"tasks", "errors"},
    "budgets": {"budgets", "batches", "evaluation", "likelihood", "layers", "pretrained", "progress", "errors"},
    "analysis/figure": {"report"},
    "analysis/interactive": {"analysis", "report"},
    "analysis/static": {"analysis"},
    "analysis/page": {"analysis", "report"},
    "analysis/leaving": {"analysis", "errors", "files", "machine"},
    "analysis/nulls": {"errors"},
    "analysis/concentration": {"errors"},
    "analysis/pac_bayes/bounds": {"errors"},
    "analysis/pac_bayes/divergence": {"errors"},
    "analysis/pac_bayes/shape": {"curvature", "errors", "shifts"},
    "analysis/pac_bayes/certificate": {"analysis", "errors"},
    "frontier": {
        "frontier",
        "anchors",
        "budgets",
        "catalogue",
        "checkpoints",
        "data",
        "deaf",
        "errors",
        "files",
        "holding",
        "language_model",
        "machine",
        "recipe",
        "report",
        "sides",
        "tune",
        "tune_recipe",
        "tuned",
        "tuning_method",
    },
    "penalties": {
        "penalties",
        "budgets",
        "shifts",
        "curvature",
        "anchor",
        "batches",
        "errors",
        "layers",
        "likelihood",
        "likelihoods",
        "parts",
        "pretrained",
        "progress",
        "sampling",
        "steady",
        "targets",
    },
    "fitting": {
        "fitting",
        "anchor",
        "batches",
        "budgets",
        "catalogue",
        "curvature",
        "errors",
        "layers",
        "likelihood",
        "likelihoods",
        "penalties",
        "pretrained",
        "progress",
        "shifts",
        "targets",
    },
    "fitting/shrinkage": set(),
    "fitting/coupled": {"fitting"},
    "fitting/search": {"errors"},
}


def room(module: str) -> str:
    """The folder at the top, or the file itself."""
    return module.split("/")[0]


def imported(path: Path) -> Iterator[str]:
    """The rooms of the house that a file imports, anywhere in it; what only type checkers read is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            bare = node.module == "holdfast"
            names = [f"holdfast.{alias.name}" for alias in node.names] if bare else [node.module or ""]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("holdfast."))


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_one_way(module: str) -> None:
    known = set(imported(MODULES[module]))
    assert "cli" not in known or room(module) in ("cli", "__main__")
    allowed = ALLOWED.get(module, ALLOWED.get(room(module)))
    assert allowed is None or known <= allowed, f"{module} imports {sorted(known - (allowed or set()))}"


def test_the_table_names_what_exists() -> None:
    existing = {room(module) for module in MODULES}
    assert set(ALLOWED) <= existing | set(MODULES)
    assert set().union(*ALLOWED.values()) <= existing


def test_only_statistics_has_hooks() -> None:
    holders = {module for module, path in MODULES.items() if any(hook in path.read_text() for hook in HOOKS)}
    assert holders == {"statistics"}


def compared(path: Path) -> Iterator[str]:
    """Every string that is compared with, matched, or listed to be looked into; keys of mappings are none."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            keyed = isinstance(node.ops[0], (ast.In, ast.NotIn))
            sides = [*node.comparators] if keyed else [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        else:
            continue
        for side in sides:
            literal = (ast.Tuple, ast.List, ast.Set)
            parts = side.elts if isinstance(side, literal) else [side]
            yield from (p.value for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str))


@pytest.mark.parametrize("module", [module for module in MODULES if module != "catalogue"])
def test_no_method_is_known_by_name(module: str) -> None:
    names = {name for kind in catalogue.ROOMS for name in catalogue.names(kind)}
    assert names.isdisjoint(compared(MODULES[module]))


@pytest.mark.parametrize("statement", ["import holdfast", "import holdfast.cli.app"])
def test_heavy_libraries_wait_until_they_are_used(statement: str) -> None:
    code = f"{statement}; import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "[]"


def test_public_names_are_few_and_exist() -> None:
    assert len(holdfast.__all__) <= 20
    for name in holdfast.__all__:
        assert getattr(holdfast, name) is not None
    assert set(holdfast.__all__) <= set(dir(holdfast))
    with pytest.raises(AttributeError, match="Penality"):
        _ = holdfast.Penality
