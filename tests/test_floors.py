"""The floors of DESIGN.md: what stands where in taaslib, and that imports go down or sideways, never up.

Reads syntax trees; imports nothing of ours, so it also speaks when the rest can not even be imported.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
TAASLIB = TOP / "taaslib"
TAASADMIN = TOP / "taasadmin"
COMMANDS = ("taas", "taas_admin", "taas_agent", "make_cert")

# A new file gets its place here, after its place in DESIGN.md has been thought of.
FLOORS = {
    0: {"http1", "clienthello", "proxy2", "authorization", "names", "rendezvous", "outcomes", "limits"}
    | {"config", "guesses", "recorder"},
    1: {"loop", "stream", "listener", "pump", "sockets", "store", "ownership", "journal"} | {"supervisor"},
    2: {"frontdoor", "registrar", "redirector", "leases", "relay", "trial", "lobby"},
    3: {"service", "startup"},
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}

DESCRIPTORS = {"socket", "socketserver", "ssl", "select", "selectors", "asyncio", "mmap", "fcntl"}
OUTSIDE = {"os", "io", "pathlib", "shutil", "tempfile", "sqlite3", "subprocess", "signal", "threading"}
CLOCKS = {"time", "sched"}
MAY_IMPORT_OF_OUTSIDE = {"config": {"pathlib"}}

MODULES = sorted(path.stem for path in TAASLIB.glob("*.py") if path.stem != "__init__")
SOURCES = [*(TAASLIB / f"{name}.py" for name in MODULES), *(TOP / f"{name}.py" for name in COMMANDS)]
SOURCES = [*(path for path in SOURCES if path.exists()), *TAASADMIN.glob("*.py")]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path: Path) -> Iterator[str]:
    """The dotted name of each module that PATH imports anywhere, even for types or inside a function."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import; write taaslib.NAME"
            assert node.module
            if node.module == "taaslib":  # from taaslib import sockets
                yield from (f"taaslib.{alias.name}" for alias in node.names)
            else:
                yield node.module


def outer(path: Path) -> set[str]:
    """The first part of the name of each module that PATH imports and that is not ours."""
    return {name.partition(".")[0] for name in imports_of(path)} - {"taaslib", "taasadmin"}


def ours(path: Path) -> set[str]:
    """The names of the modules of taaslib that PATH imports."""
    within = {name.split(".")[1] for name in imports_of(path) if name.startswith("taaslib.")}
    return within - {"__version__"}


def path_of(name: str) -> Path:
    return TAASLIB / f"{name}.py"


def present(*names: str) -> list[str]:
    return [name for name in names if name in MODULES]


def test_the_library_is_there() -> None:
    assert MODULES


@pytest.mark.parametrize("name", MODULES)
def test_every_file_stands_on_a_floor(name: str) -> None:
    assert name in FLOOR_OF, f"taaslib/{name}.py has no place: give it one in FLOORS and in DESIGN.md"


def test_no_file_stands_on_two_floors() -> None:
    assert sum(map(len, FLOORS.values())) == len(FLOOR_OF)


def test_there_are_no_folders_inside_the_library() -> None:
    assert not [path.name for path in TAASLIB.rglob("*.py") if path.parent != TAASLIB]


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_or_sideways_never_up(name: str) -> None:
    too_high = {other for other in ours(path_of(name)) if FLOOR_OF.get(other, 99) > FLOOR_OF.get(name, -1)}
    assert not too_high, f"taaslib/{name}.py (floor {FLOOR_OF.get(name)}) imports {too_high} from above"


def test_the_map_names_every_file() -> None:
    text = (TAASLIB / "__init__.py").read_text(encoding="utf-8")
    assert sorted(re.findall(r"(?m)^      (\w+)  ", text)) == MODULES


def test_the_map_imports_nothing() -> None:
    path = TAASLIB / "__init__.py"
    assert not path.exists() or not list(imports_of(path))


@pytest.mark.parametrize("name", present(*sorted(FLOORS[0])))
def test_floor_0_is_paper(name: str) -> None:
    forbidden = (DESCRIPTORS | OUTSIDE | CLOCKS) - MAY_IMPORT_OF_OUTSIDE.get(name, set())
    assert not outer(path_of(name)) & forbidden
    for node in ast.walk(tree_of(path_of(name))):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("splice", "now", "utcnow", "today"), f"{name}.py:{node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "open", f"{name}.py:{node.lineno} opens a file"


@pytest.mark.parametrize("name", present("http1", "rendezvous"))
def test_the_two_cores_import_nothing_of_ours(name: str) -> None:
    assert not ours(path_of(name))


@pytest.mark.parametrize("name", present("config"))
def test_config_knows_names_and_limits_only(name: str) -> None:
    assert ours(path_of(name)) <= {"names", "limits"}


@pytest.mark.parametrize("name", present("registrar", "redirector"))
def test_registrar_and_redirector_know_neither_sockets_nor_each_other(name: str) -> None:
    assert not outer(path_of(name)) & DESCRIPTORS
    assert not ours(path_of(name)) & {"registrar", "redirector", "frontdoor", "sockets", "stream", "listener"}


@pytest.mark.parametrize("name", MODULES)
def test_only_the_composition_and_the_commands_import_config(name: str) -> None:
    assert FLOOR_OF[name] == 3 or "config" not in ours(path_of(name))


@pytest.mark.parametrize("name", present("relay", "pump", "stream", "loop", "listener", "sockets"))
def test_the_relay_and_its_plumbing_know_no_http(name: str) -> None:
    assert not ours(path_of(name)) & {"http1", "authorization", "store"}


@pytest.mark.parametrize("path", [*TAASLIB.glob("*.py")], ids=lambda path: path.name)
def test_the_library_knows_nothing_of_what_is_the_operator_s(path: Path) -> None:
    assert not {name.partition(".")[0] for name in imports_of(path)} & {"taasadmin", "taas_admin"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_what_runs_needs_only_the_standard_library_and_pyotp(path: Path) -> None:
    others = {name for name in COMMANDS if name != path.stem} if path.parent == TOP else set()
    assert outer(path) <= sys.stdlib_module_names | {"pyotp"} | others


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_source_parses_on_the_oldest_python_it_is_for(path: Path) -> None:
    oldest = (3, 8) if path.name == "taas_agent.py" else (3, 10)
    ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=oldest)


def test_the_agent_stands_alone() -> None:
    agent = TOP / "taas_agent.py"
    if agent.exists():
        assert {name.partition(".")[0] for name in imports_of(agent)} <= sys.stdlib_module_names


def test_the_agent_imports_nothing_newer_than_python_3_8() -> None:
    agent = TOP / "taas_agent.py"
    if agent.exists():
        assert not outer(agent) & {"graphlib", "zoneinfo", "tomllib"}


def test_the_bench_imports_nothing_that_it_measures() -> None:
    for path in (TOP / "bench").glob("*.py"):
        assert not {name.partition(".")[0] for name in imports_of(path)} & {"taaslib", *COMMANDS}


def test_the_service_stays_a_couple_of_scripts() -> None:
    def lines(path: Path) -> int:
        return len(path.read_text(encoding="utf-8").splitlines())

    assert sum(map(lines, TAASLIB.glob("*.py"))) < 5000
    agent = TOP / "taas_agent.py"
    assert not agent.exists() or lines(agent) < 1000


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_file_opens_with_what_it_does(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))
