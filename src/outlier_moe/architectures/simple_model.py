"""The model `simple`: LayerNorm, GELU and PyTorch's own multi-head attention, dense or with experts.

The norms stand before attention and feed-forward part and once more at the end; all projections have biases; the head
is the embedding. Positions are the sinusoids of Vaswani et al. 2017, which have no parameters, and no position sees a
later one.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, softmax
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.integrations.moe import use_experts_implementation
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from outlier_moe.architectures.simple_config import SimpleConfig

Hidden = Float[Tensor, "sequence position feature"]


class SimpleAttention(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself."""

    def __init__(self, config: SimpleConfig) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(config.hidden_size, config.num_attention_heads, batch_first=True)

    def forward(self, hidden_states: Hidden, attention_mask: Bool[Tensor, "position position"]) -> Hidden:
        """Attention of each position to those that the mask (true: hidden) allows."""
        mixed, _ = self.attention(
            hidden_states, hidden_states, hidden_states, attn_mask=attention_mask, is_causal=True, need_weights=False
        )
        return mixed


class SimpleFeedForward(nn.Module):
    """Two matrices with a GELU between them."""

    def __init__(self, config: SimpleConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Hidden) -> Hidden:
        """The feed-forward part of each position."""
        return self.down_proj(gelu(self.up_proj(hidden_states)))


class SimpleRouter(nn.Module):
    """A linear layer whose softmax chooses the experts of each token."""

    def __init__(self, config: SimpleConfig) -> None:
        super().__init__()
        n_experts = config.num_local_experts or 0
        self.top_k = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(n_experts, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(n_experts))

    def forward(
        self, hidden_states: Float[Tensor, "token feature"]
    ) -> tuple[Float[Tensor, "token expert"], Float[Tensor, "token choice"], Int[Tensor, "token choice"]]:
        """The experts' logits, and the gates (which add up to 1) and numbers of those that are chosen."""
        logits = linear(hidden_states, self.weight, self.bias)
        # The softmax over the chosen is that over all, renormalised; but where two experts are twins its gradient is
        # exactly zero, and not what rounding leaves, of which Adam would make full steps.
        largest, chosen = torch.topk(logits.float(), self.top_k, dim=-1)
        return logits, softmax(largest, dim=-1), chosen


@use_experts_implementation(has_gate=False, has_bias=True)
class SimpleExperts(nn.Module):
    """As many feed-forward parts as there are experts, each matrix a stack."""

    def __init__(self, config: SimpleConfig) -> None:
        super().__init__()
        n_experts, d_model, d_ff = config.num_local_experts or 0, config.hidden_size, config.intermediate_size
        self.num_experts = n_experts
        self.up_proj = nn.Parameter(torch.empty(n_experts, d_ff, d_model))
        self.up_proj_bias = nn.Parameter(torch.empty(n_experts, d_ff))
        self.down_proj = nn.Parameter(torch.empty(n_experts, d_model, d_ff))
        self.down_proj_bias = nn.Parameter(torch.empty(n_experts, d_model))
        self.act_fn = nn.GELU()

    def forward(
        self,
        hidden_states: Float[Tensor, "token feature"],
        top_k_index: Int[Tensor, "token choice"],
        top_k_weights: Float[Tensor, "token choice"],
    ) -> Float[Tensor, "token feature"]:
        """The chosen experts' outputs, weighted and added up: expert by expert, each on all of its tokens at once."""
        result = torch.zeros_like(hidden_states)
        for expert in range(self.num_experts):
            token, choice = torch.where(top_k_index == expert)
            if len(token) == 0:
                continue
            inner = gelu(linear(hidden_states[token], self.up_proj[expert], self.up_proj_bias[expert]))
            own = linear(inner, self.down_proj[expert], self.down_proj_bias[expert])
            weighted = own * top_k_weights[token, choice, None]
            result.index_add_(0, token, weighted.to(result.dtype))
        return result


class SimpleMoE(nn.Module):
    """Router and experts in the place of the feed-forward part."""

    def __init__(self, config: SimpleConfig) -> None:
        super().__init__()
        self.gate = SimpleRouter(config)
        self.experts = SimpleExperts(config)

    def forward(self, hidden_states: Hidden) -> Hidden:
        """The weighted sum of what each position's experts give."""
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, gates, chosen = self.gate(tokens)
        return self.experts(tokens, chosen, gates).reshape(hidden_states.shape)


class SimpleDecoderLayer(nn.Module):
    """Attention and feed-forward part, each behind a norm and added to the residual stream."""

    def __init__(self, config: SimpleConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = SimpleAttention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SimpleFeedForward(config) if config.num_local_experts is None else SimpleMoE(config)

    def forward(self, hidden_states: Hidden, attention_mask: Bool[Tensor, "position position"]) -> Hidden:
        """The residual stream behind the layer."""
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), attention_mask)
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class SimplePreTrainedModel(PreTrainedModel):
    """The base of both classes: initialisation and what transformers needs to know."""

    config_class = SimpleConfig
    base_model_prefix = "model"
    _no_split_modules = ["SimpleDecoderLayer"]
    _can_record_outputs = {
        "router_logits": OutputRecorder(SimpleRouter, index=0),
        "hidden_states": SimpleDecoderLayer,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.MultiheadAttention):
            init.normal_(module.in_proj_weight, mean=0.0, std=std)
            init.zeros_(module.in_proj_bias)
        elif isinstance(module, SimpleRouter):
            init.normal_(module.weight, mean=0.0, std=std)
            init.zeros_(module.bias)
        elif isinstance(module, cast(type[nn.Module], SimpleExperts)):
            for name, parameter in module.named_parameters():
                if name.endswith("bias"):
                    init.zeros_(parameter)
                else:
                    init.normal_(parameter, mean=0.0, std=std)
        else:
            super()._init_weights(module)


class SimpleModel(SimplePreTrainedModel):
    """The embedding and the layers."""

    def __init__(self, config: SimpleConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(SimpleDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @capture_outputs
    def forward(self, input_ids: Int[Tensor, "sequence position"], **kwargs: Any) -> MoeModelOutputWithPast:
        """The hidden states behind the last norm."""
        n_positions = input_ids.shape[1]
        # As Vaswani et al. do: an embedding that is also the head is too small beside the sinusoids.
        embedded = self.embed_tokens(input_ids) * math.sqrt(self.config.hidden_size)
        hidden_states = embedded + sinusoids(n_positions, self.config.hidden_size, like=embedded)
        hides = torch.ones(n_positions, n_positions, dtype=torch.bool, device=input_ids.device).triu(diagonal=1)
        for layer in self.layers:
            hidden_states = layer(hidden_states, hides)
        return MoeModelOutputWithPast(last_hidden_state=self.norm(hidden_states))


class SimpleForCausalLM(SimplePreTrainedModel):
    """The language model."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: SimpleConfig) -> None:
        super().__init__(config)
        self.model = SimpleModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self, input_ids: Int[Tensor, "sequence position"], labels: Tensor | None = None, **kwargs: Any
    ) -> MoeCausalLMOutputWithPast:
        """The logits of each next token, and with labels (the same tokens) the mean loss."""
        outputs = self.model(input_ids=input_ids, **kwargs)
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return MoeCausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, router_logits=outputs.router_logits
        )


def sinusoids(n_positions: int, n_features: int, *, like: Tensor) -> Float[Tensor, "position feature"]:
    """The positions of Vaswani et al. 2017 (section 3.5): sines in the even features, cosines in the odd ones."""
    position = torch.arange(n_positions, device=like.device, dtype=torch.float32)[:, None]
    pair = torch.arange(0, n_features, 2, device=like.device, dtype=torch.float32)
    angle = position * torch.exp(pair * (-math.log(10000.0) / n_features))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :n_features].to(like.dtype)


def register_simple() -> None:
    """Make the model known to transformers' auto classes, so that its checkpoints are read like any other's."""
    AutoConfig.register(SimpleConfig.model_type, SimpleConfig, exist_ok=True)
    AutoModelForCausalLM.register(SimpleConfig, SimpleForCausalLM, exist_ok=True)
