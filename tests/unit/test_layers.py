"""The walls of the house: who may import whom, what a pure module may touch, what a lock file may say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRIVER = sorted((ROOT / "driver").rglob("*.py"))
PLUGIN = sorted((ROOT / "plugin").rglob("*.py"))
PURE = ("driver.model", "driver.options", "driver.plan", "driver.doctor", "driver.firewall.ruleset")
# What a pure module may import: nothing here opens a file, a socket, a process, a clock or a source of chance.
PURE_LIBRARY = frozenset(
    {
        "__future__",
        "base64",
        "binascii",
        "collections",
        "collections.abc",
        "contextlib",
        "dataclasses",
        "enum",
        "functools",
        "hashlib",
        "ipaddress",
        "itertools",
        "math",
        "msgspec",
        "operator",
        "re",
        "string",
        "typing",
        "zlib",
        "driver",
        "driver.errors",
        "driver.firewall",
    }
)
# Options warns of keys that it ignores, at the one place that knows them; a log line is its only effect.
EXCEPTIONS = {"driver.options": {"logging"}}
IO_BUILTINS = frozenset({"open", "print", "input", "breakpoint", "exec", "eval", "__import__"})
WEB = frozenset({"flask", "werkzeug", "gunicorn", "http", "wsgiref", "socketserver", "jinja2"})


def module_name(path: Path) -> str:
    """driver/firewall/ruleset.py -> driver.firewall.ruleset."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(tree: ast.AST, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Every module that an import statement names, relative ones resolved, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - is_package
                base = ".".join(filter(None, [*module.split(".")[: len(module.split(".")) - up], base]))
            # "from driver import plan" imports driver.plan, "from driver.plan import X" does not import driver.plan.X
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names if (ROOT / base.replace(".", "/")).is_dir())


def imports_of(path: Path) -> set[str]:
    return set(imported(ast.parse(path.read_text()), module_name(path), is_package=path.name == "__init__.py"))


def top(name: str) -> str:
    return name.partition(".")[0]


def impurities(source: str, module: str) -> list[str]:
    """What a pure module does that it must not: foreign imports and the builtins that act."""
    tree = ast.parse(source)
    allowed = PURE_LIBRARY | set(PURE) | EXCEPTIONS.get(module, set())
    found = [
        f"imports {name}"
        for name in sorted(set(imported(tree, module)))
        if name not in allowed and name.rpartition(".")[0] not in allowed - {"driver", "driver.firewall"}
    ]
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name))
    return found + [f"calls {n.func.id}()" for n in calls if isinstance(n.func, ast.Name) and n.func.id in IO_BUILTINS]


def http_words(source: str) -> list[str]:
    """Identifiers and literals that speak of HTTP; prose (docstrings, comments) and addresses of documents are none."""
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    words = [
        (getattr(node, "lineno", 0), str(word))
        for node in ast.walk(tree)
        if id(node) not in prose
        for field in ("id", "attr", "name", "arg", "value", "module")
        if isinstance(word := getattr(node, field, None), str)
    ]
    return [f"line {n}: {w[:60]}" for n, w in words if re.search("http", re.sub(r"https?://", "", w), re.IGNORECASE)]


def test_the_project_has_both_layers() -> None:
    assert DRIVER, "driver/ holds no module: the rules below would say nothing"
    assert PLUGIN, "plugin/ holds no module: the rules below would say nothing"


@pytest.mark.parametrize("path", DRIVER, ids=module_name)
def test_driver_never_imports_plugin_nor_a_web_library(path: Path) -> None:
    wrong = {name for name in imports_of(path) if top(name) in WEB | {"plugin", "tests"}}
    assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize("path", DRIVER, ids=module_name)
def test_driver_knows_no_http(path: Path) -> None:
    assert not http_words(path.read_text())


@pytest.mark.parametrize("path", PLUGIN, ids=module_name)
def test_plugin_leaves_kernel_and_store_to_the_driver(path: Path) -> None:
    wrong = {name for name in imports_of(path) if top(name) in {"pyroute2", "iptc", "sqlite3", "subprocess", "tests"}}
    assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize("path", [p for p in DRIVER if module_name(p) in PURE], ids=module_name)
def test_pure_modules_do_no_io(path: Path) -> None:
    assert not impurities(path.read_text(), module_name(path))


@pytest.mark.parametrize("path", [*DRIVER, *PLUGIN], ids=module_name)
def test_the_product_runs_no_network_commands(path: Path) -> None:
    """Kernel and firewall are spoken to through libraries; a process per change would be the built-in driver again."""
    tools = re.compile(r"^(/\S*/)?(ip|nft|iptables|ip6tables|iptables-\S+|brctl|sysctl|conntrack|modprobe)$")
    words = [
        (node.lineno, node.args[0])
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and node.args and top(ast.unparse(node.func)) in {"subprocess", "os"}
    ]
    started = [
        (line, element.value)
        for line, argument in words
        for element in (
            [argument.elts[0]] if isinstance(argument, ast.List | ast.Tuple) and argument.elts else [argument]
        )
        if isinstance(element, ast.Constant) and isinstance(element.value, str)
    ]
    assert not [f"line {line}: {value}" for line, value in started if tools.match(value.split(" ")[0])]


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import socket", "imports socket"),
        ("def f() -> None:\n    from pathlib import Path", "imports pathlib"),
        ("from driver import store", "imports driver.store"),
        ("from driver.kernel import Kernel", "imports driver.kernel"),
        ("from .store import Store", "imports driver.store"),
        ("import driver.kernel as model", "imports driver.kernel"),
        ("x = open('/proc/self/stat')", "calls open()"),
    ],
)
def test_the_purity_rule_finds(source: str, fault: str) -> None:
    assert fault in impurities(source, "driver.plan")


@pytest.mark.parametrize(
    "source", ["http_status = 500", "def f(http: int) -> None: ...", "x = 'HTTP/1.1'", "y = a.http_code"]
)
def test_the_http_rule_finds(source: str) -> None:
    prose = '"""HTTP may stand in prose."""\nurl = "https://docs.example/"\n'
    assert not http_words(prose)
    assert http_words(prose + source)


@pytest.mark.parametrize(
    "source", ["from driver import errors, model", "from .model import Network", "from collections.abc import Iterable"]
)
def test_the_purity_rule_allows(source: str) -> None:
    assert impurities(source, "driver.plan") == []


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda p: p.name)
def test_lock_files_pin_every_file_and_name_no_host(path: Path) -> None:
    text = path.read_text()
    entries = [e for e in re.split(r"\n(?=[a-z])", text) if re.match("[a-z]", e)]
    assert entries
    assert not [e.splitlines()[0] for e in entries if "==" not in e.splitlines()[0] or "--hash=sha256:" not in e]
    assert not re.findall(r"https?:|file:|--(?:extra-)?index-url|--find-links|--trusted-host", text)


def test_runtime_lock_is_part_of_the_development_lock() -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^[\w.-]+==\S+", (ROOT / "requirements" / name).read_text(), re.MULTILINE))

    assert pins("runtime.txt") <= pins("dev.txt")
