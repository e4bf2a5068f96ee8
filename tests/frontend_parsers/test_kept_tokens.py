"""Markers that are control tokens stay in the text, the others do not."""

from __future__ import annotations

import pytest

from octavo.errors import InvalidRequestError
from octavo.frontend.detokenizer import detokenizer
from octavo.frontend.tokenizer import load_tokenizer
from octavo.request import SamplingParams
from octavo.sim import write_sim_model
from octavo.validation import validate_params

END = "<|end|>"


def test_only_named_control_tokens_are_kept(tmp_path):
    tokenizer = load_tokenizer(write_sim_model(tmp_path))
    ids = [*tokenizer.encode("a"), 256, *tokenizer.encode("b")]
    assert detokenizer(tokenizer).push_all(ids) == "ab"
    assert detokenizer(tokenizer, kept=(END,)).push_all(ids) == f"a{END}b"
    assert detokenizer(tokenizer, kept=("<|other|>",)).push_all(ids) == "ab"
    assert tokenizer.texts_keeping((END,)) is tokenizer.texts_keeping((END, "x"))


@pytest.mark.parametrize("kept", ["text", (1,), ("x",) * 65])
def test_what_cannot_be_kept_is_refused(kept):
    with pytest.raises(InvalidRequestError) as refused:
        validate_params(SamplingParams(kept_special_tokens=kept), vocab_size=9, max_model_len=64, max_logprobs=1)
    assert refused.value.param == "kept_special_tokens"
