"""iBOT (Zhou et al. 2021, arXiv:2111.07832): DINO on [CLS] plus masked image modelling on the patch tokens."""

from dataclasses import dataclass

import torch

from .dino import DinoConfig, DinoForPreTraining, DinoForPreTrainingOutput
from .losses import dino_loss, masked_patch_loss, mean_entropy, normalised_std, teacher_probabilities


class IBotConfig(DinoConfig):
    """
    As [`DinoConfig`], and:

    Args:
        cls_loss_weight (`float`, *optional*, defaults to `1.0`): lambda1, weight of DINO's loss on [CLS].
        patch_loss_weight (`float`, *optional*, defaults to `1.0`): lambda2, weight of the masked patch loss.
    """

    model_type = "lens_ibot"

    def __init__(self, backbone_config=None, cls_loss_weight=1.0, patch_loss_weight=1.0, **kwargs):
        self.cls_loss_weight = cls_loss_weight
        self.patch_loss_weight = patch_loss_weight
        super().__init__(backbone_config=backbone_config, **kwargs)


@dataclass
class IBotForPreTrainingOutput(DinoForPreTrainingOutput):
    """
    As [`DinoForPreTrainingOutput`], `loss` being the weighted sum, and:

    Args:
        cls_loss (scalar `torch.Tensor`): DINO's part.
        patch_loss (scalar `torch.Tensor`): the masked patches' part.
        batch_patch_centre (`torch.Tensor` of shape `(K,)`): the teacher's mean logits over all patch tokens.
    """

    cls_loss: torch.Tensor | None = None
    patch_loss: torch.Tensor | None = None
    batch_patch_centre: torch.Tensor | None = None


class IBotForPreTraining(DinoForPreTraining):
    """DINO whose student sees masked global views; one head serves [CLS] and patches, with a centre each."""

    config_class = IBotConfig
    use_mask_token = True

    def __init__(self, config: IBotConfig):
        super().__init__(config)
        self.register_buffer("patch_centre", torch.zeros_like(self.centre))

    def forward(
        self,
        global_views: torch.Tensor,
        masked_patches: torch.Tensor,
        local_views: torch.Tensor | None = None,
        teacher_temperature: float = 0.04,
        patch_teacher_temperature: float = 0.04,
    ) -> IBotForPreTrainingOutput:
        """
        Args:
            global_views (`torch.Tensor` of shape `(views, batch, bands, size, size)`): masked for the student only.
            masked_patches (`torch.LongTensor` of shape `(views, batch, count)`): which patches are masked.
            local_views (`torch.Tensor` of shape `(views, batch, bands, small, small)`, *optional*): by the student.
            teacher_temperature (`float`, *optional*, defaults to `0.04`): sharpening on [CLS].
            patch_teacher_temperature (`float`, *optional*, defaults to `0.04`): sharpening on the patches.
        """
        with torch.no_grad():
            teacher_logits = self.teacher.head(self._tokens(self.teacher.backbone, global_views)).float()
            cls_probs = teacher_probabilities(teacher_logits[:, :, 0], self.centre, teacher_temperature)
            patch_logits = teacher_logits[:, :, 1:]
            patch_probs = teacher_probabilities(
                _gather_patches(patch_logits, masked_patches), self.patch_centre, patch_teacher_temperature
            )
        num_patches = patch_logits.shape[2]
        bool_masked_pos = torch.zeros(
            *masked_patches.shape[:2], num_patches, dtype=torch.bool, device=global_views.device
        ).scatter_(2, masked_patches, True)
        student_tokens = self._tokens(self.student.backbone, global_views, bool_masked_pos)
        student_cls = student_tokens[:, :, 0]
        cls_logits = self.student.head(self._with_local_views(student_cls, local_views))
        masked_logits = self.student.head(_gather_patches(student_tokens[:, :, 1:], masked_patches))

        temperature = self.config.student_temperature
        cls_loss = dino_loss(cls_logits, cls_probs, temperature)
        patch_loss = masked_patch_loss(masked_logits, patch_probs, temperature)
        return IBotForPreTrainingOutput(
            loss=self.config.cls_loss_weight * cls_loss + self.config.patch_loss_weight * patch_loss,
            cls_loss=cls_loss.detach(),
            patch_loss=patch_loss.detach(),
            batch_centre=teacher_logits[:, :, 0].mean(dim=(0, 1)),
            batch_patch_centre=patch_logits.mean(dim=(0, 1, 2)),
            teacher_entropy=mean_entropy(cls_probs),
            output_std=normalised_std(student_cls[0]),
        )

    @torch.no_grad()
    def update_centre(self, output: IBotForPreTrainingOutput) -> None:
        """Move both centres towards the batch means of the teacher's [CLS] and patch logits."""
        super().update_centre(output)
        self.patch_centre.lerp_(
            output.batch_patch_centre.to(self.patch_centre.dtype), 1.0 - self.config.centre_momentum
        )


def _gather_patches(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """`(views, batch, patches, d)` tokens at `(views, batch, count)` -> `(views, batch, count, d)`."""
    return tokens.gather(2, indices.unsqueeze(-1).expand(-1, -1, -1, tokens.shape[-1]))
