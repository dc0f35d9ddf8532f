"""Networks: policy, critic, reward and reference models, LoRA, batching, token log-probs. torch, transformers, peft."""

from rlhf_ray.models.lean import import_without_sklearn

import_without_sklearn()
