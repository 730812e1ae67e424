"""An export proves itself: files are read and drawn from again, and what a format can't hold is refused before any work."""

import base64
import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from data_pipeline.records import write_records
from launch.export import _FORMATS
from pidiff_jax.convert.clip_tokenizer import tokenize
from pidiff_jax.convert.files import read_metadata, read_tensors, write_safetensors
from pidiff_jax.evaluation.identity import draw_noise
from pidiff_jax.export.export import DTYPES, FORMATS, export_run
from pidiff_jax.export.ip_adapter import IPAdapterFormat
from pidiff_jax.export.proof import Sitting
from pidiff_jax.paths import flatten
from pidiff_jax.runs.build import checked_sampling
from pidiff_jax.runs.saved_run import open_run
from pidiff_jax.sampling.compiled import CompiledSampler
from pidiff_jax.worlds.portraits.world import PortraitsWorld
from tests.data_pipeline.made_up_records import make_record
from tests.export.tiny_run import FORMS, make_run
from tests.launch.commands import call, call_script

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")


def some(forms: list[str], *always: str) -> list:
    """All forms as parameters, of which those that aren't named wait for `make test-full`."""
    return [pytest.param(form, marks=[] if form in always else pytest.mark.full) for form in forms]


DECOUPLED = some([name for name, (variant, *_) in FORMS.items() if variant == "decoupled"], "mlp, sink")
EVERY = some(list(FORMS), "residual, sink, mlp", "independent")


@pytest.fixture(autouse=True, scope="module")
def a_run_sits_once():
    """The two people of every proof are the same, and what a run draws of them too, however often it is exported."""
    people, sittings, render = {}, {}, PortraitsWorld.preview_people

    def rendered(*arguments):
        return people[0] if people else people.setdefault(0, render(*arguments))

    def sitting(run, with_identity):
        key = (run.folder, with_identity)
        return sittings[key] if key in sittings else sittings.setdefault(key, Sitting(run, with_identity))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PortraitsWorld, "preview_people", rendered)
        patch.setattr("pidiff_jax.export.export.Sitting", sitting)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Makes the run of a form when it is first asked for."""
    root, made = tmp_path_factory.mktemp("runs"), {}

    def run(form: str) -> Path:
        if form not in made:
            made[form] = make_run(root / form.replace(", ", "_"), form)
        return made[form]

    return run


def differences(report) -> dict[str, float]:
    return {finding.where.split(",")[0]: finding.difference for finding in report.findings}


@pytest.mark.parametrize("form", DECOUPLED)
def test_stock_diffusers_draws_the_runs_pictures_with_an_ip_adapter(runs, tmp_path, form):
    found = differences(export_run(runs(form), tmp_path / "out", "ip_adapter"))
    assert found["JAX"] == 0.0 and found["PyTorch"] <= 1e-3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "draw.py", "ip_adapter.safetensors", "people.safetensors"
    }  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("form", ["linear, sink", "mlp"])
def test_plain_diffusers_draws_a_run_at_every_scale_of_the_identity(runs, tmp_path, form):
    """Twenty steps with guidance, by the folder and the file that two exports left."""
    workdir = make_run(tmp_path / "run", form, sampling={"num_steps": 20, "guidance_scale": 2.5})
    export_run(workdir, tmp_path / "adapter", "ip_adapter", identities=["test:0"], check=False)
    export_run(workdir, tmp_path / "base", "diffusers", check=False)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "base", local_files_only=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.load_ip_adapter(
        tmp_path / "adapter", subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None,
        low_cpu_mem_usage=False,
    )  # fmt: skip
    person = load_file(tmp_path / "adapter/people.safetensors")["test_0"]
    run, text = open_run(workdir), "a person in a red shirt"
    noise = np.asarray(draw_noise(0, np.array([(0, 0, 0)]), run.components.noise_shape))
    sampling = checked_sampling(run.config.sampling, run.components)
    generate = CompiledSampler(run.components, run.mesh).with_parameters(run.params, sampling)
    drawn, ids = {}, tokenize(run.components.tokenizer, [text])
    for scale in (0.0, 0.5, 1.0):
        pipe.set_ip_adapter_scale(scale)
        theirs = pipe(
            text, num_inference_steps=20, guidance_scale=2.5, output_type="np", ip_adapter_image_embeds=[person],
            latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()),
        ).images  # fmt: skip
        drawn[scale] = np.asarray(generate(run.world.held_out("test").people(1).wplus, ids, noise, scale)[0])
        np.testing.assert_allclose(theirs, drawn[scale], rtol=0, atol=1e-3)
    assert all(np.abs(drawn[scale] - drawn[0.0]).max() > 0.01 for scale in (0.5, 1.0))


@pytest.mark.full
def test_the_script_beside_an_ip_adapter_draws_the_people_that_came_with_it(runs, tmp_path):
    export_run(runs("linear"), tmp_path / "adapter", "ip_adapter", check=False)
    export_run(runs("linear"), tmp_path / "base", "diffusers", check=False)
    script, pictures = tmp_path / "adapter" / "draw.py", {}
    line = f"import os, runpy; os.chdir({str(tmp_path)!r}); runpy.run_path({str(script)!r})"
    result = call_script(line, tmp_path / "base", "a person", "nobody")
    assert result.returncode == 1 and "\nDraws a person: python draw.py BASE" in f"\n{result.stderr}"
    result = call_script(line, tmp_path / "nothing", "a person")
    assert result.returncode == 1 and "no Stable Diffusion folder at" in result.stderr
    for person in ("person_0", "person_1"):
        if pictures:  # the second without guidance
            text = script.read_text(encoding="utf-8")
            assert "guidance_scale = 2.5" in text
            script.write_text(text.replace("guidance_scale = 2.5", "guidance_scale = 1.0"), encoding="utf-8")
        result = call_script(line, tmp_path / "base", "a person in a red shirt before a blue wall", person)
        assert result.returncode == 0, result.stderr
        assert f"wrote {person}.png" in result.stdout
        pictures[person] = np.asarray(Image.open(tmp_path / f"{person}.png"))
    assert pictures["person_0"].shape == (64, 64, 3)
    assert (pictures["person_0"] != pictures["person_1"]).any()


def test_diffusers_opens_the_base_and_draws_what_the_run_draws_without_identity(runs, tmp_path):
    found = differences(export_run(runs("independent"), tmp_path / "out", "diffusers"))
    assert found["JAX"] == 0.0 and found["PyTorch"] <= 1e-3


@pytest.mark.parametrize("form", EVERY)
def test_the_pipeline_in_pytorch_draws_the_pictures_of_every_form_of_run(runs, tmp_path, form):
    found = differences(export_run(runs(form), tmp_path / "out", "diffusers_identity"))
    assert found["JAX"] == 0.0 and found["PyTorch"] <= 1e-3


@pytest.fixture(scope="module")
def pipeline_folder(runs, tmp_path_factory):
    """An exported pipeline whose identity has a query of its own."""
    folder = tmp_path_factory.mktemp("pipeline") / "out"
    export_run(runs("independent"), folder, "diffusers_identity", identities=["test:1"], check=False)
    return folder


@pytest.fixture
def open_pipe(pipeline_folder, tmp_path, monkeypatch):
    """Opens a folder as users do, and returns how it draws the person in it."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    person = load_file(pipeline_folder / "people.safetensors")["test_1"]

    def opened(folder):
        pipe = DiffusionPipeline.from_pretrained(
            str(folder), custom_pipeline=str(folder), trust_remote_code=True, local_files_only=True
        )

        def draw(prompt="a person", wplus=person, **options):
            options = {"num_inference_steps": 2, "output_type": "np", **options}
            return pipe(prompt, wplus=wplus, generator=torch.Generator().manual_seed(0), **options).images

        return pipe, draw

    return opened


def test_diffusers_itself_finds_the_pipeline_and_draws_a_person_with_it(pipeline_folder, open_pipe):
    _, draw = open_pipe(pipeline_folder)
    person = load_file(pipeline_folder / "people.safetensors")["test_1"]

    def draw_four(**identity):
        return draw(["a person", "a red wall"], num_images_per_prompt=2, **identity)

    pictures, nobody = draw_four(), draw_four(wplus=None)
    assert pictures.shape == (4, 64, 64, 3) and np.abs(pictures - nobody).max() > 0.01
    np.testing.assert_array_equal(draw_four(identity_scale=0), nobody)
    np.testing.assert_allclose(draw_four(wplus=torch.stack([person, person])), pictures, rtol=0, atol=1e-5)


def test_the_pipeline_keeps_the_identity_when_diffusers_exchanges_the_attention(pipeline_folder, open_pipe):
    pipe, draw = open_pipe(pipeline_folder)
    pictures = draw()
    pipe.enable_attention_slicing()
    np.testing.assert_allclose(draw(), pictures, rtol=0, atol=1e-4)
    pipe.disable_attention_slicing()
    np.testing.assert_allclose(draw(), pictures, rtol=0, atol=1e-4)


def test_a_pipeline_that_is_saved_opens_again_and_draws_the_same(pipeline_folder, open_pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(pipeline_folder.parent)
    pipe, draw = open_pipe(pipeline_folder.name)
    pictures = draw()
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained("saved")
    _, draw_again = open_pipe("saved")
    np.testing.assert_array_equal(draw(), pictures)
    np.testing.assert_array_equal(draw_again(), pictures)
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert read_tensors(tmp_path / "saved" / unet).keys() == read_tensors(pipeline_folder / unet).keys()


@pytest.mark.parametrize("shape", [(18, 64), (10, 32), (3, 10, 64)])
def test_the_pipeline_refuses_codes_that_are_not_the_mappers_or_the_prompts(pipeline_folder, open_pipe, shape):
    _, draw = open_pipe(pipeline_folder)
    with pytest.raises(
        ValueError, match=r"expected one W\+ code \(10, 64\), or one for each of 2 prompts, got the shape"
    ):
        draw(["a person", "a red wall"], wplus=torch.zeros(shape))


def test_a_w_plus_adapter_file_draws_the_runs_pictures(runs, tmp_path):
    found = differences(export_run(runs("residual"), tmp_path / "out", "wplus_adapter"))
    assert found["JAX"] == 0.0 and found["PyTorch"] <= 1e-3
    content = torch.load(tmp_path / "out/wplus_adapter.bin", weights_only=True)
    assert content.keys() == {"w_proj", "wplus_adapter"}
    assert {"proj_0.weight", "proj_3.weight", "norm.weight", "norm.bias"} <= content["w_proj"].keys()
    assert {"1.to_q_wplus.weight", "1.to_k_wplus.weight", "1.to_v_wplus.weight"} <= content["wplus_adapter"].keys()


@pytest.mark.parametrize(("form", "other"), [("linear", "ip_adapter or "), ("residual, sink, mlp", "")])
def test_other_forms_are_refused_by_wplus_adapter(runs, tmp_path, form, other):
    with pytest.raises(ValueError, match=f"expected a run with .* for .*; --format={other}diffusers_identity can hold"):
        export_run(runs(form), tmp_path / "out", "wplus_adapter")


@pytest.mark.parametrize("form", some(["linear", "mlp, sink"], "mlp, sink"))
def test_comfyui_gets_what_its_nodes_read(runs, tmp_path, monkeypatch, form):
    """As ComfyUI_IPAdapter_plus does: the projection's input is as wide as what is loaded, one row or many."""
    with pytest.raises(ValueError, match="got another, which ComfyUI can't open; --format=ip_adapter can hold"):
        export_run(runs(form), tmp_path / "out", "comfyui")
    monkeypatch.setattr("pidiff_jax.export.comfyui.architecture", lambda components: "stable-diffusion-v1")
    found = differences(export_run(runs(form), tmp_path / "out", "comfyui"))
    assert found["JAX"] == 0.0 and found["PyTorch"] <= 1e-3
    person, negative = (
        torch.load(tmp_path / "out" / name, weights_only=True) for name in ("person_0.ipadpt", "negative.ipadpt")
    )
    tensors = read_tensors(tmp_path / "out/pidiff_ip_adapter.safetensors")
    first = tensors["image_proj.proj.0.weight" if "image_proj.proj.3.weight" in tensors else "image_proj.proj.weight"]
    assert len(person) == 1 and person.shape == negative.shape and person.shape[-1] == first.shape[1]
    assert person.abs().max() > 0 and not negative.any()
    workflow = json.loads((tmp_path / "out/workflow_api.json").read_text(encoding="utf-8"))
    files = {value for node in workflow.values() for value in node["inputs"].values() if isinstance(value, str)}
    assert {path.name for path in (tmp_path / "out").iterdir()} - files == {"workflow_api.json", "person_1.ipadpt"}
    for node in workflow.values():
        for value in node["inputs"].values():
            assert not isinstance(value, list) or value[0] in workflow


def test_a_person_named_as_the_file_of_nobody_is_refused_by_comfyui(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("pidiff_jax.export.comfyui.architecture", lambda components: "stable-diffusion-v1")
    np.save(tmp_path / "negative.npy", np.zeros((10, 64), np.float32))
    identities = [str(tmp_path / "negative.npy")]
    with pytest.raises(ValueError, match="expected no person named 'negative' .* rename the file of codes"):
        export_run(runs("linear"), tmp_path / "out", "comfyui", identities=identities, check=False)


def test_people_come_along_by_file_or_number(runs, tmp_path):
    code = np.random.default_rng(0).standard_normal((10, 64)).astype(np.float32)
    np.save(tmp_path / "anna.npy", code)
    record = {**make_record(0), "wplus": np.float32(2) * code}
    write_records(tmp_path / "records", {"train": [record], "validation": [record]}, {})
    identities = [str(tmp_path / "anna.npy"), "test:0", f"{tmp_path}/records:validation:0"]
    export_run(runs("linear"), tmp_path / "out", "ip_adapter", identities=identities, check=False)
    people = read_tensors(tmp_path / "out/people.safetensors")
    assert people.keys() == {"anna", "test_0", "validation_0"}
    np.testing.assert_array_equal(people["validation_0"], 2 * people["anna"])
    np.testing.assert_array_equal(people["anna"], np.stack([0 * code, code]).reshape(2, 1, -1))


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        ("nobody.npy", r"found no file .*nobody\.npy"),
        ("records:validation:0", "records"),
        ("face.jpg", r"face\.jpg: .*cannot identify image file|face\.jpg: expected"),
        ("wide.npy", r"expected a W\+ code of shape \(10, 64\), got \(10, 65\)"),
        ("batch.npy", r"got \(1, 10, 64\) in 'batch'; .* without an axis for a batch"),
        ("nan.npy", "expected finite numbers"),
        ("empty.npy", "expected an array in .*, got a file of another kind; save it with numpy.save"),
        ("complex.npy", "expected real numbers in .*, got complex128"),
        ("archive.npy", "expected one array in .*, got an archive of arrays"),
        ("nobody.safetensors", r"expected W\+ codes, got a file without tensors"),
        ("a b.npy", "expected a name of letters"),
    ],
)
def test_people_that_are_none_are_refused(runs, tmp_path, identity, message):
    np.save(tmp_path / "wide.npy", np.zeros((10, 65)))
    np.save(tmp_path / "batch.npy", np.zeros((1, 10, 64)))
    np.save(tmp_path / "nan.npy", np.full((10, 64), np.nan))
    np.save(tmp_path / "complex.npy", np.zeros((10, 64), complex))
    np.savez(tmp_path / "archive", np.zeros((10, 64)))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    (tmp_path / "empty.npy").touch()
    write_safetensors(tmp_path / "nobody.safetensors", {})
    np.save(tmp_path / "a b.npy", np.zeros((10, 64)))
    (tmp_path / "face.jpg").touch()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        export_run(runs("linear"), tmp_path / "out", "ip_adapter", identities=[str(tmp_path / identity)])
    with pytest.raises(ValueError, match="expected no --identity for --format=safetensors"):
        export_run(runs("linear"), tmp_path / "out", "safetensors", identities=[str(tmp_path / identity)])


def test_a_variant_names_the_weight_files_and_halves_them(runs, tmp_path):
    export_run(runs("linear"), tmp_path / "out", "diffusers", variant="fp16", check=False)
    assert not (tmp_path / "out/unet/diffusion_pytorch_model.safetensors").exists()
    pipeline = StableDiffusionPipeline.from_pretrained(
        tmp_path / "out", variant="fp16", torch_dtype=torch.float16, local_files_only=True
    )
    assert pipeline.unet.dtype == pipeline.vae.dtype == pipeline.text_encoder.dtype == torch.float16


@pytest.mark.parametrize("form", EVERY)
def test_an_adapter_file_can_be_opened_in_place_of_the_runs_folder(runs, tmp_path, form):
    export_run(runs(form), tmp_path / "out", "safetensors", check=False)
    run, again = open_run(runs(form)), open_run(tmp_path / "out/adapter.safetensors")
    found = flatten(again.params)
    assert found.keys() == flatten(run.params).keys()
    for path, leaf in flatten(run.params).items():
        np.testing.assert_array_equal(leaf, found[path], err_msg=path)
    assert again.config.to_json() == run.config.to_json()
    assert (again.facts["num_steps"], again.trained) == (7, run.trained)
    with pytest.raises(ValueError, match="expected the step 7 of .*, got 8; a file has one"):
        open_run(tmp_path / "out/adapter.safetensors", step=8)


def test_another_safetensors_file_is_no_adapter(tmp_path):
    write_safetensors(tmp_path / "other.safetensors", {"x": np.zeros(1, np.float32)})
    with pytest.raises(ValueError, match="expected the folder of a run or an adapter file of ours"):
        open_run(tmp_path / "other.safetensors")


def test_a_run_leaves_when_the_file_that_it_started_from_is_gone(tmp_path):
    run = make_run(tmp_path / "run", "linear")
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config["init"]["adapter"] = str(tmp_path / "gone.safetensors")
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert export_run(run, tmp_path / "out", "safetensors", check=False).step == 7


def test_the_average_is_what_leaves(runs, tmp_path):
    export_run(runs("linear"), tmp_path / "out", "safetensors", check=False)
    tensors = read_tensors(tmp_path / "out/adapter.safetensors")
    assert abs(np.mean([tensor.mean() for tensor in tensors.values()])) < 0.5  # without the average all are 1 higher


@pytest.mark.parametrize("dtype", some(list(DTYPES), "bfloat16"))
def test_weights_are_written_in_the_dtype_that_is_asked_for(runs, tmp_path, dtype):
    export_run(runs("linear"), tmp_path / "out", "ip_adapter", dtype=dtype, check=False)
    tensors = read_tensors(tmp_path / "out/ip_adapter.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(DTYPES[dtype])}


def test_every_weight_file_says_what_it_is(runs, tmp_path):
    report = export_run(runs("linear"), tmp_path / "out", "ip_adapter", licence="CC0-1.0")
    assert report.step == 7
    metadata = read_metadata(tmp_path / "out/ip_adapter.safetensors")
    found = {name.removeprefix("modelspec."): value for name, value in metadata.items()}
    assert found["sai_model_spec"] == "1.0.1" and found["license"] == "CC0-1.0"
    assert (found["architecture"], found["implementation"]) == ("stable-diffusion-unet/ip-adapter", "diffusers")
    assert (found["resolution"], found["prediction_type"]) == ("64x64", "v")
    kind, picture = found["thumbnail"].split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (256, 256)


def test_files_are_titled_by_the_whole_name_of_the_runs_folder(runs, tmp_path, monkeypatch):
    shutil.copytree(runs("linear"), tmp_path / "lr0.001")
    monkeypatch.chdir(tmp_path / "lr0.001")
    for number, workdir in enumerate([tmp_path / "lr0.001", Path(".")]):
        export_run(workdir, tmp_path / f"out{number}", "safetensors", check=False)
        metadata = read_metadata(tmp_path / f"out{number}/adapter.safetensors")
        assert metadata["modelspec.title"] == "PIDiff lr0.001"


def test_the_hash_in_the_metadata_is_that_of_the_tensors(runs, tmp_path):
    export_run(runs("linear"), tmp_path / "out", "diffusers", check=False)
    for path in (tmp_path / "out").rglob("*.safetensors"):
        content = path.read_bytes()
        body = content[8 + int.from_bytes(content[:8], "little") :]
        assert read_metadata(path)["modelspec.hash_sha256"] == f"0x{hashlib.sha256(body).hexdigest()}"


def refusal(*arguments) -> str:
    result = call(*arguments, command="export")
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize(("form", "others"), [("independent", ""), ("residual", "wplus_adapter or ")])
def test_a_query_of_its_own_is_refused_by_ip_adapter(runs, tmp_path, form, others):
    line = refusal(f"--workdir={runs(form)}", "--format=ip_adapter", f"--output={tmp_path / 'out'}")
    assert line.endswith(f"whose own query an IP-Adapter can't hold; --format={others}diffusers_identity can")
    assert not list(tmp_path.iterdir())


def test_a_run_that_trained_its_base_is_no_ip_adapter(tmp_path):
    rules = (("^mapper/", "identity"), ("/attn2/to_[kv]/", "identity"), ("_id/", "identity"), (".*", "frozen"))
    run = make_run(tmp_path / "run", "linear", parameter_rules=rules)
    with pytest.raises(ValueError, match="expected a run that trained its adapter alone .* that trained unet/"):
        export_run(run, tmp_path / "out", "ip_adapter")


def test_nothing_is_overwritten(runs, tmp_path):
    (tmp_path / "out").write_text("notes", encoding="utf-8")
    line = refusal(f"--workdir={runs('linear')}", "--format=safetensors", f"--output={tmp_path / 'out'}")
    assert "got a file or folder; choose another name or remove it first" in line
    assert (tmp_path / "out").read_text(encoding="utf-8") == "notes"


def test_a_run_that_draws_with_the_identity_in_no_step_is_proved_with_it_in_all(tmp_path):
    workdir = make_run(tmp_path / "run", "linear", sampling={"identity_start": 1.0})
    sitting = Sitting(open_run(workdir), with_identity=True)
    assert sitting.scenes.identity_start == 0.0 and sitting.scenes.identity_scale == 0.8


def test_a_variant_of_another_dtype_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="expected --dtype=float16 beside --variant=fp16, got float32"):
        export_run(runs("linear"), tmp_path / "out", "diffusers", variant="fp16", dtype="float32")


def test_a_config_without_a_key_is_refused_by_the_key(runs, tmp_path):
    config = json.loads((runs("linear") / "config.json").read_text(encoding="utf-8"))
    del config["losses"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="got one without a key: .*losses"):
        export_run(tmp_path / "run", tmp_path / "out", "safetensors")


def test_a_variant_of_a_single_file_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="expected no --variant for --format=safetensors, got 'fp16'"):
        export_run(runs("linear"), tmp_path / "out", "safetensors", variant="fp16")


@pytest.mark.parametrize(("damage", "message"), [(0.1, "got other numbers"), (0.0, "expected pictures within 0.001")])
def test_files_that_draw_something_else_never_appear(runs, tmp_path, monkeypatch, damage, message):
    """A wrong tensor that JAX sees, and pictures that only PyTorch draws otherwise."""
    read, draw = IPAdapterFormat.read, IPAdapterFormat.draw_in_torch

    def wrong(self, export, folder):
        params = read(self, export, folder)
        params["mapper"]["norm"]["scale"] = params["mapper"]["norm"]["scale"] + damage
        return params

    monkeypatch.setattr(IPAdapterFormat, "read", wrong)
    monkeypatch.setattr(IPAdapterFormat, "draw_in_torch", lambda *arguments: draw(*arguments) + 0.01)
    with pytest.raises(ValueError, match=message):
        export_run(runs("linear"), tmp_path / "out", "ip_adapter")
    assert not list(tmp_path.iterdir())


def test_without_diffusers_jax_is_the_proof(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("pidiff_jax.export.proof.missing_packages", lambda: ["diffusers"])
    report = export_run(runs("linear"), tmp_path / "out", "ip_adapter")
    assert "PyTorch (diffusers not installed): not compared" in str(report)


def test_the_command_knows_every_format():
    assert list(_FORMATS) == list(FORMATS)


@pytest.mark.parametrize("form", FORMATS.values())
def test_what_is_said_of_using_the_files_names_their_folder(form):
    assert "exports/x" in form.usage.format(folder="exports/x")


def test_the_command_says_what_it_wrote_and_how_far_it_is_off(runs, tmp_path):
    result = call(
        f"--workdir={runs('linear')}", "--format=ip_adapter", f"--output={tmp_path / 'out'}", command="export"
    )
    assert result.returncode == 0, result.stderr
    first, *_, usage, _, last = result.stdout.splitlines()
    assert usage == f'to use it: python {tmp_path / "out"}/draw.py BASE "a prompt"'
    assert first == "step 7" and last.startswith("largest difference from the run's pictures in PyTorch, diffusers ")
    assert not result.stderr
