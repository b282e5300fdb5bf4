"""How large the house is: `python -m tests.benchmarks.house` prints its lines by room.

A line of code is neither blank nor a comment nor part of a docstring.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "codit"
# What a reader of the paper opens.
READING_PATH = "contrast pair decode chat_vector engine/models engine/sampling"
LONGEST = 10  # modules listed


def lines(source: str) -> Counter[str]:
    """Return the lines of a source: of code, of docstrings, and others."""
    told: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            told |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    count = Counter({"doc": len(told)})
    for number, line in enumerate(source.splitlines(), 1):
        if number not in told:
            count["code" if line.strip()[:1] not in ("", "#") else "other"] += 1
    return count


def rooms() -> dict[str, dict[Path, Counter[str]]]:
    """Return the lines of every module by the folder it lies in."""
    found: dict[str, dict[Path, Counter[str]]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        room = name.parts[0] if len(name.parts) > 1 else "."
        found.setdefault(room, {})[name] = lines(path.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Print modules, lines of code and of docstrings by room, the reading path, the longest."""
    house = rooms()
    every = {name: count for room in house.values() for name, count in room.items()}
    print(f"{'room':<12} {'modules':>7} {'code':>6} {'doc':>6}")
    for room, modules in {**house, "all": every}.items():
        named = [name for name in modules if name.name != "__init__.py"]
        total = sum(modules.values(), Counter())
        print(f"{room:<12} {len(named):>7} {total['code']:>6} {total['doc']:>6}")
    path = {name: every.get(Path(f"{name}.py"), Counter())["code"] for name in READING_PATH.split()}
    print(f"\nreading path {sum(path.values())}:", ", ".join(f"{n} {k}" for n, k in path.items()))
    longest = sorted(every, key=lambda name: -every[name]["code"])[:LONGEST]
    print("longest:", ", ".join(f"{name} {every[name]['code']}" for name in longest))
    tests = (lines(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("*.py"))
    print("tests:", sum((count["code"] for count in tests), 0), "lines of code")


if __name__ == "__main__":
    main()
