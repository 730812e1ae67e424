"""Published configs give the full-size specs; a setting that isn't implemented is refused by name."""

import pytest

from pidiff_jax.convert import diffusers_config as configs
from pidiff_jax.models.clip import ClipTextSpec
from pidiff_jax.models.unet import UNetSpec
from pidiff_jax.models.vae import VAESpec

# The fields as the model folders of Stable Diffusion 1.5 and 2.1 have them.
UNET_SD15 = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
UNET_SD21 = UNET_SD15 | {
    "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "dual_cross_attention": False,
    "num_class_embeds": None, "only_cross_attention": False, "sample_size": 96, "upcast_attention": True,
    "use_linear_projection": True,
}  # fmt: skip
VAE_SD = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
    "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
TEXT_SD15 = {
    "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0,
    "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768,
    "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12, "num_hidden_layers": 12,
    "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32", "transformers_version": "4.22.0.dev0",
    "vocab_size": 49408,
}  # fmt: skip
TEXT_SD21 = TEXT_SD15 | {
    "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
    "num_hidden_layers": 23, "projection_dim": 512,
}  # fmt: skip
SCHEDULER_SD15 = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
SCHEDULER_SD21 = SCHEDULER_SD15 | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}


def test_published_configs_give_the_full_size_specs():
    assert configs.unet_spec(UNET_SD15) == UNetSpec.sd15()
    assert configs.unet_spec(UNET_SD21) == UNetSpec.sd21()
    assert configs.vae_spec(VAE_SD) == configs.vae_spec(VAE_SD | {"scaling_factor": 0.18215}) == VAESpec.sd15()
    assert configs.text_spec(TEXT_SD15) == ClipTextSpec.sd15()
    assert configs.text_spec(TEXT_SD21) == ClipTextSpec.sd21()


def test_schedulers_say_what_the_model_predicts():
    settings = configs.schedule_settings(SCHEDULER_SD15)
    assert settings == configs.ScheduleSettings(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="eps", rescale_betas_zero_snr=False, timestep_spacing="leading", set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    assert configs.schedule_settings(SCHEDULER_SD21).prediction_type == "v"


@pytest.mark.parametrize(
    ("read", "config", "change"),
    [
        (configs.unet_spec, UNET_SD15, {"class_embed_type": "timestep"}),
        (configs.unet_spec, UNET_SD15, {"addition_embed_type": "text_time"}),
        (configs.unet_spec, UNET_SD15, {"a_field_of_tomorrow": 1}),
        (configs.unet_spec, UNET_SD15, {"_class_name": "UNet3DConditionModel"}),
        (configs.unet_spec, UNET_SD15, {"only_cross_attention": [True] * 4}),
        (configs.unet_spec, UNET_SD15, {"down_block_types": ["AttnDownBlock2D"] * 4}),
        (configs.unet_spec, UNET_SD15, {"up_block_types": ["CrossAttnUpBlock2D"] * 4}),
        (configs.vae_spec, VAE_SD, {"shift_factor": 0.1}),
        (configs.vae_spec, VAE_SD, {"use_quant_conv": False}),
        (configs.vae_spec, VAE_SD, {"_class_name": "AutoencoderTiny"}),
        (configs.vae_spec, VAE_SD, {"up_block_types": ["AttnUpDecoderBlock2D"] * 4}),
        (configs.vae_spec, VAE_SD, {"a_field_of_tomorrow": 1}),
        (configs.text_spec, TEXT_SD15, {"architectures": ["CLIPTextModelWithProjection"]}),
        (configs.text_spec, TEXT_SD15, {"layer_norm_eps": 1e-6}),
        (configs.text_spec, TEXT_SD15, {"hidden_act": "relu"}),
        (configs.text_spec, TEXT_SD15, {"a_field_of_tomorrow": 1}),
        (configs.schedule_settings, SCHEDULER_SD15, {"trained_betas": [0.1, 0.2]}),
        (configs.schedule_settings, SCHEDULER_SD15, {"prediction_type": "flow_prediction"}),
        (configs.schedule_settings, SCHEDULER_SD15, {"beta_schedule": "sigmoid"}),
        (configs.schedule_settings, SCHEDULER_SD15, {"timestep_spacing": "even"}),
        (configs.schedule_settings, SCHEDULER_SD15, {"a_field_of_tomorrow": 1}),
    ],
)
def test_settings_that_are_not_implemented_are_refused_by_name_and_file(read, config, change):
    (value,) = change.values()
    shown = value[0] if isinstance(value, list) else value
    with pytest.raises(ValueError, match="some/config.json") as error:
        read(config | change, "some/config.json")
    assert str(shown) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("read", "config", "field", "value", "kind"),
    [
        (configs.unet_spec, UNET_SD15, "layers_per_block", [2, 2, 2, 2], "a whole number above 0"),
        (configs.unet_spec, UNET_SD15, "cross_attention_dim", [768, 768], "a whole number above 0"),
        (configs.unet_spec, UNET_SD15, "cross_attention_dim", "768", "a whole number above 0"),
        (configs.unet_spec, UNET_SD15, "in_channels", True, "a whole number above 0"),
        (configs.unet_spec, UNET_SD15, "out_channels", 4.0, "a whole number above 0"),
        (configs.unet_spec, UNET_SD15, "norm_num_groups", None, "a whole number above 0"),
        (configs.unet_spec, UNET_SD15, "norm_num_groups", 0, "a whole number above 0"),
        (configs.unet_spec, UNET_SD15, "transformer_layers_per_block", [1, [1, 2], 1, 1], "a whole number above 0"),
        (configs.unet_spec, UNET_SD15, "attention_head_dim", [5, None, 20, 20], "a whole number above 0"),
        (configs.unet_spec, UNET_SD15, "attention_head_dim", [], "a whole number above 0"),
        (configs.unet_spec, UNET_SD15, "use_linear_projection", 1, "true or false"),
        (configs.unet_spec, UNET_SD15, "block_out_channels", 320, "a list, each entry a whole number above 0"),
        (configs.unet_spec, UNET_SD15, "block_out_channels", [], "a list, each entry a whole number above 0"),
        (configs.unet_spec, UNET_SD15, "down_block_types", None, "a list, each entry a string"),
        (configs.vae_spec, VAE_SD, "scaling_factor", "0.18", "a number"),
        (configs.vae_spec, VAE_SD, "block_out_channels", [128, "256"], "a list, each entry a whole number above 0"),
        (configs.text_spec, TEXT_SD15, "hidden_size", None, "a whole number above 0"),
        (configs.text_spec, TEXT_SD15, "hidden_act", 1, "a string"),
        (configs.schedule_settings, SCHEDULER_SD15, "num_train_timesteps", 1000.0, "a whole number above 0"),
        (configs.schedule_settings, SCHEDULER_SD15, "beta_end", float("nan"), "a number"),
        (configs.schedule_settings, SCHEDULER_SD15, "timestep_spacing", None, "a string"),
    ],
)
def test_values_of_other_types_are_refused_by_name_and_file(read, config, field, value, kind):
    with pytest.raises(ValueError) as error:
        read(config | {field: value}, "some/config.json")
    assert f"some/config.json: expected {field!r} to be {kind}, got {value!r}" in str(error.value)
    assert "\n" not in str(error.value)


def test_flags_may_be_repeated_for_every_level():
    repeated = UNET_SD21 | {"only_cross_attention": [False] * 4, "transformer_layers_per_block": [1] * 4}
    assert configs.unet_spec(repeated) == UNetSpec.sd21()
    with pytest.raises(ValueError, match="num_heads with 4 entries"):
        configs.unet_spec(UNET_SD21 | {"attention_head_dim": [5, 10]})


def test_noise_prediction_is_refused_where_the_last_step_is_noise_alone():
    zero_snr = {"rescale_betas_zero_snr": True}
    assert configs.schedule_settings(SCHEDULER_SD21 | zero_snr).rescale_betas_zero_snr
    with pytest.raises(ValueError, match="some/config.json: expected prediction_type 'v_prediction' or 'sample'"):
        configs.schedule_settings(SCHEDULER_SD15 | zero_snr, "some/config.json")


def test_files_that_are_not_configs_are_refused(tmp_path):
    path = tmp_path / "config.json"
    for content in ("{", "[]"):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="config.json"):
            configs.read_config(path)


READERS = [
    (configs.unet_spec, UNET_SD15), (configs.vae_spec, VAE_SD), (configs.text_spec, TEXT_SD15),
    (configs.schedule_settings, SCHEDULER_SD15),
]  # fmt: skip


@pytest.mark.parametrize(("read", "config"), READERS)
def test_an_unknown_field_that_is_null_changes_nothing(read, config):
    assert read(config | {"a_field_of_tomorrow": None}) == read(config)


@pytest.mark.parametrize(
    ("read", "config", "change"),
    [
        (configs.unet_spec, UNET_SD15, {"act_fn": "swish"}),
        (configs.unet_spec, UNET_SD15, {"num_attention_heads": 8}),
        (configs.unet_spec, UNET_SD15, {"attention_head_dim": [8] * 4, "num_attention_heads": [8] * 4}),
        (configs.unet_spec, UNET_SD15, {"only_cross_attention": [False] * 4, "dropout": 0.0}),
        (configs.vae_spec, VAE_SD, {"scaling_factor": 0.18215, "force_upcast": True, "_name_or_path": "x"}),
        (configs.text_spec, TEXT_SD15, {"eos_token_id": 49407, "_attn_implementation": "sdpa", "dtype": "float16"}),
        (configs.text_spec, TEXT_SD15, {"use_cache": True, "temperature": 1.0, "id2label": {"0": "LABEL_0"}}),
        (configs.schedule_settings, SCHEDULER_SD15, {"original_inference_steps": 50, "timestep_scaling": 10.0}),
        (configs.schedule_settings, SCHEDULER_SD15, {"_class_name": "FlaxPNDMScheduler", "tensor_format": "pt"}),
    ],
)
def test_differences_without_a_meaning_are_accepted(read, config, change):
    one_list = {"attention_head_dim"} & change.keys()
    expected = read(config | {name: change[name] for name in one_list})
    assert read(config | change) == expected


def test_a_number_of_heads_that_contradicts_is_refused():
    with pytest.raises(ValueError, match="num_attention_heads.* 8, got 16"):
        configs.unet_spec(UNET_SD15 | {"num_attention_heads": 16})


def test_a_byte_order_mark_is_no_part_of_a_config(tmp_path):
    (tmp_path / "config.json").write_text('{"sample_size": 64}', encoding="utf-8-sig")
    assert configs.read_config(tmp_path / "config.json") == {"sample_size": 64}
