"""Captions become the ids that CLIP's own byte-pair encoding gives; a tokenizer of the wrong size can't slip in."""

import gzip
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import regex

from pidiff_jax.convert import clip_tokenizer as tokenizers
from pidiff_jax.convert.clip_tokenizer import (
    apply_merges,
    load_tokenizer,
    tokenize,
    word_vocabulary,
    write_tokenizer,
)
from pidiff_jax.worlds.portraits.renderer import CAPTION_TEMPLATES, SCENE_ATTRIBUTES, caption, caption_words
from pidiff_jax.worlds.portraits.tokenizer import portraits_tokenizer

CAPTIONS = ["a photo of a cat", "", "It's 12 o'clock!?", "naïve Café —  東京", "word " * 100]
CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def small_vocabulary():
    return word_vocabulary(["a", "photo", "of", "red", "cat", "caterpillar", "scatter"])


def clip_vocabulary():
    """CLIP's own vocabulary, from its file in the package open_clip, which isn't imported: it needs much that we don't."""
    spec = importlib.util.find_spec("open_clip")
    remedy = "pip install --no-deps -c constraints.txt open-clip-torch"
    assert spec and spec.submodule_search_locations, f"expected CLIP's vocabulary in the package open_clip; {remedy}"
    path = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1:48895]]
    symbols = list(tokenizers._byte_symbols().values())
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(m) for m in merges)]
    return {t: i for i, t in enumerate([*tokens, tokenizers.START, tokenizers.END])}, merges


@pytest.fixture(scope="module", params=["CLIP's vocabulary", "small vocabulary"])
def folder_and_vocabulary(request, tmp_path_factory):
    found = clip_vocabulary() if request.param.startswith("CLIP") else small_vocabulary()
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, *found, max_length=77)
    return folder, *found


def test_ids_equal_an_independent_byte_pair_encoder(folder_and_vocabulary):
    folder, vocabulary, merges = folder_and_vocabulary
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    expected = []
    for text in CAPTIONS:
        words = regex.findall(CLIP_PATTERN, " ".join(text.split()).lower())
        ids = [vocabulary[piece] for word in words for piece in apply_merges(word, ranks)][:75]
        start, end = vocabulary[tokenizers.START], vocabulary[tokenizers.END]
        expected.append([start, *ids, *[end] * (76 - len(ids))])
    ids = tokenize(load_tokenizer(folder), CAPTIONS)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, expected)
    if len(vocabulary) == 49408:  # what CLIP's authors' tokenizer gives
        assert list(ids[0, :7]) == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_a_folder_in_the_newer_format_gives_the_same_ids(tmp_path):
    write_tokenizer(tmp_path / "old", *small_vocabulary(), max_length=77)
    old = load_tokenizer(tmp_path / "old")
    old.save_pretrained(str(tmp_path / "new"))
    assert not (tmp_path / "new" / "vocab.json").exists()
    np.testing.assert_array_equal(tokenize(load_tokenizer(tmp_path / "new"), CAPTIONS), tokenize(old, CAPTIONS))


def test_padding_follows_the_folder(tmp_path):
    """Stable Diffusion 2.x pads with "!", whose id is 0."""
    write_tokenizer(tmp_path, *small_vocabulary(), max_length=8)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "!"}), encoding="utf-8")
    assert list(tokenize(load_tokenizer(tmp_path), ["cat"])[0, 3:]) == [0] * 5


def test_every_portraits_word_is_one_token():
    tokenizer = portraits_tokenizer()
    assert tokenizer.model_max_length == 16
    ids = tokenizer(caption_words())["input_ids"]
    assert {len(row) for row in ids} == {3}
    assert len({row[1] for row in ids}) == len(caption_words())


def test_every_portraits_caption_fits():
    longest = max(
        (caption([options.index(max(options, key=len)) for options in SCENE_ATTRIBUTES.values()], t))
        for t in range(len(CAPTION_TEMPLATES))
    )
    assert len(portraits_tokenizer()(longest)["input_ids"]) <= 16


def test_the_portraits_tokenizer_is_made_once_and_always_alike():
    assert portraits_tokenizer() is portraits_tokenizer()
    assert word_vocabulary(caption_words()) == word_vocabulary(caption_words())


def test_words_that_hold_each_other_stay_whole():
    words = ["tree", "re", "reed", "trees", "street", "ee", "t"]
    vocabulary, merges = word_vocabulary(words)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    assert [apply_merges(word, ranks) for word in words] == [[word + "</w>"] for word in words]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


def test_a_vocabulary_of_the_wrong_size_is_refused(tmp_path, monkeypatch):
    write_tokenizer(tmp_path, *small_vocabulary(), max_length=8)
    monkeypatch.setattr(tokenizers.CLIPTokenizer, "get_vocab", lambda self: {tokenizers.START: 0, tokenizers.END: 1})
    with pytest.raises(ValueError, match=r"expected 5\d\d tokens .* got 5\d\d of them missing"):
        load_tokenizer(tmp_path)


def test_a_folder_without_length_or_files_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vocab.json and merges.txt"):
        load_tokenizer(tmp_path)
    write_tokenizer(tmp_path, *small_vocabulary(), max_length=8)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="model_max_length"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_folder_is_never_overwritten(tmp_path):
    write_tokenizer(tmp_path, *small_vocabulary(), max_length=8)
    with pytest.raises(FileExistsError, match="expected no tokenizer"):
        write_tokenizer(tmp_path, *small_vocabulary(), max_length=8)


def test_words_with_spaces_or_capitals_are_refused():
    with pytest.raises(ValueError, match="'Red'"):
        word_vocabulary(["Red"])
    with pytest.raises(ValueError, match="'a b'"):
        word_vocabulary(["a b"])


def add_learned_token(folder, form):
    """Writes one token more, as the tools of textual inversion did and do; returns its id."""
    vocabulary, merges = small_vocabulary()
    write_tokenizer(folder, vocabulary, merges, max_length=8)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if form == "added_tokens.json":
        (folder / form).write_text(json.dumps({"<toy>": len(vocabulary)}), encoding="utf-8")
    elif form == "tokenizer_config.json":
        decoder = {str(len(vocabulary)): {"content": "<toy>", "special": False}}
        (folder / form).write_text(json.dumps(config | {"added_tokens_decoder": decoder}), encoding="utf-8")
    else:
        tokenizer = load_tokenizer(folder)
        tokenizer.add_tokens("<toy>")
        for file in folder.iterdir():
            file.unlink()
        tokenizer.save_pretrained(str(folder))
        assert (folder / "tokenizer.json").is_file()
    return len(vocabulary)


@pytest.mark.parametrize("form", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_learned_token_counts(tmp_path, form):
    index = add_learned_token(tmp_path, form)
    assert list(tokenize(load_tokenizer(tmp_path), ["<toy>"])[0, 1:2]) == [index]


def test_byte_order_marks_are_no_part_of_a_tokenizer(tmp_path):
    write_tokenizer(tmp_path, *small_vocabulary(), max_length=8)
    expected = tokenize(load_tokenizer(tmp_path), CAPTIONS)
    for file in tmp_path.iterdir():
        file.write_text(file.read_text(encoding="utf-8"), encoding="utf-8-sig")
    np.testing.assert_array_equal(tokenize(load_tokenizer(tmp_path), CAPTIONS), expected)


@pytest.mark.parametrize(
    ("file", "text"), [("vocab.json", '{"a": '), ("added_tokens.json", "[1]"), ("tokenizer_config.json", "no")]
)
def test_tokenizer_files_that_are_damaged_are_named_in_one_line(tmp_path, file, text):
    write_tokenizer(tmp_path, *small_vocabulary(), max_length=8)
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=file) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
