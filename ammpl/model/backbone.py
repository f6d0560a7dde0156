"""A frozen open_clip CLIP, opened at token level.

Prompt learning needs the towers from the inside: image prompts replace patch tokens, text prompts replace word
embeddings. :class:`Backbone` runs open_clip's own weights on tokens; its outputs equal open_clip's
``encode_image`` and ``encode_text`` (tests/model/test_backbone.py).

Shapes: B images or prompts, N patches, L text length, V vision width, T text width, D joint width, H heads,
J depth of tokens, n of them in the image tower, M in the text tower.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import open_clip
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from ammpl.config import BackboneConfig
from ammpl.errors import UserError
from ammpl.model import architectures, tiny_glyph
from ammpl.model.blocks import (
    Layout,
    run_block,
    run_causal_block,
    run_last_block,
    run_last_causal_block,
)
from ammpl.model.weights import create_clip, create_own_clip, tags_text

Repad = Callable[[int, Tensor], Tensor | None]
"""(block index, tokens after the position embedding (B, N, V)) -> the same tokens, masked ones written again; None
where they stay as they are."""


@dataclass(frozen=True)
class Preprocessing:
    """What the image tower expects.

    Attributes:
        size: pixels a side, square.
        mean: of each channel, of pixels in [0, 1].
        std: of each channel, of pixels in [0, 1].
        interpolation: of the resize, ``bicubic`` or ``bilinear``.
        resize_mode: ``shortest``, ``longest`` or ``squash``, as open_clip names them.
        fill_color: of the padding in ``longest``, 0..255.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: int = 0


class Backbone:
    """Frozen CLIP towers that take tokens.

    Not an ``nn.Module`` on purpose: a model that holds it must not list its weights among the learnables.

    Args:
        clip: an open_clip ``CLIP`` with a plain ViT image tower and a causal text tower.
        tokenizer: texts -> token ids (n, context length), the end token being the largest id.
        preprocessing: what the image tower expects.
        name: for messages and records.

    Raises:
        UserError: the towers are of a kind whose inside this class does not know.
    """

    def __init__(self, clip: Any, tokenizer: Callable[..., Tensor], preprocessing: Preprocessing, name: str):
        _refuse_other_towers(clip, name)
        self.clip: Any = clip.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self.name = name
        visual = self.clip.visual
        self.patch_count: int = visual.positional_embedding.shape[0] - 1
        self.patch_size: int = visual.patch_size[0]
        self.grid: tuple[int, int] = tuple(visual.grid_size)
        self.vision_width: int = visual.positional_embedding.shape[1]
        self.vision_layers: int = len(visual.transformer.resblocks)
        self.text_width: int = self.clip.positional_embedding.shape[1]
        self.text_layers: int = len(self.clip.transformer.resblocks)
        self.joint_width: int = self.clip.text_projection.shape[1]
        self.context_length: int = self.clip.context_length
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self._mean, self._std = mean.view(3, 1, 1), std.view(3, 1, 1)
        self._run_block = run_block
        self.tf32 = False  # whether a GPU's products round their factors
        self._static_shapes: bool | None = None
        self._token_ids: dict[str, list[int]] = {}  # a name is read again for every evaluation

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return cast(torch.device, self.clip.positional_embedding.device)

    @property
    def static_shapes(self) -> bool:
        """Whether no shape depends on data, as a GPU's recorded steps need; a processor spares work instead.

        It decides how computations are laid out (texts padded to one length, or in groups by length; all classes, or
        those that are needed), not their results. The device decides; tests set it.
        """
        return self.device.type == "cuda" if self._static_shapes is None else self._static_shapes

    @static_shapes.setter
    def static_shapes(self, value: bool) -> None:
        self._static_shapes = value

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of tokens and features, and of learnables."""
        return cast(torch.dtype, self.clip.positional_embedding.dtype)

    @property
    def block_dtype(self) -> torch.dtype:
        """The floating-point type in which the transformer blocks compute: :attr:`dtype`, or bf16."""
        return cast(torch.dtype, self.clip.visual.transformer.resblocks[0].mlp.c_fc.weight.dtype)

    @property
    def logit_scale(self) -> Tensor:
        """exp(logit scale), what cosines are multiplied by; a scalar tensor."""
        return cast(Tensor, self.clip.logit_scale.exp())

    @property
    def vision_positions_NV(self) -> Tensor:
        """The patches' position embeddings (N, V), the class token's left out."""
        return cast(Tensor, self.clip.visual.positional_embedding[1:])

    @property
    def device_name(self) -> str:
        """A GPU's name, or the kind of device; for records."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    @property
    def precision(self) -> str:
        """Of the blocks, as configurations write it (fp64, which is for tests, is none of theirs); for records."""
        single = "tf32" if self.tf32 else "fp32"
        return {torch.bfloat16: "bf16", torch.float32: single}.get(self.block_dtype, str(self.block_dtype))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Backbone:
        """Move or cast the weights in place; return self."""
        self.clip.to(device=device, dtype=dtype)
        self._mean, self._std = self._mean.to(self.device), self._std.to(self.device)
        return self

    def cast_blocks(self, dtype: torch.dtype) -> Backbone:
        """Cast the weights of the transformer blocks in place; return self.

        What surrounds them keeps its type: embeddings, positions, the last norms, projections and the logit scale
        (4.605, which bf16 would round to 4.594: 99 for 100).
        """
        self.clip.visual.transformer.to(dtype)
        self.clip.transformer.to(dtype)
        return self

    def compile_blocks(self, compiler: str = "inductor") -> Backbone:
        """Compile the function that runs a block of the image tower (all but the last); return self.

        One graph serves all blocks and any number of images, and all trials of a process: it stays with the backbone.
        """
        self._run_block = torch.compile(run_block, dynamic=True, fullgraph=True, backend=compiler)
        return self

    def checksum(self) -> str:
        """Return the SHA-256 of all weights: equal before and after training."""
        digest = hashlib.sha256()
        for name, value in sorted(self.clip.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    # Images

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 pixels (B, 3, S, S) into the tower's input, channel-wise (x / 255 - mean) / std."""
        pixels = images.to(device=self.device, dtype=self.dtype) / 255
        return (pixels - self._mean.to(pixels)) / self._std.to(pixels)

    @torch.no_grad()
    def embed_patches(self, pixels: Tensor) -> Tensor:
        """Embed normalised pixels (B, 3, S, S) as patch tokens (B, N, V), before positions; no gradient."""
        embedded = self.clip.visual.conv1(pixels)  # (B, V, grid, grid)
        return cast(Tensor, embedded.flatten(2).transpose(1, 2))

    def image_features(
        self, patches_BNV: Tensor, repad: Repad | None = None, extra_JnV: Tensor | None = None
    ) -> Tensor:
        """Run the image tower from patch tokens (B, N, V) to features (B, D), not normalised.

        Args:
            patches_BNV: tokens before the position embedding.
            repad: called before block 1, 2, ... with (block index, patch tokens); what it returns goes on.
            extra_JnV: n tokens after the patches, without a position: the first n before the first norm, the others
                before block 1, 2, ... in the place of those before.
        """
        visual = self.clip.visual
        B, N, _ = patches_BNV.shape
        class_B1V = visual.class_embedding.expand(B, 1, -1)
        tokens = torch.cat([class_B1V, patches_BNV], dim=1) + visual.positional_embedding
        if extra_JnV is not None:
            tokens = torch.cat([tokens, extra_JnV[0].expand(B, -1, -1)], dim=1)
        tokens = visual.ln_pre(tokens).to(self.block_dtype)
        *blocks, last = visual.transformer.resblocks
        for index, block in enumerate([*blocks, last]):
            if repad is not None and index > 0:
                padded = repad(index, tokens[:, 1 : 1 + N])
                if padded is not None:
                    tokens = torch.cat([tokens[:, :1], padded.to(self.block_dtype), tokens[:, 1 + N :]], dim=1)
            if extra_JnV is not None and 0 < index < len(extra_JnV):
                extra = extra_JnV[index].to(self.block_dtype).expand(B, -1, -1)
                tokens = torch.cat([tokens[:, : 1 + N], extra], dim=1)
            if block is not last:
                tokens = self._run_block(block, tokens)
        class_BV = run_last_block(last, tokens).to(self.dtype)
        return cast(Tensor, visual.ln_post(class_BV) @ visual.proj)

    # Text

    def token_ids(self, text: str) -> list[int]:
        """Return the ids of ``text`` without start and end tokens.

        Raises:
            UserError: the text is longer than the tower reads, or holds words the tower cannot read.
        """
        if text in self._token_ids:
            return list(self._token_ids[text])
        ids = self.tokenizer([text])[0].tolist()
        end = max(range(len(ids)), key=ids.__getitem__)
        if end == len(ids) - 1 and len(ids) == self.context_length:
            # The tokenizer cuts what is too long without a word; a full row may be such a cut.
            raise UserError(
                f"backbone {self.name}", f"a text may have {self.context_length - 2} tokens at most", got=text
            )
        self._token_ids[text] = ids[1:end]
        return list(self._token_ids[text])

    @property
    def start_and_end_ids(self) -> tuple[int, int]:
        """The ids of the start and the end token."""
        ids = self.tokenizer([""])[0].tolist()
        return ids[0], max(ids)

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Look up token embeddings: ids (..., L) -> (..., L, T), before positions."""
        return cast(Tensor, self.clip.token_embedding(ids))

    def text_features(self, embeddings_BLT: Tensor, ends_B: Tensor) -> Tensor:
        """Run the text tower from token embeddings (B, L, T) to features (B, D), not normalised.

        Attention is causal, so nothing after the end token matters: a processor runs each prompt up to its own.

        Args:
            embeddings_BLT: start token, context, name, end token, then anything; before positions.
            ends_B: index of the end token in each prompt; from :meth:`ends`.
        """
        nothing = embeddings_BLT.new_empty(0, 0, embeddings_BLT.shape[2])
        return self.text_features_of_prefixes(nothing, embeddings_BLT, ends_B)[0]

    def text_features_of_prefixes(
        self, prefixes_BPT: Tensor, suffixes_CST: Tensor, ends_C: Tensor, deeper_JMT: Tensor | None = None
    ) -> Tensor:
        """Return features (B, C, D) of every prefix followed by every suffix.

        Equal to :meth:`text_features` of the B x C concatenations. What precedes the names is run once a prefix:
        attention is causal, so it does not depend on what follows.

        Args:
            prefixes_BPT: start token and context, one for each image; before positions. Without any (B = 0), suffixes
                are whole sequences, and features (1, C, D).
            suffixes_CST: name, end token, then anything; before positions.
            ends_C: index of the end token in each suffix; on the device of :meth:`ends`.
            deeper_JMT: tokens that take the places of the context, without a position, before block 1, 2, ...
        """
        (B, P, T), S = prefixes_BPT.shape, suffixes_CST.shape[1]
        suffixes_CST = suffixes_CST + self.clip.positional_embedding[P : P + S]
        if self.static_shapes:
            layout, groups, order = Layout.filled(ends_C + 1, S, B, P), [suffixes_CST], None
        else:
            layout, members = Layout.by_length(ends_C + 1, B, P)
            lengths = [length for _, length in layout.groups[-len(members) :]]
            groups = [suffixes_CST[chosen, :length] for chosen, length in zip(members, lengths, strict=True)]
            order = torch.cat(members).argsort()  # that in which the suffixes came
        rows = [(prefixes_BPT + self.clip.positional_embedding[:P]).flatten(0, 1)]
        rows += [group.expand(max(B, 1), -1, -1, -1).flatten(0, 2) for group in groups]
        rows_RT = torch.cat(rows).to(self.block_dtype)
        *blocks, last = self.clip.transformer.resblocks
        for index, block in enumerate([*blocks, last]):
            if deeper_JMT is not None and 0 < index <= len(deeper_JMT):
                deeper_BMT = deeper_JMT[index - 1].to(self.block_dtype).expand(B, -1, -1)
                prefix_BPT = torch.cat([rows_RT[: B * P].view(B, P, T)[:, :1], deeper_BMT], dim=1)
                rows_RT = torch.cat([prefix_BPT.flatten(0, 1), rows_RT[B * P :]])
            if block is not last:
                rows_RT = run_causal_block(block, rows_RT, layout)
        ends_RT = run_last_causal_block(last, rows_RT, layout).to(self.dtype)
        features_RD = self.clip.ln_final(ends_RT) @ self.clip.text_projection
        by_group = features_RD.split([max(B, 1) * len(group) for group in groups])
        features_BCD = torch.cat([group.view(max(B, 1), -1, group.shape[1]) for group in by_group], dim=1)
        return features_BCD if order is None else features_BCD[:, order]

    def ends(self, ends: Sequence[int]) -> Tensor:
        """Return indices of end tokens where :meth:`text_features` takes them from."""
        return torch.tensor(ends, device=self.device if self.static_shapes else "cpu")

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the features (n, D) of whole sentences, not normalised; no gradient."""
        start, end = self.start_and_end_ids
        rows = [[start, *self.token_ids(text), end] for text in texts]
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=self.device)
        with torch.no_grad():
            return self.text_features(self.embed_ids(ids), self.ends([len(row) - 1 for row in rows]))


def _refuse_other_towers(clip: Any, name: str) -> None:
    def refuse(what: str) -> None:
        raise architectures.unsupported(name, what)

    if type(clip) is not open_clip.CLIP:
        refuse(f"model class is {type(clip).__name__}")
    if not isinstance(clip.visual, VisionTransformer):
        refuse(f"image tower is {type(clip.visual).__name__}")
    if clip.visual.attn_pool is not None or clip.visual.pool_type != "tok":
        refuse("image tower does not read its class token")
    if clip.text_pool_type != "argmax" or clip.attn_mask is None:
        refuse("text tower does not read its end token causally")
    if not isinstance(clip.text_projection, nn.Parameter):
        refuse("text projection is not a matrix")
    for tower in (clip.visual.transformer, clip.transformer):
        if any(type(block) is not ResidualAttentionBlock for block in tower.resblocks):
            refuse("transformer blocks are not the standard ones")


def computes_bf16(device: torch.device | str) -> bool:
    """Return whether a device has instructions for products in bf16: else they are slower than in fp32.

    Of processors x86 ones are known (AVX512-BF16, AMX), where torch is recent enough to be asked.
    """
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


@lru_cache(maxsize=2)  # a worker keeps the backbones of its study; studies compare two at most
def load_backbone(config: BackboneConfig, device: str = "cpu") -> Backbone:
    """Load a frozen backbone, once a process.

    Raises:
        UserError: unknown architecture or pretrained tag, missing weights, unreadable or mismatched checkpoint.
    """
    backbone = _load(config).to(device)
    if config.precision == "bf16" or (config.precision == "auto" and computes_bf16(device)):
        backbone.cast_blocks(torch.bfloat16)
    backbone.tf32 = config.precision == "tf32" and backbone.device.type == "cuda"
    if config.compile and backbone.device.type == "cuda":
        backbone.compile_blocks()
    return backbone


def _load(config: BackboneConfig) -> Backbone:
    name, pretrained = config.name, config.pretrained
    if name == tiny_glyph.NAME:
        if pretrained is not None:
            raise UserError(
                "backbone.pretrained", f"{name} has only its own weights", got=pretrained, fix="leave it out"
            )
        preprocessing = _preprocessing(tiny_glyph.preprocess_config())
        return Backbone(tiny_glyph.load(), tiny_glyph.Tokenizer(), preprocessing, name)
    architectures.model_config(name)
    if architectures.has_own_weights(name):
        if pretrained is not None:
            raise UserError("backbone.pretrained", f"{name} has its own weights", got=pretrained, fix="leave it out")
        clip = create_own_clip(name)
    elif pretrained is None:
        tags = tags_text(open_clip.list_pretrained_tags_by_model(name))
        raise UserError("backbone.pretrained", f"{name} needs a pretrained tag or a checkpoint file", fix=tags)
    elif pretrained == "random":
        torch.manual_seed(0)  # random weights are for benchmarks: the same ones everywhere
        clip = open_clip.create_model(name)
    else:
        clip = create_clip(name, pretrained)
    shown = name if pretrained is None else f"{name}/{pretrained}"
    return Backbone(clip, open_clip.get_tokenizer(name), load_preprocessing(config), shown)


def load_preprocessing(config: BackboneConfig) -> Preprocessing:
    """Return what a backbone expects of images, without loading its weights.

    Raises:
        UserError: unknown architecture.
    """
    if config.name == tiny_glyph.NAME:
        return _preprocessing(tiny_glyph.preprocess_config())
    architecture = architectures.model_config(config.name)
    tag = architectures.preprocess_config(config.name, config.pretrained)
    chosen = merge_preprocess_dict(PreprocessCfg(), tag)
    return _preprocessing(chosen | {"size": architecture["vision_cfg"]["image_size"]})


def _preprocessing(config: dict[str, Any]) -> Preprocessing:
    size = config["size"] if isinstance(config["size"], int) else config["size"][0]
    geometry = {name: config[name] for name in ("interpolation", "resize_mode", "fill_color") if name in config}
    return Preprocessing(size, tuple(config["mean"]), tuple(config["std"]), **geometry)
