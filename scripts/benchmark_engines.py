"""
What `scripts/benchmark.py --parts scoring` measures of the bare forward: its rate by several engines and precisions,
each where its package is installed, in turns; and what each does to the scores of simulated cutouts with labels.
"""

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

LABELLED, SEED = 600, 31  # cutouts, half of them lenses, of another seed than those of trainings
CALIBRATION = 128  # cutouts that show NNCF the ranges of activations
ROUNDS = 5
REFERENCE, SCORED = "torch, fp32", "torch, fp32, linear layers by oneDNN"  # the second is what lens-ssl score does

Forward = Callable[[Any], np.ndarray]  # images `(n, bands, H, W)` as a tensor to logits `(n, 2)`


def compare_engines(classifier: Any, cores: int, seconds: float, batch_size: int = 256) -> dict[str, dict[str, float]]:
    """Cutouts per second in the median, over those of torch in fp32; the largest change of P(lens), and the AUC."""
    import torch
    from sklearn.metrics import roc_auc_score

    images, labels = labelled_images(classifier)
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engines = {**torch_engines(classifier.model), **other_engines(classifier.model, cores, images)}
        scores = {
            name: p_lens(np.concatenate([*map(forward, images.split(batch_size))]))
            for name, forward in engines.items()
        }
        rates = rates_in_turns({name: lambda f=f: f(images[:batch_size]) for name, f in engines.items()}, seconds)
    return {
        name: {
            "cutouts_per_second": batch_size * statistics.median(rates[name]),
            "over_torch_fp32": statistics.median(a / b for a, b in zip(rates[name], rates[REFERENCE])),
            "changes_a_score_by": float(np.abs(scores[name] - scores[REFERENCE]).max()),
            "roc_auc": float(roc_auc_score(labels, scores[name])),
        }
        for name in engines
    }


def labelled_images(classifier: Any) -> tuple[Any, np.ndarray]:
    """Simulated cutouts as the model's forward takes them, and whether each is a lens."""
    import torch

    from lens_ssl_hf.data.files.raw import RawCutout
    from lens_ssl_hf.data.simulation import BANDS, SimulationConfig, simulate_cutouts
    from lens_ssl_hf.data.tensors import center_crop, normalise
    from lens_ssl_hf.inference.read_cutout import as_display

    config, is_lens = SimulationConfig(size=48), np.arange(LABELLED) % 2 == 0
    display = []
    for flux, _ in simulate_cutouts(SEED, range(LABELLED), is_lens.tolist(), config):
        raw = RawCutout(flux.astype(np.float32), tuple(BANDS))
        display.append(as_display(raw, classifier.cutouts, "a cutout", len(BANDS), classifier.crop_size))
    pixels = center_crop(torch.from_numpy(np.stack(display)), classifier.crop_size)
    return normalise(pixels, classifier.mean, classifier.std), is_lens


def torch_engines(model: Any) -> dict[str, Forward]:
    import torch

    from lens_ssl_hf.survey.onednn import OneDNNLinear

    compiled = torch.compile(model)
    int8 = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)

    def by_onednn(images: Any) -> np.ndarray:
        with OneDNNLinear():
            return model(images).logits.numpy()

    def bf16(images: Any) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return model(images).logits.float().numpy()

    return {
        REFERENCE: lambda images: model(images).logits.numpy(),
        SCORED: by_onednn,
        "torch, fp32, compiled": lambda images: compiled(images).logits.numpy(),
        "torch, bf16": bf16,
        "torch, int8 of linear layers": lambda images: int8(images).logits.numpy(),
    }


def other_engines(model: Any, cores: int, images: Any) -> dict[str, Forward]:
    """Of OpenVINO and ONNX Runtime, as far as they are installed, with as many threads as cores."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Any) -> Any:
            return self.model(images).logits

    plain, engines = Logits().eval(), {}
    if find_spec("openvino"):
        import openvino

        converted = openvino.convert_model(plain, example_input=images[:2])
        for precision, kind in (("fp32", "f32"), ("bf16", "bf16")):
            engines[f"OpenVINO, {precision}"] = _by_openvino(converted, kind, cores)
        if find_spec("nncf"):
            import nncf

            seen = nncf.Dataset(images[:CALIBRATION].split(1), lambda one: one.numpy())
            quantised = nncf.quantize(converted, seen, model_type=nncf.ModelType.TRANSFORMER)
            engines["OpenVINO, int8 by NNCF"] = _by_openvino(quantised, "f32", cores)
    if find_spec("onnxruntime") and find_spec("onnxscript"):
        engines["ONNX Runtime, fp32"] = _by_onnx(plain, images, cores)
    return engines


def _by_openvino(model: Any, precision: str, cores: int) -> Forward:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": cores, "ENABLE_CPU_PINNING": False}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    return lambda images: compiled(images.numpy())[0]


def _by_onnx(model: Any, images: Any, cores: int) -> Forward:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            model,
            (images[:2],),
            path,
            dynamo=True,
            dynamic_shapes={"images": {0: torch.export.Dim("n")}},
            verbose=False,
        )
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images.numpy()})[0]


def p_lens(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))


def rates_in_turns(ways: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Calls per second of every way in `ROUNDS` rounds, each of them `seconds` long or one call."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start, calls = time.perf_counter(), 0
            while calls == 0 or time.perf_counter() - start < seconds:
                way()
                calls += 1
            rates[name].append(calls / (time.perf_counter() - start))
    return rates
