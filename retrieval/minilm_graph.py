"""The transformer of all-MiniLM-L6-v2 as an ONNX graph, written from its published weights.

The architecture is BERT (Devlin et al. 2018), post-layer-norm, in ONNX Runtime's fused operators, with the weights
of the matrix products in 8 bits. No deep-learning framework is needed to write it or to run it: see
``docs/adr/0002-embedding-without-torch.md``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.numpy import load_file

WEIGHTS_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the published ``model.safetensors`` of sentence-transformers/all-MiniLM-L6-v2."""

_MICROSOFT: Final = "com.microsoft"
Weights = dict[str, npt.NDArray[np.float32]]


class WeightsError(RuntimeError):
    """The weights are not the published ones."""


def build(model_folder: Path, output: Path) -> None:
    """Write the 8-bit graph for the weights in ``model_folder`` to ``output``, atomically.

    Its inputs are ``input_ids`` and ``attention_mask``, int32 ``[batch, tokens]``; its output is
    ``token_embeddings``, float32 ``[batch, tokens, 384]``.

    Raises:
        WeightsError: the file's SHA-256 is not ``WEIGHTS_SHA256``.
    """
    weights_file = model_folder / "model.safetensors"
    digest = hashlib.sha256(weights_file.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise WeightsError(f"{weights_file} has SHA-256 {digest}, not that of the published model: reinstall it")
    config = json.loads((model_folder / "config.json").read_text())
    model = _Graph(load_file(weights_file), config).model()
    output.parent.mkdir(parents=True, exist_ok=True)
    exact, temporary = output.with_suffix(f".fp32.{os.getpid()}"), output.with_suffix(f".{os.getpid()}")
    onnx.save(model, exact)
    logging.getLogger().addFilter(_quiet)
    try:
        quantize_dynamic(
            exact,
            temporary,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul", "Attention"],
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )
    finally:
        logging.getLogger().removeFilter(_quiet)
        exact.unlink()
    temporary.replace(output)


def _quiet(record: logging.LogRecord) -> bool:
    """Drop the quantizer's advice to optimize a graph that is already written in fused operators."""
    return "pre-processing before quantization" not in record.getMessage()


class _Graph:
    def __init__(self, weights: Weights, config: dict[str, Any]) -> None:
        self._weights = weights
        self._heads: int = config["num_attention_heads"]
        self._layers: int = config["num_hidden_layers"]
        self._width: int = config["hidden_size"]
        self._epsilon: float = config["layer_norm_eps"]
        self._initializers: list[onnx.TensorProto] = []
        self._nodes: list[onnx.NodeProto] = []

    def model(self) -> onnx.ModelProto:
        hidden = self._embeddings()
        for layer in range(self._layers):
            hidden = self._layer(layer, hidden)
        self._nodes[-1].output[0] = "token_embeddings"
        graph = helper.make_graph(
            self._nodes,
            "all-MiniLM-L6-v2",
            [
                helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "tokens"])
                for name in ("input_ids", "attention_mask")
            ],
            [helper.make_tensor_value_info("token_embeddings", TensorProto.FLOAT, ["batch", "tokens", self._width])],
            self._initializers,
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def _embeddings(self) -> str:
        prefix = "embeddings."
        # One sentence: every token has type 0, whose embedding is folded into the positions.
        positions = self._weights[prefix + "position_embeddings.weight"]
        types = self._weights[prefix + "token_type_embeddings.weight"]
        inputs = [
            "input_ids",
            "",
            self._constant("words", self._weights[prefix + "word_embeddings.weight"]),
            self._constant("positions", positions + types[0]),
            "",
            self._constant("embeddings.gamma", self._weights[prefix + "LayerNorm.weight"]),
            self._constant("embeddings.beta", self._weights[prefix + "LayerNorm.bias"]),
            "attention_mask",
        ]
        return self._node("EmbedLayerNormalization", inputs, ["hidden", "mask"], epsilon=self._epsilon)

    def _layer(self, layer: int, hidden: str) -> str:
        prefix, name = f"encoder.layer.{layer}.", f"layer{layer}."
        attention = self._attention(prefix, name, hidden)
        middle = self._skip_norm(prefix + "attention.output", name + "middle", attention, hidden)
        up = self._product(prefix + "intermediate.dense", name + "up", middle)
        bias = self._constant(name + "up.bias", self._weights[prefix + "intermediate.dense.bias"])
        active = self._node("BiasGelu", [up, bias], [name + "active"])
        down = self._product(prefix + "output.dense", name + "down", active)
        return self._skip_norm(prefix + "output", name + "out", down, middle)

    def _attention(self, prefix: str, name: str, hidden: str) -> str:
        parts = [prefix + f"attention.self.{part}" for part in ("query", "key", "value")]
        weight = np.concatenate([self._weights[part + ".weight"].T for part in parts], axis=1)
        bias = np.concatenate([self._weights[part + ".bias"] for part in parts])
        inputs = [
            hidden,
            self._constant(name + "qkv", weight),
            self._constant(name + "qkv.bias", bias),
            "mask",
        ]
        heads = self._node("Attention", inputs, [name + "heads"], num_heads=self._heads)
        return self._product(prefix + "attention.output.dense", name + "attention", heads)

    def _skip_norm(self, prefix: str, name: str, value: str, skip: str) -> str:
        inputs = [
            value,
            skip,
            self._constant(name + ".gamma", self._weights[prefix + ".LayerNorm.weight"]),
            self._constant(name + ".beta", self._weights[prefix + ".LayerNorm.bias"]),
            self._constant(name + ".bias", self._weights[prefix + ".dense.bias"]),
        ]
        return self._node("SkipLayerNormalization", inputs, [name], epsilon=self._epsilon)

    def _product(self, prefix: str, name: str, value: str) -> str:
        weight = self._constant(name + ".weight", self._weights[prefix + ".weight"].T)
        return self._node("MatMul", [value, weight], [name], domain="")

    def _node(
        self, kind: str, inputs: list[str], outputs: list[str], domain: str = _MICROSOFT, **attributes: Any
    ) -> str:
        self._nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def _constant(self, name: str, value: npt.NDArray[np.float32]) -> str:
        self._initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name
