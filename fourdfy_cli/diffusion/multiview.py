"""MVDream's multi-view self-attention for a stock diffusers UNet.

MVDream is Stable Diffusion's UNet with two changes: the camera is added to the time embedding (a stock projection class embedding takes
it) and self-attention joins the views of one object. The views of an object are adjacent in the batch: (B V, L, C) is folded to
(B, V L, C) for self-attention (attn1) only; cross-attention, feed-forward and convolutions stay per view.
"""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

VIEWS = 4


class JointViews:
    """Attention processor: self-attention over the tokens of all views of an object."""

    def __init__(self, views: int = VIEWS):
        self.views = views
        self.attend = AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """hidden_states [B V, L, C] to the same shape; raises RuntimeError if the batch does not split into views."""
        batch, tokens, channels = hidden_states.shape
        joint = hidden_states.reshape(batch // self.views, self.views * tokens, channels)
        return self.attend(attn, joint, encoder_hidden_states, attention_mask, temb).reshape(batch, tokens, -1)


def fold_views(unet: UNet2DConditionModel, views: int = VIEWS) -> None:
    """Make every self-attention of the UNet run over `views` adjacent batch entries together (MVDream, sec. 3.1)."""
    joint, plain = JointViews(views), AttnProcessor2_0()
    processors: dict[str, Any] = {name: joint if name.endswith("attn1.processor") else plain for name in unet.attn_processors}
    unet.set_attn_processor(processors)
