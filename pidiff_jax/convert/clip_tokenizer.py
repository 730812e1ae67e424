"""CLIP tokenizers: loading and writing their folders, captions to token ids, and vocabularies of chosen words."""

import codecs
import contextlib
import functools
import gzip
import importlib.util
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from transformers import CLIPTokenizer

from pidiff_jax.convert.diffusers_config import read_config
from pidiff_jax.convert.files import naming

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
_NUM_MERGES = 48_895  # lines of CLIP's file that count, the first one apart: its source, clip/simple_tokenizer.py
_TOKEN_FILES = ("vocab.json", "tokenizer.json", "added_tokens.json", "tokenizer_config.json")

Merges = list[tuple[str, str]]


def load_tokenizer(folder: Path | str) -> CLIPTokenizer:
    """Loads a CLIP tokenizer folder (vocab.json and merges.txt, or tokenizer.json) and checks its vocabulary.

    Tokens that were added, such as those of textual inversion, count; byte order marks are left out.

    Raises:
        FileNotFoundError: the folder holds neither form.
        ValueError: a file can't be read, the loaded vocabulary lacks a token of the files or numbers it otherwise, or the
            folder doesn't say how long a text may be.
    """
    folder = Path(folder)
    expected = _vocabulary(folder)
    with _without_marks(folder) as readable:
        try:
            tokenizer = CLIPTokenizer.from_pretrained(str(readable), local_files_only=True)
        except Exception as error:  # transformers and its Rust half raise anything
            raise ValueError(
                f"expected a CLIP tokenizer in {folder}, got files that transformers can't read ({type(error).__name__}); copy "
                "the model's tokenizer folder again"
            ) from error
    return _checked(tokenizer, expected, str(folder))


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Int[np.ndarray, "b m"]:
    """Token ids, int32, cut or padded to the tokenizer's `model_max_length` m, with start and end tokens."""
    encoded = tokenizer(
        list(captions),
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="np",
    )
    return encoded["input_ids"].astype(np.int32)


def words_beyond(tokenizer: CLIPTokenizer, caption: str) -> str:
    """What `tokenize` cuts off at the end of a text; "" where it fits."""
    kept = tokenizer.model_max_length - 2  # without start and end
    ids = tokenizer(caption, add_special_tokens=False, verbose=False)["input_ids"]
    return str(tokenizer.decode(ids[kept:])).strip()


def word_tokenizer(words: Sequence[str], max_length: int) -> CLIPTokenizer:
    """A tokenizer to which each of the (lower-case) words is one token; any other text falls into pieces.

    max_length: tokens of a text, those of its start and end included.
    """
    vocabulary, merges = word_vocabulary(words)
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # type: ignore[arg-type] # its annotation says strings, its code wants pairs
        model_max_length=max_length,
    )
    return _checked(tokenizer, vocabulary, "the words' vocabulary")


def clip_tokenizer(pad: str | None = None) -> CLIPTokenizer:
    """CLIP's own tokenizer, of 49,408 tokens and texts of 77, for models whose file has none.

    pad: the token after a text's end: None for that of its end, as in Stable Diffusion 1.x; "!" in 2.x.

    The vocabulary is a file of the package open-clip-torch, which is read and not imported.

    Raises:
        FileNotFoundError: the package isn't installed.
    """
    spec = importlib.util.find_spec("open_clip")
    places = spec.submodule_search_locations if spec else None
    path = Path(places[0]) / "bpe_simple_vocab_16e6.txt.gz" if places else None
    if path is None or not path.is_file():
        raise FileNotFoundError(
            "expected a tokenizer for a model in one file, which has none; give the folder of one (--tokenizer, "
            "config.base.tokenizer), or install CLIP's: pip install --no-deps open-clip-torch"
        )
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    merges = [(first, second) for first, second in (line.split() for line in lines[1:_NUM_MERGES])]
    symbols = list(_byte_symbols().values())
    tokens = [*symbols, *(symbol + WORD_END for symbol in symbols), *map("".join, merges), START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # type: ignore[arg-type] # as in `word_tokenizer`
        model_max_length=77,
        **({} if pad is None else {"pad_token": pad}),
    )
    return _checked(tokenizer, vocabulary, str(path))


def write_tokenizer(folder: Path | str, vocabulary: dict[str, int], merges: Merges, max_length: int) -> None:
    """Writes a CLIP tokenizer folder: vocab.json, merges.txt, tokenizer_config.json.

    Raises:
        FileExistsError: the folder has a vocabulary already.
    """
    folder = Path(folder)
    if (folder / "vocab.json").exists():
        raise FileExistsError(f"expected no tokenizer in {folder}, got one; choose another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_length, "bos_token": START, "eos_token": END}
    config |= {"pad_token": END, "unk_token": END}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")


def word_vocabulary(words: Sequence[str]) -> tuple[dict[str, int], Merges]:
    """A CLIP byte-pair vocabulary in which each of the (lower-case) words is one token.

    Laid out as CLIP's own: 256 byte symbols, the same at a word's end, one token per merge, start and end. Each word is
    first encoded with the merges so far; what remains in pieces is joined from the left by new merges of the lowest
    priority, which never disturb a word that was already whole.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        if word != word.lower() or len(word.split()) != 1:
            raise ValueError(f"expected lower-case words without spaces, got {word!r}; split the captions into words")
        pieces = apply_merges(word, ranks)
        while len(pieces) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
            pieces = apply_merges(word, ranks)
    symbols = list(_byte_symbols().values())
    joined = ["".join(pair) for pair in ranks]
    tokens = dict.fromkeys([*symbols, *(s + WORD_END for s in symbols), *joined, START, END])
    return {token: index for index, token in enumerate(tokens)}, list(ranks)


def apply_merges(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encodes one word: again and again joins the leftmost pair of the best rank.

    Source: Sennrich et al. 2016 (arXiv 1508.07909), algorithm 1.
    """
    symbols = _byte_symbols()
    pieces = [symbols[byte] for byte in word.encode("utf-8")]
    pieces[-1] += WORD_END
    while True:
        pairs = [pair for pair in zip(pieces[:-1], pieces[1:], strict=True) if pair in ranks]
        if not pairs:
            return pieces
        best = min(pairs, key=ranks.__getitem__)
        at = next(i for i in range(len(pieces) - 1) if (pieces[i], pieces[i + 1]) == best)
        pieces[at : at + 2] = ["".join(best)]


@functools.cache
def _byte_symbols() -> dict[int, str]:
    """A printable character for each byte, in CLIP's order: printable bytes as they are, then the rest from U+0100 on.

    Source: openai/CLIP clip/simple_tokenizer.py, `bytes_to_unicode`.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _vocabulary(folder: Path) -> dict[str, int]:
    """All tokens of a folder with their ids, those that were added to the vocabulary included."""
    files = {name: read_config(folder / name) for name in _TOKEN_FILES if (folder / name).is_file()}
    with naming(folder):
        try:
            if "vocab.json" in files and (folder / "merges.txt").is_file():
                tokens = dict(files["vocab.json"])
            elif "tokenizer.json" in files:
                tokens = dict(files["tokenizer.json"]["model"]["vocab"])
            else:
                raise FileNotFoundError(
                    f"expected vocab.json and merges.txt, or tokenizer.json, in {folder}, found neither; copy the "
                    "model's tokenizer folder"
                )
            tokens |= files.get("added_tokens.json", {})
            tokens |= {
                token["content"]: token["id"] for token in files.get("tokenizer.json", {}).get("added_tokens", ())
            }
            added = files.get("tokenizer_config.json", {}).get("added_tokens_decoder", {})
            return tokens | {token["content"]: int(index) for index, token in added.items()}
        except (KeyError, TypeError, AttributeError, ValueError):
            raise ValueError(
                f"expected tokens with their ids in {', '.join(files)}, got another form; copy the model's tokenizer folder "
                "again"
            ) from None


@contextlib.contextmanager
def _without_marks(folder: Path) -> Iterator[Path]:
    """The folder, or a copy where files start with a byte order mark, which transformers can't read."""
    files = [path for path in folder.iterdir() if path.suffix in (".json", ".txt") and path.is_file()]
    if not any(_has_mark(path) for path in files):
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        for path in files:
            (Path(copy) / path.name).write_bytes(path.read_bytes().removeprefix(codecs.BOM_UTF8))
        yield Path(copy)


def _has_mark(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def _checked(tokenizer: CLIPTokenizer, expected: dict[str, int], source: str) -> CLIPTokenizer:
    # transformers swallows unknown keyword arguments and then makes a vocabulary of the special tokens alone.
    loaded = tokenizer.get_vocab()
    if lost := [token for token, index in expected.items() if loaded.get(token) != index]:
        raise ValueError(
            f"expected {len(expected)} tokens from {source}, got {len(lost)} of them missing or with another id, such as "
            f"{lost[0]!r} with {expected[lost[0]]}; check that its files are of one model, and the transformers version"
        )
    if tokenizer.model_max_length > 10_000:  # transformers' stand-in for "not given" is 1e30
        raise ValueError(
            f"expected model_max_length in the tokenizer_config.json of {source}, got none; add it (77 for Stable "
            "Diffusion)"
        )
    return tokenizer
