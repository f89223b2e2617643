"""
Batched augmentations on the tensor's device, each image with its own parameters.

Every parameter of a view is a function of (seed, epoch, sample index, view number) alone: a counter-based hash instead
of a random generator with a state. Batch size, number of processes and resuming therefore cannot change a view.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

_NOISE_BANK_SIZE = 1 << 20
# Numbers of a view's uniforms: 0 to 9 crop, jitter, blur and strength of the noise; then
_NOISE_NUMBER = 14  # where its noise lies in the bank
_MASK_NUMBER = 15  # the first one of its mask
_BAND_VIEWS = 1 << 20  # added to a view's number: the jitter of its bands has numbers of its own


@dataclass(frozen=True)
class ViewSettings:
    """
    What a view looks like. Lengths are pixels; `gain`, `offset` and `noise_sigma` are in units of normalised pixels
    (standard deviations of a band).

    Args:
        size (`int`): side of the view, in pixels.
        field (`int`): side of the central field that a view of scale 1 shows, in pixels of the image.
        scale (`tuple[float, float]`, *optional*, defaults to `(0.4, 1.0)`): area of the crop in fields.
        rotate (`bool`, *optional*, defaults to `True`): rotate by any angle; orientation carries no information.
        flip (`bool`, *optional*, defaults to `True`): mirror half of the views.
        gain (`float`, *optional*, defaults to `0.2`): contrast factor `1 - gain` to `1 + gain`, common to the bands.
        offset (`float`, *optional*, defaults to `0.2`): brightness shift of up to `offset`, common to the bands.
        band_jitter (`float`, *optional*, defaults to `0.0`):
            Gain and offset up to this of each band by itself. It hides the exact colour, by which views of an image
            can be matched with no look at its shape; the contrast between blue arcs and a red galaxy remains.
        blur_probability (`float`, *optional*, defaults to `0.0`): share of the views that are blurred.
        blur_sigma (`tuple[float, float]`, *optional*, defaults to `(0.3, 1.0)`): sigma of the blur in view pixels.
        noise_sigma (`float`, *optional*, defaults to `0.1`): noise of sigma between 0 and this is added.
    """

    size: int
    field: int
    scale: tuple[float, float] = (0.4, 1.0)
    rotate: bool = True
    flip: bool = True
    gain: float = 0.2
    offset: float = 0.2
    band_jitter: float = 0.0
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.3, 1.0)
    noise_sigma: float = 0.1


Counter = int | torch.Tensor  # an integer, or a 0-dim LongTensor, which a CUDA graph can be given anew


def random_bits(seed: int, epoch: Counter, indices: torch.Tensor, view: Counter, count: int) -> torch.Tensor:
    """
    32 random bits per (sample, number), by the splitmix64 finaliser (Steele et al. 2014) over the counters.

    Args:
        indices (`torch.LongTensor` of shape `(batch,)`): sample indices in the dataset.
        view (`int` or `torch.LongTensor` of shape `(views, 1)`): number of one view, or of several.

    Returns:
        `torch.LongTensor` of shape `(batch, count)` or `(views, batch, count)`, values in [0, 2^32).
    """
    key = _mix(seed)
    for counter in (epoch, view):
        key = _mix(key + counter + 1)
    keys = _mix(indices + (key + 1)).unsqueeze(-1)
    return _mix(keys + torch.arange(1, count + 1, device=indices.device)) & 0xFFFFFFFF


def _mix(state: int | torch.Tensor) -> Any:
    state = _wrap(state * -7046029254386353131)  # int64 products wrap around, which is what the mixing needs
    state = _wrap((state ^ _shift_right(state, 30)) * -4658895280553007687)
    state = _wrap((state ^ _shift_right(state, 27)) * -7723592293110705685)
    return state ^ _shift_right(state, 31)


def _wrap(state: int | torch.Tensor) -> Any:
    """Python's integers as int64; those of torch wrap by themselves."""
    return (state + 2**63) % 2**64 - 2**63 if isinstance(state, int) else state


def _shift_right(state: int | torch.Tensor, bits: int) -> Any:
    return (state >> bits) & ((1 << (64 - bits)) - 1)  # logical, not arithmetic


def uniforms(seed: int, epoch: Counter, indices: torch.Tensor, view: Counter, count: int) -> torch.Tensor:
    """
    float32 numbers in [0, 1), a function of (seed, epoch, sample index, view, number) alone: of the shape that
    [`random_bits`] gives.
    """
    # 24 bits are what float32 holds exactly, so that rounding never gives 1.
    return (random_bits(seed, epoch, indices, view, count) >> 8).to(torch.float32) / (1 << 24)


class Views:
    """
    Makes views of images that already are on the device.

    Args:
        seed (`int`): seed of every view.
        device (`torch.device` or `str`): where the images are.
    """

    def __init__(self, seed: int, device: torch.device | str):
        self.seed = seed
        self.device = device
        self._noise_banks: dict[int, torch.Tensor] = {}
        self._noise_bank(1)  # that of all but huge views, before the first step

    def make(
        self, images: torch.Tensor, indices: torch.Tensor, settings: ViewSettings, epoch: Counter, view: int
    ) -> torch.Tensor:
        """One view of each image: `(batch, bands, size, size)`. See [`~Views.crops`]."""
        return self.crops(images, indices, settings, epoch, view, 1)[0]

    def crops(
        self,
        images: torch.Tensor,
        indices: torch.Tensor,
        settings: ViewSettings,
        epoch: Counter,
        first: int,
        count: int,
    ) -> torch.Tensor:
        """
        Several views of each image, all at once.

        Args:
            images (`torch.Tensor` of shape `(batch, bands, H, W)`): normalised pixels.
            indices (`torch.LongTensor` of shape `(batch,)`): their indices in the dataset.
            settings ([`ViewSettings`]): what the views look like.
            epoch (`int` or 0-dim `torch.LongTensor`): number of the epoch.
            first, count (`int`): the views are numbered from `first`. Two views of an image with different numbers
                are independent, whatever else is made in the same call.

        Returns:
            `torch.Tensor` of shape `(count, batch, bands, size, size)`. Values are not clamped.
        """
        numbers = _numbers(first, count, images.device)
        u = uniforms(self.seed, epoch, indices, numbers, 10)
        views = affine_crop(images, settings, u[..., :5])
        views = views * _column(1 + settings.gain * (2 * u[..., 5] - 1))
        views = views + _column(settings.offset * (2 * u[..., 6] - 1))
        if settings.band_jitter > 0:
            u_bands = uniforms(self.seed, epoch, indices, numbers + _BAND_VIEWS, 2 * views.shape[2])
            jitter = settings.band_jitter * (2 * u_bands - 1)
            gain, offset = jitter.unflatten(-1, (2, -1))[..., None, None].unbind(dim=2)
            views = torch.addcmul(offset, views, 1 + gain)
        if settings.blur_probability > 0:
            low, high = settings.blur_sigma
            sigma = (low + (high - low) * u[..., 8]) * (u[..., 7] < settings.blur_probability)
            blurred = gaussian_blur(views.flatten(0, 1), sigma.flatten(), radius=math.ceil(3 * high))
            views = blurred.unflatten(0, views.shape[:2])
        if settings.noise_sigma > 0:
            noise = self._noise(indices, epoch, numbers, views[0, 0].numel()).view(views.shape)
            views = torch.addcmul(views, noise, _column(settings.noise_sigma * u[..., 9]))
        return views

    def masks(
        self, indices: torch.Tensor, grid: int, count: int, epoch: Counter, first: int, num_views: int
    ) -> torch.Tensor:
        """Block-wise masks of `num_views` views numbered from `first`: `(num_views, batch, count)` patch indices."""
        numbers = _numbers(first, num_views, indices.device)
        u = uniforms(self.seed, epoch, indices, numbers, _MASK_NUMBER + 4 + grid * grid)[..., _MASK_NUMBER:]
        return block_mask(u.flatten(0, 1), grid, count).unflatten(0, u.shape[:2])

    def _noise(self, indices: torch.Tensor, epoch: Counter, views: torch.Tensor, count: int) -> torch.Tensor:
        # A stretch of one fixed bank of normal deviates per view costs a tenth of drawing them anew.
        bits = random_bits(self.seed, epoch, indices, views, _NOISE_NUMBER + 1)[..., _NOISE_NUMBER]
        bank = self._noise_bank(count)
        start = bits % (len(bank) - count)
        return bank[start.unsqueeze(-1) + torch.arange(count, device=indices.device)]

    def _noise_bank(self, count: int) -> torch.Tensor:
        """Normal deviates, at least twice as many as the `count` of a view."""
        size = max(_NOISE_BANK_SIZE, 1 << (2 * count - 1).bit_length())
        if size not in self._noise_banks:
            generator = torch.Generator().manual_seed(self.seed)
            self._noise_banks[size] = torch.randn(size, generator=generator).to(self.device)
        return self._noise_banks[size]


def affine_crop(images: torch.Tensor, settings: ViewSettings, u: torch.Tensor) -> torch.Tensor:
    """
    Crop, rotate and mirror in one bilinear resampling; what lies outside the image is reflected into it.

    Args:
        images (`torch.Tensor` of shape `(batch, bands, H, W)`): the images.
        settings ([`ViewSettings`]): size, field, scale, rotate and flip are used.
        u (`torch.Tensor` of shape `(views, batch, 5)`): uniforms for scale, angle, mirror, and position in x and y.

    Returns:
        `torch.Tensor` of shape `(views, batch, bands, size, size)`.
    """
    height, width = images.shape[-2:]
    low, high = settings.scale
    side = settings.field * (low + (high - low) * u[..., 0]).sqrt()
    angle = 2 * math.pi * u[..., 1] if settings.rotate else torch.zeros_like(side)
    mirror = torch.where(u[..., 2] < 0.5, -1.0, 1.0) if settings.flip else torch.ones_like(side)
    room = (settings.field - side).clamp(min=0)  # keeps the unrotated crop inside the field
    cos, sin = angle.cos() * side, angle.sin() * side
    # Rows map the view's [-1, 1] to the image's [-1, 1] (grid_sample's corners at the outer edges of the pixels).
    theta = torch.stack(
        [
            torch.stack([cos * mirror / width, -sin / width, 2 * room * (u[..., 3] - 0.5) / width], dim=-1),
            torch.stack([sin * mirror / height, cos / height, 2 * room * (u[..., 4] - 0.5) / height], dim=-1),
        ],
        dim=-2,
    )
    size, (views, batch) = settings.size, theta.shape[:2]
    grid = F.affine_grid(theta.flatten(0, 1), [views * batch, images.shape[1], size, size], align_corners=False)
    # The views of an image lie below each other in one tall one, so that no image is copied.
    tall = grid.to(images.dtype).unflatten(0, (views, batch)).transpose(0, 1).reshape(batch, views * size, size, 2)
    crops = F.grid_sample(images, tall, padding_mode="reflection", align_corners=False)
    return crops.unflatten(2, (views, size)).permute(2, 0, 1, 3, 4)


def gaussian_blur(images: torch.Tensor, sigma: torch.Tensor, radius: int) -> torch.Tensor:
    """
    Blur each image with a Gaussian of its own sigma, separably, with reflected borders.

    Args:
        images (`torch.Tensor` of shape `(batch, bands, H, W)`): the images.
        sigma (`torch.Tensor` of shape `(batch,)`): standard deviation in pixels; 0 leaves an image as it is.
        radius (`int`): half width of the kernel in pixels; 3 times the largest sigma is enough. Where the images are
            too small to reflect that much, the kernel ends there.
    """
    radius = min(radius, min(images.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3).unsqueeze(1)) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(images.dtype)
    for dim in (-2, -1):
        pad = (0, 0, radius, radius) if dim == -2 else (radius, radius)
        padded = F.pad(images, pad if dim == -2 else (*pad, 0, 0), mode="reflect")
        length = images.shape[dim]
        images = sum(padded.narrow(dim, i, length) * _column(weights[:, i]) for i in range(2 * radius + 1))
    return images


def block_mask(u: torch.Tensor, grid: int, count: int) -> torch.Tensor:
    """
    Exactly `count` patches of a `grid x grid` field: a random block (aspect ratio 0.3 to 3.3, as in iBOT and BEiT),
    trimmed or completed at random.

    Args:
        u (`torch.Tensor` of shape `(batch, 4 + grid^2)`): uniforms.

    Returns:
        `torch.LongTensor` of shape `(batch, count)`: distinct patch indices, row by row from the top left.
    """
    area = 1 + (count - 1) * u[:, 0]
    aspect = torch.exp(math.log(0.3) * (2 * u[:, 1] - 1))
    height = (area * aspect).sqrt().round().clamp(1, grid)
    width = (area / aspect).sqrt().round().clamp(1, grid)
    top = (u[:, 2] * (grid - height + 1)).floor()
    left = (u[:, 3] * (grid - width + 1)).floor()
    line = torch.arange(grid, device=u.device)
    rows = (line >= top.unsqueeze(1)) & (line < (top + height).unsqueeze(1))
    columns = (line >= left.unsqueeze(1)) & (line < (left + width).unsqueeze(1))
    block = (rows.unsqueeze(2) & columns.unsqueeze(1)).flatten(1)
    return (u[:, 4:] + block).topk(count, dim=1).indices


def _column(values: torch.Tensor) -> torch.Tensor:
    """One value per image, to be combined with pixels."""
    return values[..., None, None, None]


def _numbers(first: int, count: int, device: torch.device) -> torch.Tensor:
    return torch.arange(first, first + count, device=device).unsqueeze(1)
