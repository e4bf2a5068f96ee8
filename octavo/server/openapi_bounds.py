"""What fields of bodies may hold beyond their types, by field name: taken from the validator's own constants.

The OpenAPI document says so; `octavo.validation` and the grammar's bounds enforce it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo import validation
from octavo.grammar.bounds import MAX_CHOICES
from octavo.request import StructuredOutputs
from octavo.server import protocol_fields as fields
from octavo.server.embeddings import MAX_INPUTS
from octavo.server.protocol import MAX_BEST_OF, MAX_PROMPTS
from octavo.server.tools import MAX_CALLS, MAX_TOOLS

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a loaded model adds to the document.

    Attributes:
        names: that requests may call it by.
    """

    names: tuple[str, ...]
    vocab_size: int
    max_model_len: int
    hidden_size: int
    max_logprobs: int


def any_of(*schemas: Schema) -> Schema:
    """One of several."""
    return {"anyOf": list(schemas)}


def array(items: Schema, **bounds: int) -> Schema:
    """A list."""
    return {"type": "array", "items": items, **bounds}


def _range(low: float, high: float, **more: Any) -> Schema:
    return {"minimum": low, "maximum": high, **more}


def bounds_of(facts: ModelFacts | None) -> dict[str, Schema]:
    """Keywords for fields by name; they are added to what the type says.

    Args:
        facts: of the model, once it is loaded.
    """
    ids: Schema = {"type": "integer", "minimum": 0}
    if facts is not None:
        ids["maximum"] = facts.vocab_size - 1
    bounds: dict[str, Schema] = {
        name: {"exclusiveMinimum": low, "maximum": high} if open_below else _range(low, high)
        for name, (low, high, open_below) in validation.FLOATS.items()
    }
    bounds |= {
        "n": _range(1, validation.MAX_N),
        "top_k": _range(-1, 2**31 - 1),
        "max_tokens": {"minimum": 1},
        "max_completion_tokens": {"minimum": 1},
        "min_tokens": {"minimum": 0},
        "seed": _range(-(2**63), 2**63 - 1),
        "priority": _range(-(2**31), 2**31 - 1),
        "cache_salt": {"pattern": "^[A-Za-z0-9_-]{0,128}$"},
        "best_of": _range(1, MAX_BEST_OF),
        "prompt_logprobs": {"minimum": 0},
        "top_logprobs": {"minimum": 0},
        "dimensions": {"minimum": 1},
        "max_output_tokens": {"minimum": 1},
    }
    label: Schema = {"maxLength": fields.MAX_LABEL_CHARS}
    bounds |= dict.fromkeys(("user", "safety_identifier", "prompt_cache_key"), label)
    bounds["EmbeddingBody.user"] = {}
    bounds["metadata"] = {
        "maxProperties": fields.MAX_METADATA,
        "propertyNames": {"maxLength": fields.MAX_METADATA_KEY_CHARS},
        "additionalProperties": {"type": "string", **label},
    }
    bounds["request_id"] = {"pattern": "^[A-Za-z0-9_.:-]{1,128}$"}
    word: Schema = {"type": "string", "maxLength": fields.MAX_BAD_WORD_CHARS}
    bounds["bad_words"] = {"items": word, "maxItems": fields.MAX_BAD_WORDS}
    bounds["truncate_prompt_tokens"] = {"minimum": -1}
    if facts is not None:
        bounds["truncate_prompt_tokens"]["maximum"] = facts.max_model_len
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            bounds[name]["maximum"] = facts.max_model_len - 1
        bounds["min_tokens"]["maximum"] = facts.max_model_len - 1
        bounds["dimensions"]["maximum"] = facts.hidden_size
        for name in ("prompt_logprobs", "top_logprobs"):
            bounds[name]["maximum"] = facts.max_logprobs
    for name in ("stop_token_ids", "allowed_token_ids", "banned_token_ids"):
        bounds[name] = {"items": ids}
    bounds["stop_token_ids"]["maxItems"] = validation.MAX_STOP_TOKEN_IDS
    digits = 10 if facts is None else len(str(facts.vocab_size - 1))
    bounds["logit_bias"] = {
        "propertyNames": {"pattern": f"^(0|[1-9][0-9]{{0,{digits - 1}}})$"},
        "additionalProperties": {"type": "number", **_range(-100, 100)},
        "maxProperties": validation.MAX_LOGIT_BIASES,
    }
    return bounds


def replacements_of(facts: ModelFacts | None) -> dict[str, Schema]:
    """Whole schemas for fields whose type says too little. Whether null may stand there, the type tells."""
    ids: Schema = {"type": "integer", "minimum": 0}
    model: Schema = {"type": "string"}
    logprobs: Schema = {"type": "integer", "minimum": 0}
    if facts is not None:
        ids["maximum"] = facts.vocab_size - 1
        model["enum"] = list(facts.names)
        logprobs["maximum"] = facts.max_logprobs
    text: Schema = {"type": "string", "minLength": 1}
    stop: Schema = {"type": "string", "minLength": 1, "maxLength": validation.MAX_STOP_CHARS}

    def texts(most: int) -> Schema:
        """A text, ids, or a list of either."""
        several = {"minItems": 1, "maxItems": most}
        many = array(text, **several), array(array(ids, minItems=1), **several)
        return any_of(text, array(ids, minItems=1), *many)

    return {
        "model": model,
        "CompletionBody.prompt": texts(MAX_PROMPTS),
        "EmbeddingBody.input": texts(MAX_INPUTS),
        "ResponsesBody.input": any_of(text, array({"$ref": "#/components/schemas/InputItem"}, minItems=1)),
        "ResponsesBody.tools": array({"$ref": "#/components/schemas/FunctionTool"}, maxItems=MAX_TOOLS),
        **_of_messages(stop),
        "tokens": array(ids),
        "messages": array({"$ref": "#/components/schemas/ChatMessage"}, minItems=1),
        "tools": array({"$ref": "#/components/schemas/Tool"}, maxItems=MAX_TOOLS),
        "stop": any_of(stop, array(stop, maxItems=validation.MAX_STOP_STRINGS)),
        "early_stopping": {"enum": [True, False, "never"]},
        "CompletionBody.logprobs": logprobs,
        "response_format": {
            "type": "object",
            "properties": {"type": {"enum": ["text", "json_object", "json_schema", "structural_tag"]}},
            "required": ["type"],
        },
        "structured_outputs": {
            "type": "object",
            "properties": {name: _STRUCTURED.get(name, {}) for name in StructuredOutputs.__struct_fields__},
            "additionalProperties": False,
            "minProperties": 1,
        },
        "tool_choice": any_of({"enum": ["none", "auto", "required"]}, {"type": "object", "required": ["type"]}),
    }


def _of_messages(stop: Schema) -> dict[str, Schema]:
    """Fields of Anthropic's API; `stop` is one stop string."""
    blocks = any_of({"type": "string"}, array({"$ref": "#/components/schemas/TextContent"}))
    shared: dict[str, Schema] = {
        "messages": array({"$ref": "#/components/schemas/MessageParam"}, minItems=1),
        "system": blocks,
        "tools": array({"$ref": "#/components/schemas/MessageTool"}, maxItems=MAX_TOOLS),
        "tool_choice": {"$ref": "#/components/schemas/ToolChoice"},
        "output_config": {"type": "object"},
    }
    owned = {f"{owner}.{name}": schema for owner in ("MessagesBody", "PromptBody") for name, schema in shared.items()}
    return owned | {
        "MessagesBody.stop_sequences": array(stop, maxItems=validation.MAX_STOP_STRINGS),
        "MessagesBody.metadata": {"type": "object"},
    }


_TEXT: Schema = {"type": ["string", "null"], "minLength": 1}
_STRUCTURED: Mapping[str, Schema] = {
    "regex": _TEXT,
    "grammar": _TEXT,
    "choice": any_of(array({"type": "string"}, minItems=1, maxItems=MAX_CHOICES), {"type": "null"}),
    "json_object": {"type": ["boolean", "null"]},
    "whitespace_pattern": {"type": ["string", "null"]},
    "disable_any_whitespace": {"type": ["boolean", "null"]},
}
_CALL: Schema = {
    "type": "object",
    "properties": {
        "id": {"description": "Which the message of the role tool names that answers it."},
        "function": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "arguments": {"type": ["string", "object"]}},
            "required": ["name"],
        },
    },
    "required": ["function"],
}
_PART: Schema = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
EXTRA_COMPONENTS: Mapping[str, Schema] = {
    "ChatMessage": {
        "type": "object",
        "description": "One message. The model's chat template may want more, or refuse some roles or orders of them.",
        "properties": {
            "role": {"type": "string", "minLength": 1, "examples": ["system", "user", "assistant", "tool"]},
            "content": any_of({"type": "string"}, array(any_of({"type": "string"}, _PART)), {"type": "null"}),
            "tool_calls": any_of(array(_CALL, maxItems=MAX_CALLS), {"type": "null"}),
            "tool_call_id": {"description": "Of the call that a message of the role tool answers, which needs it."},
        },
        "required": ["role"],
    },
    "TextContent": {**_PART, "description": "A block of text."},
    "MessageParam": {
        "type": "object",
        "description": "One message. Blocks of the user's are texts and tool_results, of the assistant's texts, "
        "thinking, and tool_uses. The model's chat template may refuse some orders of roles.",
        "properties": {
            "role": {"enum": ["user", "assistant"]},
            "content": any_of({"type": "string"}, array({"$ref": "#/components/schemas/TextContent"})),
        },
        "required": ["role", "content"],
    },
    "MessageTool": {
        "type": "object",
        "description": "A tool that the model may use.",
        "properties": {
            "type": {"enum": ["custom", None]},
            "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
            "description": {"type": ["string", "null"]},
            "input_schema": {"type": ["object", "null"], "description": "A JSON schema of an object."},
            "strict": {"type": ["boolean", "null"]},
        },
        "required": ["name"],
    },
    "InputItem": {
        "type": "object",
        "description": "A message; or a function_call, a function_call_output, or reasoning of an earlier response.",
        "properties": {"type": {"enum": ["message", "function_call", "function_call_output", "reasoning"]}},
    },
    "FunctionTool": {
        "type": "object",
        "description": "A function that the model may call.",
        "properties": {
            "type": {"const": "function"},
            "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
            "description": {"type": ["string", "null"]},
            "parameters": {"type": ["object", "null"], "description": "A JSON schema of an object."},
            "strict": {"type": ["boolean", "null"]},
        },
        "required": ["type", "name"],
    },
    "Tool": {
        "type": "object",
        "description": "A function that the model may call.",
        "properties": {
            "type": {"const": "function"},
            "function": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
                    "description": {"type": ["string", "null"]},
                    "parameters": {"type": ["object", "null"], "description": "A JSON schema of an object."},
                    "strict": {"type": ["boolean", "null"]},
                },
                "required": ["name"],
            },
        },
        "required": ["function"],
    },
}
