"""Files in the forms in which people publish them for mergekit-evolve and mergekit.

Models are called `org/base`, `org/math` and `org/lang`; `with_models` gives them folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

EVOLVE = {
    # as in the announcement: blocks of 8 layers, three experts' signs free
    "blocks": """
genome:
  models: [org/math, org/lang]
  merge_method: task_arithmetic
  base_model: org/base
  layer_granularity: 1   # sane default
  allow_negative_weights: true
tasks:
  - {name: pick, weight: 0.4}
  - name: other
""",
    "dare_ties": """
genome:
  models:
    - org/base
    - org/math
    - org/lang
  merge_method: dare_ties
  base_model: org/base
  tokenizer_source: union
  layer_granularity: 2
  normalize: false
tasks:
  - name: pick
    weight: 1.0
    metric: "acc,none"
limit: 12
num_fewshot: 0
apply_chat_template: false
""",
    "filters": """
genome:
  models: [{model: org/math}, {model: {path: org/lang}}]
  merge_method: ties
  base_model: {model: {path: org/base}}
  layer_granularity: 1
  filters: [self_attn, mlp]
tasks: [pick]
shuffle: true
random_init: true
""",
    "linear": """
genome:
  models: [org/base, org/math, org/lang]
  merge_method: linear
  layer_granularity: 0
  smooth: true
tasks: [{name: pick, metric: acc}, {name: other, weight: 0}]
fewshot_as_multiturn: false
""",
    "slerp": """
genome: {models: [org/base, org/math], merge_method: slerp, layer_granularity: 2}
tasks: [pick]
""",
}
"""Name → a mergekit-evolve file."""

RECIPES = {
    "slerp_gradients": """
slices:
  - sources:
      - {model: org/base, layer_range: [0, 2]}
      - {model: org/math, layer_range: [0, 2]}
merge_method: slerp
base_model: org/base
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
dtype: bfloat16
""",
    "ties": """
models:
  - model: org/base
  - model: org/math
    parameters: {density: 0.5, weight: 0.5}
  - model: org/lang
    parameters: {density: 0.5, weight: 0.3}
merge_method: ties
base_model: org/base
parameters: {normalize: false, int8_mask: true}
dtype: float16
""",
    "dare_ties_gradient": """
models:
  - model: org/math
    parameters:
      density: 0.53
      weight: [0.1, 0.9]
  - model: org/lang
    parameters:
      density: 0.6
      weight: 0.4
merge_method: dare_ties
base_model: org/base
tokenizer_source: base
dtype: bfloat16
""",
    "linear": """
models:
  - model: org/math
    parameters: {weight: 1.0}
  - model: org/lang
    parameters: {weight: 0.3}
merge_method: linear
dtype: float16
""",
    "frankenmerge": """
slices:
  - sources: [{model: org/math, layer_range: [0, 2]}]
  - sources: [{model: org/lang, layer_range: [0, 1]}]
  - sources: [{model: org/math, layer_range: [1, 2]}]
merge_method: passthrough
dtype: float16
""",
    "model_stock": """
models: [{model: org/math}, {model: org/lang}]
merge_method: model_stock
base_model: org/base
dtype: bfloat16
""",
}
"""Name → a mergekit recipe."""


def with_models(text: str, models: Mapping[str, Path]) -> str:
    """The file with folders in the place of `org/…`."""
    for name, folder in models.items():
        text = text.replace(f"org/{name}", str(folder))
    return text
