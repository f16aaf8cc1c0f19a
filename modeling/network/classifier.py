"""The preference model: a decoder, pooled at its last real token or over all tokens, with an MLP head that gives one
logit per label.

One mixin holds all behaviour; the family classes below it name only the transformers classes that they extend.
Importing this module registers them with transformers' Auto classes. It must not know how text became token ids.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
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
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen2Model,
)
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from modeling.encoding.packing import Segment, list_spans
from modeling.network.frozen import replay_states
from modeling.network.losses import Distillation, average_orders, compute_preference_loss
from modeling.runtime.choices import POOLINGS as POOLING_NAMES


class PreferenceHead(nn.Module):
    """Dropout -> Linear(hidden, head_hidden) -> Dropout -> GELU -> Linear(head_hidden, labels), in float32.

    With `head_hidden_size` 0 it is a linear head: Dropout -> Linear(hidden, labels); with `head_bias` False too, it is
    what a stock `<Family>ForSequenceClassification` has. Every size is a config field, so a saved model rebuilds its
    head without further arguments.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.head_dropout)
        width = config.head_hidden_size or config.hidden_size
        # Without an explicit dtype a fresh head would take the base's, for example bf16.
        build_linear = partial(nn.Linear, dtype=torch.float32)
        self.dense = build_linear(config.hidden_size, width) if config.head_hidden_size else None
        self.out = build_linear(width, config.num_labels, bias=config.head_bias)

    def center(self, features: Tensor) -> None:
        """Moves the input's origin to the mean of features of shape (battles, hidden), by the first layer's bias.

        The states of a language model have most of their length in common, and a fresh layer would pass that on.

        Raises:
            ValueError: If the first layer has no bias.
        """
        first = self.out if self.dense is None else self.dense
        if first.bias is None:
            raise ValueError(
                "--center_head: expected a head whose first layer has a bias; found a linear head without one. Leave "
                "the flag out, or make the base without --head_bias false."
            )
        with torch.no_grad():
            first.bias -= first.weight @ features.float().mean(dim=0)

    def forward(self, features: Tensor) -> Tensor:
        """Computes logits of shape (battles, labels) from features of shape (battles, hidden)."""
        hidden = self.dropout(features)
        if self.dense is not None:
            hidden = nn.functional.gelu(self.dropout(self.dense(hidden)))
        return self.out(hidden)


class PreferenceMixin:
    """Adds pooling, head and loss to a `<Family>ForSequenceClassification`, which must come after it in the bases."""

    # Trainer must not believe that our loss divides by num_items_in_batch: it would then skip its own division, and
    # accumulation over 8 batches or 8 processes would train with 8 times the gradient.
    accepts_loss_kwargs = False
    # The head is small and its logits are compared across precisions, so it is loaded in float32 on every base.
    _keep_in_fp32_modules_strict = ("score",)
    # The body computes in this dtype, in training and prediction, whatever dtype stores its weights. load_base sets it.
    compute_dtype = torch.float32
    # Number of lowest layers whose output `frozen_states` replaces.
    num_frozen_layers = 0
    # How the loss mixes labels with a teacher's probabilities, if a batch has them. The training setup sets it.
    distillation = Distillation()
    # Share of the loss that is computed on the mean logits of both orders; such batches hold both passes of a battle
    # one after the other. The training setup sets it.
    both_orders_weight = 0.0

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.score = PreferenceHead(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialises a fresh head: unit-variance first layer, and a last layer whose probabilities start near 1/2."""
        # Not in PreferenceHead.__init__: from_pretrained builds on the meta device and would lose those values.
        head = self.score
        # The parent's __init__ also calls this, while `score` is still the stock linear layer.
        if isinstance(head, PreferenceHead) and (module is head.out or module is head.dense):
            gain = 0.1 if module is head.out else 1.0
            init.normal_(module.weight, mean=0.0, std=gain / math.sqrt(module.in_features))
            if module.bias is not None:
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
        frozen_states: Tensor | None = None,
        return_dict: bool | None = None,  # PEFT passes it; an output object is returned anyway
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Computes one row of logits per battle, and the loss if there are labels.

        Args:
            input_ids: Shape (battles, tokens), padded on either side, or (1, tokens) for a packed sequence.
            attention_mask: Shape (battles, tokens), 1 on real tokens; None if nothing is padded.
            position_ids: Shape (1, tokens); packed sequences only.
            segments: Spans of the packed sequence, which need the attention that `choose_attention` sets.
            ends: Index of each battle's last token in the packed sequence, shape (battles,).
            frozen_states: Output of the lowest `num_frozen_layers`, if known, shape (1, tokens, hidden).
            labels: Float probabilities over the labels, in slot order, shape (battles, labels).
            teacher: A teacher's probabilities in the same shape; NaN for a battle without one.
            weights: Weight of each battle in the loss, shape (battles,).

        Returns:
            `loss` in nats (None without labels) and `logits` of shape (battles, labels), both float32.
        """
        # B battles, T tokens, H hidden, L labels
        with replay_states(self.list_layers()[: self.num_frozen_layers], frozen_states):
            hidden = self._run_body(input_ids, attention_mask, position_ids, inputs_embeds, segments, **kwargs)
        # (B, T, H)
        pool = POOLINGS[self.config.pooling]
        features = pool.padded(hidden, attention_mask) if segments is None else pool.packed(hidden[0], segments, ends)
        # Even under an outer autocast the head runs in float32: two labels are too few to save time in bf16.
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self.score(features.float())  # (B, L)
        loss = None
        if labels is not None:
            # Not transformers' self.loss_function: for float labels it silently selects binary cross-entropy.
            loss = compute_preference_loss(logits, labels, teacher, weights, self.distillation)
            if share := self.both_orders_weight:
                of_first = (None if targets is None else targets[::2] for targets in (labels, teacher, weights))
                both = compute_preference_loss(average_orders(logits), *of_first, self.distillation)
                loss = (1 - share) * loss + share * both
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def list_layers(self) -> nn.ModuleList:
        """Returns the decoder's layers, from the lowest."""
        return getattr(self, self.base_model_prefix).layers

    def _run_body(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        segments: Sequence[Segment] | None,
        **kwargs,
    ) -> Tensor:
        """Computes the decoder's last hidden states, shape (battles, tokens, hidden); one row for a packed sequence."""
        kwargs["use_cache"] = False  # nothing is generated: a cache of keys and values would only take memory
        if segments is not None:
            assert self.config._attn_implementation.startswith("packed"), "other attention mixes the sequences in a row"
            kwargs["segments"] = segments
            # The segments replace the mask. transformers uses a 4-dimensional mask as it is instead of building one.
            attention_mask = torch.ones(1, 1, 1, 1, device=self.device)
        body = getattr(self, self.base_model_prefix)
        # Autocast here, not in Trainer: under DeepSpeed, Trainer's bf16 would convert the adapters themselves.
        lower = self.compute_dtype != torch.float32
        with torch.autocast(self.device.type, self.compute_dtype if lower else None, enabled=lower):
            return body(
                input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                **kwargs,
            ).last_hidden_state


class LastToken:
    """Pools a battle at its last real token."""

    @staticmethod
    def padded(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Features of shape (battles, hidden) from states of shape (battles, tokens, hidden)."""
        return hidden[torch.arange(len(hidden), device=hidden.device), find_last_token(hidden, attention_mask)]

    @staticmethod
    def packed(hidden: Tensor, segments: Sequence[Segment], ends: Tensor) -> Tensor:
        """Features of shape (battles, hidden) from the states of a packed row, shape (tokens, hidden)."""
        return hidden[ends]


class MeanOfTokens:
    """Pools a battle as the mean over its tokens, a shared prefix's included."""

    @staticmethod
    def padded(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Features of shape (battles, hidden) from states of shape (battles, tokens, hidden)."""
        if attention_mask is None:
            return hidden.float().mean(dim=1)
        mask = attention_mask[..., None].float()
        return (hidden.float() * mask).sum(dim=1) / mask.sum(dim=1)

    @staticmethod
    def packed(hidden: Tensor, segments: Sequence[Segment], ends: Tensor) -> Tensor:
        """Features of shape (battles, hidden) from the states of a packed row, shape (tokens, hidden)."""
        spans = [(segment.start, segment.stop) for segment in segments]
        sums = dict(zip(spans, (hidden[start:stop].float().sum(dim=0) for start, stop in spans), strict=True))
        features = []
        for own in list_spans(segments, ends.tolist()):
            features.append(sum(sums[span] for span in own) / sum(stop - start for start, stop in own))
        return torch.stack(features)


POOLINGS = dict(zip(POOLING_NAMES, (LastToken, MeanOfTokens), strict=True))


def find_last_token(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Returns the index of each row's last real token, shape (battles,), on whichever side the row is padded."""
    battles, tokens = hidden.shape[:2]
    if attention_mask is None:
        return torch.full((battles,), tokens - 1, device=hidden.device)
    positions = torch.arange(tokens, device=hidden.device)
    # By the mask, not by the pad id as in the stock head: several tokenizers pad with eos, and looking for the last id
    # that is not pad would skip the closing eos of a real battle.
    return (positions * attention_mask.to(torch.int64)).argmax(dim=-1)


@dataclass(kw_only=True)
class PreferenceConfigMixin:
    """Config fields of the head. They are saved with the weights, so a folder rebuilds its own head."""

    head_dropout: float = 0.1
    head_hidden_size: int | None = None  # None: hidden_size // 2; 0: a linear head
    head_bias: bool = True  # False, for a linear head only: the one that stock models have
    pooling: str = "last"  # key of POOLINGS: what the head reads

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)}; found {self.pooling!r}.")
        if self.head_hidden_size is None:
            self.head_hidden_size = self.hidden_size // 2
        if self.head_hidden_size and not self.head_bias:
            raise ValueError(
                f"head_bias: expected false only for a linear head; found head_hidden_size {self.head_hidden_size}. "
                "Set head_hidden_size to 0, or leave head_bias out."
            )


# The config fields of the head, which a member records, with their defaults.
HEAD_DEFAULTS = {field.name: field.default for field in fields(PreferenceConfigMixin)}

# Each family needs three classes, because transformers builds the body with AutoModel.from_config: a config with its
# own model_type, a body registered for that config, and the classifier. The loop below FAMILIES registers them.


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


def build_stock_config(config: PreTrainedConfig, pad_token_id: int) -> PreTrainedConfig:
    """Builds the config of the stock `<Family>ForSequenceClassification` with the body of a preference model.

    Args:
        config: A preference model's.
        pad_token_id: An id that no battle contains, because the stock head reads the last token that is another one.
    """
    stock = find_stock_class(config.model_type)
    ours = {*HEAD_DEFAULTS, "model_type", "architectures", "made_from", "quantization_config", "pad_token_id"}
    values = {name: value for name, value in config.to_dict().items() if name not in ours}
    # The loss that transformers would compute for one label per battle; servers take softmax from it.
    values["problem_type"] = "single_label_classification"
    return stock.config_class.from_dict({**values, "architectures": [stock.__name__], "pad_token_id": pad_token_id})


def find_stock_class(model_type: str) -> type[PreTrainedModel]:
    """Returns the `<Family>ForSequenceClassification` that a family's preference model extends."""
    return next(base for base in find_family(model_type).__bases__ if base is not PreferenceMixin)


def find_family(model_type: str) -> type[PreferenceMixin]:
    """Returns the classifier class for a checkpoint's `model_type`, plain ("gemma2") or ours ("gemma2_preference").

    Raises:
        ValueError: If this module has no family for that architecture.
    """
    for config, _, classifier in FAMILIES:
        if model_type in (config.model_type, config.model_type.removesuffix("_preference")):
            return classifier
    known = ", ".join(config.model_type.removesuffix("_preference") for config, _, _ in FAMILIES)
    raise ValueError(
        f"Unsupported base: expected model_type to be one of {known}; found {model_type!r}. "
        "Choose a base of one of these families, or add its three classes to modeling/network/classifier.py."
    )
