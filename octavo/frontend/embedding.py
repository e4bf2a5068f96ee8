"""What a client gets of an embedding: cut to the dimensions it asked for, and of length one unless it wants it raw."""

from __future__ import annotations

import numpy as np

from octavo.errors import InvalidRequestError, RequestFailedError
from octavo.frontend.sample import OpenRequest
from octavo.plan import Float32Array
from octavo.request import EmbeddingOutput, EmbeddingRequestOutput


def embedding_output(opened: OpenRequest, dimensions: int | None, normalize: bool) -> EmbeddingRequestOutput:
    """A request that has ended, as its result; arguments and errors as of `finished_embedding`."""
    return EmbeddingRequestOutput(
        request_id=opened.request_id,
        prompt=opened.prompt,
        prompt_token_ids=opened.prompt_token_ids,
        outputs=EmbeddingOutput(embedding=finished_embedding(opened, dimensions, normalize).tolist()),
        num_cached_tokens=opened.num_cached_tokens,
    )


def finished_embedding(opened: OpenRequest, dimensions: int | None, normalize: bool) -> Float32Array:
    """float32 [dimensions].

    Args:
        dimensions: keep the first so many; None keeps all. A model that was not trained for it (Kusupati et al. 2022,
            arXiv 2205.13147) loses more by this than such models do.
        normalize: divide by the Euclidean length, after the cut. Zeros stay zeros.

    Raises:
        RequestFailedError: the engine could not compute it.
    """
    if not opened.embedding:
        raise RequestFailedError(opened.samples[0].error or "The request brought no embedding.", fix="Send it again.")
    vector: Float32Array = np.frombuffer(opened.embedding, np.dtype("<f4")).astype(np.float32)[:dimensions]
    if not normalize:
        return vector
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return (vector / length).astype(np.float32) if length > 0 else vector


def check_dimensions(dimensions: object, hidden_size: int) -> None:
    """Raises InvalidRequestError: the model has not so many."""
    if dimensions is not None and (type(dimensions) is not int or not 1 <= dimensions <= hidden_size):
        raise InvalidRequestError(
            f"dimensions cannot be {str(dimensions)[:40]}: the model's embeddings have {hidden_size}.",
            fix=f"Choose 1 to {hidden_size}, or leave it out.",
            param="dimensions",
        )
