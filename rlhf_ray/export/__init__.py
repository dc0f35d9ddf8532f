"""Trained models in the forms that other programs load; each is loaded back and compared with its source.

    rlhf-ray export runs/ppo-20260101-120000 --format safetensors --format onnx-int8 -o exported

    report = rlhf_ray.export_model("runs/ppo-20260101-120000", format="onnx", output_path="exported")

`api` runs the steps: `source` finds the model, a format (`formats`) writes it, `verify` compares, `card` describes.
"""

#: Format -> what it is.
FORMATS = {
    "safetensors": "Hugging Face folder, adapters merged, sharded by size (transformers, vLLM, TGI)",
    "adapter": "the LoRA adapter alone, in PEFT's form",
    "onnx": "ONNX graph in float32, dynamic batch and time (onnxruntime)",
    "onnx-int8": "ONNX graph with int8 weights (onnxruntime, dynamic quantisation)",
    "torch-export": "torch.export program, dynamic batch and time (torch, AOTInductor)",
    "torchscript": "TorchScript trace, deprecated by torch (libtorch)",
}
