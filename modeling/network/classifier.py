"""The network: a decoder's last real token through an MLP head to one logit per label.

One mixin holds all behaviour; the family classes below it say only which transformers classes they extend.
Importing this module registers them with transformers' Auto classes. It must not know how text became ids.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    Gemma2Model,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    Gemma3TextModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen2Model,
)
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from modeling.encoding.packing import Segment
from modeling.network.losses import Distillation, compute_preference_loss


class PreferenceHead(nn.Module):
    """Dropout -> Linear(hidden, head_hidden) -> Dropout -> GELU -> Linear(head_hidden, labels), in float32.

    With `head_hidden_size` 0 it is the stock linear head: Dropout -> Linear(hidden, labels). All its numbers are
    config fields, so a saved model rebuilds it by itself.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.head_dropout)
        width = config.head_hidden_size or config.hidden_size
        # The dtype is said here because a fresh head would otherwise take the base's, bf16 say.
        build_linear = partial(nn.Linear, dtype=torch.float32)
        self.dense = build_linear(config.hidden_size, width) if config.head_hidden_size else None
        self.out = build_linear(width, config.num_labels)

    def forward(self, features: Tensor) -> Tensor:
        """Logits, shape (battles, labels), for features of shape (battles, hidden)."""
        hidden = self.dropout(features)
        if self.dense is not None:
            hidden = nn.functional.gelu(self.dropout(self.dense(hidden)))
        return self.out(hidden)


class PreferenceMixin:
    """Pooling, head and loss on top of any `<Family>ForSequenceClassification` that stands after it in the bases."""

    # Trainer must not believe that our loss divides by num_items_in_batch: it would then skip its own division, and
    # accumulation over 8 batches or 8 processes would train with 8 times the gradient.
    accepts_loss_kwargs = False
    # The head is small and its logits are compared: float32 at every load, whatever dtype the base has.
    _keep_in_fp32_modules_strict = ("score",)
    # What the body computes in, in training and prediction alike, whatever its weights are held in; load_base says so.
    compute_dtype = torch.float32
    # How the loss mixes labels with a teacher's probabilities, where batches have these; train.py says so.
    distillation = Distillation()

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.score = PreferenceHead(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Fresh head: unit-variance first layer, a last layer so small that every probability starts near 1/2."""
        # Here and not in PreferenceHead.__init__: from_pretrained builds on the meta device and would lose it.
        head = self.score
        # The parent's own __init__ comes by here too, before the head has taken the place of its linear layer.
        if isinstance(head, PreferenceHead) and (module is head.out or module is head.dense):
            gain = 0.1 if module is head.out else 1.0
            init.normal_(module.weight, mean=0.0, std=gain / math.sqrt(module.in_features))
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        teacher: Tensor | None = None,
        weights: Tensor | None = None,
        segments: Sequence[Segment] | None = None,
        ends: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Logits per battle from its last token: the last one that the attention mask keeps, or its end in a pack.

        Args:
            input_ids: Shape (battles, tokens), padded on either side, or (1, tokens) of a pack.
            attention_mask: Shape (battles, tokens), 1 on real tokens; absent means that nothing is padded.
            position_ids: Of a pack, shape (1, tokens).
            segments, ends: Of a pack; `ends` has shape (battles,). Needs the attention that `choose_attention` set.
            labels: Probabilities over the slots' labels, shape (battles, labels); float.
            teacher: A teacher's probabilities over them, NaN where a battle has none; same shape.
            weights: Of the battles in the loss, shape (battles,).

        Returns:
            `loss` (when labels are given) in nats and `logits` of shape (battles, labels), both float32.
        """
        # B battles, T tokens, H hidden, L labels
        kwargs["use_cache"] = False  # nothing is generated: keys and values would only take memory
        body = getattr(self, self.base_model_prefix)
        if segments is not None:
            assert self.config._attn_implementation.startswith("packed"), "other attention mixes the readings of a pack"
            kwargs["segments"] = segments
            attention_mask = torch.ones(1, 1, 1, 1, device=self.device)  # of four dimensions: transformers builds none
        # Here, and not in the Trainer: DeepSpeed would turn the adapters themselves into bf16 instead.
        lower = self.compute_dtype != torch.float32
        with torch.autocast(self.device.type, self.compute_dtype if lower else None, enabled=lower):
            hidden = body(
                input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                **kwargs,
            ).last_hidden_state  # (B, T, H)
        if segments is None:
            features = hidden[torch.arange(len(hidden), device=hidden.device), last_token(hidden, attention_mask)]
        else:
            features = hidden[0, ends]  # (B, H)
        # Two labels are too few to save anything by a lower precision.
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self.score(features.float())  # (B, L)
        loss = None
        if labels is not None:
            loss = compute_preference_loss(logits, labels, teacher, weights, self.distillation)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def last_token(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Index of each row's last real token, shape (battles,), from the mask and never from the pad id.

    Several tokenizers pad with eos; looking for the last id that is not pad would then skip the closing eos.
    """
    battles, tokens = hidden.shape[:2]
    if attention_mask is None:
        return torch.full((battles,), tokens - 1, device=hidden.device)
    positions = torch.arange(tokens, device=hidden.device)
    return (positions * attention_mask.to(torch.int64)).argmax(dim=-1)


@dataclass(kw_only=True)
class PreferenceConfigMixin:
    """The head's numbers, saved with the weights: a folder rebuilds its head without being told its shape."""

    head_dropout: float = 0.1
    head_hidden_size: int | None = None  # None: hidden_size // 2 as in the seed; 0: the stock linear head

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.head_hidden_size is None:
            self.head_hidden_size = self.hidden_size // 2


# A family is three classes, because transformers builds the body from the config's type: a config with a type of its
# own, a body that claims it, and the classifier. FAMILIES registers them.


class Gemma2PreferenceConfig(PreferenceConfigMixin, Gemma2Config):
    model_type = "gemma2_preference"


class Gemma2PreferenceModel(Gemma2Model):
    config_class = Gemma2PreferenceConfig


class Gemma2ForPreference(PreferenceMixin, Gemma2ForSequenceClassification):
    config_class = Gemma2PreferenceConfig


class Gemma3TextPreferenceConfig(PreferenceConfigMixin, Gemma3TextConfig):
    model_type = "gemma3_text_preference"


class Gemma3TextPreferenceModel(Gemma3TextModel):
    config_class = Gemma3TextPreferenceConfig


class Gemma3TextForPreference(PreferenceMixin, Gemma3TextForSequenceClassification):
    config_class = Gemma3TextPreferenceConfig


class LlamaPreferenceConfig(PreferenceConfigMixin, LlamaConfig):
    model_type = "llama_preference"


class LlamaPreferenceModel(LlamaModel):
    config_class = LlamaPreferenceConfig


class LlamaForPreference(PreferenceMixin, LlamaForSequenceClassification):
    config_class = LlamaPreferenceConfig


class Qwen2PreferenceConfig(PreferenceConfigMixin, Qwen2Config):
    model_type = "qwen2_preference"


class Qwen2PreferenceModel(Qwen2Model):
    config_class = Qwen2PreferenceConfig


class Qwen2ForPreference(PreferenceMixin, Qwen2ForSequenceClassification):
    config_class = Qwen2PreferenceConfig


FAMILIES = (
    (Gemma2PreferenceConfig, Gemma2PreferenceModel, Gemma2ForPreference),
    (Gemma3TextPreferenceConfig, Gemma3TextPreferenceModel, Gemma3TextForPreference),
    (LlamaPreferenceConfig, LlamaPreferenceModel, LlamaForPreference),
    (Qwen2PreferenceConfig, Qwen2PreferenceModel, Qwen2ForPreference),
)
for _config, _body, _classifier in FAMILIES:
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _body)
    AutoModelForSequenceClassification.register(_config, _classifier)


def find_family(model_type: str) -> type[PreferenceMixin]:
    """The classifier class for a checkpoint's `model_type`, plain ("gemma2") or already ours ("gemma2_preference").

    Raises:
        ValueError: If no family of this module extends that architecture.
    """
    for config, _, classifier in FAMILIES:
        if model_type in (config.model_type, config.model_type.removesuffix("_preference")):
            return classifier
    known = ", ".join(config.model_type.removesuffix("_preference") for config, _, _ in FAMILIES)
    raise ValueError(
        f"Unsupported base: expected model_type to be one of {known}; found {model_type!r}. "
        "Choose a base of one of these families, or add its three classes to modeling/network/classifier.py."
    )
