"""Networks: policy, critic, reward and reference models, LoRA, batching, token log-probs. torch, transformers, peft."""

from rlhf_ray.models.lean import import_lean_transformers

import_lean_transformers()
