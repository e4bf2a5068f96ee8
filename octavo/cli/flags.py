"""What `octavo/config.py` says of each option, in one form for the command line, YAML files and the reference."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["bool", "int", "float", "str", "choice"]

_UNITS: dict[str, int] = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
}
_NUMBER = re.compile(r"([+-]?\d[\d_]*(?:\.\d+)?)\s*([kmgtKMGT]?)(iB|B)?")


@dataclass(frozen=True, slots=True)
class Flag:
    """One option of a config group.

    Attributes:
        name: the field's name, which is also its YAML key.
        default: the field's default; None means that the engine decides, as `help` says.
        repeat: the option may be given several times; its value is a tuple.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    repeat: bool = False
    min: float | None = None
    max: float | None = None

    @property
    def option(self) -> str:
        """The name on the command line: `--max-model-len`."""
        return "--" + self.name.replace("_", "-")


def flags_of(group: type[Any]) -> Iterator[Flag]:
    """The flags of a dataclass of options, in the order of its fields."""
    hints = typing.get_type_hints(group)
    for field in dataclasses.fields(group):
        kind, choices = _kind(hints[field.name])
        meta = field.metadata
        yield Flag(
            name=field.name,
            kind=kind,
            default=field.default,
            help=meta["help"],
            choices=choices,
            repeat=bool(meta.get("repeat")),
            min=meta.get("min"),
            max=meta.get("max"),
        )


def group_title(group: type[Any]) -> str:
    """The heading of a group of options: `ModelOptions` is "Model"."""
    return group.__name__.removesuffix("Options")


def _kind(hint: Any) -> tuple[Kind, tuple[str, ...]]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "choice", tuple(inner)
    if origin in (typing.Union, types.UnionType):
        return _kind(next(each for each in inner if each is not type(None)))
    if origin is tuple:
        return _kind(inner[0])
    kinds: dict[Any, Kind] = {bool: "bool", int: "int", float: "float", str: "str"}
    return kinds[hint], ()


def parse_int(text: str) -> int:
    """An integer, with the suffixes people write for tokens and bytes.

    `k m g t` are powers of 1000 and `K M G T` of 1024, as in vLLM: 25.6k is 25,600 and 32K is 32,768. With a B they
    are bytes: 4GiB is 4 x 2**30, 4GB is 4 x 10**9.

    Raises:
        ValueError: the text is no such number, or does not come out whole.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a number such as 4096, 32K, 25.6k or 4GiB")
    digits, unit, suffix = match.groups()
    if suffix == "iB" and unit:
        factor = _UNITS[unit.upper()]
    elif suffix == "B" and unit:
        factor = _UNITS[unit.lower()]
    elif suffix == "iB":
        raise ValueError(f"{text!r} is not a number such as 4096, 32K, 25.6k or 4GiB")
    else:
        factor = _UNITS[unit]
    whole, _, fraction = digits.replace("_", "").partition(".")
    scale: int = 10 ** len(fraction)
    value, rest = divmod(int(whole + fraction) * factor, scale)
    if rest:
        raise ValueError(f"{text!r} is not a whole number")
    return value
