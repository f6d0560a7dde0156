"""Deep prompts: learnable tokens in the first blocks of the towers, which VPT and MaPLe learn instead of masks.

VPT (Jia et al. 2022, the deep form): n tokens after the patches, others before each further block.
MaPLe (Khattak et al. 2023): M context vectors in the text tower, others before each further block; the tokens after
the patches are a linear layer of them, one layer a block, so that the image side learns through the text side only.
Both as the MaPLe authors' code has them: tokens have no position embedding, those of the first block pass the tower's
first norm, and what a block makes of its tokens is dropped for the next block's (docs/protocol.md has the settings).

Shapes: J depth, n visual tokens, M context vectors, V vision width, T text width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ammpl.config import TokensConfig
from ammpl.model.backbone import Backbone

Tokens = tuple[Tensor, Tensor | None]
"""In the image tower (J, n, V); in the text tower before block 1, 2, ... (J - 1, M, T), or None."""


class VisualTokens(nn.Module):
    """VPT's tokens, each starting from N(0, .02^2).

    Args:
        config: see :class:`~ammpl.config.TokensConfig`; J may not exceed the image tower's blocks (checked before, see
            :func:`ammpl.model.ammpl.check_model`).
        backbone: the frozen towers.
        generator: draws the start.
    """

    def __init__(self, config: TokensConfig, backbone: Backbone, generator: torch.Generator):
        super().__init__()
        shape = (config.depth, config.count, backbone.vision_width)
        self.visual_JnV = nn.Parameter(0.02 * torch.randn(shape, generator=generator, dtype=backbone.dtype))

    def forward(self, context_MT: Tensor | None) -> Tokens:
        """Return the tokens of both towers; the context plays no part."""
        return self.visual_JnV, None


class CoupledTokens(nn.Module):
    """MaPLe's tokens: deeper context vectors start from N(0, .02^2), linear layers as PyTorch's do.

    Args:
        config: see :class:`~ammpl.config.TokensConfig`; J may not exceed either tower's blocks.
        backbone: the frozen towers.
        length: M.
        generator: draws the start.
    """

    def __init__(self, config: TokensConfig, backbone: Backbone, length: int, generator: torch.Generator):
        super().__init__()
        J, V, T, dtype = config.depth, backbone.vision_width, backbone.text_width, backbone.dtype
        self.deeper_JMT: nn.Parameter | None = None
        if J > 1:
            self.deeper_JMT = nn.Parameter(0.02 * torch.randn((J - 1, length, T), generator=generator, dtype=dtype))
        # U(-1/sqrt(T), 1/sqrt(T)). Published: one draw for the first block, one that all further blocks start from.
        first, further = (2 * torch.rand((2, V, T + 1), generator=generator, dtype=dtype) - 1) * T**-0.5
        start_JVT = torch.stack([first, *[further] * (J - 1)])
        self.weight_JVT = nn.Parameter(start_JVT[..., :-1].clone())
        self.bias_JV = nn.Parameter(start_JVT[..., -1].clone())

    def forward(self, context_MT: Tensor | None) -> Tokens:
        """Return the tokens of both towers.

        Args:
            context_MT: the text prompt's, which are the tokens before the first text block.
        """
        assert context_MT is not None  # the config's own rule
        text_JMT = context_MT[None]
        if self.deeper_JMT is not None:
            text_JMT = torch.cat([text_JMT, self.deeper_JMT])
        return text_JMT @ self.weight_JVT.mT + self.bias_JV[:, None], self.deeper_JMT
