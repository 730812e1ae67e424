import numpy as np
import pytest
from PIL import Image

from data_pipeline.prepare.align import align_face, eyes_and_mouth, ffhq_quad
from tests.data_pipeline import astronaut

UPRIGHT = np.array([(100.0, 100.0), (150.0, 100.0), (125.0, 130.0), (105.0, 160.0), (145.0, 160.0)])


def quad_by_complex_numbers(landmarks: np.ndarray) -> np.ndarray:
    """The formula of FFHQ with points as complex numbers: a quarter turn is a multiplication by i."""
    left_eye, right_eye, _, left_mouth, right_mouth = landmarks @ [1, 1j]
    eye_to_eye = right_eye - left_eye
    eye_to_mouth = (left_mouth + right_mouth) / 2 - (left_eye + right_eye) / 2
    x = eye_to_eye - 1j * eye_to_mouth
    x *= max(abs(eye_to_eye) * 2.0, abs(eye_to_mouth) * 1.8) / abs(x)
    centre = (left_eye + right_eye) / 2 + 0.1 * eye_to_mouth
    corners = [centre + x * turn for turn in (-1 - 1j, -1 + 1j, 1 + 1j, 1 - 1j)]
    return np.array([(corner.real, corner.imag) for corner in corners])


def test_quad_of_an_upright_face_by_hand():
    # Eyes 50 apart, mouth 60 below: half side max(2 * 50, 1.8 * 60) = 108 around (125, 100 + 6).
    np.testing.assert_allclose(ffhq_quad(UPRIGHT), [(17, -2), (17, 214), (233, 214), (233, -2)])


@pytest.mark.parametrize("seed", range(5))
def test_quad_agrees_with_the_formula(seed):
    landmarks = UPRIGHT + np.random.default_rng(seed).normal(0, 8, (5, 2))
    np.testing.assert_allclose(ffhq_quad(landmarks), quad_by_complex_numbers(landmarks), rtol=1e-12)


def test_quad_turns_and_grows_with_the_face():
    turn = np.array([[np.cos(0.7), np.sin(0.7)], [-np.sin(0.7), np.cos(0.7)]])
    np.testing.assert_allclose(ffhq_quad(3 * UPRIGHT @ turn + 5), 3 * ffhq_quad(UPRIGHT) @ turn + 5, rtol=1e-12)


def test_68_points_are_reduced_to_eyes_and_mouth():
    points = np.random.default_rng(0).uniform(0, 200, (68, 2))
    for part, place in ((slice(36, 42), UPRIGHT[0]), (slice(42, 48), UPRIGHT[1]), (48, UPRIGHT[3]), (54, UPRIGHT[4])):
        points[part] = points[part] / 10 + place
    expected = [points[36:42].mean(0), points[42:48].mean(0), points[48], points[54]]
    np.testing.assert_allclose(eyes_and_mouth(points), expected)
    five = np.insert(np.array(expected), 2, 0, axis=0)
    np.testing.assert_allclose(ffhq_quad(points), ffhq_quad(five))


EXCHANGED = [1, 0, 2, 4, 3]


@pytest.mark.parametrize("degrees", [-40, 0, 40])
def test_the_persons_own_left_and_right_are_exchanged(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    face = UPRIGHT @ np.array([[c, s], [-s, c]]) + 300
    np.testing.assert_allclose(ffhq_quad(face[EXCHANGED]), ffhq_quad(face))
    points = np.zeros((68, 2))
    for own, seen in ((slice(36, 42), 1), (slice(42, 48), 0), (48, 4), (54, 3)):
        points[own] = face[seen]
    np.testing.assert_allclose(eyes_and_mouth(points), face[[0, 1, 3, 4]])


@pytest.mark.parametrize("degrees", range(0, 360, 30))
def test_a_turned_face_even_upside_down_stays_as_it_is(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    face = UPRIGHT @ np.array([[c, s], [-s, c]])
    np.testing.assert_allclose(eyes_and_mouth(face), face[[0, 1, 3, 4]])
    profile = face.copy()
    profile[1] = face[0] + 0.1 * (face[0] - face[1])  # one eye seems to be beyond the other
    np.testing.assert_allclose(eyes_and_mouth(profile), profile[[0, 1, 3, 4]])


@pytest.mark.parametrize(
    "landmarks",
    [
        UPRIGHT[:, ::-1],  # (y, x)
        UPRIGHT[EXCHANGED] @ np.array([[0, 1], [-1, 0]]),  # lying and exchanged
        UPRIGHT[[1, 0, 2, 3, 4]],  # the eyes alone
        UPRIGHT[[3, 4, 2, 0, 1]],  # the mouth first
    ],
)
def test_landmarks_in_an_order_that_is_not_certain_are_refused(landmarks):
    with pytest.raises(ValueError, match="expected left and right of eyes and mouth as seen"):
        eyes_and_mouth(landmarks)


def test_pixels_of_the_crop_come_from_their_place_in_the_quad():
    y, x = np.mgrid[:250, :250].astype(np.uint8)
    picture = np.stack([x, y, np.zeros_like(x)], -1)  # colours tell where a pixel was
    landmarks = (UPRIGHT - 125) @ np.array([[0.96, 0.28], [-0.28, 0.96]]) * 0.6 + 125
    crop = align_face(picture, landmarks, 32).astype(float)
    quad = quad_by_complex_numbers(landmarks)
    u = ((np.arange(32) + 0.5) / 32)[None, :, None]
    v = ((np.arange(32) + 0.5) / 32)[:, None, None]
    place = quad[0] + u * (quad[3] - quad[0]) + v * (quad[1] - quad[0])
    np.testing.assert_allclose(crop[..., :2], place, atol=1.5)


def test_astronaut_is_aligned_as_ffhq_is():
    crop = align_face(astronaut.pixels(), astronaut.LANDMARKS, 256)
    quad = ffhq_quad(astronaut.LANDMARKS)
    axes = np.stack([quad[3] - quad[0], quad[1] - quad[0]], 1)
    left_eye, right_eye, _, left_mouth, right_mouth = np.linalg.solve(axes, (astronaut.LANDMARKS - quad[0]).T).T
    # In FFHQ's crops eyes and mouth lie at about these places, as fractions of the side.
    np.testing.assert_allclose([left_eye, right_eye], [(0.38, 0.47), (0.62, 0.47)], atol=0.03)
    np.testing.assert_allclose([left_mouth, right_mouth], [(0.39, 0.70), (0.61, 0.70)], atol=0.03)
    pupil = crop[round(left_eye[1] * 256) - 3 :, round(left_eye[0] * 256) - 3 :][:7, :7]
    teeth = crop[round(left_mouth[1] * 256), 118:138]
    assert pupil.mean() < 90 < 150 < teeth.max()


def test_what_lies_outside_the_photograph_is_reflected_or_black():
    pixels = astronaut.pixels()[60:, 130:]
    landmarks = astronaut.LANDMARKS - [130, 60]
    padded, black = align_face(pixels, landmarks, 128), align_face(pixels, landmarks, 128, pad=False)
    whole = align_face(astronaut.pixels(), astronaut.LANDMARKS, 128)
    inside = np.s_[40:, 10:]
    for crop in (padded, black):
        assert np.abs(crop[inside].astype(int) - whole[inside]).mean() < 3
    assert black[:25].max() == 0
    assert padded[:25].mean() > 60


def test_a_large_photograph_is_shrunk_before_cutting():
    large = np.array(Image.fromarray(astronaut.pixels()).resize((2048, 2048), Image.Resampling.BICUBIC))
    small = align_face(astronaut.pixels(), astronaut.LANDMARKS, 64).astype(int)
    assert np.abs(align_face(large, 4 * astronaut.LANDMARKS, 64) - small).mean() < 4


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (np.zeros((4, 2)), "expected 5 or 68 landmarks, got 4"),
        (np.ones((5, 2)), "coincide"),
        (UPRIGHT * 1e300, "expected finite landmarks, got NaN or more than a million pixels in point 1"),
        (UPRIGHT / 200, "coincide within 0.3 pixels; give pixels, not shares"),
        (UPRIGHT + 2000, "expected landmarks inside the picture"),
    ],
)
def test_impossible_landmarks_are_refused(landmarks, message):
    with pytest.raises(ValueError, match=message):
        align_face(np.zeros((100, 100, 3), np.uint8), landmarks)
