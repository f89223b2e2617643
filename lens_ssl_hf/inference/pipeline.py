"""`transformers.pipeline("image-classification")` for cutouts in any form, with the checks that it lacks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.processing import Stretch
from ..data.readers import RawCutout, as_pixels, check_valid, read_raw
from ..errors import InputError
from .read_cutout import as_display

_CHUNK = 1024  # cutouts that are held in memory


class LensPipeline:
    """Scores cutouts with a published classifier; made by [`pipeline`]."""

    def __init__(self, model: Any, **kwargs: Any):
        from transformers import pipeline as transformers_pipeline

        if isinstance(model, Path):
            model = str(model)
        # The image processor that the package registers is used, so that nobody is asked to trust the model's copy.
        kwargs = {"trust_remote_code": False, **kwargs}
        self.classifier = transformers_pipeline("image-classification", model=model, **kwargs)
        config = self.classifier.model.config
        self.num_channels, self.min_size = config.num_channels, config.image_size
        self.cutouts = getattr(config, "cutouts", None) or {"stretch": {"kind": "none"}}
        if getattr(self.classifier.image_processor, "do_stretch", False):
            self.classifier.image_processor.do_stretch = False  # done here, with the checks

    def __call__(
        self, cutouts: Any, units: str = "flux", hdu: int | str | None = None, **kwargs: Any
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """
        Args:
            cutouts:
                Path of a FITS, `.npy`, `.npz`, PNG, JPEG or TIFF file, array or tensor `(bands, H, W)`, PIL image,
                batch of arrays `(n, bands, H, W)`, or a list of these.
            units (`str`, *optional*, defaults to `"flux"`):
                What float values are: `"flux"` in the units of the training data, or `"display"` (0 to 255), such as
                the `pixels` of [`load_cutouts`]. 8-bit values are display units always.
            hdu (`int` or `str`, *optional*):
                FITS only: number or name of the image HDU.
            kwargs:
                For the pipeline of transformers, such as `batch_size` and `top_k`.

        Returns:
            `[{"label": "lens", "score": 0.98}, {"label": "nonlens", "score": 0.02}]`, best first; a list of these for
            a batch or a list.

        Raises:
            [`InputError`]: unreadable file, wrong number of bands, no valid pixel, smaller than the model's crop, or
                values that cannot be what the model expects.
        """
        is_batch = isinstance(cutouts, list | tuple) or getattr(cutouts, "ndim", 0) == 4
        items = list(cutouts) if is_batch else [cutouts]
        results = []
        for start in range(0, len(items), _CHUNK):
            chunk = enumerate(items[start : start + _CHUNK], start)
            images = [self.display(item, f"cutout {i}", units, hdu) for i, item in chunk]
            results += self.classifier(images, **kwargs)
        return results if is_batch else results[0]

    def display(
        self, item: Any, name: str = "the cutout", units: str = "flux", hdu: int | str | None = None
    ) -> np.ndarray:
        """
        One cutout as the model's image processor reads it: float32 display units `(bands, H, W)`. The arguments and
        errors are those of a call; `name` is what errors call a cutout that is no file.
        """
        if units not in ("flux", "display"):
            raise InputError(f"units is {units!r}: choose flux or display")
        if isinstance(item, str | Path):
            raw, name = read_raw(item, hdu), str(item)
        else:
            if hasattr(item, "convert"):  # PIL
                item = np.asarray(item.convert("L" if self.num_channels == 1 else "RGB"))
                item = np.moveaxis(item, -1, 0) if item.ndim == 3 else item
            array = np.asarray(item.detach().cpu() if hasattr(item, "detach") else item)
            pixels = as_pixels(array, name, self.num_channels)
            check_valid(pixels, name)
            raw = RawCutout(pixels, display=array.dtype == np.uint8)
        if units == "display":
            raw = replace(raw, display=True)
        display = as_display(raw, self.cutouts, name, self.num_channels, self.min_size)
        if raw.display and self.cutouts["stretch"]["kind"] != "linear":
            try:
                Stretch("none").apply(display)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
        return display


def pipeline(model: Any, **kwargs: Any) -> LensPipeline:
    """
    A classifier of cutouts in any form.

    ```python
    >>> classify = pipeline("lens-dino-vits8-classifier")
    >>> classify("cutout.fits")
    [{'label': 'lens', 'score': 0.98}, {'label': 'nonlens', 'score': 0.02}]
    ```

    Args:
        model (`str`, `Path` or `PreTrainedModel`):
            Folder or Hub id of a classifier, or the model itself (then give `image_processor`, too).
        kwargs:
            For `transformers.pipeline`, such as `device` and `image_processor`.
    """
    return LensPipeline(model, **kwargs)
