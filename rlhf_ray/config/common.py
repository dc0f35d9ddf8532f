"""Sections that every stage shares: the run, the model, the learner, resources, checkpoints, tracking."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf_ray.config.base import Section

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["4bit", "8bit"]
Schedule = Literal["constant", "linear", "cosine", "inverse_sqrt", "wsd"]


class RunSection(Section):
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]+$", description="Run name; default: stage and start time.")
    root: str = Field("runs", description="Folder of all runs; must be absolute inside a submitted job.")
    seed: int = Field(0, ge=0, description="Seed of everything random in the run.")
    exact: bool = Field(
        False, description="Bit-for-bit repeatable: float32, fixed chunks, the learner's own log-probs."
    )


class LoraSection(Section):
    r: int = Field(8, ge=1, le=1024, description="Rank of the adapter matrices.")
    alpha: float = Field(16.0, gt=0, description="Scaling: the update is alpha / r * B @ A.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input (off in every log-prob pass).")
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Module names that get an adapter, or all linear layers but the head."
    )


class ModelSection(Section):
    name: str = Field(description="Hub name or local folder of a causal language model.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    tokenizer: str | None = Field(None, description="Hub name or folder of the tokenizer; default: the model's.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = Field("sdpa", description="Attention kernel.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass: less memory.")
    torch_compile: bool = Field(False, description="Compile the learner's networks with torch.compile.")
    lora: LoraSection | None = Field(None, description="Train low-rank adapters instead of all weights.")
    quantization: Quantization | None = Field(
        None, description="Keep the frozen weights under adapters in 4-bit NormalFloat or 8-bit rows (extra: qlora)."
    )

    @model_validator(mode="after")
    def _quantized_weights_are_frozen(self) -> Self:
        if self.quantization is not None and self.lora is None:
            raise ValueError(
                f"quantization: {self.quantization} weights cannot be trained themselves; set model.lora too (QLoRA), "
                "or model.quantization=null"
            )
        return self


class LearnerSection(Section):
    ranks: int = Field(1, ge=1, le=4096, description="Learner processes; each owns a shard of the weights (FSDP2).")
    dtype: Dtype = Field(
        "auto", description="Compute dtype; weights stay float32. auto: bfloat16 where hardware has it."
    )
    learning_rate: float = Field(
        1e-5, gt=0, le=1, description="Peak learning rate of the policy (or the only network)."
    )
    schedule: Schedule = Field(
        "constant",
        description="Learning rate after the warm-up; wsd: constant, then down over the last fifth of the run.",
    )
    warmup_steps: int = Field(0, ge=0, description="Optimiser steps over which the learning rate rises from zero.")
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="The warm-up as a share of the run's optimiser steps.")
    min_learning_rate_ratio: float = Field(
        0.0, ge=0, le=1, description="Where the schedule ends, as a share of the peak."
    )
    optimizer: Literal["adamw", "adamw_8bit", "sgd"] = Field(
        "adamw", description="adamw_8bit: moments in 8 bits through bitsandbytes (extra: qlora)."
    )
    fused: bool = Field(True, description="One kernel for a step of adamw; false: torch's plain loops.")
    weight_decay: float = Field(
        0.0, ge=0, le=1, description="Decoupled decay (sgd: L2); not on biases, norms and embeddings."
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW first-moment decay.")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="AdamW second-moment decay.")
    adam_eps: float = Field(1e-8, gt=0, description="AdamW epsilon.")
    sgd_momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this global norm.")
    tokens_per_microbatch: int = Field(
        4096,
        ge=1,
        description="Padded tokens per forward/backward pass on one rank; a step's gradients add up over its passes.",
    )

    @model_validator(mode="after")
    def _one_warm_up(self) -> Self:
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("warmup_steps and warmup_ratio say the same thing twice; set one of them")
        return self


class ResourcesSection(Section):
    num_gpus: int | None = Field(None, ge=0, description="GPUs for the run; default: all that the cluster has.")
    cpus_per_actor: float | None = Field(
        None, gt=0, description="CPUs reserved per actor (no limit on use); default: an even share, at most 1."
    )
    threads: int | None = Field(None, ge=1, description="Torch threads per actor on CPU; default: the node's cores.")
    start_timeout_s: float = Field(600, gt=0, description="Seconds until an actor that does not start is an error.")
    call_timeout_s: float = Field(
        1800, gt=0, description="Seconds until a call to an actor that is silent is an error."
    )
    restarts: int = Field(
        5, ge=0, description="Restarts of lost actors of one kind, within restart_window_s, before the run gives up."
    )
    restart_window_s: float = Field(3600, gt=0, description="Seconds after which a restart no longer counts.")
    recovery_timeout_s: float = Field(1800, gt=0, description="Seconds to wait for capacity that was lost with a node.")
    ray_address: str | None = Field(None, description="Ray cluster to join; default: $RAY_ADDRESS, else a local Ray.")


class CheckpointSection(Section):
    every: int = Field(0, ge=0, description="Checkpoint every so many iterations (PPO) or steps; 0: at the end only.")
    keep_last: int = Field(2, ge=1, description="How many checkpoints to keep.")
    best: bool = Field(
        False,
        description="Keep the best policy as `best/` too (PPO), and the checkpoint with the best evaluation (PPO "
        "without regular ones: mean reward).",
    )
    asynchronous: bool = Field(
        True,
        description="Write beside the training, from a copy of the learner's state in host memory; false: training "
        "waits, and there is no copy.",
    )


class TrackingSection(Section):
    tensorboard: bool = Field(True, description="Write TensorBoard events into the run folder.")
    wandb_project: str | None = Field(None, description="Log to this Weights & Biases project (extra: wandb).")
    mlflow_experiment: str | None = Field(None, description="Log to this MLflow experiment (extra: mlflow).")
    mlflow_uri: str | None = Field(
        None, description="MLflow tracking URI; default: $MLFLOW_TRACKING_URI, else the folder mlruns in run.root."
    )
    samples_every: int = Field(0, ge=0, description="Show a table of scored samples every so many iterations; 0: none.")
    verbose: bool = Field(False, description="Show the logs of Ray and vLLM on the console too.")
