"""Print every message that a user can see, in a row, so that they can be read as a user reads them.

    python scripts/messages.py            # all of them, by file
    python scripts/messages.py training   # those of one room

Messages are the sentences in errors, in `tell(…)` and `warn(…)`, in findings, and the help of options.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src/andon"
SPEAKERS = ("Error", "Finding", "NotFound", "tell", "warn", "Option", "Argument")


def messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, message) of each call that speaks to a user."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(SPEAKERS):
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            for text in filter(None, map(sentence, given)):
                if " " in text:
                    yield node.lineno, text


def sentence(node: ast.expr) -> str:
    """Return a string as it reads, with {…} for what is filled in; empty where it is no string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else f"{{{filled(part)}}}"
            for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return sentence(node.left) + sentence(node.right)
    return ""


def filled(node: ast.expr) -> str:
    """Name what is filled into a message."""
    return ast.unparse(node.value) if isinstance(node, ast.FormattedValue) else ast.unparse(node)


def main() -> None:
    """Print the messages of all rooms, or of those named."""
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if sys.argv[1:] and not name.startswith(tuple(sys.argv[1:])):
            continue
        found = sorted(set(messages(ast.parse(path.read_text()))))
        if found:
            print(f"\n{name}")
        for line, text in found:
            print(f"  {line:4} {text}")


if __name__ == "__main__":
    main()
