"""`octavo run`: a model in this process, answering in this terminal."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from octavo.cli.conversation import Ask, answer_once, converse, opening
from octavo.cli.models import ensure_here, is_model_name
from octavo.cli.options import config_options, engine_options, engine_settings
from octavo.cli.sampling import SamplingOptions, sampling_settings
from octavo.cli.terminal import Answer, ProgressLine, note
from octavo.cli.verbs import is_verbose, verb
from octavo.errors import ConfigError, RequestFailedError

if TYPE_CHECKING:
    from octavo.llm import LLM
    from octavo.request import SamplingParams

_MAX_PIPED_BYTES = 32 << 20


@verb("run")
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT]...")
@click.option("--system", metavar="TEXT", help="System message that the conversation starts with.")
@click.option("--raw", is_flag=True, help="Complete the prompt as plain text, without the model's chat template.")
@click.option("--stats", is_flag=True, help="Print time to first token and tokens a second after each answer.")
@config_options(SamplingOptions)
@engine_options(skip=("seed",), config_file=False)
@click.pass_context
def run(ctx: click.Context, /, words: tuple[str, ...], system: str | None, raw: bool, stats: bool, **_: Any) -> None:
    """Load a model and answer PROMPT, streaming; without one, chat.

    The first word is the model if it is a folder, a .gguf file, a catalogue name (`octavo list`) or owner/name;
    otherwise it belongs to the prompt and the default model answers. Text piped in is the prompt, or takes the place
    of a `-` in it. A model that is not here yet is downloaded first.
    """
    started = time.perf_counter()
    model, prompt = split_words(words, named=bool(ctx.params["model"]))
    prompt = _with_piped_text(prompt)
    if raw and (system or prompt is None):
        raise ConfigError(
            "--raw completes a given text: it goes with a prompt and without --system.",
            fix="Give a prompt, or leave --raw out.",
            param="raw",
        )
    params = sampling_settings(ctx)
    if params["seed"] is None:
        params["seed"] = secrets.randbelow(1 << 32)  # the engine's own draws are the same in every process
    settings = engine_settings(ctx, model, skip=("seed",))
    stats = stats or is_verbose(ctx)
    ensure_here(settings)
    with ProgressLine() as progress:
        progress("start", 0.0)
        llm, sampling = _load(settings, params, progress)
    with llm:
        if is_verbose(ctx):
            _describe(llm, time.perf_counter() - started)
            note(f"seed {params['seed']}")
        for text in llm.info.notes:
            note(text)
        ask = _asker(llm, sampling)
        if prompt is None:
            converse(ask, system=system, stats=stats)
        elif raw:
            answer_once(lambda _messages, answer: _stream(llm, prompt, sampling, answer), [], stats=stats)
        else:
            answer_once(ask, [*opening(system), {"role": "user", "content": prompt}], stats=stats)


def split_words(words: tuple[str, ...], *, named: bool) -> tuple[str | None, str | None]:
    """Which of the words is the model, and the prompt that the others make; None for what is not there.

    Args:
        named: the model is named by --model already, so that all words are the prompt.
    """
    if words and not named and is_model_name(words[0], alone=len(words) == 1):
        return words[0], " ".join(words[1:]) or None
    return None, " ".join(words) or None


def _with_piped_text(prompt: str | None) -> str | None:
    """The prompt, with piped text in the place of a word `-` or, without a prompt, as the prompt; None means a chat.

    Raises:
        ConfigError: there is neither a prompt nor a terminal to chat at, or too much text.
    """
    words = prompt.split(" ") if prompt else []
    if "-" in words:
        place = words.index("-")
        before, after = " ".join(words[:place]), " ".join(words[place + 1 :])
        return "\n\n".join(part for part in (before, _piped_text(), after) if part)
    if prompt or sys.stdin.isatty():
        return prompt
    piped = _piped_text()
    if not piped:
        raise ConfigError(
            "There is no prompt: nothing on the command line, nothing piped in, and no terminal to chat at.",
            fix='Give one: octavo run "Why is the sky blue?"',
        )
    return piped


def _piped_text() -> str:
    data = sys.stdin.buffer.read(_MAX_PIPED_BYTES + 1)
    if len(data) > _MAX_PIPED_BYTES:
        raise ConfigError("More than 32 MiB of text is piped in.", fix="Pipe a text that fits the model's context.")
    return data.decode("utf-8", "replace").strip()


def _load(settings: dict[str, Any], params: dict[str, Any], progress: ProgressLine) -> tuple[LLM, SamplingParams]:
    from octavo.llm import LLM  # torch comes with it
    from octavo.request import SamplingParams

    return LLM(progress=progress, **settings), SamplingParams(**params)


def _asker(llm: LLM, params: SamplingParams) -> Ask:
    return lambda messages, answer: _stream(llm, messages, params, answer)


def _stream(llm: LLM, prompt: Any, params: SamplingParams, answer: Answer) -> Iterator[str]:
    """Pieces of text of one request, as they come.

    Raises:
        RequestFailedError: the engine failed on this request.
    """
    shown = 0
    stream = llm.stream(prompt, params)
    try:
        for output in stream:
            sample = output.outputs[0]
            if answer.first_token is None and sample.token_ids:
                answer.first_token = time.perf_counter()
            answer.tokens = len(sample.token_ids)
            answer.prompt_tokens = len(output.prompt_token_ids)
            answer.cached_tokens = output.num_cached_tokens
            answer.finish_reason = sample.finish_reason
            yield sample.text[shown:]
            shown = len(sample.text)
            if sample.finish_reason == "error":
                raise RequestFailedError(f"The engine failed on this prompt: {sample.error}")
    finally:
        stream.close()  # type: ignore[attr-defined]  # a generator: closing it aborts the request


def _describe(llm: LLM, seconds: float) -> None:
    """What was loaded, for -v."""
    info = llm.info
    note(f"{info.model} · {info.architecture} · {info.device} · {info.dtype} · quantization {info.quantization}")
    for item, amount in info.memory:
        note(f"  {item}: {amount}")
    phases = " · ".join(f"{phase} {taken:.2f} s" for phase, taken in info.startup)
    note(f"ready after {seconds:.2f} s: {phases}")
