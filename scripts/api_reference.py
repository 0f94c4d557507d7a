"""For the API reference, named in mkdocs.yml: comments of fields are descriptions, examples in docstrings are code."""

import ast
import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .+(?:\n.+)*", re.MULTILINE)


class ApiReference(griffe.Extension):
    """Changes docstrings before they become pages."""

    def on_attribute_instance(
        self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **kwargs: Any
    ) -> None:
        """Give a field without a docstring the comment that ends its last line."""
        if attr.docstring is None and attr.parent and attr.parent.is_class and attr.endlineno:
            line = attr.lines_collection[attr.filepath][attr.endlineno - 1]
            if "  # " in line and (text := line.split("  # ")[-1]) and not text.startswith("type:"):
                attr.docstring = griffe.Docstring(text[0].upper() + text[1:], parent=attr)

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Fence the examples of a docstring."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
