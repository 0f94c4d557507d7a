"""For the API reference: the comment behind a field is its description. mkdocs.yml names this file."""

import ast
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Gives a field without a docstring the comment that ends its last line."""

    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Read the comment off the source."""
        if attr.docstring is None and attr.parent and attr.parent.is_class and attr.endlineno:
            line = attr.lines_collection[attr.filepath][attr.endlineno - 1]
            if "  # " in line and (text := line.split("  # ")[-1]) and not text.startswith("type:"):
                attr.docstring = griffe.Docstring(text[0].upper() + text[1:], parent=attr)
