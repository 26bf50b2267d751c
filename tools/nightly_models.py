"""Small models of Hugging Face's families, made from configurations with random weights, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

WORDS = 99


@dataclass(frozen=True)
class Family:
    """make: the attention implementation's name -> a model, always with the same weights. inputs: with labels, for
    the forward pass. prompt: for generate, None where the model does not generate."""

    name: str
    make: Callable[[str], Any]
    inputs: Callable[[], dict[str, torch.Tensor]]
    prompt: Callable[[], dict[str, torch.Tensor]] | None = None


def _maker(model: str, config: str, **settings: Any) -> Callable[[str], Any]:
    def make(attention: str = "sdpa") -> Any:
        import transformers

        torch.manual_seed(0)
        chosen = getattr(transformers, config)(**settings, attn_implementation=attention)
        return getattr(transformers, model)(chosen).eval()

    return make


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def tokens(batch: int = 3, length: int = 11) -> torch.Tensor:
    return torch.randint(3, WORDS, (batch, length), generator=_generator())


def mask() -> torch.Tensor:
    """Of three sequences of 11 the second and third begin with padding."""
    found = torch.ones(3, 11, dtype=torch.int64)
    found[1, :3] = found[2, :1] = 0
    return found


def _text() -> dict[str, torch.Tensor]:
    return {"input_ids": tokens(), "attention_mask": mask()}


def _labelled_text() -> dict[str, torch.Tensor]:
    return {**_text(), "labels": tokens()}


def _sound() -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(2, 8, 64, generator=_generator())}


def _image() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(3, 3, 32, 32, generator=_generator())}


_TEXT = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
          "max_position_embeddings": 64}  # fmt: skip

FAMILIES = {
    family.name: family
    for family in (
        Family(
            "bert",
            _maker("BertForSequenceClassification", "BertConfig", **_TEXT, **_SMALL, hidden_dropout_prob=0.0,
                   attention_probs_dropout_prob=0.0),
            lambda: {**_text(), "labels": torch.tensor([0, 1, 1])},
        ),
        Family(
            "gpt2",
            _maker("GPT2LMHeadModel", "GPT2Config", **_TEXT, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                   resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
            _labelled_text,
            _text,
        ),
        Family(
            "llama",
            _maker("LlamaForCausalLM", "LlamaConfig", **_TEXT, **_SMALL, num_key_value_heads=2),
            _labelled_text,
            _text,
        ),
        Family(
            "t5",
            _maker("T5ForConditionalGeneration", "T5Config", vocab_size=WORDS, d_model=32, d_kv=8, d_ff=64,
                   num_layers=2, num_heads=4, dropout_rate=0.0, decoder_start_token_id=0),
            _labelled_text,
            _text,
        ),
        Family(
            "vit",
            _maker("ViTForImageClassification", "ViTConfig", hidden_size=32, num_hidden_layers=2,
                   num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8, num_labels=5),
            lambda: {**_image(), "labels": torch.tensor([0, 4, 2])},
        ),
        Family(
            "whisper",
            _maker("WhisperForConditionalGeneration", "WhisperConfig", **_TEXT, d_model=32, encoder_layers=2,
                   decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
                   decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=32, max_target_positions=40,
                   decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None),
            lambda: {**_sound(), "labels": tokens(2)},
            _sound,
        ),
        Family(
            "mixtral",
            _maker("MixtralForCausalLM", "MixtralConfig", **_TEXT, **_SMALL, num_key_value_heads=2,
                   num_local_experts=4, num_experts_per_tok=2),
            _labelled_text,
            _text,
        ),
    )
}  # fmt: skip
