"""Pretrained weights: files and tags, found without network, read without running anything."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from ammpl.config import BackboneConfig
from ammpl.errors import UserError
from ammpl.model.backbone import load_backbone, load_preprocessing
from ammpl.model.weights import is_cached

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.1, 0.3]


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_checkpoint_file_is_loaded(small_architecture, tmp_path, suffix):
    source = load_backbone(BackboneConfig(name=small_architecture, pretrained="random"))
    file = tmp_path / f"clip.{suffix}"
    if suffix == "pt":
        torch.save(source.clip.state_dict(), file)
    else:
        save_file(source.clip.state_dict(), file)
    loaded = load_backbone(BackboneConfig(name=small_architecture, pretrained=str(file)))
    assert loaded.checksum() == source.checksum()


def test_a_broken_checkpoint_file_is_refused(small_architecture, tmp_path):
    file = tmp_path / "clip.pt"
    file.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="is damaged, or a pickle that holds more than tensors"):
        load_backbone(BackboneConfig(name=small_architecture, pretrained=str(file)))


def test_a_checkpoint_that_would_run_code_is_refused(small_architecture, tmp_path):
    class Payload:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    file = tmp_path / "clip.pt"
    torch.save(Payload(), file)
    with pytest.raises(UserError, match="is damaged, or a pickle that holds more than tensors"):
        load_backbone(BackboneConfig(name=small_architecture, pretrained=str(file)))
    assert not (tmp_path / "ran").exists()


def test_an_archive_with_code_is_refused(small_architecture, tmp_path):
    file = tmp_path / "clip.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    with pytest.raises(UserError, match="is a TorchScript archive, which holds code and is never loaded"):
        load_backbone(BackboneConfig(name=small_architecture, pretrained=str(file)))


@pytest.fixture
def tag(small_architecture, tmp_path, monkeypatch):
    """A tag of weights that were trained with QuickGELU, of an architecture without it, in an empty cache."""
    known = {"clever": {"hf_hub": "someone/clip/", "quick_gelu": True, "mean": MEAN, "std": STD}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, small_architecture, known)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return BackboneConfig(name=small_architecture, pretrained="clever")


def cache(clip, folder, file):
    """Put weights where the hub's client keeps them."""
    repository = folder / "hub" / "models--someone--clip"
    for path in (repository / "refs", repository / "snapshots" / ("0" * 40)):
        path.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    kept = repository / "snapshots" / ("0" * 40) / file
    save_file(clip.state_dict(), kept) if file.endswith("safetensors") else torch.save(clip.state_dict(), kept)


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_tag_is_read_from_the_cache_with_its_own_activation(tag, tmp_path, file, monkeypatch):
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("the network was asked"))
    clip = open_clip.create_model(tag.name, force_quick_gelu=True).eval()
    assert not is_cached(tag.name, "clever")
    cache(clip, tmp_path, file)
    assert is_cached(tag.name, "clever")
    backbone = load_backbone(tag)
    assert load_preprocessing(tag).mean == tuple(MEAN)
    assert backbone.preprocessing == load_preprocessing(tag)
    texts = ["a photo of a cat.", "a dog"]
    with torch.no_grad():
        expected = clip.encode_text(open_clip.get_tokenizer(tag.name)(texts))
        torch.testing.assert_close(backbone.encode_texts(texts), expected)
        plain = open_clip.create_model(tag.name).eval()
        plain.load_state_dict(clip.state_dict())
        assert not torch.allclose(expected, plain.encode_text(open_clip.get_tokenizer(tag.name)(texts)), atol=1e-4)


def refuse(*_, **__):
    raise OSError(111, "Connection refused")


def test_without_network_the_file_to_fetch_is_named(tag, tmp_path, monkeypatch):
    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(UserError) as raised:
        load_backbone(tag)
    text = str(raised.value)
    assert text.startswith(
        "backbone.pretrained: the weights of ViT-test are not on this machine, and huggingface.co does not answer "
        "(Connection refused), got 'clever'. Fix: fetch "
        "https://huggingface.co/someone/clip/resolve/main/open_clip_model.safetensors elsewhere and give the file: "
        "--backbone ViT-test-quickgelu --pretrained FILE"
    )
    assert text.endswith(f"copy its cache folder to {tmp_path / 'hub' / 'models--someone--clip'}")
    assert not (tmp_path / "hub").exists()


def test_offline_by_wish_asks_no_network(tag, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("the network was asked"))
    with pytest.raises(UserError, match="are not on this machine, and HF_HUB_OFFLINE is set"):
        load_backbone(tag)


def test_a_tag_with_an_address_of_its_own(small_architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    known = {"old": {"url": "https://weights.invalid/old.pt"}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, small_architecture, known)
    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    config = BackboneConfig(name=small_architecture, pretrained="old")
    with pytest.raises(
        UserError, match=r"Fix: fetch https://weights\.invalid/old\.pt elsewhere and give the file: --b"
    ):
        load_backbone(config)
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    source = open_clip.create_model(small_architecture)
    torch.save(source.state_dict(), tmp_path / ".cache" / "clip" / "old.pt")
    assert torch.equal(load_backbone(config).clip.visual.proj, source.visual.proj)


@pytest.fixture
def folder(small_architecture, tmp_path):
    """A model in a folder, as open_clip puts it on the hub: a description that says QuickGELU, and weights."""
    torch.manual_seed(3)
    config = open_clip.get_model_config(small_architecture) | {"quick_gelu": True}
    clip = open_clip.create_model(small_architecture, force_quick_gelu=True)
    text = {"model_cfg": config, "preprocess_cfg": {"mean": MEAN, "std": STD, "resize_mode": "squash"}}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "open_clip_config.json").write_text(json.dumps(text))
    save_file(clip.state_dict(), tmp_path / "own" / "open_clip_model.safetensors")
    return tmp_path / "own", clip.eval()


def test_a_folder_of_the_hubs_form_is_a_backbone_with_its_own_weights(folder):
    path, clip = folder
    backbone = load_backbone(BackboneConfig(name=f"local-dir:{path}"))
    assert backbone.preprocessing.resize_mode == "squash"
    assert backbone.preprocessing.mean == tuple(MEAN) and backbone.preprocessing.std == tuple(STD)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = backbone.image_features(backbone.embed_patches(pixels)), clip.encode_image(pixels)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        texts = backbone.encode_texts(["a dog"])
        torch.testing.assert_close(texts, clip.encode_text(backbone.tokenizer(["a dog"])), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"has its own weights, got 'openai'. Fix: leave it out"):
        load_backbone(BackboneConfig(name=f"local-dir:{path}", pretrained="openai"))


def test_weights_that_are_no_numbers_are_refused(folder):
    path, clip = folder
    state = clip.state_dict()
    state["positional_embedding"][0, 0] = torch.nan
    save_file(state, path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=r"NaN or infinite .1 tensors, such as positional_embedding"):
        load_backbone(BackboneConfig(name=f"local-dir:{path}"))


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model_cfg": []}'])
def test_a_folder_without_a_description_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(UserError, match=r"backbone\.name: (its open_clip_config.json|unknown backbone)"):
        load_preprocessing(BackboneConfig(name=f"local-dir:{tmp_path}"))


def test_a_repository_that_cannot_be_fetched_is_said_without_a_traceback(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"its open_clip_config.json cannot be read .* Fix: unset HF_HUB_OFFLINE"):
        load_backbone(BackboneConfig(name="hf-hub:nobody/has-this"))


@pytest.mark.parametrize("name", ["RN50", "coca_ViT-B-32", "roberta-ViT-B-32", "ViT-B-16-SigLIP", "EVA02-B-16"])
def test_other_architectures_are_refused_by_their_description(name):
    """Before weights are fetched or pictures prepared."""
    with pytest.raises(UserError, match="only CLIP models with a plain ViT image tower"):
        load_preprocessing(BackboneConfig(name=name, pretrained="openai"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("openai/clip-vit-base-patch16", "ViT-B-16"),
        ("clip-vit-large-patch14-336", "ViT-L-14-336"),
        ("vit_b16", "ViT-B-16"),
        ("ViT-B/32", "ViT-B-32"),
        ("ViT-L/14@336px", "ViT-L-14-336"),
    ],
)
def test_other_spellings_are_understood(name, meant):
    with pytest.raises(UserError, match=f"unknown backbone, got '{name}'. Fix: did you mean '{meant}'"):
        load_preprocessing(BackboneConfig(name=name, pretrained="openai"))


def test_only_what_can_be_a_backbone_is_listed():
    with pytest.raises(UserError, match="Fix: known: ") as refused:
        load_preprocessing(BackboneConfig(name="zzz"))
    assert "ViT-B-16" in str(refused.value) and "EVA02" not in str(refused.value)
