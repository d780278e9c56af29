"""The floors of the house: sdk above targets above converters, firmware on the ground; nothing imports upward or in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "edgesdk": ROOT / "sdk" / "edgesdk",
    "edgesdk_targets": ROOT / "targets" / "edgesdk_targets",
    "edgesdk_converters": ROOT / "converters" / "edgesdk_converters",
    "edgesdk_firmware": ROOT / "firmware" / "edgesdk_firmware",
}
ALLOWED = {
    "edgesdk": set(FLOORS),
    "edgesdk_targets": {"edgesdk_targets", "edgesdk_converters", "edgesdk_firmware"},
    "edgesdk_converters": {"edgesdk_converters", "edgesdk_firmware"},
    "edgesdk_firmware": {"edgesdk_firmware"},
}
FORBIDDEN_ROOMS = {"util", "utils", "helper", "helpers", "common", "core", "misc", "base", "lib", "shared"}


def files(package: str) -> list[Path]:
    return sorted(FLOORS[package].rglob("*.py"))


def module_name(path: Path, package: str) -> str:
    parts = path.relative_to(FLOORS[package].parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def type_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree: ast.AST, module: str, is_package: bool, *, loading: bool) -> set[str]:
    """Modules a file imports; with `loading` only those imported while it is loaded, not in functions or for types."""
    found: set[str] = set()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if loading and (isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or type_only(node)):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".") if is_package else module.split(".")[:-1]
                above = parts[: len(parts) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            found.add(base)
            found |= {f"{base}.{alias.name}" for alias in node.names}
        waiting.extend(ast.iter_child_nodes(node))
    return found


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@pytest.mark.parametrize("package", list(FLOORS))
def test_nothing_imports_upward(package: str) -> None:
    """Imports in functions and for type checkers count too, and so do names in strings like "edgesdk.cli:main"."""
    assert files(package)
    for path in files(package):
        found = imports(parsed(path), module_name(path, package), path.name == "__init__.py", loading=False)
        reached = {name.split(".")[0] for name in found} & FLOORS.keys()
        assert reached <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {reached - ALLOWED[package]}"


@pytest.mark.parametrize("package", list(FLOORS))
def test_modules_named_in_strings_lie_on_the_same_floor_or_below(package: str) -> None:
    """Lazy tables name modules as "package.module:Class" or "package.module"."""
    modules = {module_name(path, floor): floor for floor in FLOORS for path in files(floor)}
    for path in files(package):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                floor = modules.get(node.value.partition(":")[0])
                if floor != node.value and floor is not None and floor not in ALLOWED[package]:
                    pytest.fail(f"{path.relative_to(ROOT)}:{node.lineno} names {node.value!r}")


def test_there_are_no_circles_of_imports() -> None:
    known = {module_name(path, package): path for package in FLOORS for path in files(package)}
    graph = {
        name: {
            found
            for found in imports(parsed(path), name, path.name == "__init__.py", loading=True)
            if found in known and found != name and not name.startswith(f"{found}.")
        }
        for name, path in known.items()
    }
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' -> '.join((*way[way.index(name) :], name))}"
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, (*way, name))
            done.add(name)

    for name in sorted(graph):
        walk(name, ())
    assert len(done) == len(known) > 30


@pytest.mark.parametrize("package", list(FLOORS))
def test_no_room_is_a_lumber_room(package: str) -> None:
    for path in FLOORS[package].rglob("*"):
        assert path.stem not in FORBIDDEN_ROOMS, path


def test_every_package_is_typed_and_every_module_says_what_it_is_for() -> None:
    for package, folder in FLOORS.items():
        assert (folder / "py.typed").is_file()
        for path in files(package):
            told = ast.get_docstring(parsed(path))
            assert told, f"{path.relative_to(ROOT)} has no docstring"


def test_no_module_swallows_whatever_was_raised() -> None:
    """`except Exception` only where a user's own code is called, and only to raise an error that says so."""
    for package in FLOORS:
        for path in files(package):
            for node in ast.walk(parsed(path)):
                if isinstance(node, ast.ExceptHandler):
                    wide = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
                    raises = any(isinstance(inner, ast.Raise) for inner in node.body)
                    assert raises or not wide, f"{path.relative_to(ROOT)}:{node.lineno} swallows whatever was raised"
