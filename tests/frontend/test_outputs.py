"""Steps to updates: text, stop strings, ends, logprobs, metrics; against an oracle that sees everything at once."""

from __future__ import annotations

import random
from typing import Any

import pytest
from frontend_help import byte_level, request, sentencepiece, settings
from hypothesis import given
from hypothesis import strategies as st

from octavo.frontend.detokenizer import detokenizer
from octavo.frontend.outputs import OutputProcessor, ProcessedStep
from octavo.frontend.sample import Update
from octavo.request import (
    EngineStats,
    Finished,
    PromptLogprobs,
    SampleLogprobs,
    Started,
    StepOutputs,
    TokenLogprobs,
)

EOS = 2


def step(*rows: tuple[int, int, int], finished: Any = (), **more: Any) -> StepOutputs:
    """Rows are (handle, index, token)."""
    handles, indices, tokens = map(list, zip(*rows, strict=True)) if rows else ([], [], [])
    return StepOutputs(handles, indices, tokens, finished=[Finished(*end) for end in finished], **more)


def entry(token_id: int) -> TokenLogprobs:
    return TokenLogprobs(token_id, -float(token_id), 1, [token_id], [-float(token_id)])


def encode(text: str) -> list[int]:
    return byte_level().encode(text, parse_special=False)


def feed(made: OutputProcessor, ids: list[int], reason: str | None = None, **more: Any) -> list[Update]:
    """Send ids of request 1 one a step; the last with `reason`."""
    updates = []
    for rank, token_id in enumerate(ids):
        last = rank == len(ids) - 1 and reason is not None
        scored = [SampleLogprobs(1, 0, entry(token_id))] if more.get("scored") else []
        updates += made.process(
            step((1, 0, token_id), finished=[(1, 0, reason)] if last else (), logprobs=scored)
        ).updates
    return updates


def opened(**params: Any) -> OutputProcessor:
    made = OutputProcessor(byte_level())
    made.add(request(1, **params), "prompt")
    return made


def test_text_comes_with_its_tokens_and_the_end_with_the_last() -> None:
    made = opened()
    updates = feed(made, encode("The dog: é"), "length")
    assert "".join(update.text for update in updates) == "The dog: é"
    assert [update.finished for update in updates] == [False] * (len(updates) - 1) + [True]
    assert updates[-1].finish_reason == "length"
    assert all(update.finish_reason is None for update in updates[:-1])
    result = updates[-1].result()
    assert result.finished
    assert (result.request_id, result.prompt, result.prompt_token_ids) == ("r1", "prompt", [5])
    assert result.outputs[0].text == "The dog: é"
    assert result.outputs[0].token_ids == encode("The dog: é")
    assert made.num_open == 0


def test_results_grow_and_do_not_change_afterwards() -> None:
    made = opened()
    first = feed(made, encode("The"))[-1].result()
    second = feed(made, encode(" dog"))[-1].result()
    assert (first.outputs[0].text, second.outputs[0].text) == ("The", "The dog")
    assert first.outputs[0].token_ids == encode("The")
    assert not second.finished


def test_deltas_hold_what_is_new() -> None:
    made = opened()
    updates = feed(made, encode("The dog"), "length")
    deltas = [update.delta() for update in updates]
    assert "".join(delta.outputs[0].text for delta in deltas) == "The dog"
    assert [token_id for delta in deltas for token_id in delta.outputs[0].token_ids] == encode("The dog")
    assert [delta.outputs[0].finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]


def test_the_token_that_ends_an_answer_gives_no_text() -> None:
    stop_id = encode("!")[0]
    for include, expected in [(False, "dog"), (True, "dog!")]:
        made = opened(include_stop_str_in_output=include)
        feed(made, encode("dog"))
        (last,) = made.process(step((1, 0, stop_id), finished=[(1, 0, "stop", stop_id)])).updates
        result = last.result().outputs[0]
        assert result.text == expected
        assert result.token_ids == [*encode("dog"), stop_id]
        assert (result.finish_reason, result.stop_reason) == ("stop", stop_id)
    made = opened(skip_special_tokens=False)
    feed(made, encode("dog"))
    (last,) = made.process(step((1, 0, EOS), finished=[(1, 0, "stop")])).updates
    assert (last.text, last.stop_reason) == ("", None)


def test_an_incomplete_character_at_the_end_comes_as_a_replacement() -> None:
    made = opened()
    updates = feed(made, encode("é")[:1], "length") if len(encode("é")) > 1 else []
    assert [update.text for update in updates] in ([], ["\ufffd"])
    emoji = encode("😀")
    made = opened()
    assert [update.text for update in feed(made, emoji[:-1], "length")][-1] == "\ufffd"


def test_a_stop_string_ends_the_sample_and_asks_for_its_abort() -> None:
    made = opened(stop=("fox jumps",))
    ids = encode("The quick brown fox jumps over")
    steps = [made.process(step((1, 0, token_id))) for token_id in ids]
    aborts = [abort for one in steps for abort in one.aborts]
    updates = [update for one in steps for update in one.updates]
    assert aborts == [(1, 0)]
    assert "".join(update.text for update in updates) == "The quick brown "
    assert (updates[-1].finish_reason, updates[-1].stop_reason, updates[-1].finished) == ("stop", "fox jumps", True)
    assert made.num_open == 0
    assert made.process(step((1, 0, 5), finished=[(1, 0, "abort")])).updates == []  # what was under way is dropped


def test_text_that_may_become_a_stop_string_waits() -> None:
    made = opened(stop=("\nUser:",))
    texts = [update.text for update in feed(made, [*encode("ok"), *encode("\n"), *encode("U"), *encode("x")])]
    assert "".join(texts[:2]) == "ok"
    assert texts[-3:] == ["", "", "\nUx"]


def test_held_text_comes_when_the_sample_ends() -> None:
    made = opened(stop=("\nUser:",))
    updates = feed(made, [*encode("ok"), *encode("\n"), *encode("U")], "length")
    assert (updates[-1].text, updates[-1].finish_reason) == ("\nU", "length")
    made = opened(stop=("\nUser:",))
    feed(made, [*encode("ok"), *encode("\n")])
    assert [update.text for update in made.abort(1)] == ["\n"]


def test_a_stop_string_in_the_last_token_wins_over_length() -> None:
    made = opened(stop=("dog",))
    ids = encode("The dog")
    feed(made, ids[:-1])
    last = made.process(step((1, 0, ids[-1]), finished=[(1, 0, "length")]))
    assert last.aborts == []  # the engine has ended it already
    assert (last.updates[0].finish_reason, last.updates[0].stop_reason) == ("stop", "dog")
    assert last.updates[0].result().outputs[0].text == "The "


def test_min_tokens_lets_stop_strings_pass() -> None:
    ids = encode("dog dog dog dog")
    made = opened(stop=("dog",), min_tokens=2)
    updates = feed(made, ids)
    assert updates[-1].stop_reason == "dog"
    assert len(updates[-1].result().outputs[0].token_ids) > 2
    assert updates[-1].result().outputs[0].text.startswith("dog")


def test_samples_end_on_their_own_and_the_request_with_the_last() -> None:
    made = opened(n=3, stop=("fox",))
    dog, fox = encode("dog"), encode("fox")
    updates: list[Update] = []
    for a, b in zip(dog, fox, strict=False):
        updates += made.process(step((1, 0, a), (1, 1, b), (1, 2, a))).updates
    done = [update for update in updates if update.finish_reason is not None]
    if not done:  # the words may have different numbers of tokens
        for token_id in fox[len(dog) :]:
            updates += made.process(step((1, 1, token_id))).updates
        done = [update for update in updates if update.finish_reason is not None]
    assert [(update.index, update.finished) for update in done] == [(1, False)]
    ends = made.process(step((1, 0, EOS), (1, 2, EOS), finished=[(1, 0, "stop"), (1, 2, "stop")])).updates
    assert [(update.index, update.finished) for update in ends] == [(0, False), (2, True)]
    result = ends[-1].result()
    assert [output.index for output in result.outputs] == [0, 1, 2]
    assert [output.finish_reason for output in result.outputs] == ["stop", "stop", "stop"]
    assert [output.stop_reason for output in result.outputs] == [None, "fox", None]


def test_logprobs_belong_to_their_tokens() -> None:
    made = opened(logprobs=1)
    ids = encode("The dog")
    updates = feed(made, ids, "length", scored=True)
    assert all([e.token_id for e in update.logprobs or []] == update.token_ids for update in updates)
    result = updates[-1].result().outputs[0]
    assert [e.token_id for e in result.logprobs or []] == result.token_ids == ids


def test_logprobs_neither_run_ahead_of_text_nor_show_what_a_stop_string_cut_off() -> None:
    made = opened(logprobs=1, stop=("fox jumps",))
    ids = encode("The brown fox jumps over")
    seen, text = 0, ""
    for update in feed(made, ids, scored=True):
        seen += len(update.logprobs or [])
        text += update.text
        assert len(byte_level().decode(ids[: max(0, seen - 1)])) <= len(text)
    assert text == "The brown "
    shown = byte_level().decode(ids[:seen])
    assert shown.startswith("The brown")
    assert "f" not in shown.removeprefix("The brown ")[1:] or len(shown) <= len("The brown fox")
    cut = made.process(step()).updates
    assert cut == []


def test_held_logprobs_come_with_the_end() -> None:
    made = opened(logprobs=1, stop=("\nUser:",))
    ids = [*encode("ok"), *encode("\n"), *encode("U")]
    updates = feed(made, ids, "length", scored=True)
    assert [len(update.logprobs or []) for update in updates][-2:] == [0, 2]
    assert [e.token_id for e in updates[-1].result().outputs[0].logprobs or []] == ids


def test_prompt_logprobs_come_in_parts_and_again_after_a_preemption() -> None:
    made = OutputProcessor(byte_level())
    made.add(request(1, [5, 6, 7, 8], prompt_logprobs=1))
    made.process(step(prompt_logprobs=[PromptLogprobs(1, 1, [entry(6), entry(7)])]))
    made.process(step(prompt_logprobs=[PromptLogprobs(1, 2, [entry(7), entry(8)])]))
    (update,) = made.process(step((1, 0, 9), finished=[(1, 0, "length")])).updates
    scored = update.result().prompt_logprobs
    assert scored is not None
    assert [e and e.token_id for e in scored] == [None, 6, 7, 8]
    assert opened().process(step(prompt_logprobs=[PromptLogprobs(1, 1, [entry(6)])])).updates == []


def test_metrics_and_cached_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [101.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    made = opened()  # arrives at 100
    made.process(step(started=[Started(1, 48, 100.5)]))
    clock[0] = 102.0
    (update,) = made.process(step((1, 0, 5), started=[Started(1, 0, 100.9)])).updates  # once more, after a preemption
    assert update.result().num_cached_tokens == 48
    clock[0] = 103.0
    (update,) = made.process(step((1, 0, 5), finished=[(1, 0, "length")])).updates
    clock[0] = 200.0
    metrics = update.result().metrics
    assert (metrics.queue_time, metrics.time_to_first_token, metrics.total_time) == (0.5, 2.0, 3.0)


def test_an_aborted_request_ends_once_and_is_forgotten() -> None:
    made = opened(n=2)
    feed(made, encode("The"))
    updates = made.abort(1)
    assert [(u.index, u.finish_reason, u.finished) for u in updates] == [(0, "abort", False), (1, "abort", True)]
    assert made.abort(1) == []
    assert made.process(step((1, 0, 5), (1, 1, 5))).updates == []


def test_an_engine_that_dies_ends_every_request_with_an_error() -> None:
    made = opened()
    made.add(request(2, n=2))
    updates = made.fail_all("the engine died")
    assert [(u.handle, u.index, u.finish_reason, u.error) for u in updates] == [
        (1, 0, "error", "the engine died"),
        (2, 0, "error", "the engine died"),
        (2, 1, "error", "the engine died"),
    ]
    assert made.num_open == 0


def test_an_error_of_the_engine_reaches_its_request_only() -> None:
    made = opened()
    made.add(request(2))
    result = made.process(step((2, 0, 5), finished=[(1, 0, "error", None, "logits were not finite")]))
    assert {u.handle: (u.finish_reason, u.error) for u in result.updates} == {
        2: (None, ""),
        1: ("error", "logits were not finite"),
    }


def test_without_text_there_are_tokens() -> None:
    for made, params in [(OutputProcessor(None), {}), (OutputProcessor(byte_level()), {"detokenize": False})]:
        made.add(request(1, **params))
        updates = feed(made, [5, 6, 7], "length")
        assert [update.text for update in updates] == ["", "", ""]
        assert updates[-1].result().outputs[0].token_ids == [5, 6, 7]


def test_several_tokens_of_a_sample_in_one_step() -> None:
    ids = encode("The dog jumps")
    made = opened(logprobs=1)
    scored = [SampleLogprobs(1, 0, entry(token_id)) for token_id in ids]
    half = len(ids) // 2
    first = made.process(step(*[(1, 0, i) for i in ids[:half]], logprobs=scored[:half])).updates
    last = made.process(
        step(*[(1, 0, i) for i in ids[half:]], logprobs=scored[half:], finished=[(1, 0, "length")])
    ).updates
    assert "".join(update.text for update in [*first, *last]) == "The dog jumps"
    assert last[-1].token_ids == ids[half:]
    assert [e.token_id for e in last[-1].result().outputs[0].logprobs or []] == ids


def test_a_handle_is_open_once() -> None:
    made = opened()
    with pytest.raises(ValueError, match="handle 1"):
        made.add(request(1))
    made.abort(1)
    made.add(request(1))


def test_statistics_pass_through() -> None:
    stats = EngineStats(num_running=3)
    assert opened().process(step(stats=stats)).stats == stats


def test_a_leading_space_stays_where_the_prompt_has_text() -> None:
    tokenizer = sentencepiece()
    ids = tokenizer.encode("dog", add_special_tokens=False)
    for prompt, expected in [([1], "dog"), (tokenizer.encode("the"), " dog")]:
        made = OutputProcessor(tokenizer)
        made.add(request(1, prompt))
        assert "".join(update.text for update in feed(made, ids, "length")) == expected


WORDS = ["The", " dog", " fox", "\n", "U", "ser", ":", " é", "😀", " jumps", "x", "<think>"]


@settings
@given(st.integers(0, 10**6), st.booleans(), st.booleans(), st.integers(0, 3))
def test_many_requests_at_once_equal_each_seen_whole(seed: int, scored: bool, include: bool, min_tokens: int) -> None:
    rng = random.Random(seed)
    made = OutputProcessor(byte_level())
    stops = tuple(rng.sample(["\nUser:", "fox jumps", "dog", "é😀", "User", ":"], rng.randrange(3)))
    left: dict[tuple[int, int], list[int]] = {}
    for handle in range(rng.randint(1, 3)):
        n = rng.randint(1, 2)
        params = {"n": n, "stop": stops, "include_stop_str_in_output": include, "min_tokens": min_tokens}
        made.add(request(handle, logprobs=1 if scored else None, **params))
        for index in range(n):
            left[handle, index] = encode("".join(rng.choices(WORDS, k=rng.randint(1, 12))))
    expected = {key: oracle(ids, stops, include, min_tokens) for key, ids in left.items()}
    texts = dict.fromkeys(left, "")
    ends: dict[tuple[int, int], Update] = {}
    while left:
        keys = [key for key in left if rng.random() < 0.7] or list(left)
        rows = [(*key, left[key].pop(0)) for key in keys]
        finished = [(*key, "length") for key in keys if not left[key]]
        logprobs = [SampleLogprobs(h, i, entry(t)) for h, i, t in rows] if scored else []
        result: ProcessedStep = made.process(step(*rows, finished=finished, logprobs=logprobs))
        for update in result.updates:
            texts[update.handle, update.index] += update.text
            if update.finish_reason is not None:
                assert (update.handle, update.index) not in ends
                ends[update.handle, update.index] = update
        left = {key: ids for key, ids in left.items() if ids and key not in ends}
    assert made.num_open == 0
    for key, (text, reason) in expected.items():
        assert texts[key] == text
        assert ends[key].stop_reason == reason
        output = ends[key].result().outputs[key[1]]
        assert output.text == text
        assert (output.logprobs is not None) == scored
        assert [e.token_id for e in output.logprobs or []] == output.token_ids[: len(output.logprobs or [])]


def oracle(ids: list[int], stops: tuple[str, ...], include: bool, min_tokens: int) -> tuple[str, str | None]:
    """The text up to the first stop string that ends after the text of the first `min_tokens` tokens began."""
    tokenizer = byte_level()
    whole = tokenizer.decode(ids)
    stream = detokenizer(tokenizer)
    offset = len(stream.push_all(ids[:min_tokens]))
    found = [(whole.find(stop, offset) + len(stop), -len(stop), stop) for stop in stops if stop in whole[offset:]]
    if not found:
        return whole, None
    end, negative, stop = min(found)
    return whole[: end if include else end + negative], stop
