"""The house rules that a machine can check (DESIGN sections 4 and 7)."""

from __future__ import annotations

import ast
import graphlib
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import fourdfy_cli

ROOT = Path(fourdfy_cli.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
FLOORS = (
    ("errors", "schedule"),
    ("config",),
    ("presets", "store"),
    ("console",),
    ("scene", "diffusion"),
    ("kernels", "guidance", "losses", "memory"),
    ("hybrid", "output"),
    ("nano", "study"),
    ("run",),
    ("evaluate", "bench", "doctor"),
    ("cli",),
    ("__init__", "__main__"),  # the two doors: for Python, where names come when they are asked for, and for the command line
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
LOOSE = {"config", "schedule", "presets", "hybrid", "losses", "memory", "console", "errors", "doctor", "__init__", "__main__"}
HEAVY = {"torch", "numpy", "numba", "diffusers", "transformers", "peft", "PIL", "open_clip", "jaxtyping", "safetensors"}
DRAWS = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "multinomial", "normal", "bernoulli", "poisson"}


def part(name: str) -> str:
    """The part of the package a file or a dotted module belongs to."""
    return re.split(r"[./]", name.removesuffix(".py"))[0]


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of everything imported anywhere in a tree; `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(tree: ast.AST) -> set[str]:
    return {name.removeprefix("fourdfy_cli.") for name in imports(tree) if name.startswith("fourdfy_cli.")}


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def lines(node: ast.FunctionDef) -> int:
    return node.end_lineno - node.lineno + 1


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def module_level(tree: ast.Module) -> set[str]:
    """Top-level packages imported when a module is."""
    body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))]
    found = set()
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {name.split(".")[0] for name in imports(node)}
    return found


@pytest.mark.parametrize("name", TREES)
def test_imports_point_down(name: str):
    """To a room on a lower floor, or within the room; imports inside functions included. `__version__` is the package's own."""
    for module in ours(TREES[name]) - {"__version__"}:
        assert part(module) == part(name) or FLOOR[part(module)] < FLOOR[part(name)], f"{name} imports {module}"
        assert part(module) != "console" or part(name) == "cli", f"{name} imports {module}"


def test_the_top_floor_holds_what_it_should():
    assert {part(name) for name in TREES if "/" not in name} == LOOSE


def test_imports_have_no_cycles():
    """File by file, imports inside functions included."""
    files = {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in TREES}

    def needed(name: str) -> set[str]:
        found = {module if module in files else module.rpartition(".")[0] for module in ours(TREES[name])}
        return {files[module] for module in found if module in files} - {name}

    graph = {name: needed(name) for name in TREES}
    assert graph["cli/main.py"] >= {"cli/generate.py", "console.py", "errors.py"}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_every_room_has_a_floor():
    assert {part(name) for name in TREES} == set(FLOOR)


def test_tests_stand_in_the_same_rooms():
    rooms = {part(name) for name in TREES if "/" in name}
    assert rooms <= {path.parent.name for path in Path(__file__).parent.glob("*/test_*.py")}


def test_scene_and_diffusion_do_not_know_each_other():
    for name, tree in TREES.items():
        if part(name) == "scene":
            assert {part(m) for m in ours(tree)} <= {"scene", "config", "errors"}, name
        if part(name) == "guidance":
            assert all(m.startswith("scene.cameras") for m in ours(tree) if part(m) == "scene"), name
        if part(name) == "output":
            assert not {"diffusion", "guidance", "nano"} & {part(m) for m in ours(tree)}


@pytest.mark.parametrize("name", [n for n in TREES if part(n) in ("cli", "console", "config", "presets", "errors", "__main__", "__init__")])
def test_command_line_starts_light(name: str):
    """Nothing heavy at module level, directly or through a module of ours."""
    assert not module_level(TREES[name]) & HEAVY
    light = {"cli", "console", "config", "schedule", "presets", "errors", "__version__"}
    light |= {"store.folder", "output.textfile", "run.choice", "run.launch", "run.processors", "store.stream"}
    top = ast.Module([node for node in TREES[name].body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
    assert all(m.startswith(tuple(light)) for m in ours(top))


@pytest.mark.parametrize("name", TREES)
def test_no_broad_except_no_loose_loading(name: str):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ExceptHandler):
            caught = {ast.unparse(n) for n in ast.walk(node.type)} if node.type else {"everything"}
            ends_in_raise = bool(node.body) and isinstance(node.body[-1], ast.Raise)
            assert not caught & {"Exception", "everything"}, f"{name}:{node.lineno}"
            assert "BaseException" not in caught or ends_in_raise, f"{name}:{node.lineno}"
        if isinstance(node, ast.keyword):
            value = ast.unparse(node.value)
            assert (node.arg, value) not in {
                ("strict", "False"),
                ("weights_only", "False"),
                ("trust_remote_code", "True"),
                ("shell", "True"),
            } or (node.arg == "strict" and "zip" in ast.unparse(node)), f"{name}: {node.arg}={value}"


@pytest.mark.parametrize("name", TREES)
def test_files_are_read_safely(name: str):
    for call in calls(TREES[name]):
        function = ast.unparse(call.func)
        assert function not in {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load"}
        if function == "torch.load":
            assert name in ("store/checkpoint.py", "nano/fit.py", "diffusion/convert.py") and any(
                k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords
            )


@pytest.mark.parametrize("name", [n for n in TREES if part(n) != "nano"])
def test_every_draw_names_its_generator(name: str):
    """No global random state: torch draws take generator=, NumPy draws come from a seeded default_rng, a Sobol engine is told its seed."""
    assert "random" not in module_level(TREES[name])
    for call in calls(TREES[name]):
        function = ast.unparse(call.func)
        owner, _, method = function.rpartition(".")
        if owner == "torch" and method in DRAWS:
            assert any(k.arg == "generator" for k in call.keywords), f"{name}:{call.lineno} {function}"
        if method in {"uniform_", "normal_", "bernoulli_", "random_", "exponential_"}:
            assert any(k.arg == "generator" for k in call.keywords), f"{name}:{call.lineno} {function}"
        seeded = (method == "default_rng" and call.args) or (method == "SobolEngine" and any(k.arg == "seed" for k in call.keywords))
        assert not owner.endswith("random") or seeded, f"{name}:{call.lineno} {function}"


@pytest.mark.parametrize("name", TREES)
def test_no_work_at_import(name: str):
    """At module level: definitions, imports, constants, registering commands; no loops, prints, files or networks."""
    for node in TREES[name].body:
        assert not isinstance(node, (ast.For, ast.While, ast.With)), f"{name}:{node.lineno}"
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            assert part(name) == "cli", f"{name}:{node.lineno}"


@pytest.mark.parametrize("name", TREES)
def test_files_and_functions_are_short(name: str):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300 and not name.endswith("utils.py")
    for function in functions(TREES[name]):
        a = function.args
        count = len(a.posonlyargs + a.args + a.kwonlyargs) - (bool(a.args) and a.args[0].arg in ("self", "cls"))
        if not any("jit" in ast.unparse(d) for d in function.decorator_list):  # compiled kernels take arrays, not objects
            assert lines(function) <= 60, f"{name}: {function.name} has {lines(function)} lines"
            assert count <= (8 if (name, function.name) == ("run/train.py", "run") else 7), (
                f"{name}: {function.name} takes {count} arguments"
            )


def test_functions_are_short_in_the_middle():
    found = [lines(f) for tree in TREES.values() for f in functions(tree)]
    assert statistics.median(found) <= 8 and statistics.quantiles(found, n=10)[-1] <= 20


@pytest.mark.parametrize("name", [n for n in TREES if not n.endswith("__main__.py")])
def test_modules_say_what_they_are(name: str):
    assert ast.get_docstring(TREES[name])


@pytest.mark.parametrize("name", TREES)
def test_no_commented_out_code(name: str):
    for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
        found = re.fullmatch(r"\s*#\s*((?:import|from|def|class|return|for|if|print)\b.*|[\w.]+\(.*\)|\w+ = .*)", line)
        if found:
            with pytest.raises(SyntaxError):
                ast.parse(found.group(1))
                pytest.fail(f"{name}:{number} looks like code: {line.strip()}")


def test_no_module_wants_what_only_posix_has():
    """Every module is imported as on Windows, where resource, fcntl, pwd, grp and termios are not."""
    names = [f"fourdfy_cli.{n[:-3].replace('/', '.').removesuffix('.__init__')}" for n in TREES if n != "kernels/triton_hashgrid.py"]
    code = (
        "import importlib, sys\n"
        "import torch, diffusers, transformers, numba, peft, open_clip, huggingface_hub, typer, rich\n"  # how they do it is their affair
        "sys.modules |= dict.fromkeys(('resource', 'fcntl', 'pwd', 'grp', 'termios'))\n"
        "[importlib.import_module(name) for name in sys.argv[1:]]\n"
        "from fourdfy_cli.run.progress import peak_memory; assert peak_memory() == 0\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.mark.parametrize("name", TREES)
def test_hints_can_be_pasted(name: str):
    """Paths and prompts in a hint go through `typed`; remarks stand before the command."""
    for call in calls(TREES[name]):
        if ast.unparse(call.func) != "FourdfyError" or len(call.args) < 2:
            continue
        hint = call.args[1]
        words = "".join(str(piece.value) for piece in ast.walk(hint) if isinstance(piece, ast.Constant))
        assert "   (" not in words and not words.rstrip().endswith(")"), f"{name}:{call.lineno}: a remark behind a command"
        if isinstance(hint, ast.JoinedStr):
            filled = [ast.unparse(piece.value) for piece in hint.values if isinstance(piece, ast.FormattedValue)]
            names = r"\b(path|folder|out|source|file|prompt|text|resume)\b"
            assert not [value for value in filled if re.search(names, value) and "typed(" not in value], f"{name}:{call.lineno}"
