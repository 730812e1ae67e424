"""Records of the embedded world fit the schema, show one person in two photographs, and are the same from a cache."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.loader import make_loader
from data_pipeline.schema import FIELDS, RecordSpec, validate_record
from data_pipeline.sources import ArraySource
from pidiff_jax.worlds.portraits import renderer
from pidiff_jax.worlds.portraits import sources as portraits_sources
from pidiff_jax.worlds.portraits.tokenizer import portraits_tokenizer

NUM_PEOPLE, PER_PERSON = 3, 2
NUM = NUM_PEOPLE * PER_PERSON


def encode(pixels):
    """Mean colours of 8x8 blocks in place of a VAE."""
    b, h, w, c = pixels.shape
    mean = pixels.reshape(b, h // 8, 8, w // 8, 8, c).mean((2, 4))
    return mean, jnp.full_like(mean, -3.0)


def encode_wplus(pixels):
    """Mean colours of rows in place of an encoder: (b, 10, 18)."""
    rows = pixels.mean(2)[:, :60]
    return rows.reshape(len(pixels), 10, -1)


def render(split: str = "train", num_people: int = NUM_PEOPLE, per_person: int = PER_PERSON) -> ArraySource:
    return portraits_sources.identity_source(encode, encode_wplus, split, num_people, per_person)


@pytest.fixture(scope="module")
def source():
    return render()


def test_every_record_fits_the_schema(source):
    assert len(source) == NUM
    for index in range(NUM):
        validate_record(source[index], RecordSpec(h=8, w=8, c=3, l=10, d=18, m=16))


def test_the_wplus_code_comes_from_another_aligned_photograph_of_the_same_person(source):
    people = np.repeat(renderer.person_ids("train", NUM_PEOPLE), PER_PERSON)
    np.testing.assert_array_equal(source.arrays["person_id"], people)
    wild_numbers = np.tile(np.arange(PER_PERSON, dtype=np.int32), NUM_PEOPLE)
    faces = renderer.draw(people, wild_numbers + PER_PERSON, "aligned").pixels
    faces = np.rint(faces * 255) / 127.5 - 1.0
    np.testing.assert_allclose(source.arrays["wplus"], encode_wplus(faces), atol=1e-5)
    pictures = renderer.draw(people, wild_numbers, "wild").pixels
    pictures = np.rint(pictures * 255) / 127.5 - 1.0
    np.testing.assert_allclose(source.arrays["latent_mean"], encode(pictures)[0], atol=1e-5)


def test_the_mask_is_the_share_of_head_in_each_latent_position(source):
    mask = source.arrays["face_mask"]
    assert mask.min() == 0.0 and mask.max() == 1.0
    picture = renderer.draw(source.arrays["person_id"][:1], np.zeros(1, np.int32), "wild")
    np.testing.assert_allclose(mask[0], picture.head_mask[0].reshape(8, 8, 8, 8).mean((1, 3)), atol=2e-3)


def test_the_caption_says_the_scene_of_the_picture(source):
    people = np.repeat(renderer.person_ids("train", NUM_PEOPLE), PER_PERSON)
    scenes = renderer.draw(people, np.tile(np.arange(PER_PERSON, dtype=np.int32), NUM_PEOPLE), "wild").scene
    texts = portraits_tokenizer().batch_decode(source.arrays["text_ids"], skip_special_tokens=True)
    for text, scene in zip(texts, scenes, strict=True):
        for values, index in zip(renderer.SCENE_ATTRIBUTES.values(), scene, strict=True):
            assert values[index] in text


def test_pairs_show_one_person_in_two_pictures():
    pairs = portraits_sources.pair_source("train", 2, 2)
    assert len(pairs) == 4
    people = np.repeat(renderer.person_ids("train", 2), 2)
    first = renderer.draw(people, np.array([0, 1, 0, 1], np.int32), "wild").pixels
    np.testing.assert_array_equal(pairs.arrays["pixels"], np.rint(first * 255).astype(np.uint8))
    aligned = renderer.draw(people[::2], np.zeros(2, np.int32), "aligned").pixels
    np.testing.assert_array_equal(pairs.arrays["other_pixels"][::2], np.rint(aligned * 255).astype(np.uint8))
    wild = renderer.draw(people[1::2], np.full(2, 3, np.int32), "wild").pixels
    np.testing.assert_array_equal(pairs.arrays["other_pixels"][1::2], np.rint(wild * 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("people", "per_person", "message"), [(0, 1, "1 person, got 0"), (1, 0, "1 picture per person")]
)
def test_no_people_and_no_pictures_are_refused(people, per_person, message):
    with pytest.raises(ValueError, match=f"at least {message}"):
        portraits_sources.pictures("train", people, per_person, "wild")


class Counted:
    """Sources that count how often they are rendered."""

    def __init__(self, source: ArraySource):
        self.source, self.renderings = source, {"train": 0, "validation": 0}

    def makers(self):
        return {split: lambda split=split: self.make(split) for split in self.renderings}

    def make(self, split: str) -> ArraySource:
        self.renderings[split] += 1
        first = 0 if split == "train" else NUM - PER_PERSON
        return ArraySource({name: array[first:] for name, array in self.source.arrays.items()})


def test_a_cache_gives_the_same_records_bit_for_bit_and_renders_once(source, tmp_path):
    counted = Counted(source)
    for _ in range(2):
        cached = portraits_sources.cached_records(tmp_path / "cache", {"people": [3, 2]}, counted.makers())
        train, validation = cached["train"](), cached["validation"]()
        assert (len(train), len(validation)) == (NUM, PER_PERSON)
        for index in range(NUM):
            record, expected = train[index], source[index]
            assert list(record) == [field.name for field in FIELDS]
            for name, value in record.items():
                assert value.dtype == expected[name].dtype
                np.testing.assert_array_equal(value, expected[name])
        np.testing.assert_array_equal(validation[0]["wplus"], source[NUM - PER_PERSON]["wplus"])
    assert counted.renderings == {"train": 1, "validation": 1}
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_run_reads_the_same_batches_from_a_cache_as_from_memory(source, tmp_path):
    cached = portraits_sources.cached_records(tmp_path, {}, Counted(source).makers())["train"]()
    loaders = [make_loader(each, batch_size=2, seed=3, shuffle=True) for each in (source, cached)]
    assert loaders[0].get_state() == loaders[1].get_state()
    for rendered, read in itertools.islice(zip(*loaders, strict=True), 7):
        for name in rendered:
            np.testing.assert_array_equal(rendered[name], read[name])


def test_other_people_encoders_and_renderers_have_caches_of_their_own(source, tmp_path, monkeypatch):
    counted = Counted(source)
    for made_from in ({"people": 3}, {"people": 4}, {"people": 3, "vae": "0a"}, {"people": 3}):
        portraits_sources.cached_records(tmp_path, made_from, counted.makers())["train"]()
    assert counted.renderings["train"] == 3
    monkeypatch.setattr(renderer, "WORLD_VERSION", renderer.WORLD_VERSION + 1)
    portraits_sources.cached_records(tmp_path, {"people": 3}, counted.makers())["train"]()
    assert counted.renderings["train"] == 4 == len(list(tmp_path.iterdir()))


def test_a_rendering_that_fails_leaves_no_cache(source, tmp_path):
    def fail():
        raise MemoryError

    sources = Counted(source).makers() | {"validation": fail}
    with pytest.raises(MemoryError):
        portraits_sources.cached_records(tmp_path, {}, sources)["train"]()
    assert not list(tmp_path.iterdir())


def test_a_process_that_comes_second_reads_what_the_first_has_written(source, tmp_path):
    other = portraits_sources.cached_records(tmp_path, {}, Counted(source).makers())

    def make():
        other["train"]()  # the other process finishes meanwhile
        return source

    cached = portraits_sources.cached_records(tmp_path, {}, {"train": make, "validation": lambda: source})
    assert len(cached["train"]()) == NUM
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cache_that_is_a_file_is_refused(source, tmp_path):
    (tmp_path / "cache").write_text("notes", encoding="utf-8")
    counted = Counted(source)
    with pytest.raises(ValueError, match="expected a folder for cached records at .*cache"):
        portraits_sources.cached_records(tmp_path / "cache", {}, counted.makers())["train"]()
    assert counted.renderings["train"] == 0
