"""Directions are read from the files of others as they are meant, and found again where they were planted."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pidiff_jax.convert.files import write_safetensors
from pidiff_jax.editing.directions import from_components, from_labels, move, read_directions

LAYERS, WIDTH = 18, 512
PUBLISHED = Path(__file__).parents[3] / "shared" / "data"


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def read(path: Path) -> dict[str, np.ndarray]:
    found = read_directions(path, LAYERS, WIDTH)
    assert all(each.dtype == np.float32 and each.shape == (LAYERS, WIDTH) for each in found.values())
    return found


def save(path: Path, array: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".safetensors":
        write_safetensors(path, {path.stem: array})
    else:
        torch.save(torch.from_numpy(array), path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".npy", ".safetensors"])
@pytest.mark.parametrize("shape", [(WIDTH,), (1, WIDTH), (LAYERS, WIDTH), (1, LAYERS, WIDTH)])
def test_one_direction_has_its_files_name_and_goes_along_all_layers_alike_unless_it_has_them(tmp_path, suffix, shape):
    array = random(*shape)
    (name, direction), = read(save(tmp_path / f"age{suffix}", array)).items()  # fmt: skip
    expected = np.broadcast_to(array.reshape(-1, WIDTH), (LAYERS, WIDTH)).astype(np.float32)
    assert name == "age"
    np.testing.assert_array_equal(direction, expected)


def test_several_directions_come_longest_first(tmp_path):
    write_safetensors(tmp_path / "some.safetensors", {"short": np.ones((LAYERS, WIDTH)), "long": np.full(WIDTH, 2.0)})
    assert list(read(tmp_path / "some.safetensors")) == ["long", "short"]


def components(folder: Path, count: int = 3) -> dict[str, np.ndarray]:
    tensors = {"comp": random(count, 1, WIDTH), "mean": random(1, WIDTH), "std": np.array([3.0, 2.0, 1.0])[:count]}
    torch.save({name: torch.from_numpy(each) for name, each in tensors.items()}, folder / "pca.pt")
    return tensors


def test_ganspace_components_are_one_standard_deviation_long(tmp_path):
    tensors, found = components(tmp_path), read_components(tmp_path)
    assert list(found) == ["pc0", "pc1", "pc2"]
    np.testing.assert_allclose(found["pc1"][7], 2.0 * tensors["comp"][1, 0], rtol=1e-6)


def read_components(folder: Path) -> dict[str, np.ndarray]:
    return read(folder / "pca.pt")


def test_a_table_beside_components_names_them_and_says_in_which_layers_they_act(tmp_path):
    components(tmp_path)
    table = tmp_path / "edits.csv"
    table.write_text("component,start,end,strength,name\n1,2,5,3.5,smile\n0,0,18\n", encoding="utf-8")
    whole, found = read_components(tmp_path), read(table)
    assert list(found) == ["smile", "pc0_0_18"]
    np.testing.assert_array_equal(found["smile"][2:5], whole["pc1"][2:5])
    assert not np.delete(found["smile"], range(2, 5), 0).any()
    np.testing.assert_array_equal(found["pc0_0_18"], whole["pc0"])


@pytest.mark.skipif(not (PUBLISHED / "age.pt").is_file(), reason="published directions are not beside the repository")
def test_published_directions_are_read():
    for name in ("age", "smile", "pose"):
        (found,) = read(PUBLISHED / f"{name}.pt").values()
        assert np.abs(found).max() > 0
    assert "pc0" in read(PUBLISHED / "ffhq_pca.pt")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("narrow.pt", random(256), r"expected a direction of shape \(18, 512\), .*, got \(256,\) in .*another encoder"),
        ("deep.npy", random(14, WIDTH), r"got \(14, 512\)"),
        ("texts.npy", np.full(WIDTH, "a"), r"expected real numbers in .*texts\.npy, got <U1"),
        ("holes.npy", np.full(WIDTH, np.nan), "expected finite numbers in holes"),
        ("holes.pt", np.full(WIDTH, np.inf), "finite|NaN|infinit"),
    ],
)
def test_an_array_that_is_no_direction_here_is_refused_in_one_line(tmp_path, name, array, message):
    assert_refused(save(tmp_path / name, array), message)


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_directions(path, LAYERS, WIDTH)
    assert "\n" not in str(error.value)


def test_files_of_no_known_form_are_refused_in_one_line(tmp_path):
    (tmp_path / "age.txt").write_text("1 2 3", encoding="utf-8")
    (tmp_path / "age.npy").write_text("1 2 3", encoding="utf-8")
    assert_refused(tmp_path / "age.txt", r"expected directions as \.npy, \.safetensors, \.pt or \.csv, got .*age\.txt")
    assert_refused(tmp_path / "age.npy", r"expected an array in .*age\.npy, got a file of another kind")
    with pytest.raises(FileNotFoundError, match="expected a file of directions at .*smile.pt, found none"):
        read_directions(tmp_path / "smile.pt", LAYERS, WIDTH)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("one,2,3", "line 2: expected component,start,end, got 'one,2,3'"),
        ("1,2", "line 2: expected component,start,end, got '1,2'"),
        ("3,0,18", "line 2: expected a component below 3 and layers up to 18, got '3,0,18'"),
        ("0,5,5", "line 2: expected a component below 3"),
        ("0,0,19", "line 2: expected a component below 3"),
        ("inf,0,18", "line 2: expected"),
    ],
)
def test_a_wrong_line_of_a_table_is_named(tmp_path, line, message):
    components(tmp_path)
    (tmp_path / "edits.csv").write_text(f"0,0,18\n{line}\n", encoding="utf-8")
    assert_refused(tmp_path / "edits.csv", message)


def test_a_table_needs_exactly_one_file_of_components(tmp_path):
    (tmp_path / "edits.csv").write_text("0,0,18\n", encoding="utf-8")
    assert_refused(tmp_path / "edits.csv", r"expected one \.pt with the components beside .*, found 0")
    components(tmp_path)
    save(tmp_path / "age.pt", random(WIDTH))
    assert_refused(tmp_path / "edits.csv", "found 2")


def test_moving_changes_the_given_layers_by_the_strength_and_back_again():
    code, direction = random(10, 6), random(10, 6, seed=1)
    moved = move(code, direction, -1.5, "middle")
    np.testing.assert_allclose(moved[4:8], code[4:8] - 1.5 * direction[4:8])
    np.testing.assert_array_equal(np.delete(moved, range(4, 8), 0), np.delete(code, range(4, 8), 0))
    np.testing.assert_allclose(move(moved, direction, 1.5, "middle"), code)
    with pytest.raises(ValueError, match=r"expected a direction of shape \(10, 6\), got \(18, 6\)"):
        move(code, random(18, 6), 1.0)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def test_directions_of_attributes_that_come_together_are_told_apart():
    planted, labels = random(2, 4, 8), random(600, 2, seed=1)
    labels[:, 1] = 0.8 * labels[:, 0] + 0.6 * labels[:, 1]
    codes = np.einsum("na,ald->nld", labels, planted) + 0.3 * random(600, 4, 8, seed=2)
    noise = random(600, 1, seed=3)
    found = from_labels(codes, np.concatenate([labels, noise], 1), ["beard", "hair", "luck"])
    for name, direction in zip(("beard", "hair"), planted, strict=True):
        assert cosine(found.directions[name], direction) > 0.95
        assert found.sureness[name] > 0.5
    # One label alone would point between both.
    alone = from_labels(codes, labels[:, :1], ["beard"]).directions["beard"]
    assert cosine(alone, planted[0]) < cosine(found.directions["beard"], planted[0])
    assert found.sureness["luck"] < 0.2
    assert set(found.without_unsure(0.2).directions) == {"beard", "hair"}


def test_labels_that_tell_nothing_are_refused():
    with pytest.raises(ValueError, match="at least 6 labelled codes for 2 labels, got 5"):
        from_labels(random(5, 4, 8), random(5, 2), ["a", "b"])
    with pytest.raises(ValueError, match="expected labels that differ, got the same 'b' for everybody"):
        from_labels(random(9, 4, 8), np.stack([random(9), np.ones(9)], 1), ["a", "b"])


def test_a_planted_component_comes_first_with_its_share_of_the_variance():
    planted = random(4, 8)
    planted /= np.linalg.norm(planted)
    strengths, rest = 6.0 * random(2000, seed=1), random(2000, 4, 8, seed=2)
    found = from_components(5.0 + strengths[:, None, None] * planted + rest, count=3)
    assert list(found.directions) == ["pc0", "pc1", "pc2"] and found.sureness is None
    first = found.directions["pc0"]
    assert abs(cosine(first, planted)) > 0.99 and first.flat[np.abs(first).argmax()] > 0
    assert np.linalg.norm(first) == pytest.approx(np.sqrt(37), rel=0.05)
    assert found.variance["pc0"] == pytest.approx(37 / (36 + 32), rel=0.05)
    with pytest.raises(ValueError, match="expected more than 10 codes for 10 components, got 10"):
        from_components(random(10, 4, 8))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing.npy", b"", "got a file of another kind; save it with numpy.save"),
        ("semicolons.csv", b"0;0;4;10;smile\n", "expected rows component,start,end"),
        ("empty.csv", b"", "expected rows component,start,end"),
        ("latin.csv", "0,0,4,1,lächeln\n".encode("latin1"), "latin.csv, line 1: expected UTF-8, got byte 0xe4"),
        ("twice.csv", b"0,0,2,1,a\n\n1,0,2,1,a\n", "line 3: expected each name once, got 'a' again"),
    ],
)
def test_a_file_without_directions_is_refused_in_one_line(tmp_path, name, content, message):
    components(tmp_path)
    (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path / name, message)


def test_a_list_of_names_beside_something_else_than_components_is_refused(tmp_path):
    save(tmp_path / "age.pt", random(WIDTH))
    (tmp_path / "names.csv").write_text("0,0,4,1,smile\n", encoding="utf-8")
    assert_refused(tmp_path / "names.csv", "expected principal components, comp and std")
    write_safetensors(tmp_path / "none.safetensors", {})
    assert_refused(tmp_path / "none.safetensors", "got no arrays")


def test_there_are_no_more_components_than_numbers():
    with pytest.raises(ValueError, match="expected at most 4 components, as codes have numbers, got 5"):
        from_components(random(20, 2, 2), 5)
