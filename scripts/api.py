"""List what is public, one file for each distribution, in docs/api (`make api`); docs/publishing.md says what that is.

    python scripts/api.py           write the lists
    python scripts/api.py --check   compare them with the code, and show what differs

Read from the source, without importing it: signatures as they are written. The commands alone are asked for theirs.
"""

from __future__ import annotations

import ast
import difflib
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
LISTS = REPO / "docs" / "api"
COMMANDS = "commands"

# Modules (not packages) all of whose names are public: what documentation shows, and what has no package of its own.
MODULES = (
    "kedit_core.cli.common",
    "kedit_core.cli.groups",
    "kedit_core.cli.outputs",
    "kedit_core.contract",
    "kedit_core.editing.cache",
    "kedit_core.editing.checks",
    "kedit_core.editing.datasets",
    "kedit_core.editing.progress",
    "kedit_core.errors",
    "kedit_core.extras",
    "kedit_core.files",
    "kedit_core.models.builtin",
    "kedit_core.patches.keys",
    "kedit_core.patches.signing",
    "kedit_core.patches.trust",
    "kedit_core.testing.tiny",
    "kedit_core.training.losses",
    "kedit_core.training.settings",
    "kedit_factworld.plugin",
    "kedit_factworld.training",
)

IN_PART = "(what other distributions of kedit use)"
MARKS = ("property", "cached_property", "staticmethod", "classmethod", "abstractmethod")


def distributions() -> dict[str, Path]:
    """Name -> folder of the code of every distribution that has some."""
    files = sorted([*REPO.glob("kedit_*/pyproject.toml"), *REPO.glob("plugins/*/pyproject.toml")])
    return {tomllib.loads(each.read_text())["project"]["name"]: each.parent / "src" for each in files}


def sources() -> dict[str, Path]:
    """Dotted name -> file of every module of ours."""
    found: dict[str, Path] = {}
    for src in distributions().values():
        for path in src.rglob("*.py"):
            parts = path.relative_to(src).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


class Source:
    """All modules of ours, parsed when they are asked for."""

    def __init__(self) -> None:
        self.files = sources()
        self.tree = cache(self._tree)

    def _tree(self, module: str) -> ast.Module:
        return ast.parse(self.files[module].read_text())

    def statements(self, module: str) -> Iterator[ast.stmt]:
        """What stands at the top of a module, also under ``if TYPE_CHECKING`` and the like."""
        for node in self.tree(module).body:
            yield from node.body + node.orelse if isinstance(node, ast.If) else [node]

    def exported(self, module: str) -> list[str]:
        """The public names of a module: those in ``__all__``; without one, what is defined there."""
        for node in self.statements(module):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return sorted(ast.literal_eval(node.value))
        return sorted(name for node in self.statements(module) for name in _defined(node) if not name.startswith("_"))

    def home(self, module: str, name: str) -> tuple[str, ast.stmt | None]:
        """Where a name is defined, and the statement; None for a module. LookupError when nothing defines it."""
        imported: str | None = None
        for node in self.statements(module):
            if name in _defined(node):
                return module, node
            if isinstance(node, ast.ImportFrom) and node.module in self.files:
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        imported, wanted = node.module, alias.name
        if imported is not None:
            return self.home(imported, wanted)
        if f"{module}.{name}" in self.files:
            return f"{module}.{name}", None
        # a package that imports when asked, without telling type checkers: the one module of it that has the name
        below = [each for each in self.files if each.startswith(f"{module}.")]
        having = [each for each in below if any(name in _defined(node) for node in self.statements(each))]
        if len(having) != 1:
            raise LookupError(f"{module} exports {name!r}, and {len(having)} of its modules define it")
        return self.home(having[0], name)


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    if isinstance(node, ast.Assign) and not ast.unparse(node.value).startswith("TypeVar("):
        names = [each for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name)]
        return [each.id for each in names]
    return []


def public_modules(source: Source, package: str) -> list[str]:
    """Of a distribution's package: packages with an ``__all__``, settings of methods, and MODULES."""
    found = []
    for module, path in sorted(source.files.items()):
        parts = module.split(".")
        if parts[0] != package or any(part.startswith("_") for part in parts):
            continue
        package_list = path.name == "__init__.py" and "__all__" in path.read_text()
        if package_list or module in MODULES or "hparams" in parts[:-1]:
            found.append(module)
    return found


def used_besides(source: Source, package: str) -> dict[str, list[str]]:
    """What other distributions of ours import from a package beside what is public: module -> names.

    They are released with it and installed apart from it, so such a name changes no more easily than a public one.
    """
    public, found = set(public_modules(source, package)), dict[str, set[str]]()
    for importing in source.files:
        if importing.split(".")[0] == package:
            continue
        for node in ast.walk(source.tree(importing)):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != package:
                continue
            for alias in node.names:
                module, names = str(node.module), {alias.name}
                if (whole := f"{module}.{alias.name}") in source.files:
                    module, names = whole, _attributes(source.tree(importing), alias.asname or alias.name)
                if module not in public:
                    found.setdefault(module, set()).update(names)
    return {module: sorted(names) for module, names in sorted(found.items())}


def _attributes(tree: ast.Module, of: str) -> set[str]:
    """What is asked of a name in a module: ``of.this``."""
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {node.attr for node in found if isinstance(node.value, ast.Name) and node.value.id == of}


def listing(source: Source, package: str) -> list[str]:
    """The lines about one distribution; what several modules export is shown in full once, at the longest path."""
    public = {module: source.exported(module) for module in public_modules(source, package)}
    besides = used_besides(source, package)
    homes = {(module, name): source.home(module, name) for module in public for name in public[module]}
    shown: dict[tuple[str, str], str] = {}
    for (module, name), (home, _) in sorted(homes.items(), key=lambda item: len(item[0][0].split("."))):
        shown[home, name] = module
    for module in besides:
        for name in besides[module]:
            homes[module, name] = source.home(module, name)
            shown.setdefault((homes[module, name][0], name), module)
    lines: list[str] = []
    for module, names in [*public.items(), *besides.items()]:
        lines += ["", module if module in public else f"{module} {IN_PART}"]
        for name in names:
            home, node = homes[module, name]
            if shown[home, name] != module or node is None:
                lines.append(f"  {name}: see {shown[home, name] if node is not None else home}")
            else:
                lines += [f"  {line}" for line in described(name, node)]
    return lines[1:]


def described(name: str, node: ast.stmt) -> list[str]:
    """A definition as it is written, without its body; of a class what is public in it."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return [_signature(node)]
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        lines = [f"class {name}({bases})" if bases else f"class {name}"]
        for part in node.body:
            lines += [f"  {line}" for line in _member(part)]
        return lines
    if isinstance(node, ast.AnnAssign):
        alias = ast.unparse(node.annotation) == "TypeAlias" and node.value is not None
        return [f"{name}: {ast.unparse(node.annotation)}" + (f" = {ast.unparse(node.value)}" if alias else "")]  # type: ignore[arg-type]
    return [name]


def _member(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        if node.name.startswith("_") and node.name not in ("__init__", "__call__", "__enter__", "__getitem__"):
            return []
        marks = [ast.unparse(each) for each in node.decorator_list]
        if any(mark.endswith((".setter", ".validator", ".default")) for mark in marks):
            return []
        kept = [mark for mark in marks if mark in MARKS]
        return ["".join(f"@{mark} " for mark in kept) + _signature(node)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_"):
        return [f"{node.target.id}: {ast.unparse(node.annotation)}{_default(node.value)}"]
    if isinstance(node, ast.Assign):
        return [name for name in _defined(node) if not name.startswith("_")]
    return []


def _default(value: ast.expr | None) -> str:
    """What a field is when it is not given; of ``field(...)`` that part only."""
    if value is None:
        return ""
    if isinstance(value, ast.Call) and ast.unparse(value.func) in ("field", "attrs.field"):
        for keyword in value.keywords:
            if keyword.arg in ("default", "factory"):
                made = ast.unparse(keyword.value)
                return f" = {made}()" if keyword.arg == "factory" else f" = {made}"
        return ""
    return f" = {ast.unparse(value)}"


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{word} {node.name}({ast.unparse(node.args)}){returns}"


def commands() -> list[str]:
    """Every command with its arguments and options: the core's, and those of this repository's plugins."""
    import click

    from kedit_core.cli.root import kedit
    from kedit_core.plugins import Catalogue

    ours = set(distributions())
    catalogue = Catalogue(
        [each for each in Catalogue.installed(environ={}).entries("kedit.commands") if each.distribution in ours]
    )
    context = click.Context(kedit, info_name="kedit")
    context.meta["kedit.catalogue"] = catalogue

    def walk(group: click.Group, inside: click.Context, words: str) -> Iterator[str]:
        for name in sorted(group.list_commands(inside)):
            command = group.get_command(inside, name)
            if isinstance(command, click.Group):
                yield from walk(command, click.Context(command, parent=inside, info_name=name), f"{words} {name}")
            elif command is not None:
                arguments = [each.make_metavar(inside) for each in command.params if isinstance(each, click.Argument)]
                yield " ".join([words, name, *arguments])
                for each in command.params:
                    if isinstance(each, click.Option) and not each.hidden:
                        yield "  " + " ".join([*each.opts, *each.secondary_opts])

    return list(walk(kedit, context, "kedit"))


def listings() -> dict[str, str]:
    """Name of a list -> its text."""
    source = Source()
    found = {name: listing(source, name.replace("-", "_")) for name in distributions()}
    return {name: "\n".join(lines) + "\n" for name, lines in {**found, COMMANDS: commands()}.items() if lines}


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """What changed between two sets of lists, as a unified diff; empty when nothing did."""
    lines: list[str] = []
    for name in sorted({*before, *after}):
        old, new = (each.get(name, "").splitlines() for each in (before, after))
        lines += difflib.unified_diff(old, new, f"docs/api/{name}.txt", "the code", n=1, lineterm="")
    return "\n".join(lines)


def written() -> dict[str, str]:
    """The lists as they are in docs/api."""
    return {path.stem: path.read_text() for path in sorted(LISTS.glob("*.txt"))}


def main() -> None:
    now = listings()
    changed = difference(written(), now)
    if sys.argv[1:] == ["--check"]:
        raise SystemExit(f"{changed}\n\nThe public API is not as listed; `make api` lists it anew." if changed else 0)
    LISTS.mkdir(parents=True, exist_ok=True)
    for stale in {path.stem for path in LISTS.glob("*.txt")} - set(now):
        (LISTS / f"{stale}.txt").unlink()
    for name, text in now.items():
        (LISTS / f"{name}.txt").write_text(text)
    print(changed or "nothing changed")


if __name__ == "__main__":
    main()
