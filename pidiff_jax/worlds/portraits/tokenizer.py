"""The tokenizer of the embedded world: every word of a caption is one token."""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from transformers import CLIPTokenizer

from pidiff_jax.convert.clip_tokenizer import tokenize, word_tokenizer
from pidiff_jax.worlds.portraits.renderer import caption_words

TEXT_LENGTH = 16


@functools.cache
def portraits_tokenizer() -> CLIPTokenizer:
    """The tokenizer; text of other words falls into pieces."""
    return word_tokenizer(caption_words(), TEXT_LENGTH)


def caption_ids(captions: Sequence[str]) -> Int[np.ndarray, "b m"]:
    """Token ids of captions, int32."""
    return tokenize(portraits_tokenizer(), captions)
