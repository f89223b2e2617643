"""The task `"lens-classification"` of `transformers.pipeline`: cutouts in any form, checked as they are read."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from torch.utils.data import Dataset
from transformers import AutoImageProcessor, ImageClassificationPipeline, PreTrainedConfig
from transformers.pipelines import PIPELINE_REGISTRY

from ..data.files.readers import raw_from_array, read_raw, read_raw_bands
from ..data.stretch import Stretch
from ..errors import InputError
from ..models.loading import check_classifier, check_weights, first_line, load_classifier, locate
from .compatibility import differences
from .inputs import has_length, open_inputs, units_of_row
from .read_cutout import as_display, tell_of_silence

logger = logging.getLogger(__name__)

TASK = "lens-classification"
BATCH_SIZE = 64  # three times as fast on a CPU as one by one
BATCH_BYTES = 256 * 2**20  # what the crops of a batch may take by default


class LensClassificationPipeline(ImageClassificationPipeline):
    """
    Scores cutouts with a published classifier; made by [`pipeline`], or by
    `transformers.pipeline("lens-classification", model)`.

    Args:
        model (`PreTrainedModel`): a classifier of lenses.
        image_processor (`BaseImageProcessor`): its own.
        batch_size (`int`, *optional*): 64, or fewer of large crops, by default.
        kwargs: as for [`transformers.Pipeline`], such as `device`, and those of a call.

    Raises:
        [`InputError`]: it is no classifier of lenses, or not whole.
    """

    def __init__(self, model: Any, image_processor: Any, batch_size: int | None = None, **kwargs: Any):
        if isinstance(model, InputError):  # see _Loader
            raise model
        self.name = model.name_or_path or "the model"
        check_classifier(model.config, image_processor.to_dict(), self.name)
        check_weights(model, self.name)
        self.cutouts = getattr(model.config, "cutouts", None) or {"stretch": {"kind": "none"}}
        self.num_channels, self.min_size = model.config.num_channels, model.config.image_size
        if getattr(image_processor, "do_stretch", False):
            image_processor.do_stretch = False  # done here, with the checks
        most = BATCH_BYTES // (4 * self.num_channels * self.min_size**2)
        batch_size = batch_size or max(1, min(BATCH_SIZE, most))
        super().__init__(model=model, image_processor=image_processor, batch_size=batch_size, **kwargs)

    def check_model_type(self, supported_models: Any) -> None:
        """Nothing is left to check: [`check_classifier`] knows our CNN, too."""

    def _sanitize_parameters(self, units: str | None = None, hdu: int | str | None = None, **kwargs: Any) -> tuple:
        before, forward, after = super()._sanitize_parameters(**kwargs)
        own = {"units": units, "hdu": hdu}
        return before | {name: value for name, value in own.items() if value is not None}, forward, after

    def __call__(
        self, inputs: Any, **kwargs: Any
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]] | Iterator[list[dict[str, Any]]]:
        """
        Cutouts are read one by one as they are scored, so that any number takes no more memory than a batch.

        Args:
            inputs:
                Path of a FITS, `.npy`, `.npz`, PNG, JPEG or TIFF file, array or tensor `(bands, H, W)`, PIL image,
                batch of arrays `(n, bands, H, W)`, or a list or generator of these (in a list, a list of files is one
                cutout with a file for each band); or what [`load_cutouts`] gives:
                a split (`data["test"]`), its pixels (`data["test"]["pixels"]`), a row, or a `DataLoader` of a split.
            units (`str`, *optional*):
                What float values are: `"flux"` in the units of the training data, or `"display"` (0 to 255). By
                default flux for files and arrays, and display units for splits and rows, which are. Nested lists,
                such as `data["test"][0]["pixels"]`, and rows that lack a column of load_cutouts do not tell. 8-bit
                values are display units always.
            hdu (`int` or `str`, *optional*):
                FITS only: number or name of the image HDU.
            kwargs:
                As for any pipeline: `batch_size`, `num_workers`, `top_k`.

        Returns:
            `[{"label": "lens", "score": 0.98}, {"label": "nonlens", "score": 0.02}]`, best first; a list of these for
            several cutouts; for a generator, a torch `Dataset` or whatever else has no length, an iterator over these.

        Raises:
            [`InputError`]: unreadable file, wrong number of bands, no valid pixel, smaller than the model's crop,
                values that cannot be what the model expects, or a dataset with the model's bands in another order.
        """
        given, units = open_inputs(inputs), kwargs.get("units", self._preprocess_params.get("units"))
        if given.units and units not in (None, given.units):
            raise InputError("the pixels of load_cutouts are display units: leave units out")
        for warning in differences(self.cutouts, given.info, self.name):
            logger.warning(warning)
        is_indexed = has_length(given.items) and hasattr(given.items, "__getitem__")
        items = _Numbered(given.items) if is_indexed else (pair for pair in enumerate(given.items))
        results = super().__call__(items, **{**kwargs, "units": given.units or units})
        if given.is_stream:
            return results if is_indexed else (one for one in results)  # `next` works on it, too
        found = list(results)
        return found[0] if given.is_one else found

    def preprocess(self, numbered: tuple[int, Any], timeout: float | None = None, **kwargs: Any) -> Any:
        """The model's input `(1, bands, size, size)` of a cutout and its number, by which errors call an array."""
        number, item = numbered
        return super().preprocess(self.display(item, f"cutout {number}", **kwargs))

    def postprocess(self, model_outputs: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """The scores of one cutout, in float64, so that confident ones do not all become 1."""
        found = super().postprocess({"logits": model_outputs["logits"].double()}, **kwargs)
        if not all(math.isfinite(entry["score"]) for entry in found):
            raise InputError(f"{self.name} gives no finite score of a cutout: train or export it again")
        return found

    def display(
        self, item: Any, name: str = "the cutout", units: str | None = None, hdu: int | str | None = None
    ) -> np.ndarray:
        """
        One cutout as the model's image processor reads it: float32 display units `(bands, H, W)`. The arguments and
        errors are those of a call; `name` is what errors call a cutout that is no file.
        """
        if units not in (None, "flux", "display"):
            raise InputError(f"units is {units!r}: choose flux or display")
        if isinstance(item, Mapping):
            units = units or units_of_row(item)
            if "pixels" not in item:
                raise InputError(f"{name} has no 'pixels' but {', '.join(map(str, item))}: give what holds them")
            item = item["pixels"] if units or hasattr(item["pixels"], "ndim") else list(item["pixels"])
            if units is None and hasattr(item, "ndim") and "uint8" not in str(item.dtype):
                raise InputError(
                    f"{name} is a row that does not say what its pixels are: give units='display' where load_cutouts "
                    "made them, units='flux' for flux"
                )
        is_list = isinstance(item, list | tuple) and len(item) > 0
        is_file = isinstance(item, str | Path) or (is_list and all(isinstance(one, str | Path) for one in item))
        if is_file:
            raw = read_raw_bands(list(item), hdu=hdu) if is_list else _read(item, hdu)
            name = str(item[0] if is_list else item)
        elif is_list and units is None:
            raise InputError(
                f"{name} is a list of numbers, which does not say what they are: give units='display' for pixels of "
                "load_cutouts, units='flux' for flux"
            )
        else:
            raw = raw_from_array(item, name, self.num_channels)
        if units == "display":
            raw = replace(raw, display=True)
        display = as_display(raw, self.cutouts, name, self.num_channels, self.min_size)
        if is_file:  # what arrays must hold is stated above
            tell_of_silence(raw, self.cutouts, name, ["zero point"] if units == "flux" else ())
        if raw.display and self.cutouts["stretch"]["kind"] != "linear":
            try:
                Stretch("none").apply(display)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
        return display


class _Numbered(Dataset):
    """Cutouts with their numbers, in a form that pipelines read one by one, with `num_workers` in other processes."""

    def __init__(self, items: Sequence[Any]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> tuple[int, Any]:
        return number, self.items[number]


class _Loader:
    """Loads for `transformers.pipeline`, as an Auto class does."""

    @classmethod
    def from_pretrained(cls, source: str, **kwargs: Any) -> Any:
        """A model in float32, or the error: if that were raised, transformers would load the model without checks."""
        kept = ("revision", "token", "dtype", "device_map", "attn_implementation")
        options = {name: kwargs[name] for name in kept if kwargs.get(name) not in (None, "auto")}
        try:
            return load_classifier(source, **options)[0]
        except InputError as error:
            error.config = PreTrainedConfig()  # which transformers looks into
            return error


PIPELINE_REGISTRY.register_pipeline(TASK, LensClassificationPipeline, pt_model=_Loader, type="image")


def _read(path: str | Path, hdu: int | str | None) -> Any:
    if Path(path).is_dir():
        raise InputError(
            f"{path} is a folder: give its files, such as sorted(Path({str(path)!r}).glob('*.fits')), or a split of "
            f"load_cutouts({str(path)!r})"
        )
    return read_raw(path, hdu)


def _image_processor(source: str | Path, values: Mapping[str, Any], hub: Mapping[str, Any]) -> Any:
    """The image processor as an object, of a class of transformers or of this package."""
    kind = str(values.get("image_processor_type", "ViTImageProcessor"))
    if not kind.startswith("ViTImageProcessor") and kind != "LensImageProcessor":
        raise InputError(f"{source} has a {kind}, which is not an image processor of ViTs or ours: export it again")
    try:
        return AutoImageProcessor.from_pretrained(locate(source), trust_remote_code=False, **hub)
    except (OSError, TypeError, ValueError) as error:
        fault = first_line(error)
        raise InputError(f"the image processor of {source} is damaged ({fault}): export the model again") from error


def pipeline(model: Any, **kwargs: Any) -> LensClassificationPipeline:
    """
    A classifier of cutouts in any form. Files are brought to the bands, zero point and stretch of the model; what a
    file does not state is taken to be the model's, which is said once. An array must have its bands, in its order, and
    its zero point, or be display units (`units="display"`). Scores are float32, as those of [`evaluate_model`];
    `dtype="bfloat16"` is 1.7 times as fast on CPUs that compute in it, with nearly the same ranking but scores that
    differ in the second digit.

    ```python
    >>> classify = pipeline("model_cards/lens-dino-vits8-classifier")
    >>> classify("cutout.fits")
    [{'label': 'lens', 'score': 0.98}, {'label': 'nonlens', 'score': 0.02}]
    ```

    Args:
        model (`str`, `Path` or `PreTrainedModel`):
            A fine-tuning run, the folder or Hub id of a classifier, or the model itself (then give `image_processor`,
            too). Whatever its repository holds, no code of it is run.
        kwargs:
            For `transformers.pipeline`, such as `device`, `revision`, `dtype` and `batch_size` (64 by default).

    Raises:
        [`InputError`]: the model is missing, damaged or not whole, or no classifier of lenses.
    """
    if kwargs.pop("trust_remote_code", False):
        raise InputError("no code of a model's repository is run here: leave trust_remote_code out")
    if not isinstance(model, str | Path):
        if kwargs.get("image_processor") is None:
            raise InputError("a model itself comes without its image processor: give image_processor, too")
        return transformers.pipeline(TASK, model=model, **kwargs)
    hub = {name: kwargs.pop(name, None) for name in ("revision", "token")}
    options = kwargs.pop("model_kwargs", None) or {}
    options |= {"dtype": kwargs.pop("dtype")} if "dtype" in kwargs else {}
    loaded, values = load_classifier(model, **hub, **options)
    processor = kwargs.pop("image_processor", None) or _image_processor(model, values, hub)
    found = transformers.pipeline(TASK, model=loaded, image_processor=processor, **kwargs)
    found.name = str(model)
    return found
