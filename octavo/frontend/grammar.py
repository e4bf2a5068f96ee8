"""What grammars take from a tokenizer."""

from __future__ import annotations

from collections.abc import Callable

from octavo.errors import InvalidRequestError
from octavo.frontend.tokenizer import Tokenizer
from octavo.grammar.vocabulary import Vocabulary


def vocabulary_of(tokenizer: Tokenizer | None, vocab_size: int) -> Vocabulary:
    """Bytes of the ids below `vocab_size`, which is the width of the logits.

    Raises:
        InvalidRequestError: there is no tokenizer, or its tokens do not stand for bytes each.
    """
    if tokenizer is None or tokenizer.codec is None:
        what = (
            "the server has no tokenizer" if tokenizer is None else "the tokens of this model's tokenizer have no bytes"
        )
        raise InvalidRequestError(
            f"structured_outputs cannot be kept: {what}.",
            fix="Leave it out.",
            param="structured_outputs",
            code="unsupported_value",
        )
    known = min(tokenizer.vocab_size, vocab_size)
    tokens = [tokenizer.token_bytes(i) for i in range(known)] + [b""] * (vocab_size - known)
    special = [i for i in range(known) if tokenizer.is_special(i)]
    return Vocabulary(tokens, special, [i for i in tokenizer.eos_token_ids if i < vocab_size])


def encoded_vocabulary(
    tokenizer: Tokenizer | None, vocab_size: int
) -> tuple[Vocabulary, Callable[[str], list[int]] | None]:
    """The same, with the tokenizer's way to spell a text."""
    vocabulary = vocabulary_of(tokenizer, vocab_size)
    if tokenizer is None:
        return vocabulary, None
    backend = tokenizer
    return vocabulary, lambda text: backend.encode(text, add_special_tokens=False, parse_special=False)
