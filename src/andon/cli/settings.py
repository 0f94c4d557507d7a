"""The settings of a detector as text: default, allowed values, meaning."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from andon import files


def describe(config: type[BaseModel]) -> Iterator[str]:
    """Yield two lines for each setting: name, default and allowed values; then the meaning and the unit."""
    for name, schema in config.model_json_schema()["properties"].items():
        yield f"  {name} = {value(schema['default'])}  ({allowed(name, schema)})"
        yield f"      {' '.join(schema.get('description', '').split())}"


def value(default: object) -> str:
    """Write a value as in a recipe (TOML)."""
    return "not set" if default is None else files.strict_json(default, ascii_only=False)


def allowed(name: str, schema: dict[str, Any]) -> str:
    """Say in words which values a JSON schema allows, such as `integer, 1 ≤ smooth ≤ 63`."""
    if "anyOf" in schema:  # an optional value
        return ", or ".join(allowed(name, each) for each in schema["anyOf"])
    if "enum" in schema:
        return f"one of {', '.join(map(value, schema['enum']))}"
    if schema["type"] == "array" and "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}; each value: {allowed('value', schema['prefixItems'][0])}"
    if schema["type"] == "array":
        least = f"{schema['minItems']} or more" if "minItems" in schema else "any length"
        return f"list of {least}; each value: {allowed('value', schema['items'])}"
    words = {"boolean": "true or false", "string": "text", "null": "not set"}.get(schema["type"], schema["type"])
    return ", ".join(filter(None, (words, _range(name, schema), _multiple(schema))))


def _range(name: str, schema: dict[str, Any]) -> str:
    # pydantic writes "ge" and "le" where a validator stands before the limits
    limits = [(schema.get(a, schema.get(b)), "≤") for a, b in (("minimum", "ge"), ("maximum", "le"))]
    strict = [(schema.get(key), "<") for key in ("exclusiveMinimum", "exclusiveMaximum")]
    low, high = (limit if limit[0] is not None else other for limit, other in zip(limits, strict, strict=True))
    if low[0] is not None and high[0] is not None:
        return f"{low[0]:g} {low[1]} {name} {high[1]} {high[0]:g}"
    if low[0] is not None:
        return f"{name} {'≥' if low[1] == '≤' else '>'} {low[0]:g}"
    return f"{name} {high[1]} {high[0]:g}" if high[0] is not None else ""


def _multiple(schema: dict[str, Any]) -> str:
    return f"a multiple of {schema['multipleOf']}" if "multipleOf" in schema else ""
