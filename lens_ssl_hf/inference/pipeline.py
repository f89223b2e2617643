"""`transformers.pipeline("image-classification")` for cutouts in any form, with the checks that it lacks."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files.readers import raw_from_array, read_raw, read_raw_bands
from ..data.stretch import Stretch
from ..errors import InputError
from ..models.loading import check_classifier, check_weights, first_line, load_classifier, locate
from .compatibility import differences
from .inputs import open_inputs, units_of_row
from .read_cutout import as_display

logger = logging.getLogger(__name__)

BATCH_SIZE = 64  # three times as fast on a CPU as one by one
BATCH_BYTES = 256 * 2**20  # what the crops of a batch may take by default


class LensPipeline:
    """Scores cutouts with a published classifier; made by [`pipeline`]."""

    def __init__(self, model: Any, **kwargs: Any):
        from transformers import pipeline as transformers_pipeline

        if kwargs.pop("trust_remote_code", False):
            raise InputError("no code of a model's repository is run here: leave trust_remote_code out")
        self.name = str(model) if isinstance(model, str | Path) else "the model"
        if isinstance(model, str | Path):
            hub = {name: kwargs.pop(name, None) for name in ("revision", "token")}
            options = kwargs.pop("model_kwargs", None) or {}
            options |= {"dtype": kwargs.pop("dtype")} if "dtype" in kwargs else {}
            source, (model, values) = model, load_classifier(model, **hub, **options)
            if "image_processor" not in kwargs:
                kwargs["image_processor"] = _image_processor(source, values, hub)
        else:
            if kwargs.get("image_processor") is None:
                raise InputError("a model itself comes without its image processor: give image_processor, too")
            check_classifier(model.config, kwargs["image_processor"].to_dict(), self.name)
            check_weights(model, self.name)
        config = model.config
        self.num_channels, self.min_size = config.num_channels, config.image_size
        self.cutouts = getattr(config, "cutouts", None) or {"stretch": {"kind": "none"}}
        most = BATCH_BYTES // (4 * self.num_channels * self.min_size**2)
        kwargs = {"batch_size": max(1, min(BATCH_SIZE, most)), **kwargs}
        self.classifier = transformers_pipeline("image-classification", model=model, **kwargs)
        if getattr(self.classifier.image_processor, "do_stretch", False):
            self.classifier.image_processor.do_stretch = False  # done here, with the checks

    def __call__(
        self, cutouts: Any, units: str | None = None, hdu: int | str | None = None, **kwargs: Any
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]] | Iterator[list[dict[str, Any]]]:
        """
        Cutouts are read one by one as they are scored, so that any number takes no more memory than a batch.

        Args:
            cutouts:
                Path of a FITS, `.npy`, `.npz`, PNG, JPEG or TIFF file, array or tensor `(bands, H, W)`, PIL image,
                batch of arrays `(n, bands, H, W)`, or a list or generator of these (in a list, a list of files is one
                cutout with a file for each band); or what [`load_cutouts`] gives:
                a split (`data["test"]`), its pixels (`data["test"]["pixels"]`), a row, or a `DataLoader` of a split.
            units (`str`, *optional*):
                What float values are: `"flux"` in the units of the training data, or `"display"` (0 to 255). By
                default flux for files and arrays, and display units for splits and rows, which are. Nested lists,
                such as `data["test"][0]["pixels"]`, do not tell. 8-bit values are display units always.
            hdu (`int` or `str`, *optional*):
                FITS only: number or name of the image HDU.
            kwargs:
                For the pipeline of transformers, such as `batch_size` and `top_k`.

        Returns:
            `[{"label": "lens", "score": 0.98}, {"label": "nonlens", "score": 0.02}]`, best first; a list of these for
            several cutouts; for a generator, or whatever else has no length, an iterator over these.

        Raises:
            [`InputError`]: unreadable file, wrong number of bands, no valid pixel, smaller than the model's crop,
                values that cannot be what the model expects, or a dataset with the model's bands in another order.
        """
        given = open_inputs(cutouts)
        if given.units and units not in (None, given.units):
            raise InputError("the pixels of load_cutouts are display units: leave units out")
        for warning in differences(self.cutouts, given.info, self.name):
            logger.warning(warning)
        results = self._score(given.items, given.units or units, hdu, **kwargs)
        if given.is_stream:
            return results
        found = list(results)
        return found[0] if given.is_one else found

    def _score(self, items: Iterable, units: str | None, hdu: int | str | None, **kwargs: Any) -> Iterator[list]:
        displays = (self.display(item, f"cutout {i}", units, hdu) for i, item in enumerate(items))
        for i, result in enumerate(self.classifier(displays, **kwargs)):
            if not all(math.isfinite(entry["score"]) for entry in result):
                raise InputError(f"{self.name} gives no finite score for cutout {i}: train or export it again")
            yield result

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
        is_file_per_band = isinstance(item, list | tuple) and all(isinstance(one, str | Path) for one in item)
        if isinstance(item, list | tuple) and not is_file_per_band and units is None:
            raise InputError(
                f"{name} is a list of numbers, which does not say what they are: give units='display' for pixels of "
                "load_cutouts, units='flux' for flux"
            )
        if isinstance(item, str | Path):
            raw, name = _read(item, hdu), str(item)
        elif is_file_per_band and item:
            raw, name = read_raw_bands(list(item), hdu=hdu), str(item[0])
        else:
            raw = raw_from_array(item, name, self.num_channels)
        if units == "display":
            raw = replace(raw, display=True)
        display = as_display(raw, self.cutouts, name, self.num_channels, self.min_size)
        if raw.display and self.cutouts["stretch"]["kind"] != "linear":
            try:
                Stretch("none").apply(display)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
        return display


def _read(path: str | Path, hdu: int | str | None) -> Any:
    if Path(path).is_dir():
        raise InputError(
            f"{path} is a folder: give its files, such as sorted(Path({str(path)!r}).glob('*.fits')), or a split of "
            f"load_cutouts({str(path)!r})"
        )
    return read_raw(path, hdu)


def _image_processor(source: str | Path, values: Mapping[str, Any], hub: Mapping[str, Any]) -> Any:
    """The image processor as an object, of a class of transformers or of this package."""
    from transformers import AutoImageProcessor

    kind = str(values.get("image_processor_type", "ViTImageProcessor"))
    if not kind.startswith("ViTImageProcessor") and kind != "LensImageProcessor":
        raise InputError(f"{source} has a {kind}, which is not an image processor of ViTs or ours: export it again")
    try:
        return AutoImageProcessor.from_pretrained(locate(source), trust_remote_code=False, **hub)
    except (OSError, TypeError, ValueError) as error:
        fault = first_line(error)
        raise InputError(f"the image processor of {source} is damaged ({fault}): export the model again") from error


def pipeline(model: Any, **kwargs: Any) -> LensPipeline:
    """
    A classifier of cutouts in any form. Scores are float32, as those of [`evaluate`]; `dtype="bfloat16"` is 1.7 times
    as fast on CPUs that compute in it, with nearly the same ranking but scores that differ in the second digit.

    ```python
    >>> classify = pipeline("lens-dino-vits8-classifier")
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
    return LensPipeline(model, **kwargs)
