"""Checkpoints that other packages' tensors make, and what Nibble decodes of them."""

import json

import numpy as np
from command_line import read_safetensors, run_ok


def write_layers(folder, layers, quantization):
    """layers: module name -> {suffix: torch tensor}."""
    from safetensors.torch import save_file

    folder.mkdir()
    tensors = {
        f"{name}.{suffix}": tensor.detach().contiguous().cpu().clone()
        for name, parts in layers.items()
        for suffix, tensor in parts.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "test", "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))


def decoded(folder):
    """module name -> f32 weight, as Nibble decodes it."""
    out = folder.parent / (folder.name + "-dense")
    run_ok("convert", folder, out, "--to", "dense", "--dtype", "f32")
    return {
        name.removesuffix(".weight"): np.frombuffer(data, np.float32).reshape(shape)
        for name, (dtype, shape, data) in read_safetensors(out / "model.safetensors").items()
        if dtype == "F32" and name.endswith(".weight")
    }
