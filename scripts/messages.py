"""Print every text of the library that a user can see, in the order of the files, to review them in one reading.

    python scripts/messages.py              # all
    python scripts/messages.py cli proof    # those of some folders or modules

Texts are all strings with a space (errors, findings, printed lines, help of options, reports), docstrings of fields,
which describe settings, and docstrings of public functions in cli, which are --help. Other docstrings are left out.
{…} stands for a value.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src/andon"
WORDS = re.compile(r"[a-z]{2}.* [a-zA-Z]", re.DOTALL)
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef


def texts(node: ast.AST, commands: bool) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the strings below a node; `commands`: public functions are commands."""
    command = commands and isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    hidden = node.body[0] if isinstance(node, DOCUMENTED) and ast.get_docstring(node) and not command else None
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr) and (text := sentence(child)):
            yield child.lineno, " ".join(text.split())
        elif child is not hidden:
            yield from texts(child, commands)


def sentence(node: ast.expr) -> str:
    """Return a string expression as text, with {…} for values; empty for any other expression."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(part, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and (sentence(node.left) or sentence(node.right)):
        return part(node.left) + part(node.right)
    return ""


def part(node: ast.expr) -> str:
    """Return the text of a part of a string, or the source of its value in braces."""
    return sentence(node) or f"{{{ast.unparse(node.value if isinstance(node, ast.FormattedValue) else node)}}}"


def main() -> None:
    """Print the texts of all files, or of those whose path begins with an argument."""
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith(tuple(sys.argv[1:]) or ""):
            continue
        lines = sorted(set(texts(ast.parse(path.read_text()), name.startswith("cli/"))))
        if shown := [f"  {line:4} {text}" for line, text in lines if WORDS.search(text)]:
            print("", name, *shown, sep="\n")


if __name__ == "__main__":
    main()
