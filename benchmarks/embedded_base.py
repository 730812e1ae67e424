"""How good the embedded base model's pictures are, without an identity: against renders, and against what its VAE can show.

python benchmarks/embedded_base.py                                         # the shipped weights
python benchmarks/embedded_base.py --base=runs/portraits_unet/weights --vae=runs/portraits_vae/weights

Renders are of validation people, with scenes that training shows too. `distance` is a Fréchet distance in the features of the
embedded world's own network (`realism.safetensors`), no FID. A face is found where the segmenter's mask covers 15 % of the
picture. Eyes are found where the finder of landmarks sees both, surely (.5 or more), and in the picture's mirror image within
2 pixels of the same places; of the renders it is also known how often they are where they were painted.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tqdm import tqdm

from pidiff_jax.arrays import in_batches, signed_pixels
from pidiff_jax.diffusion.samplers import SAMPLERS
from pidiff_jax.evaluation.identity import draw_noise
from pidiff_jax.evaluation.scores import frechet_distance, prompt_accuracy
from pidiff_jax.sampling.generate import Sampling, decode_latents, generate, sampler_for
from pidiff_jax.worlds.portraits import networks
from pidiff_jax.worlds.portraits.judges import load_judges, load_landmarks, load_realism
from pidiff_jax.worlds.portraits.sources import encode_latents, pictures, scene_caption_ids
from pidiff_jax.worlds.portraits.weight_files import load_weights

BATCH_SIZE = 50
LEFT_EYE, RIGHT_EYE, NOSE = 0, 1, 2
MIRRORED = [1, 0, 2, 4, 3]  # the landmarks of a mirror image, in their order
SHEET, ENLARGED = (8, 8), 3


def main() -> None:
    """Prints the scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="folder of base.safetensors; left out: the shipped one")
    parser.add_argument("--vae", help="folder of vae.safetensors; left out: the shipped one")
    parser.add_argument("--num_pictures", type=int, default=2000)
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddim")
    parser.add_argument("--eta", type=float, default=0.0, help="noise that DDIM adds, 0 to 1")
    parser.add_argument("--num_steps", type=int, default=20)
    parser.add_argument("--guidance_scale", type=float, default=2.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=Path, help="PNG file for the first 64 samples, three times enlarged")
    args = parser.parse_args()
    if args.pictures and (args.pictures.exists() or not args.pictures.parent.is_dir()):
        parser.error(
            f"expected --pictures to name a new file in a folder that is there, got {args.pictures}; correct it"
        )
    sampling = Sampling(args.num_steps, args.guidance_scale, sampler=args.sampler, eta=args.eta)
    try:
        sampler_for(networks.base_components(), sampling)
    except ValueError as error:
        parser.error(str(error))

    renders = pictures("validation", args.num_pictures, 1, "wild")
    fresh = pictures("validation", args.num_pictures, 1, "wild", start=args.num_pictures)["pixels"] / np.float32(255)
    vae = load_weights("vae", args.vae)["vae"]
    reconstructions = _reconstructions(vae, renders["pixels"])
    samples = _samples({"vae": vae, **load_weights("base", args.base)}, renders["scene"], sampling, args.seed)
    if args.pictures:
        _save_sheet(samples, args.pictures)

    features = load_realism()
    reference = _each(features, fresh)
    shown = {"renders": renders["pixels"] / np.float32(255), "reconstructions": reconstructions, "samples": samples}
    scores = {name: _scores(pixels, renders["scene"]) for name, pixels in shown.items()}
    for name, pixels in shown.items():
        scores[name]["distance"] = frechet_distance(_each(features, pixels), reference)
    eyes, _, frontal = _found_eyes(shown["renders"])
    off = np.linalg.norm(eyes - renders["landmarks"][:, [LEFT_EYE, RIGHT_EYE]], axis=-1).max(-1)
    scores["renders"]["eyes_where_painted"] = float((off < 2.0)[frontal].mean())
    scores["reconstructions"]["psnr_db"] = _psnr(reconstructions, shown["renders"])
    scores["samples"]["distance_over_reconstructions"] = (
        scores["samples"]["distance"] / scores["reconstructions"]["distance"]
    )
    print(json.dumps({"pictures": args.num_pictures, **scores}, indent=1))


def _reconstructions(vae: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
    c = networks.base_components()
    encode = encode_latents(c.vae, vae)
    return _each(jax.jit(lambda x: decode_latents(c, vae, encode(signed_pixels(x))[0])), pixels)


def _samples(params: dict[str, Any], scenes: np.ndarray, sampling: Sampling, seed: int) -> np.ndarray:
    c = networks.base_components()
    draw = jax.jit(lambda noise, ids, keys: generate(c, params, noise, ids, sampling=sampling, keys=keys)[0])
    jobs = np.array([(index, 0, 0) for index in range(len(scenes))])
    bar = tqdm(total=len(scenes), unit="picture", desc="drawing")

    def batch(ids: np.ndarray, jobs: np.ndarray) -> np.ndarray:
        bar.update(len(ids))
        keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(jobs[:, 0])
        return np.asarray(draw(draw_noise(seed, jobs, c.noise_shape), ids, keys))

    with bar:
        return in_batches(batch, scene_caption_ids(scenes), jobs, batch_size=BATCH_SIZE)


def _scores(pixels: np.ndarray, scenes: np.ndarray) -> dict[str, float]:
    judges = load_judges()
    _, found, frontal = _found_eyes(pixels)
    return {
        "prompt_accuracy": float(prompt_accuracy(_each(judges.scene, pixels), scenes).mean()),
        "face_found": float((_each(lambda x: (judges.face_mask(x) > 0.5).mean((1, 2)), pixels) >= 0.15).mean()),
        "eyes_found": float(found[frontal].mean()),
        "frontal": float(frontal.mean()),
    }


def _found_eyes(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eyes (n, 2, 2) in pixels, whether both are found, and whether the face looks ahead: its nose is midway."""
    find = load_landmarks()
    points, sure = _each(find, pixels)
    other_points, other_sure = _each(find, np.ascontiguousarray(pixels[:, :, ::-1]))
    other_points = other_points[:, MIRRORED] * [-1.0, 1.0] + [pixels.shape[2], 0.0]
    eyes = slice(LEFT_EYE, RIGHT_EYE + 1)
    apart = np.linalg.norm(points - other_points, axis=-1)[:, eyes].max(-1)
    surely = np.minimum(sure[:, eyes], other_sure[:, [RIGHT_EYE, LEFT_EYE]]).min(-1) >= 0.5
    across = points[:, RIGHT_EYE] - points[:, LEFT_EYE]
    aside = ((points[:, NOSE] - points[:, eyes].mean(1)) * across).sum(-1) / np.maximum(np.square(across).sum(-1), 1.0)
    return points[:, eyes], surely & (apart < 2.0), np.abs(aside) < 0.15


def _psnr(pixels: np.ndarray, others: np.ndarray) -> float:
    mse = np.square(pixels - others).mean((1, 2, 3))
    return float((10.0 * np.log10(1.0 / mse)).mean())


def _each(function: Any, pixels: np.ndarray) -> Any:
    return in_batches(lambda x: jax.tree.map(np.asarray, function(jnp.asarray(x))), pixels, batch_size=BATCH_SIZE)


def _save_sheet(samples: np.ndarray, path: Path) -> None:
    rows, columns = SHEET
    n, height, width, _ = samples[: rows * columns].shape
    sheet = np.ones((rows * columns, height, width, 3), np.float32)
    sheet[:n] = samples[: rows * columns]
    sheet = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    picture = Image.fromarray(np.rint(sheet * 255).astype(np.uint8))
    picture.resize((picture.width * ENLARGED, picture.height * ENLARGED), Image.Resampling.LANCZOS).save(path)


if __name__ == "__main__":
    main()
