"""The self-supervised models: who receives gradient, exact round trips, teacher and centre updates."""

import json
import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, ViTConfig, ViTForImageClassification, ViTModel
from transformers.models.vit.modeling_vit import ViTAttention

from lens_ssl_hf.errors import InputError
from lens_ssl_hf.models import METHODS, backbone_config
from lens_ssl_hf.models.backbones import load_encoder, use_fast_attention
from lens_ssl_hf.models.resampling import resample

HEADS = {
    "simsiam": {"projection_size": 32, "prediction_hidden_size": 8},
    "dino": {"head_hidden_size": 32, "head_bottleneck_size": 16, "num_prototypes": 24},
    "ibot": {"head_hidden_size": 32, "head_bottleneck_size": 16, "num_prototypes": 24},
}


def make_model(method: str, **kwargs):
    torch.manual_seed(0)
    cls = METHODS[method]
    backbone = backbone_config("vitt8", num_hidden_layers=2)
    return cls(cls.config_class(backbone_config=backbone, **HEADS[method], **kwargs))


def make_views(method: str, batch: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    views = {"global_views": torch.randn(2, batch, 3, 32, 32, generator=generator)}
    if method != "simsiam":
        views["local_views"] = torch.randn(3, batch, 3, 16, 16, generator=generator)
    if method == "ibot":
        views["masked_patches"] = torch.rand(2, batch, 16, generator=generator).topk(5, dim=2).indices
    return views


def test_positions_are_interpolated_as_the_stock_vit_does():
    ours = make_model("dino").student.backbone
    stock = ViTModel(ours.config, add_pooling_layer=False)
    stock.load_state_dict(ours.state_dict())
    view = make_views("dino")["local_views"][0]
    for copy in (deepcopy, lambda model: pickle.loads(pickle.dumps(model))):  # as other tools may hand it on
        model = copy(ours)
        assert model.embeddings.interpolate_pos_encoding.args == (model.embeddings,)
    outputs = [model(view, interpolate_pos_encoding=True).last_hidden_state for model in (ours, stock)]
    for output in outputs:
        output[..., :50].square().sum().backward()
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    gradients = [model.embeddings.position_embeddings.grad for model in (ours, stock)]
    assert (gradients[1] - gradients[0]).norm() < 1e-5 * gradients[0].norm()


def test_attention_on_a_cpu_is_that_of_the_fused_kernel():
    losses, gradients = [], []
    for fast in (False, True):
        model = make_model("ibot").train()
        assert model.student.backbone.config._attn_implementation == "sdpa"
        if fast:
            use_fast_attention(model)
            assert model.student.backbone.config._attn_implementation == "eager"
        losses.append(model(**make_views("ibot")).loss)
        losses[-1].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.student.parameters() if p.grad is not None]))
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    assert (gradients[1] - gradients[0]).norm() < 1e-5 * gradients[0].norm()
    assert "eager" not in model.config.to_json_string()


@pytest.mark.parametrize("method", METHODS)
def test_round_trip_is_exact_to_the_bit(method, tmp_path):
    model = make_model(method, cutouts={"bands": ["g", "r", "i"]})
    if model.has_teacher:
        output = model(**make_views(method))
        output.loss.backward()
        with torch.no_grad():
            for parameter in model.student.parameters():
                parameter -= 0.1 * parameter.grad
        model.update_teacher(0.7)
        model.update_centre(output)
        assert model.centre.abs().sum() > 0
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert type(loaded) is type(model)
    assert loaded.config.cutouts == {"bands": ["g", "r", "i"]}
    state, loaded_state = model.state_dict(), loaded.state_dict()
    assert state.keys() == loaded_state.keys()
    assert all(torch.equal(state[name], loaded_state[name]) for name in state)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in loaded.named_parameters() if parameter.requires_grad} == trainable
    views = make_views(method)
    assert torch.equal(model.eval()(**views).loss, loaded.eval()(**views).loss)


@pytest.mark.parametrize("method", ["dino", "ibot"])
@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"device_map": "cpu"}], ids=str)
def test_the_teacher_is_frozen_however_it_is_loaded(method, options, tmp_path):
    make_model(method).save_pretrained(tmp_path)
    for cls in (AutoModel, METHODS[method]):
        model = cls.from_pretrained(tmp_path, **options)
        assert not any(module.training for module in model.modules())
        model.train()
        assert not any(module.training for module in model.teacher.modules()) and model.student.head.training
        assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
        assert all(parameter.requires_grad for parameter in model.student.parameters())
        assert model.dtype == options.get("dtype", torch.float32)


def test_centres_that_a_checkpoint_lacks_begin_at_zero(tmp_path):
    make_model("ibot").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    centres = {"centre", "patch_centre"}
    save_file({key: value for key, value in weights.items() if key not in centres}, tmp_path / "model.safetensors")
    torch.use_deterministic_algorithms(True)  # fills memory that nobody has initialised with NaN
    try:
        model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert info["missing_keys"] == centres
    assert model.centre.abs().max() == 0 and model.patch_centre.abs().max() == 0


@pytest.mark.parametrize("method,name", [("dino", "DINO"), ("ibot", "IBOT"), ("simsiam", "SimSiam")])
def test_checkpoints_of_earlier_class_names_load(method, name, tmp_path):
    make_model(method).save_pretrained(tmp_path)
    parts = {"student", "teacher", "centre", "patch_centre"} if method != "simsiam" else {"backbone", "projection"}
    parts |= {"prediction"} if method == "simsiam" else set()
    parts -= {"patch_centre"} if method == "dino" else set()
    assert {key.split(".")[0] for key in load_file(tmp_path / "model.safetensors")} == parts
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == f"lens_{method}"
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [name]}))
    model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is METHODS[method] and not any(info.values())
    load_encoder(tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_the_base_model_is_the_encoder(method, tmp_path):
    model = make_model(method)
    encoder = getattr(model, model.base_model_prefix)
    assert encoder is model.base_model is model.encoder and type(encoder) is ViTModel
    encoder.save_pretrained(tmp_path)
    options = {"add_pooling_layer": False, "use_mask_token": method == "ibot", "output_loading_info": True}
    loaded, info = ViTModel.from_pretrained(tmp_path, **options)
    assert not any(info.values())
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in encoder.state_dict().items())
    # What it does not have is reported: its heads, and of two encoders both.
    info = METHODS[method].from_pretrained(tmp_path, config=model.config, output_loading_info=True)[1]
    whole = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    assert info["missing_keys"] == {name for name in whole if not name.startswith("backbone.")}


@pytest.mark.parametrize("method", METHODS)
def test_patch_embeddings_can_be_exchanged(method):
    model, views = make_model(method).train(), make_views(method)
    assert model.get_input_embeddings() is model.encoder.embeddings.patch_embeddings
    other = type(model.get_input_embeddings())(backbone_config("vitt8", num_channels=2))
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    model(**{name: view[:, :, :2] if view.ndim == 5 else view for name, view in views.items()}).loss.backward()
    if model.has_teacher:
        student = model.student.backbone.get_input_embeddings()
        assert student.projection.weight.grad.norm() > 0 and other.projection.weight.grad is None
        model.update_teacher(0.0)
        assert torch.equal(model.get_input_embeddings().projection.weight, student.projection.weight)
    else:
        assert other.projection.weight.grad.norm() > 0


def watch_attention(model) -> list[bool]:
    """Of each pass through an attention from now on, whether it is for a gradient."""
    calls = []
    for module in model.modules():
        if isinstance(module, ViTAttention):
            module.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    return calls


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_changes_nothing_but_the_memory(method):
    losses, gradients, passes = [], [], []
    for checkpointing in (False, True):
        model = make_model(method).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        calls = watch_attention(model)
        losses.append(model(**make_views(method)).loss)
        losses[-1].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        passes.append((calls.count(True), calls.count(False)))
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-7)
    assert (gradients[1] - gradients[0]).norm() < 1e-5 * gradients[0].norm()
    # The layers of the student are computed again on the way back, those of the teacher are not.
    assert passes[1] == (2 * passes[0][0], passes[0][1])


@pytest.mark.parametrize("method", METHODS)
def test_registered_with_the_auto_classes(method):
    config = METHODS[method].config_class(backbone_config=backbone_config("vitt8"))
    assert type(AutoConfig.for_model(f"lens_{method}")) is type(config)
    assert isinstance(config.backbone_config, ViTConfig)


@pytest.mark.parametrize("method", ["dino", "ibot"])
def test_the_student_alone_receives_gradient(method):
    model = make_model(method).train()
    assert not model.teacher.training and model.student.training
    model(**make_views(method)).loss.backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    without = [name for name, parameter in model.student.named_parameters() if parameter.grad is None]
    assert not without


def test_simsiam_gradient_stops_at_the_projection():
    model = make_model("simsiam").train()
    views = make_views("simsiam")["global_views"].requires_grad_()
    first, second = (model._project(view) for view in views)
    one_sided = -torch.cosine_similarity(model.prediction(first), second.detach()).mean()
    (expected,) = torch.autograd.grad(one_sided, views)
    assert expected[1].abs().max() == 0 and expected[0].abs().max() > 0
    other_sided = -torch.cosine_similarity(model.prediction(model._project(views[1])), first.detach()).mean()
    expected = 0.5 * expected + 0.5 * torch.autograd.grad(other_sided, views)[0]
    (gradient,) = torch.autograd.grad(model(global_views=views).loss, views)
    torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("method", ["dino", "ibot"])
def test_the_teacher_starts_as_the_student_and_follows_by_ema(method):
    model = make_model(method)
    for student, teacher in zip(model.student.parameters(), model.teacher.parameters()):
        assert torch.equal(student, teacher)
    before = [parameter.double().numpy().copy() for parameter in model.teacher.parameters()]
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter += 1.0
    model.update_teacher(0.9)
    for old, student, teacher in zip(before, model.student.parameters(), model.teacher.parameters()):
        expected = 0.9 * old + 0.1 * student.detach().double().numpy()
        np.testing.assert_allclose(teacher.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_centres_follow_the_teachers_mean_logits():
    model = make_model("ibot").eval()
    views = make_views("ibot")
    with torch.no_grad():
        tokens = model.teacher.backbone(views["global_views"].flatten(0, 1)).last_hidden_state
        logits = model.teacher.head(tokens)
        model.update_centre(model(**views))
        low = make_model("ibot").to(torch.bfloat16)
        low.update_centre(
            low(**{name: one.bfloat16() if one.is_floating_point() else one for name, one in views.items()})
        )
    assert low.centre.any() and low.patch_centre.any()
    torch.testing.assert_close(model.centre, 0.1 * logits[:, 0].mean(dim=0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.patch_centre, 0.1 * logits[:, 1:].mean(dim=(0, 1)), rtol=1e-4, atol=1e-6)


def test_ibot_masks_the_student_only_where_it_is_told():
    model = make_model("ibot").eval()
    views = make_views("ibot")
    output = model(**views)
    with torch.no_grad():  # another mask token changes the student's view, not the teacher's
        model.student.backbone.embeddings.mask_token.add_(1.0)
        changed = model(**views)
    assert changed.patch_loss != output.patch_loss
    assert torch.equal(changed.batch_patch_centre, output.batch_patch_centre)


@pytest.mark.parametrize("method", METHODS)
def test_load_encoder_reads_checkpoints_backbones_and_classifiers(method, tmp_path):
    model = make_model(method, cutouts={"bands": ["g"]})
    model.save_pretrained(tmp_path / "ssl")
    encoder = load_encoder(tmp_path / "ssl")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(encoder(images).last_hidden_state, model.eval().encoder(images).last_hidden_state)
    assert encoder.config.cutouts == {"bands": ["g"]}


def test_load_encoder_of_stock_models(tmp_path):
    config = backbone_config("vitt8", num_hidden_layers=1)
    for cls in (ViTModel, ViTForImageClassification):
        model = cls(config).eval()
        model.save_pretrained(tmp_path / cls.__name__)
        encoder = load_encoder(tmp_path / cls.__name__)
        vit = model if cls is ViTModel else model.vit
        assert torch.equal(encoder.layers[0].mlp.fc1.weight, vit.layers[0].mlp.fc1.weight)
    with pytest.raises(InputError, match="cannot load a model"):
        load_encoder(tmp_path / "missing")
    resized = resample(encoder, 64, 8)
    assert resized.config.image_size == 64 and resized(torch.randn(1, 3, 64, 64)).last_hidden_state.shape[1] == 65


def test_unknown_backbones_are_refused():
    with pytest.raises(InputError, match="vits8"):
        backbone_config("resnet50")
    assert [name for name, model in METHODS.items() if model.has_teacher] == ["dino", "ibot"]
