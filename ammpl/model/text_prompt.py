"""The text prompt: learnable context vectors, then the class name (CoOp's form, which the paper takes over).

Shapes: B images, C classes, G 1 or C, M context vectors, L prompt length, T text width, D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from ammpl.config import TextConfig
from ammpl.errors import UserError
from ammpl.model.backbone import Backbone


@dataclass(frozen=True)
class Classes:
    """The classes to score, as the towers see them.

    Attributes:
        names: in the order of the scores.
        trained_C: each one's index among the classes that the prompts were trained on, -1 for a new class.
        embeddings_CLT: start token, M context places, what is kept of the phrase, name, ".", end token, filling: token
            embeddings.
        ends_C: index of the end token; on the CPU, with the backbone's static shapes on the device.
        fixed_CD: features of the hand-written sentences, when the context is fixed; else None.
        apart_CD: what sets each name apart, where networks of scope ``text`` read it; else None.
        ranking_CD: features of the hand-written sentences, where they rank candidates; else None, as of some classes.
    """

    names: tuple[str, ...]
    trained_C: Tensor
    embeddings_CLT: Tensor
    ends_C: Tensor
    fixed_CD: Tensor | None
    apart_CD: Tensor | None = None
    ranking_CD: Tensor | None = None

    def at(self, chosen: Tensor | slice) -> Classes:
        """Return some of the classes, in this order."""
        if isinstance(chosen, slice):
            names = self.names[chosen]
        else:
            names = tuple(self.names[index] for index in chosen.tolist())
        fixed_CD = None if self.fixed_CD is None else self.fixed_CD[chosen]
        apart_CD = None if self.apart_CD is None else self.apart_CD[chosen]
        trained_C, embeddings_CLT, ends_C = self.trained_C[chosen], self.embeddings_CLT, self.ends_C
        if fixed_CD is None:
            of_ends = chosen if isinstance(chosen, slice) else chosen.to(ends_C.device)
            embeddings_CLT, ends_C = embeddings_CLT[chosen], ends_C[of_ends]
        return Classes(names, trained_C, embeddings_CLT, ends_C, fixed_CD, apart_CD)


@lru_cache(maxsize=16)
def sentence_features(backbone: Backbone, template: str, names: tuple[str, ...]) -> Tensor:
    """Return the features (C, D) of a hand-written sentence about each class, computed once a process.

    Args:
        backbone: the frozen towers.
        template: the sentence, ``{}`` for the name.
        names: of the classes.
    """
    return backbone.encode_texts([template.replace("{}", _readable(name)) for name in names])


def _readable(name: str) -> str:
    """Return a class's name as the field reads it: underscores are spaces."""
    return name.replace("_", " ")


class TextPrompt(nn.Module):
    """Context vectors and how prompts are made of them.

    Args:
        config: see :class:`~ammpl.config.TextConfig`.
        backbone: the frozen towers.
        class_names: the classes to train on.
        template: the sentence of a fixed context, ``{}`` for the name.
        generator: draws a random start, N(0, .02^2) as in CoOp.

    Raises:
        UserError: the backbone cannot read a phrase or a name, or prompts are too long for it.
    """

    def __init__(
        self,
        config: TextConfig,
        backbone: Backbone,
        class_names: Sequence[str],
        template: str,
        generator: torch.Generator,
    ):
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.class_names = tuple(class_names)
        self.template = config.template or template
        if config.context == "fixed":
            self.length = 0
            return
        self.phrase_ids: list[int] = []
        if config.init == "random":
            assert config.length is not None  # the config's own rule
            start_MT = 0.02 * torch.randn(config.length, backbone.text_width, generator=generator)
        else:
            self.phrase_ids = backbone.token_ids(config.init)
            start_MT = backbone.embed_ids(torch.tensor(self.phrase_ids, device=backbone.device))
        if config.length is not None and config.length > len(start_MT):
            raise UserError(
                "model.text.length", f"{config.init!r} has {len(start_MT)} tokens to learn from", got=config.length
            )
        self.length = config.length or len(start_MT)
        self.kept_ids = self.phrase_ids[self.length :]
        start_MT = start_MT[: self.length]
        start_MT = start_MT.to(dtype=backbone.dtype, device=backbone.device, copy=True)
        per_class = config.context == "class"
        self.context = nn.Parameter(start_MT.repeat(len(class_names), 1, 1) if per_class else start_MT)

    @torch.no_grad()
    def classes(self, names: Sequence[str]) -> Classes:
        """Prepare class names for scoring, new ones included.

        Raises:
            UserError: the backbone cannot read a name, a prompt is too long, or a class that was not trained has
                no context of its own.
        """
        # The first of that name; ImageNet has two names twice, and its own classes keep their own places.
        index = {name: position for position, name in reversed(list(enumerate(self.class_names)))}
        own = tuple(names) == self.class_names
        trained = torch.arange(len(names)) if own else torch.tensor([index.get(name, -1) for name in names])
        if self.config.context == "class" and bool((trained < 0).any()):
            new = names[int((trained < 0).nonzero()[0])]
            raise UserError(
                "model.text.context", "with 'class', only trained classes have a context", got=new, fix="use 'shared'"
            )
        if self.config.context == "fixed":
            fixed = sentence_features(self.backbone, self.template, tuple(names))
            nothing = torch.empty(len(names), 0, self.backbone.text_width)
            return Classes(tuple(names), trained.to(self.backbone.device), nothing, torch.empty(0), fixed)
        start, end = self.backbone.start_and_end_ids
        places = [start, *[0] * self.length, *self.kept_ids]
        rows = [[*places, *self.backbone.token_ids(_readable(name) + "."), end] for name in names]
        longest = max(map(len, rows))
        if longest > self.backbone.context_length:
            raise UserError(
                "model.text.length",
                f"context, name and 2 more tokens must fit the {self.backbone.context_length} of {self.backbone.name}",
                got=longest,
            )
        device = self.backbone.device
        ids_CL = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        ends_C = self.backbone.ends([len(row) - 1 for row in rows])
        return Classes(tuple(names), trained.to(device), self.backbone.embed_ids(ids_CL), ends_C, None)

    def forward(self, classes: Classes, shift_BGT: Tensor | None = None, deeper_JMT: Tensor | None = None) -> Tensor:
        """Return text features Z, not normalised.

        Args:
            classes: from :meth:`classes`.
            shift_BGT: what N1 adds to every context vector, for each image, and each class (G = C) or all (G = 1).
            deeper_JMT: tokens in the places of a shared context before text block 1, 2, ...

        Returns:
            (C, D) without a shift, the same for every image; (B, C, D) with one.
        """
        if classes.fixed_CD is not None:
            return classes.fixed_CD
        C, L, T = classes.embeddings_CLT.shape
        before, after = classes.embeddings_CLT[:, :1], classes.embeddings_CLT[:, 1 + self.length :]
        per_class = self.config.context == "class"
        if not per_class and (shift_BGT is None or shift_BGT.shape[1] == 1):
            # One context for all classes of an image: run it once, then every name after it.
            context_BMT = self.context[None] if shift_BGT is None else self.context + shift_BGT
            prefixes_BPT = torch.cat([before[:1].expand(len(context_BMT), -1, -1), context_BMT], dim=1)
            ends_C = classes.ends_C - prefixes_BPT.shape[1]
            features_BCD = self.backbone.text_features_of_prefixes(prefixes_BPT, after, ends_C, deeper_JMT)
            return features_BCD[0] if shift_BGT is None else features_BCD
        context_CMT = self.context[classes.trained_C] if per_class else self.context.expand(C, -1, -1)
        if shift_BGT is None:
            prompts_CLT = torch.cat([before, context_CMT, after], dim=1)
            return self.backbone.text_features(prompts_CLT, classes.ends_C)
        B = shift_BGT.shape[0]
        context_BCMT = context_CMT + shift_BGT[:, :, None, :]
        prompts_BCLT = torch.cat(
            [before.expand(B, C, -1, T), context_BCMT.expand(B, C, -1, T), after.expand(B, C, -1, T)], dim=2
        )
        features = self.backbone.text_features(prompts_BCLT.reshape(B * C, L, T), classes.ends_C.repeat(B))
        return features.view(B, C, -1)

    def of_pairs(self, classes: Classes, class_R: Tensor, shift_RT: Tensor) -> Tensor:
        """Return text features (R, D) of (image, class) pairs, not normalised.

        Args:
            classes: from :meth:`classes`.
            class_R: each pair's class.
            shift_RT: what N1 adds to every context vector of each pair.
        """
        before, after = classes.embeddings_CLT[:, :1], classes.embeddings_CLT[:, 1 + self.length :]
        own = self.config.context == "class"
        context_RMT = (self.context[classes.trained_C[class_R]] if own else self.context) + shift_RT[:, None]
        prompts_RLT = torch.cat([before[class_R], context_RMT, after[class_R]], dim=1)
        return self.backbone.text_features(prompts_RLT, classes.ends_C[class_R.to(classes.ends_C.device)])
