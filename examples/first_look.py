"""A first look at a model from Python, as in a notebook: each part between `# %%` lines is a cell.

Offline and in seconds, on a small random model. With weights of yours, replace the first cell by
`model = AutoModelForCausalLM.from_pretrained(...)`.
"""

# %% A model in memory
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import outlier_moe as om

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
)
# Norms that let one feature through much louder than the others, as trained models have them.
with torch.no_grad():
    for layer in model.model.layers:
        layer.input_layernorm.weight[3] = layer.post_attention_layernorm.weight[3] = 12.0

# %% Ids of tokens, [sequence, position]
tokens = torch.randint(0, 64, (4, 32))
recording = om.record(model, tokens, name="random")
print(recording)

# %% Which features are systematic, by the published thresholds and by others: nothing runs again
print(recording.systematic().select("feature", "layer_fraction", "position_fraction", "peak"))
print(recording.systematic(magnitude=8.0, layer_fraction=0.5).select("feature", "layer_fraction", "peak"))

# %% Where its largest activations are, as a picture: a notebook shows the chart
chart = recording.plot.layers()

# %% Beside the same model without the loud feature
with torch.no_grad():
    for layer in model.model.layers:
        layer.input_layernorm.weight[3] = layer.post_attention_layernorm.weight[3] = 1.0
quiet = om.record(model, tokens, name="quiet")
table = om.compare([recording, quiet], presets=["dettmers2022"]).filter(first_token="included")
print(table.select("model", "n_systematic", "peak_largest", "perplexity"))
