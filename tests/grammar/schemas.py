"""Random schemas whose values are short, so that a random model comes to their end."""

from __future__ import annotations

import random
from typing import Any


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of any kind that answers are asked for: scalars with bounds, enums, objects, arrays, anyOf, $ref."""
    leaves = (_integer, _number, _string, _pattern, _enum, _const, _boolean)
    branches = (_object, _array, _any_of, _reference)
    return rng.choice(branches if depth == 0 else (leaves if depth > 2 else branches + leaves))(rng, depth)


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(-50, 50)
    return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 90)}


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": [round(rng.uniform(-9, 9), 2) for _ in range(3)]}


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(0, 3)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 5)}


def _pattern(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "string", "pattern": rng.choice(["^[a-z]{1,4}$", "^[0-9]{2}-[0-9]{2}$", "^(red|green)_x?$"])}


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": rng.sample(["a", "be", "see", 1, 22, None, True, [1, 2], {"k": "v"}], rng.randint(1, 4))}


def _const(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"const": rng.choice(["fixed text", 7, {"deep": [1]}])}


def _boolean(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": rng.choice(["boolean", "null"])}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(["name", "age", "tags", "größe", 'q"x', "b c"], rng.randint(1, 3))
    required = [name for name in names if rng.random() < 0.7]
    properties = {name: random_schema(rng, depth + 1) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(0, 2)
    items = random_schema(rng, depth + 1)
    return {"type": "array", "items": items, "minItems": low, "maxItems": low + rng.randint(0, 2)}


def _any_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randint(2, 3))]}


def _reference(rng: random.Random, depth: int) -> dict[str, Any]:
    if depth:
        return _enum(rng, depth)
    item = {"type": "object", "properties": {"v": random_schema(rng, 2)}, "required": ["v"]}
    item["properties"]["next"] = {"anyOf": [{"$ref": "#/$defs/item"}, {"type": "null"}]}
    item["additionalProperties"] = False
    return {"$ref": "#/$defs/item", "$defs": {"item": item}}
