"""Cutouts in a column of Parquet: arrays, encoded pictures, or the images of the Multimodal Universe."""

import io
from typing import Any

import numpy as np
import pyarrow
from PIL import Image

from ..data.files.raw import RawCutout, readable
from ..data.files.readers import raw_from_array
from ..errors import InputError

_USUAL_NAMES = ("pixels", "image", "cutout")


def find_pixels(schema: pyarrow.Schema) -> list[str]:
    """The columns that can hold cutouts: the one with a usual name where there is one, else all."""
    found = [item.name for item in schema if _is_pixels(item)]
    usual = [name for name in _USUAL_NAMES if name in found]
    return usual[:1] or found


def _is_pixels(item: pyarrow.Field) -> bool:
    kind = getattr(item.type, "storage_type", item.type) if not _is_tensor(item.type) else item.type
    if pyarrow.types.is_struct(kind):
        return any(kind.field(i).name in ("bytes", "flux") for i in range(kind.num_fields))
    if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        return item.name in _USUAL_NAMES
    depth = 0
    while _is_list(kind):
        kind, depth = kind.value_type, depth + 1
    is_number = pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind)
    return _is_tensor(item.type) or (is_number and depth in (2, 3))


def _is_tensor(kind: pyarrow.DataType) -> bool:
    return isinstance(kind, pyarrow.FixedShapeTensorType)


def _is_list(kind: pyarrow.DataType) -> bool:
    types = pyarrow.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def raw_of(values: pyarrow.Array, row: int, name: str) -> RawCutout | str:
    """One row of a column as a reader returns it, or why it cannot be read."""
    try:
        with readable(name):
            return _raw(values.slice(row, 1), name)
    except InputError as error:
        return str(error)


def _raw(one: pyarrow.Array, name: str) -> RawCutout:
    if one.null_count:
        raise InputError(f"{name} is empty: leave it out")
    if pyarrow.types.is_struct(one.type):
        fields = {one.type.field(i).name for i in range(one.type.num_fields)}
        if "flux" in fields:
            return _of_multimodal_universe(one, fields, name)
        content = one.field("bytes")[0].as_py()
        if content is None:
            raise InputError(f"{name} names a file outside of the table: save the table with its pictures inside")
        return raw_from_array(Image.open(io.BytesIO(content)), name)
    if pyarrow.types.is_binary(one.type) or pyarrow.types.is_large_binary(one.type):
        return raw_from_array(Image.open(io.BytesIO(one[0].as_py())), name)
    return raw_from_array(arrays_of(one)[0], name)


def _of_multimodal_universe(one: pyarrow.Array, fields: set[str], name: str) -> RawCutout:
    """`{band: [...], flux: (bands, H, W), scale: [...]}` (https://github.com/MultimodalUniverse)."""
    raw = raw_from_array(arrays_of(one.field("flux"))[0], name)
    facts: dict[str, Any] = {key: one.field(key)[0].as_py() for key in ("band", "scale") if key in fields}
    bands, scales = facts.get("band"), facts.get("scale")
    if bands and len(bands) != len(raw.pixels):
        raise InputError(f"{name} has {len(raw.pixels)} bands of flux and names {len(bands)}: correct it")
    if isinstance(scales, list):
        if len(set(scales)) > 1:
            raise InputError(f"{name} has pixels of {min(scales):g} to {max(scales):g} arcsec: resample its bands")
        scales = scales[0] if scales else None
    return RawCutout(raw.pixels, tuple(bands) if bands else None, None, scales, raw.display)


def arrays_of(values: pyarrow.Array) -> np.ndarray | list[np.ndarray]:
    """
    Rows of nested lists or tensors as arrays, in one array where they are of one shape.

    Raises:
        [`InputError`]: the lists of a row differ in length.
    """
    if _is_tensor(values.type):
        return values.to_numpy_ndarray()
    flat = getattr(values, "storage", values)
    shape = [len(flat)]
    while _is_list(flat.type):
        inner = flat.flatten()
        length, rest = divmod(len(inner), max(len(flat), 1))
        lengths = set(flat.value_lengths().to_pylist())
        if rest or lengths != {length}:
            if len(values) == 1:
                raise InputError("its lists of numbers differ in length: save an array (bands, height, width)")
            return [arrays_of(values.slice(i, 1))[0] for i in range(len(values))]
        shape.append(length)
        flat = inner
    return flat.to_numpy(zero_copy_only=False).reshape(shape)
