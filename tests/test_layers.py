"""Who may import what, and who may write files: read from the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxprune

ROOT = Path(onnxprune.__file__).parent
PROJECT = Path(__file__).parents[1] / "pyproject.toml"
# From the bottom up; a module imports from its own layer or from those below it. A package stands for all its modules.
LAYERS = (
    ("clock", "drawing", "errors", "factors", "plots", "points", "signature", "stored"),
    ("external", "header", "terminal"),
    ("graph",),
    ("analysis", "check"),
    ("files",),
    ("quantize", "runtime"),
    ("data", "parallel", "shapes", "workers"),
    ("normalize",),
    ("trace",),
    ("rules",),
    ("ops", "reasons"),
    ("couple",),
    ("cost", "criteria", "masking"),
    ("allocate", "cut", "origin", "plan", "target"),
    ("difference", "explanation", "recover", "resemblance", "synthesize", "verify"),
    ("calibration",),
    ("recovery",),
    ("searching", "validation"),
    ("sparse",),
    ("provenance", "report", "settings"),
    ("budget", "outcome", "reach"),
    ("choose",),
    ("options", "pipeline"),
    ("api",),
    ("finetuning", "frontier", "student", "within"),  # student: what fine-tuning makes of torch
    ("commands",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
POSIX = {"crypt", "fcntl", "grp", "posix", "pty", "pwd", "resource", "spwd", "syslog", "termios", "tty"}
SLOW = (
    "onnxruntime",
    "scipy.cluster",
    "sklearn",
    "torch",
    "PIL",
    "jinja2",
    "matplotlib",
)  # seconds to import, or not there at all
HEAVY = {"jinja2", "numpy", "onnx", "onnx_graphsurgeon", "onnxruntime", "scipy", "sklearn"}
MODULE_OF = {"onnx-graphsurgeon": "onnx_graphsurgeon", "scikit-learn": "sklearn", "pillow": "PIL"}
THROUGH_OTHERS = {"google": "onnx"}  # protobuf comes with onnx, which is made of it
WRITERS = {"dump", "save", "save_model", "savez", "savez_compressed", "symlink_to", "hardlink_to", "tofile", "touch"}
WRITERS |= {"mkdtemp", "mkstemp", "NamedTemporaryFile", "TemporaryFile", "write_bytes", "write_text"}
STUDENT = ROOT / "student"  # the package that needs torch; it is imported inside functions
WITH_TORCH = [ROOT / "finetuning" / name for name in ("script.py", "tune.py")]  # in functions
MODULES = sorted(ROOT.rglob("*.py"))

each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())


def parsed(path):
    """The module as a tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree) -> Iterator[str]:
    """Full names of what is imported anywhere in a tree, functions included: `a.b` for `from a import b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import(tree) -> ast.Module:
    """The statements that run when the module is imported; the bodies of functions are left out."""

    class Outside(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return ast.Pass()

        visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

        def visit_If(self, node):
            typing_only = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return ast.Pass() if typing_only else self.generic_visit(node)

    return Outside().visit(tree)


def own(name):
    """Layer name of an imported module of the package; None for what is not one."""
    parts = name.split(".")
    inside = parts[0] == "onnxprune" and len(parts) > 1
    return parts[1] if inside and ((ROOT / parts[1]).is_dir() or (ROOT / f"{parts[1]}.py").exists()) else None


def is_of(name, package):
    """Whether an imported name is the package or lies in it."""
    return name == package or name.startswith(f"{package}.")


def writes(tree) -> Iterator[int]:
    """Lines that open a file for writing."""
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        function = call.func
        name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
        given = call.args[1:] if isinstance(function, ast.Name) else call.args  # open(path, mode), path.open(mode)
        arguments = [ast.unparse(a) for a in (*given, *(k.value for k in call.keywords))]
        if name == "open":
            flags = any(re.search("O_(WRONLY|RDWR|CREAT|APPEND|TRUNC)", a) for a in arguments)
            mode = any(re.fullmatch("'[rwaxbt+U]*[wax+][rwaxbt+U]*'", a) for a in arguments)
            if (flags or mode) and "os.devnull" not in arguments:
                yield call.lineno
        elif name in WRITERS and owner != "files":
            yield call.lineno


# ---- the layers ---------------------------------------------------------------------------------------------------


def test_every_module_has_a_layer():
    """The table names exactly the modules that there are, each once."""
    present = {p.stem for p in ROOT.glob("*.py")} | {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert present - {"__init__"} == set(HEIGHT)
    assert len(HEIGHT) == sum(map(len, LAYERS))


@each_module
def test_imports_go_down(path):
    """No module imports one of a higher layer, not even inside a function or for its types."""
    me = path.relative_to(ROOT).parts[0].removesuffix(".py")
    found = {name for name in map(own, imports(parsed(path))) if name}
    upwards = {name for name in found if me != "__init__" and HEIGHT[name] > HEIGHT[me]}
    assert not upwards


def test_no_cycles():
    """Within a layer, too, modules import each other in one direction only."""
    files = {p.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__"): p for p in MODULES}
    files.pop("__init__")  # it names the public functions for type checkers, and loads them on first use
    uses = {}
    for name, path in files.items():
        found = {i.removeprefix("onnxprune.").replace(".", "/") for i in imports(parsed(path))}
        uses[name] = ({f for i in found for f in (i, i.rpartition("/")[0])} & set(files)) - {name}
    for name in [n for n in files if (ROOT / n).is_dir()]:
        for inner in (n for n in files if n.startswith(f"{name}/")):
            uses[inner].discard(name)  # a package is loaded before its parts whatever they import
    while free := [n for n, used in uses.items() if not used]:
        uses = {n: used - set(free) for n, used in uses.items() if n not in free}
    assert not uses


@pytest.mark.parametrize(
    ("package", "home"),
    [("onnx_graphsurgeon", {"graph.py"}), ("onnxruntime", {"runtime.py", "quantize.py"})],  # quantize: its tools
)
def test_one_module_knows_the_library(package, home):
    """Only one module imports the library, functions included; its quantization tools have another."""
    users = {p.relative_to(ROOT).as_posix() for p in MODULES if any(is_of(i, package) for i in imports(parsed(p)))}
    assert users == home


# ---- other libraries ----------------------------------------------------------------------------------------------


@each_module
def test_only_dependencies_are_imported(path):
    """Everything imported is the standard library's or a declared dependency; torch, of an extra, in one package."""
    torch = {"torch"} if path.is_relative_to(STUDENT) or path in WITH_TORCH else set()
    declared = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    declared = declared["dependencies"] + [
        d for extra in ("images", "dask", "ray", "plot") for d in declared["optional-dependencies"][extra]
    ]
    names = {re.split(r"[\[<>=~! ;]", d)[0] for d in declared}
    known = {MODULE_OF.get(n, n) for n in names} | {m for m, through in THROUGH_OTHERS.items() if through in names}
    found = {name.partition(".")[0] for name in imports(parsed(path))}
    assert found <= known | sys.stdlib_module_names | {"onnxprune"} | torch


@each_module
def test_slow_and_posix_only_modules_are_not_loaded_at_import(path):
    """Slow libraries are imported inside functions, and nothing that Windows lacks is imported at all."""
    first = list(imports(at_import(parsed(path))))
    slow = SLOW if not path.is_relative_to(STUDENT) else [s for s in SLOW if s != "torch"]
    assert not [name for name in first if any(is_of(name, s) for s in slow)]
    assert path.is_relative_to(STUDENT) or not [name for name in first if is_of(name, "onnxprune.student")]
    assert not POSIX.intersection(name.partition(".")[0] for name in first)


@pytest.mark.parametrize("args", [("-m", "onnxprune", "--help"), ("-c", "import onnxprune")], ids=["help", "import"])
def test_help_and_import_are_light(args):
    """Asking for help, and importing the package, load none of the heavy libraries."""
    done = subprocess.run([sys.executable, "-X", "importtime", *args], capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "onnxprune" in loaded
    assert not loaded & HEAVY


# ---- files --------------------------------------------------------------------------------------------------------


def test_one_module_writes_files():
    """Only files.py opens files for writing."""
    found = {p.relative_to(ROOT).as_posix() for p in MODULES if list(writes(parsed(p)))}
    assert found == {"files.py"}


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("open('a', 'wb')", 1),
        ("open('a', mode='a')", 1),
        ("path.open('x')", 1),
        ("os.open(path, os.O_CREAT | os.O_WRONLY)", 1),
        ("path.write_text('a')", 1),
        ("onnx.save(model, 'a')", 1),
        ("np.savez('a', b)", 1),
        ("open('a'); path.open('rb'); path.read_text()", 0),
        ("files.write_text(path, text)", 0),
        ("os.open(os.devnull, os.O_WRONLY)", 0),
    ],
)
def test_the_search_for_writers_works(code, count):
    """Every way of opening a file for writing is seen, and reading is not taken for it."""
    assert len(list(writes(ast.parse(code)))) == count


def test_the_search_for_imports_works():
    """Imports in functions count for who may import what, but not for what is loaded at import."""
    tree = ast.parse("import os.path\nif TYPE_CHECKING:\n    import a\ndef f():\n    from torch import nn\n")
    assert set(imports(tree)) == {"os.path", "a", "torch.nn"}
    assert set(imports(at_import(tree))) == {"os.path"}
