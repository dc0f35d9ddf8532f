"""Makes our weight-transfer engines known to vLLM, in every process that loads vLLM's general plugins."""

#: backend name -> (module, class), imported by vLLM only when the backend is selected
ENGINES = {
    "rlhf_ray_object_store": ("rlhf_ray.weights.engine", "ObjectStoreEngine"),
    "rlhf_ray_nccl": ("rlhf_ray.weights.gpu_engine", "AuditedNCCLEngine"),
    "rlhf_ray_ipc": ("rlhf_ray.weights.gpu_engine", "AuditedIPCEngine"),
}


def register() -> None:
    """Entry point `vllm.general_plugins`; safe to call again."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for backend, (module, class_name) in ENGINES.items():
        if backend not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(backend, module, class_name)
