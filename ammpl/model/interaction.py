"""The two light-weight networks through which image and text prompts inform each other.

Known (paper): N1 reads the image representation and is added to the text context; N2 reads the text representation
and is added to the padding. Chosen: a bottleneck D -> r -> out with ReLU, inputs L2-normalised, the last layer
starting at zero, so that an untrained model is the zero-shot one.

Shapes: D joint width, r hidden width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LightNetwork(nn.Module):
    """N1 or N2: ``strength * W2 relu(W1 normalize(x) + b1) + b2``, W2 and b2 zero at the start.

    While W2 is zero, W1 gets exactly no gradient; the first step moves W2 and from then on both learn.

    Args:
        joint_width: D, width of the features it reads.
        width: r.
        output_width: T for N1 (text context), V for N2 (padding).
        strength: fixed factor on the output.
        generator: draws W1 ~ N(0, 1 / D).
        dtype: of the weights.
    """

    strength: Tensor

    def __init__(
        self,
        joint_width: int,
        width: int,
        output_width: int,
        *,
        strength: float,
        generator: torch.Generator,
        dtype: torch.dtype,
    ):
        super().__init__()
        start = torch.randn(width, joint_width, generator=generator, dtype=dtype) * joint_width**-0.5
        self.input_weight = nn.Parameter(start)
        self.input_bias = nn.Parameter(torch.zeros(width, dtype=dtype))
        self.output_weight = nn.Parameter(torch.zeros(output_width, width, dtype=dtype))
        self.output_bias = nn.Parameter(torch.zeros(output_width, dtype=dtype))
        # A tensor: what a GPU has recorded for one trial serves others, whatever theirs is.
        self.register_buffer("strength", torch.tensor(strength, dtype=dtype), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (..., D), normalised or not, to what is added: (..., output width)."""
        hidden = F.relu(F.linear(F.normalize(features, dim=-1), self.input_weight, self.input_bias))
        return self.strength * F.linear(hidden, self.output_weight, self.output_bias)
