"""DINO (Caron et al. 2021, arXiv:2104.14294): a student learns the centred, sharpened output of its EMA teacher."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, ViTConfig, ViTModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .backbones import hidden_states, interpolate_by_product, vit_config
from .heads import DinoHead
from .losses import dino_loss, mean_entropy, normalised_std, teacher_probabilities


class DinoConfig(PreTrainedConfig):
    """
    Args:
        backbone_config (`ViTConfig` or `dict`, *optional*): the encoder.
        head_hidden_size (`int`, *optional*, defaults to `512`): width of the head's MLP.
        head_bottleneck_size (`int`, *optional*, defaults to `128`): its l2-normalised bottleneck.
        num_prototypes (`int`, *optional*, defaults to `1024`): K, the size of the softmax.
        student_temperature (`float`, *optional*, defaults to `0.1`): softmax temperature of the student.
        centre_momentum (`float`, *optional*, defaults to `0.9`): EMA of the teacher's mean logits.
    """

    model_type = "lens_dino"
    sub_configs = {"backbone_config": ViTConfig}  # noqa: RUF012

    def __init__(
        self,
        backbone_config=None,
        head_hidden_size=512,
        head_bottleneck_size=128,
        num_prototypes=1024,
        student_temperature=0.1,
        centre_momentum=0.9,
        **kwargs,
    ):
        self.backbone_config = vit_config(backbone_config)
        self.head_hidden_size = head_hidden_size
        self.head_bottleneck_size = head_bottleneck_size
        self.num_prototypes = num_prototypes
        self.student_temperature = student_temperature
        self.centre_momentum = centre_momentum
        super().__init__(**kwargs)


@dataclass
class DinoForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss (scalar `torch.Tensor`): cross-entropy over pairs of different views; ln K at uniform collapse.
        batch_centre (`torch.Tensor` of shape `(K,)`): the teacher's mean logits on this batch.
        teacher_entropy (scalar `torch.Tensor`): mean entropy of the teacher's output, 0 to ln K.
        output_std (scalar `torch.Tensor`): spread of the student's l2-normalised [CLS] features; 0 is collapse.
    """

    loss: torch.Tensor | None = None
    batch_centre: torch.Tensor | None = None
    teacher_entropy: torch.Tensor | None = None
    output_std: torch.Tensor | None = None


class DinoBranch(nn.Module):
    """A backbone with its head; the student and the teacher are one each."""

    def __init__(self, config: DinoConfig, use_mask_token: bool):
        super().__init__()
        backbone = ViTModel(config.backbone_config, add_pooling_layer=False, use_mask_token=use_mask_token)
        self.backbone = interpolate_by_product(backbone)
        self.head = DinoHead(
            config.backbone_config.hidden_size,
            config.head_hidden_size,
            config.head_bottleneck_size,
            config.num_prototypes,
        )


class DinoForPreTraining(PreTrainedModel):
    """
    A student and an EMA teacher. The base model, which is published and evaluated, is the teacher's ViT,
    [`~DinoForPreTraining.encoder`].
    """

    config_class = DinoConfig
    base_model_prefix = "encoder"  # names an attribute; the weights keep the names student.* and teacher.*
    main_input_name = "global_views"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ViTEmbeddings", "ViTLayer", "DinoHead"]  # noqa: RUF012
    _supports_sdpa = True
    has_teacher = True
    use_mask_token = False

    def __init__(self, config: DinoConfig):
        super().__init__(config)
        self.student = DinoBranch(config, self.use_mask_token)
        self.teacher = DinoBranch(config, self.use_mask_token)
        self.register_buffer("centre", torch.zeros(config.num_prototypes))
        self.post_init()
        if self.centre.device.type != "meta":
            self.teacher.load_state_dict(self.student.state_dict())
        self.train()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # from_pretrained builds on the meta device: what no initialiser sets would come back as uninitialised memory.
        if module is self:
            for centre in self.buffers(recurse=False):
                init.zeros_(centre)

    def train(self, mode: bool = True) -> "DinoForPreTraining":
        """The student follows `mode`; the teacher always evaluates and is frozen."""
        super().train(mode)
        # from_pretrained puts a new, trainable parameter in the place of each, and ends with eval(), which calls this.
        self.teacher.eval().requires_grad_(False)
        return self

    @property
    def encoder(self) -> ViTModel:
        """The stock ViT that is exported and evaluated: the teacher's."""
        return self.teacher.backbone

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Give the teacher these patch embeddings and the student a trainable copy, which the teacher follows."""
        self.student.backbone.set_input_embeddings(copy.deepcopy(value).requires_grad_(True))
        self.teacher.backbone.set_input_embeddings(value.eval().requires_grad_(False))

    def forward(
        self, global_views: torch.Tensor, local_views: torch.Tensor | None = None, teacher_temperature: float = 0.04
    ) -> DinoForPreTrainingOutput:
        """
        Args:
            global_views (`torch.Tensor` of shape `(views, batch, bands, size, size)`): seen by student and teacher.
            local_views (`torch.Tensor` of shape `(views, batch, bands, small, small)`, *optional*): by the student.
            teacher_temperature (`float`, *optional*, defaults to `0.04`): sharpening of the teacher.
        """
        student_cls = self._tokens(self.student.backbone, global_views)[:, :, 0]
        with torch.no_grad():
            teacher_logits = self.teacher.head(self._tokens(self.teacher.backbone, global_views)[:, :, 0])
            teacher_probs = teacher_probabilities(teacher_logits, self.centre, teacher_temperature)
        student_logits = self.student.head(self._with_local_views(student_cls, local_views))
        return DinoForPreTrainingOutput(
            loss=dino_loss(student_logits, teacher_probs, self.config.student_temperature),
            batch_centre=teacher_logits.float().mean(dim=(0, 1)),
            teacher_entropy=mean_entropy(teacher_probs),
            output_std=normalised_std(student_cls[0]),
        )

    @staticmethod
    def _tokens(backbone: ViTModel, views: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> torch.Tensor:
        """`(views, batch, ...)` images -> `(views, batch, tokens, hidden_size)` in one pass."""
        if bool_masked_pos is not None:
            bool_masked_pos = bool_masked_pos.flatten(0, 1)
        return hidden_states(backbone, views.flatten(0, 1), bool_masked_pos).unflatten(0, views.shape[:2])

    def _with_local_views(self, global_cls: torch.Tensor, local_views: torch.Tensor | None) -> torch.Tensor:
        if local_views is None or not len(local_views):
            return global_cls
        return torch.cat([global_cls, self._tokens(self.student.backbone, local_views)[:, :, 0]])

    @torch.no_grad()
    def update_teacher(self, momentum: float, skip: torch.Tensor | None = None) -> None:
        """Move the teacher to `momentum * teacher + (1 - momentum) * student`, unless `skip`, a bool on the device."""
        teacher = list(self.teacher.parameters())
        moves = torch._foreach_sub(list(self.student.parameters()), teacher)
        torch._foreach_mul_(moves, 1.0 - momentum if skip is None else (1.0 - momentum) * ~skip)
        torch._foreach_add_(teacher, moves)

    @torch.no_grad()
    def update_centre(self, output: DinoForPreTrainingOutput) -> None:
        """Move the centre towards the batch mean of the teacher's logits (Caron et al. 2021, eq. 4)."""
        self.centre.lerp_(output.batch_centre.to(self.centre.dtype), 1.0 - self.config.centre_momentum)
