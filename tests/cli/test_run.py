"""`octavo run`, with an engine that always says the same."""

from __future__ import annotations

import io
import sys

import pytest

from octavo.cli.app import main
from octavo.cli.run import split_words
from octavo.cli.terminal import Answer, Interruption, TextPrinter, show


@pytest.fixture(autouse=True)
def names(monkeypatch):
    monkeypatch.setattr("octavo.cli.models.known_names", lambda: ["SmolLM2-135M-Instruct", "Other-1B"])


def pipe(monkeypatch, text):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


@pytest.mark.parametrize(
    ("words", "named", "expected"),
    [
        ((), False, (None, None)),
        (("Why is the sky blue?",), False, (None, "Why is the sky blue?")),
        (("tell", "me", "a", "joke"), False, (None, "tell me a joke")),
        (("smollm2-135m-instruct", "hi"), False, ("smollm2-135m-instruct", "hi")),
        (("Other-1B",), False, ("Other-1B", None)),
        (("SmolLM2-135-Instruct", "hi"), False, ("SmolLM2-135-Instruct", "hi")),
        (("meta-llama/Llama-3.2-1B", "say", "hi"), False, ("meta-llama/Llama-3.2-1B", "say hi")),
        (("./model", "hi"), False, ("./model", "hi")),
        (("weights.gguf", "hi"), False, ("weights.gguf", "hi")),
        (("Other-1B", "hi"), True, (None, "Other-1B hi")),
        (("Hello",), False, (None, "Hello")),
        (("and/or",), False, ("and/or", None)),
    ],
)
def test_the_first_word_is_the_model_if_it_looks_like_one(words, named, expected):
    assert split_words(words, named=named) == expected


def test_a_prompt_is_answered_through_the_chat_template(llm, capsys):
    assert main(["run", "Why", "is", "that?", "--system", "Be brief."]) == 0
    engine = llm.made[0]
    prompt, params = engine.asked[0]
    assert prompt == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is that?"}]
    assert params.max_tokens is None
    out, err = capsys.readouterr()
    assert out == "Hello, world.\n"
    assert err == ""
    assert engine.closed


def test_sampling_and_engine_flags_arrive(llm):
    line = "run hi --max-tokens 5 --temperature 0 --top-k 3 --seed 7 --stop X --stop Y --ignore-eos --max-model-len 1K"
    assert main(line.split()) == 0
    engine = llm.made[0]
    params = engine.asked[0][1]
    assert (params.max_tokens, params.temperature, params.top_k, params.seed) == (5, 0.0, 3, 7)
    assert (params.stop, params.ignore_eos) == (("X", "Y"), True)
    assert engine.config.model.max_model_len == 1024
    assert engine.config.model.seed == 0


def test_raw_completes_the_text_itself(llm):
    assert main(["run", "--raw", "Once upon a time"]) == 0
    assert llm.made[0].asked[0][0] == "Once upon a time"


def test_raw_needs_a_prompt_and_no_system(llm, terminal, capsys):
    terminal()
    assert main(["run", "--raw"]) == 2
    assert main(["run", "--raw", "text", "--system", "x"]) == 2
    assert "--raw" in capsys.readouterr().err
    assert llm.made == []


def test_stats_go_to_stderr(llm, capsys):
    assert main(["run", "hi", "--stats"]) == 0
    out, err = capsys.readouterr()
    assert out == "Hello, world.\n"
    assert "first token after" in err
    assert "tok/s" in err
    assert "4 tokens" in err


def test_verbose_says_what_was_loaded(llm, capsys):
    assert main(["run", "-v", "hi"]) == 0
    err = capsys.readouterr().err
    assert "LlamaForCausalLM" in err
    assert "KV pages: 256 MiB" in err
    assert "load weights 0.50 s" in err


def test_piped_text_is_the_prompt(llm, monkeypatch):
    pipe(monkeypatch, "What is this?\n")
    assert main(["run"]) == 0
    assert llm.made[0].asked[0][0][-1]["content"] == "What is this?"


def test_a_dash_takes_the_piped_text(llm, monkeypatch):
    pipe(monkeypatch, "a long text\n")
    assert main(["run", "Summarise:", "-"]) == 0
    assert llm.made[0].asked[0][0][-1]["content"] == "Summarise:\n\na long text"


def test_a_prompt_does_not_wait_for_stdin(llm, monkeypatch):
    class Silent(io.TextIOBase):
        @property
        def buffer(self):
            raise AssertionError("stdin was read")

    monkeypatch.setattr("sys.stdin", Silent())
    assert main(["run", "hi"]) == 0


def test_nothing_to_answer_is_an_error(llm, monkeypatch, capsys):
    pipe(monkeypatch, "")
    assert main(["run"]) == 2
    assert "There is no prompt" in capsys.readouterr().err
    assert llm.made == []


def test_a_failed_request_is_an_error(llm, capsys):
    llm.finish_reason = "error"
    assert main(["run", "hi"]) == 1
    out, err = capsys.readouterr()
    assert "broke" in err
    assert out == "Hello, world.\n"


def test_a_cut_answer_is_said(llm, capsys):
    llm.finish_reason = "length"
    assert main(["run", "hi"]) == 0
    assert "cut after 4 tokens" in capsys.readouterr().err


def test_a_wrong_sampling_flag_fails_before_the_model_loads(llm, capsys):
    assert main(["run", "hi", "--temperature", "-1"]) == 2
    assert "--temperature cannot be -1.0" in capsys.readouterr().err
    assert llm.made == []


def test_chat_keeps_the_conversation(llm, terminal, capsys):
    terminal("first", "", "second", "/reset", "third", "/what", "/exit")
    assert main(["run", "--system", "S"]) == 0
    asked = [[(m["role"], m["content"]) for m in prompt] for prompt, _ in llm.made[0].asked]
    answer = ("assistant", "Hello, world.")
    assert asked == [
        [("system", "S"), ("user", "first")],
        [("system", "S"), ("user", "first"), answer, ("user", "second")],
        [("system", "S"), ("user", "third")],
    ]
    out, err = capsys.readouterr()
    assert out.count("Hello, world.\n") == 3
    assert "/reset forgets" in err


def test_chat_goes_on_after_a_failed_answer(llm, terminal, capsys):
    llm.finish_reason = "error"
    terminal("first", "second")
    assert main(["run"]) == 0
    asked = llm.made[0].asked
    assert [len(prompt) for prompt, _ in asked] == [1, 1]
    assert capsys.readouterr().err.count("broke") == 2


def test_ctrl_c_ends_an_answer_and_closes_the_stream():
    interruption, closed = Interruption(), []

    def pieces():
        try:
            yield "one "
            interruption._on_signal(2, None)
            yield "two "
            yield "three"
        finally:
            closed.append(True)

    answer, out = Answer(), io.StringIO()
    show(pieces(), answer, TextPrinter(out), interruption)
    assert out.getvalue() == "one two \n"
    assert answer.text == "one two "
    assert answer.finish_reason == "interrupted"
    assert closed == [True]
    with pytest.raises(KeyboardInterrupt):
        interruption._on_signal(2, None)


def test_ctrl_c_during_a_single_answer_exits_130(llm, monkeypatch):
    def interrupted(self, prompt, params):
        import os
        import signal

        for output in type(self).__mro__[1].stream(self, prompt, params):
            os.kill(os.getpid(), signal.SIGINT)
            yield output

    monkeypatch.setattr(llm, "stream", interrupted)
    assert main(["run", "hi"]) == 130
    assert llm.made[0].closed


def test_a_model_cannot_drive_the_terminal():
    class Screen(io.StringIO):
        def isatty(self):
            return True

    screen = Screen()
    TextPrinter(screen).write("a\x1b]0;title\x07b\x9bc\td\ne")
    assert screen.getvalue() == "a]0;titlebc\td\ne"
    plain = io.StringIO()
    TextPrinter(plain).write("a\x1bb")
    assert plain.getvalue() == "a\x1bb"


def test_run_does_not_import_torch_before_it_must(monkeypatch, llm, capsys):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert main(["run", "hi"]) == 0
    assert "torch" not in sys.modules
