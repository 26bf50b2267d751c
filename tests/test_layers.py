"""The tree reads left to right: every module imports only what stands left of it, and heavy packages stay lazy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import weft

PACKAGE = Path(weft.__file__).parent

# Left to right; what shares a line may import one another.
LAYERS = (
    ("version", "errors", "types"),
    ("isa",),
    ("ptx",),
    ("reference",),
    ("analysis",),
    ("codegen",),
    ("chips", "settings", "runtime"),
    ("tools", "model", "timeline"),
    ("frontends", "report"),
    ("api",),
    ("install",),
    ("startup", "doctor"),
    ("cli",),
    ("__main__", "__init__"),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# (importer, imported): why it is right all the same.
EXCEPTIONS: dict[tuple[str, str], str] = {}

MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_modules(tree: ast.AST, module: str, is_package: bool) -> set[str]:
    """Every module of weft that the tree names in an import, at top level or inside a function."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            if base == "weft":
                found |= {f"weft.{alias.name}" if alias.name in RANK else "weft" for alias in node.names}
            else:
                found.add(base)
    return {name for name in found if name == "weft" or name.startswith("weft.")}


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_leftward(path: Path) -> None:
    relative = path.relative_to(PACKAGE.parent).with_suffix("")
    is_package = path.name == "__init__.py"
    module = ".".join(relative.parts[:-1] if is_package else relative.parts)
    layer = layer_of(module)
    assert layer in RANK, f"{module}: weft/{layer} has no place in LAYERS"
    wrong = []
    for imported in sorted(imported_modules(ast.parse(path.read_text()), module, is_package)):
        target = layer_of(imported)
        # `import weft` as a user writes it, inside a function, is the public face and may stand in doctor and cli.
        if target == "__init__" and layer in ("doctor", "cli", "__main__"):
            continue
        assert target in RANK, f"{module}: imports {imported}, which has no place in LAYERS"
        if RANK[target] > RANK[layer] and (module, imported) not in EXCEPTIONS:
            wrong.append(imported)
    assert not wrong, f"{module} imports rightward: {', '.join(wrong)}"


def test_exceptions_are_used() -> None:
    for importer, imported in EXCEPTIONS:
        base = PACKAGE.parent / Path(*importer.split("."))
        path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        assert imported in imported_modules(ast.parse(path.read_text()), importer, base.is_dir()), (importer, imported)


def test_only_codegen_imports_llvmlite() -> None:
    users = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "llvmlite" for name in names):
                users.add(path.relative_to(PACKAGE).parts[0])
    assert users <= {"codegen", "doctor.py"}, users


def test_reference_sees_only_the_instruction_set() -> None:
    paths = [path for path in MODULES if path.parent == PACKAGE / "reference"]
    assert paths
    for path in paths:
        seen = {layer_of(name) for name in imported_modules(ast.parse(path.read_text()), "weft.reference", True)}
        assert seen <= {"errors", "types", "isa", "ptx", "reference"}, (path.name, seen)


def test_import_is_light() -> None:
    heavy = ("llvmlite", "rich", "click", "torch", "triton", "numba", "sklearn", "matplotlib", "scipy")
    program = f"import sys, weft; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
