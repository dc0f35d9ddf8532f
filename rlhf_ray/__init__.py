"""rlhf_ray: Ray-distributed, actor-based RLHF with real vLLM rollouts and proven weight syncs."""

__version__ = "0.1.0"
