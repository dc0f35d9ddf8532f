"""vLLM's own CUDA transports under our proof of loading. Not run where there is no GPU: see `gpu_transport`."""

from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from rlhf_ray.weights.engine import Proven


class AuditedNCCLEngine(Proven, NCCLWeightTransferEngine):
    """Backend `rlhf_ray_nccl`: packed NCCL broadcast from the learner's rank 0."""


class AuditedIPCEngine(Proven, IPCWeightTransferEngine):
    """Backend `rlhf_ray_ipc`: CUDA IPC handles of the learner's tensors, for learner and generator on the same GPUs."""
