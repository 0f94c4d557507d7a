"""Extension of the API reference (mkdocs.yml): comments of fields become descriptions, examples become code blocks."""

import ast
import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .+(?:\n.+)*", re.MULTILINE)


class ApiReference(griffe.Extension):
    """Changes docstrings before the pages are made."""

    def on_attribute_instance(
        self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **kwargs: Any
    ) -> None:
        """Give a field without a docstring the comment that ends its last line."""
        if attr.docstring is None and attr.parent and attr.parent.is_class and attr.endlineno:
            line = attr.lines_collection[attr.filepath][attr.endlineno - 1]
            if "  # " in line and (text := line.split("  # ")[-1]) and not text.startswith("type:"):
                attr.docstring = griffe.Docstring(text[0].upper() + text[1:], parent=attr)

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Put the examples of a docstring in code blocks."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
