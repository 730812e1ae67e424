"""A world in which identity, scene and face can be read from the pixels, so that every score is known beforehand.

The face is the left half: its red tells the person, its green the noise. The background's blue tells the prompt.
"""

import numpy as np

from pidiff_jax.evaluation.identity import evaluate_identity
from pidiff_jax.evaluation.protocol import Protocol
from pidiff_jax.evaluation.subjects import Judges, People, Prompts

NUM_PEOPLE, SIZE = 10, 8
PROTOCOL = Protocol(
    num_diversity_people=3, num_seeds=2, num_grid_people=4, num_grid_prompts=2, batch_size=4, show_progress=False
)
NOISE_SHAPE = (4, 4, 2)


def face_mask(pixels):
    mask = np.zeros(pixels.shape[:3], np.float32)
    mask[:, :, : SIZE // 2] = 1.0
    return mask


def paint(person, prompt, noise):
    """Pixels from numbers in [0, 1], each (b,)."""
    pixels = np.zeros((len(person), SIZE, SIZE, 3), np.float32)
    pixels[:, :, : SIZE // 2, 0] = person[:, None, None]
    pixels[:, :, : SIZE // 2, 1] = noise[:, None, None]
    pixels[:, :, SIZE // 2 :, 2] = prompt[:, None, None]
    return pixels


def codes():
    return np.linspace(0.1, 1.0, NUM_PEOPLE, dtype=np.float32)


def people():
    pictures = paint(codes(), np.zeros(NUM_PEOPLE), np.zeros(NUM_PEOPLE))
    return People(pictures, pictures, np.tile(codes()[:, None, None], (1, 3, 2)))


def prompts():
    ids = np.arange(3, dtype=np.int32)[:, None]
    return Prompts(("a red wall", "a striped wall", "a dotted wall"), np.tile(ids, (1, 4)), ids, ("wall",))


def generate(wplus, text_ids, noise, identity_scale):
    """Draws the person asked for, or, with the identity off, nobody."""
    person = wplus[:, 0, 0] * identity_scale
    pixels = paint(person, text_ids[:, 0] / 2, np.abs(np.asarray(noise)).mean((1, 2, 3)) % 1.0)
    attention = face_mask(pixels)[:, ::2, ::2] * identity_scale
    return pixels, attention


def recognise(pixels):
    """The person's number as an angle."""
    angle = pixels[:, 0, 0, 0] * np.pi / 2
    return np.stack([np.cos(angle), np.sin(angle)], -1)


JUDGES = Judges(
    recogniser=recognise,
    scene=lambda pixels: np.rint(pixels[:, 0, -1:, 2] * 2).astype(np.int32),
    face_mask=face_mask,
)


def evaluate(generate_fn=generate, protocol=PROTOCOL):
    return evaluate_identity(generate_fn, JUDGES, people(), prompts(), NOISE_SHAPE, protocol)
