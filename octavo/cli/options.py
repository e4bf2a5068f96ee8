"""Click options made from the config dataclasses, `--config FILE.yaml`, and the way back to a config."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from octavo.cli.flags import Flag, flags_of, group_title, parse_int
from octavo.cli.verbs import GENERAL, GroupedOption
from octavo.config import EngineConfig, groups
from octavo.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])

_MAX_CONFIG_BYTES = 1 << 20


class Integer(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """An integer that may carry a suffix: 32K, 25.6k, 4GiB."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The value as an int; a message of click's if it is none."""
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        try:
            return parse_int(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


INTEGER = Integer()


def config_options(*option_groups: type[Any], skip: tuple[str, ...] = (), config_file: bool = True) -> Callable[[F], F]:
    """Add the flags of these dataclasses, and `--config`, to a verb, which takes them as `**options`.

    `given` and `engine_settings` read them from the context: there a flag that was set differs from one that was not.

    Args:
        skip: fields that the verb sets itself.
        config_file: also add --config; a verb with two such decorators has it once.
    """

    def decorate(function: F) -> F:
        options = [_config_file_option()] if config_file else []
        for group in option_groups:
            options += [_option(flag, group_title(group)) for flag in flags_of(group) if flag.name not in skip]
        pending: list[click.Parameter] = function.__dict__.setdefault("__click_params__", [])
        pending.extend(reversed(options))  # click keeps a function's parameters in reverse
        return function

    return decorate


def engine_options(*, skip: tuple[str, ...] = (), config_file: bool = True) -> Callable[[F], F]:
    """All flags of `EngineConfig`."""
    return config_options(*groups(EngineConfig).values(), skip=skip, config_file=config_file)


def given(ctx: click.Context, *option_groups: type[Any]) -> dict[str, Any]:
    """The options of these groups that the command line or the config file sets."""
    names = {flag.name for group in option_groups for flag in flags_of(group)}
    return {
        name: value
        for name, value in ctx.params.items()
        if name in names and value is not None and ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }


def engine_settings(ctx: click.Context, model: str | None, *, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """Keyword arguments for `EngineConfig.of`: what was set, and the MODEL argument.

    Args:
        skip: names that mean something else on this verb.

    Raises:
        ConfigError: MODEL and --model name different models.
    """
    settings = given(ctx, *groups(EngineConfig).values())
    for name in skip:
        settings.pop(name, None)
    if model is None:
        return settings
    by_flag = ctx.get_parameter_source("model") is ParameterSource.COMMANDLINE
    if by_flag and settings["model"] != model:
        raise ConfigError(
            f"Two models are named: {model!r} and --model {settings['model']!r}.", fix="Name one.", param="model"
        )
    return {**settings, "model": model}


def engine_config(ctx: click.Context, model: str | None) -> EngineConfig:
    """The engine's config from flags, config file and defaults, in this order of precedence."""
    return EngineConfig.of(**engine_settings(ctx, model))


def _option(flag: Flag, group: str) -> GroupedOption:
    """One click option. Its click default is None: only the dataclass holds defaults; help shows them."""
    declaration = flag.option
    settings: dict[str, Any] = {"help": describe(flag), "default": None, "group": group}
    if flag.kind == "bool":
        declaration = f"{flag.option}/--no-{flag.option[2:]}"
    elif flag.kind == "choice":
        settings["type"] = click.Choice(flag.choices)
    elif flag.kind == "int":
        settings |= {"type": INTEGER, "metavar": "N"}
    elif flag.kind == "float":
        settings |= {"type": float, "metavar": "X"}
    else:
        settings |= {"type": str, "metavar": "TEXT"}
    if flag.repeat:
        settings["multiple"] = True
    return GroupedOption([declaration, flag.name], **settings)


def describe(flag: Flag) -> str:
    """The option's help with its default."""
    notes = []
    if flag.kind == "bool":
        notes.append(f"default: {'on' if flag.default else 'off'}")
    elif flag.default is not None and flag.default != ():
        notes.append(f"default: {flag.default}")
    if flag.repeat:
        notes.append("may be repeated")
    return f"{flag.help}  [{'; '.join(notes)}]" if notes else flag.help


def _config_file_option() -> GroupedOption:
    return GroupedOption(
        ["--config"],
        type=click.Path(path_type=Path),
        metavar="FILE.yaml",
        is_eager=True,
        expose_value=False,
        callback=_apply_config_file,
        group=GENERAL,
        help="Take options from a YAML file, by the same names; flags go before it.",
    )


def _apply_config_file(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    """Make the file's values the defaults of this invocation."""
    if path is None or ctx.resilient_parsing:
        return
    known = {param.name: param for param in ctx.command.params if isinstance(param, click.Option) and param.name}
    values: dict[str, Any] = {}
    for key, value in read_config_file(path):
        name = key.replace("-", "_")
        if name not in known or name in ("config", "help", "verbose"):
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(
                f"{path} sets {key!r}, which is no option of this verb.",
                fix=f"Did you mean {near[0]!r}?" if near else "See --help for those there are.",
                param=key,
            )
        values[name] = [value] if known[name].multiple and not isinstance(value, list) else value
    ctx.default_map = {**(ctx.default_map or {}), **values}


def read_config_file(path: Path) -> Iterator[tuple[str, Any]]:
    """The keys and values of a YAML file of options.

    Raises:
        ConfigError: it cannot be read, is no YAML, or is not one mapping.
    """
    import yaml

    try:
        with path.open("rb") as file:
            text = file.read(_MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"The config file {path} cannot be read: {error.strerror}.", fix="Check --config.", param="config"
        ) from error
    if len(text) > _MAX_CONFIG_BYTES:
        raise ConfigError(f"The config file {path} is larger than 1 MiB.", fix="Check --config.", param="config")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"The config file {path} is not valid YAML: {error}.", fix="Mend the line that it names.", param="config"
        ) from error
    if content is None:
        return
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(
            f"The config file {path} must be a list of options, each as `name: value`.",
            fix="For example: max-model-len: 4096",
            param="config",
        )
    yield from content.items()
