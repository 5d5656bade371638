"""`python tests/mutate.py [--part P]`: small mistakes put into store/, run/state.py and run/signals.py, one at a time, to see which of
them no test notices.

Tests are collected once; each mutant is a fork of that process in which one function's code is another, and runs the tests that call this
function, the quickest first, until one fails. Mutants: operators and comparisons swapped, constants changed, conditions negated, statements
left out, returned values None. Texts of messages are left alone.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import os
import random
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

MODULES = [f"store.{name}" for name in ("checkpoint", "files", "folder", "lock", "migrate", "stream")] + ["run.state", "run.signals"]
TESTS = [
    "store/test_checkpoint.py",
    "store/test_files.py",
    "store/test_folder.py",
    "store/test_lock.py",
    "store/test_migrate.py",
    "run/test_state.py",
]
SECONDS = 60
REFUSALS = ("FourdfyError", "NewerFormat", "_refused", "refused")
SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
    ast.Pow: ast.Mult, ast.And: ast.Or, ast.Or: ast.And, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


def changes(function: ast.FunctionDef) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every mutant of a function: what was changed where, and the function."""
    spoken = {id(part) for node in ast.walk(function) for part in ast.walk(node) if _told(node)}
    spoken |= {id(part) for part in ast.walk(function.returns or ast.Pass())}
    nodes = [node for node in ast.walk(function) if id(node) not in spoken]
    for number, node in enumerate(nodes):
        for name, change in _of(node):
            mutant = copy.deepcopy(function)
            twin = [n for n, old in zip(ast.walk(mutant), ast.walk(function), strict=True) if old is node][0]
            change(twin)
            yield f"line {getattr(node, 'lineno', function.lineno)}: {name} ({number})", ast.fix_missing_locations(mutant)


def _told(node: ast.AST) -> bool:
    """Docstrings, annotations, f-strings and what a FourdfyError says."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    return isinstance(node, (ast.JoinedStr, ast.arguments)) or (isinstance(node, ast.Call) and ast.unparse(node.func) in REFUSALS)


def _of(node: ast.AST) -> Iterator[tuple[str, Any]]:
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
        yield "operator", lambda n: setattr(n, "op", SWAPS[type(n.op)]())
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield "comparison", lambda n: n.ops.__setitem__(0, SWAPS[type(n.ops[0])]())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not left out", lambda n: setattr(n, "operand", ast.UnaryOp(ast.Not(), n.operand))
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        yield "constant", lambda n: setattr(n, "value", not n.value if type(n.value) is bool else n.value + 1)
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield "condition negated", lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))
    if isinstance(node, ast.Return) and not isinstance(node.value, (ast.Constant, type(None))):
        yield "None returned", lambda n: setattr(n, "value", ast.Constant(None))
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "statement left out", lambda n: setattr(n, "value", ast.Constant(None))
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    if isinstance(node, (ast.Assign, ast.AugAssign)) and isinstance(target, ast.Attribute):
        yield "assignment left out", lambda n: setattr(n, "value", ast.Constant(None))


def functions(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield f"{owner}{node.name}", node
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{owner}{node.name}.")


def live(module: Any, name: str) -> FunctionType:
    """The function of that name under its decorators."""
    found: Any = module
    for part in name.split("."):
        found = found.__dict__[part] if isinstance(found, type) else getattr(found, part)
    found = found.fget if isinstance(found, property) else found
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    return found


def compiled(mutant: ast.FunctionDef, like: FunctionType) -> CodeType:
    bare = copy.deepcopy(mutant)
    bare.decorator_list = []
    imports = ast.parse("from __future__ import annotations").body
    code = compile(ast.fix_missing_locations(ast.Module([*imports, bare], [])), like.__code__.co_filename, "exec")
    return next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == mutant.name)


class Mutate:
    """A pytest plugin in place of the loop over tests."""

    def __init__(self, part: float, seed: int):
        self.part, self.rng, self.failed = part, random.Random(seed), False

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed |= report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        sources = {name: importlib.import_module(f"fourdfy_cli.{name}") for name in MODULES}
        self.called = self.profile(session.items)
        alive, total, untested = [], 0, 0
        for name, module in sources.items():
            here = [0, 0]
            for owner, function in functions(ast.parse(Path(module.__file__).read_text())):
                target = live(module, owner)
                items = self.called.get(f"{module.__file__}:{target.__code__.co_firstlineno}", [])
                for what, mutant in changes(function):
                    if self.rng.random() >= self.part:
                        continue
                    total, here[1] = total + 1, here[1] + 1
                    untested += not items
                    if not items or not self.killed(session, items, target, compiled(mutant, target)):
                        alive.append(f"{name} {owner} {what}")
                        print(alive[-1], flush=True)
                        here[0] += 1
            print(f"{name}: {here[0]} of {here[1]} alive", flush=True)
        share = 100 * len(alive) / max(total, 1)
        print(
            "\n".join(alive),
            f"\n{len(alive)} of {total} mutants alive ({share:.1f} %), {untested} of them in functions no test calls",
            flush=True,
        )
        return True

    def profile(self, items: list[pytest.Item]) -> dict[str, list[pytest.Item]]:
        """Tests by the functions that they call, the quickest first."""
        seconds, called = {}, {}
        for number, item in enumerate(items):
            seen: set[str] = set()

            def watch(frame: Any, event: str, _: Any, seen: set[str] = seen) -> None:
                if event == "call" and "fourdfy_cli" in frame.f_code.co_filename:
                    seen.add(f"{frame.f_code.co_filename}:{frame.f_code.co_firstlineno}")

            began = time.monotonic()
            sys.setprofile(watch)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=items[number + 1] if number + 1 < len(items) else None)
            sys.setprofile(None)
            seconds[item] = time.monotonic() - began
            for function in seen:
                called.setdefault(function, []).append(item)
        assert not self.failed, "the tests fail without any mutant"
        print(f"{len(items)} tests, {sum(seconds.values()):.0f} s", flush=True)
        return {function: sorted(some, key=seconds.__getitem__) for function, some in called.items()}

    def killed(self, session: pytest.Session, items: list[pytest.Item], target: FunctionType, code: CodeType) -> bool:
        """Whether a test fails, or does not end."""
        reading, writing = os.pipe()
        if not (child := os.fork()):
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            target.__code__ = code
            for number, item in enumerate(items):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=items[number + 1] if number + 1 < len(items) else None)
                if self.failed:
                    break
            os.write(writing, b"1" if self.failed else b"0")
            os._exit(0)
        os.close(writing)
        ready = select.select([reading], [], [], SECONDS)[0]
        answer = os.read(reading, 1) if ready else b""
        os.close(reading)
        os.killpg(child, signal.SIGKILL) if not ready else None
        os.waitpid(child, 0)
        return answer != b"0"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    here = Path(__file__).parent
    wanted = [str(here / name) for name in TESTS]
    sys.exit(pytest.main(["-q", "-s", "-p", "no:cacheprovider", "-k", "not run_of", *wanted], plugins=[Mutate(given.part, given.seed)]))
