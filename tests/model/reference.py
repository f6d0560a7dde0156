"""Plain, slow references of the published formulas, through open_clip's own modules, one class and image at a time.

They share nothing with the package but the learnables' values: CoOp (Zhou et al. 2022a), CoCoOp (Zhou et al. 2022b),
VPT (Jia et al. 2022, deep), MaPLe (Khattak et al. 2023) and AMMPL in the order of docs/method.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def encode_prompt(backbone, context_MT: Tensor, name: str) -> Tensor:
    """Text feature (D,) of [start][context][name .][end] at the tower's full length, as CoOp builds it."""
    clip = backbone.clip
    M = len(context_MT)
    placeholder = " ".join(["X"] * M)
    ids = backbone.tokenizer([f"{placeholder} {name}.".strip()])
    embedded = clip.token_embedding(ids)[0]
    prompt = torch.cat([embedded[:1], context_MT, embedded[1 + M :]])[None]
    x = prompt + clip.positional_embedding
    x = clip.transformer(x, attn_mask=clip.attn_mask.to(x.dtype))
    x = clip.ln_final(x)[0, ids[0].argmax()]
    return x @ clip.text_projection


def meta_net(net, feature: Tensor, strength: float = 1.0) -> Tensor:
    """Linear, ReLU, Linear on the normalised feature."""
    hidden = torch.relu(net.input_weight @ (feature / feature.norm()) + net.input_bias)
    return strength * (net.output_weight @ hidden + net.output_bias)


def cosine_logit(backbone, image_D: Tensor, text_D: Tensor) -> Tensor:
    return backbone.clip.logit_scale.exp() * (image_D / image_D.norm()) @ (text_D / text_D.norm())


def coop(backbone, pixels: Tensor, context_MT: Tensor, names) -> Tensor:
    rows = []
    for pixel in pixels:
        image = backbone.clip.encode_image(pixel[None])[0]
        rows.append(
            torch.stack([cosine_logit(backbone, image, encode_prompt(backbone, context_MT, name)) for name in names])
        )
    return torch.stack(rows)


def cocoop(backbone, pixels: Tensor, context_MT: Tensor, net, names) -> Tensor:
    rows = []
    for pixel in pixels:
        image = backbone.clip.encode_image(pixel[None])[0]
        context = context_MT + meta_net(net, image)  # one bias for all M vectors
        rows.append(
            torch.stack([cosine_logit(backbone, image, encode_prompt(backbone, context, name)) for name in names])
        )
    return torch.stack(rows)


def image_with_tokens(backbone, pixel: Tensor, tokens: list[Tensor]) -> Tensor:
    """Image feature (D,) with tokens[0] after the patches and tokens[1], ... in their place before blocks 1, ..."""
    visual = backbone.clip.visual
    patches = visual.conv1(pixel[None]).flatten(2)[0].T.detach()
    x = torch.cat([visual.class_embedding[None], patches]) + visual.positional_embedding
    x = visual.ln_pre(torch.cat([x, tokens[0]]))
    for index, block in enumerate(visual.transformer.resblocks):
        if 0 < index < len(tokens):
            x = torch.cat([x[: -len(tokens[index])], tokens[index]])
        x = block(x[None])[0]
    return visual.ln_post(x[0]) @ visual.proj


def vpt(backbone, pixels: Tensor, tokens_JnV: Tensor, sentences) -> Tensor:
    texts = backbone.clip.encode_text(backbone.tokenizer(sentences))
    images = [image_with_tokens(backbone, pixel, list(tokens_JnV)) for pixel in pixels]
    return torch.stack([torch.stack([cosine_logit(backbone, image, text) for text in texts]) for image in images])


def maple(backbone, pixels: Tensor, phrase: str, contexts, layers, names) -> Tensor:
    """contexts: (M, T) a block of the text tower; layers: (weight, bias) a block, from a context to visual tokens."""
    clip, texts = backbone.clip, []
    for name in names:
        ids = backbone.tokenizer([f"{phrase} {name}."])
        M = len(contexts[0])
        embedded = clip.token_embedding(ids)[0]
        x = torch.cat([embedded[:1], contexts[0], embedded[1 + M :]]) + clip.positional_embedding
        for index, block in enumerate(clip.transformer.resblocks):
            if 0 < index < len(contexts):
                x = torch.cat([x[:1], contexts[index], x[1 + M :]])
            x = block(x[None], attn_mask=clip.attn_mask.to(x.dtype))[0]
        texts.append(clip.ln_final(x[ids[0].argmax()]) @ clip.text_projection)
    tokens = [context @ weight.T + bias for context, (weight, bias) in zip(contexts, layers, strict=True)]
    images = [image_with_tokens(backbone, pixel, tokens) for pixel in pixels]
    return torch.stack([torch.stack([cosine_logit(backbone, image, text) for text in texts]) for image in images])


def names_apart(backbone, names, trained) -> list[Tensor]:
    """What sets each name apart: its sentence's unit feature (D,) less the mean of the trained classes'."""

    def sentence(name: str) -> Tensor:
        text = backbone.clip.encode_text(backbone.tokenizer([f"a photo of a {name}."]))[0].detach()
        return text / text.norm()

    mean = sum(sentence(name) for name in trained) / len(trained)
    return [sentence(name) - mean for name in names]


def masked_image(backbone, pixel: Tensor, mask_N: Tensor, paddings_JV: Tensor) -> Tensor:
    """Image feature (D,) with masked patches replaced before the position embedding, and again before each block."""
    visual = backbone.clip.visual
    patches = visual.conv1(pixel[None]).flatten(2)[0].T.detach()  # (N, V)
    keep = mask_N[:, None]
    position = visual.positional_embedding
    J = len(paddings_JV)
    tokens = keep * patches
    if J:
        tokens = tokens + (1 - keep) * paddings_JV[0]
    x = visual.ln_pre(torch.cat([visual.class_embedding[None], tokens]) + position)
    for index, block in enumerate(visual.transformer.resblocks):
        if 0 < index < J:
            x = torch.cat([x[:1], keep * x[1:] + (1 - keep) * (paddings_JV[index] + position[1:])])
        x = block(x[None])[0]
    return visual.ln_post(x[0]) @ visual.proj


def ammpl(backbone, pixels: Tensor, context_MT: Tensor, masks_BCN: Tensor, paddings_JCV: Tensor, n1, n2, names):
    """s_bc for every image and class; n1 or n2 may be None."""
    alone = [encode_prompt(backbone, context_MT, name) for name in names]
    rows = []
    for b, pixel in enumerate(pixels):
        row = []
        for c, name in enumerate(names):
            paddings = paddings_JCV[:, c]
            if n2 is not None:
                paddings = paddings + meta_net(n2, alone[c], n2.strength)
            image = masked_image(backbone, pixel, masks_BCN[b, c], paddings)
            text = alone[c]
            if n1 is not None:
                text = encode_prompt(backbone, context_MT + meta_net(n1, image, n1.strength), name)
            row.append(cosine_logit(backbone, image, text))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def binary_concrete(logits: Tensor, uniform: Tensor, temperature: float, hard: bool) -> Tensor:
    soft = torch.sigmoid((logits + torch.log(uniform / (1 - uniform))) / temperature)
    return F.threshold(soft, 0.5, 0.0).sign() + soft - soft.detach() if hard else soft
