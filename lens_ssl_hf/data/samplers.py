"""
Where a pretraining takes its batches from: a tensor on the device, or the Parquet files of a dataset that is larger
than memory.

Both give the batch of a step as a function of (seed, step) alone, whatever the number of processes, so that a run can
be resumed at the exact sample; and each process gets its own share of it.
"""

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from ..errors import InputError
from .storage import ParquetSplits
from .tensors import digest, normalise

MAX_STREAMS = 32  # the most processes that can share a stream
WINDOW = 128  # rows of a stream that are shuffled among each other: 32 streams keep 4,096 cutouts, and as many to come


def epoch_order(num_samples: int, seed: int, epoch: int) -> torch.Tensor:
    """A permutation of the samples, a function of (seed, epoch)."""
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    return torch.randperm(num_samples, generator=generator)


class ResidentImages:
    """
    Images that lie on the device as one tensor.

    Args:
        images (`torch.Tensor` of shape `(n, bands, H, W)`): normalised pixels.
        ids (`Sequence[str]`): their names.
        batch_size (`int`): of all processes together.
        seed (`int`): of the order.
    """

    def __init__(self, images: torch.Tensor, ids: Sequence[str], batch_size: int, seed: int):
        self.images, self._ids, self.seed = images, ids, seed
        self.batch_size = min(batch_size, len(images))  # of a set smaller than a batch, all
        self._order: tuple[int, torch.Tensor] = (-1, torch.empty(0))  # of the last epoch that was asked for

    def __len__(self) -> int:
        return len(self.images)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.images) // self.batch_size

    @property
    def digest(self) -> str:
        """A fingerprint of the samples and of their order."""
        return digest(self._ids)

    def indices(self, step: int, process: int, num_processes: int) -> tuple[torch.Tensor, int]:
        """
        The samples of one process in one step, and the epoch. The incomplete batch at the end of an epoch is left out,
        and a set smaller than a batch is one batch.
        """
        epoch, batch = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            order, device = epoch_order(len(self.images), self.seed, epoch), self.images.device
            order = order.pin_memory() if device.type == "cuda" else order  # so that no step waits for the copy
            self._order = (epoch, order.to(device, non_blocking=True))
        share = self.batch_size // num_processes
        first = batch * self.batch_size + process * share
        return self._order[1][first : first + share], epoch

    def batch(self, step: int, process: int, num_processes: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Images and indices (both on the device) of one process in one step, and the epoch."""
        indices, epoch = self.indices(step, process, num_processes)
        return self.images[indices], indices, epoch

    def ids(self, step: int) -> list[str]:
        """Names of the samples in one step of all processes."""
        return [self._ids[i] for i in self.indices(step, 0, 1)[0]]


class StreamedImages:
    """
    Images that are read from the Parquet files of a dataset as they are needed.

    The row groups of an epoch are shuffled and dealt out as `streams` equal stretches; each is read front to back, in
    windows of `WINDOW` rows that are shuffled in memory. A batch takes as many rows from each stream, and a process
    reads its own streams only. What is kept in memory does not depend on the number of cutouts.

    Args:
        parquet ([`ParquetSplits`]): the dataset.
        mean, std (`list[float]`): per band, after division by 255.
        batch_size (`int`): of all processes together.
        seed (`int`): of the order.
        device (`torch.device`): where batches are put.

    Raises:
        [`InputError`]: the dataset has less than a batch in train and unlabelled together.
    """

    def __init__(
        self,
        parquet: ParquetSplits,
        mean: list[float],
        std: list[float],
        batch_size: int,
        seed: int,
        device: torch.device | str,
    ):
        self.parquet, self.mean, self.std = parquet, mean, std
        self.groups = [group for split in ("train", "unlabelled") for group in parquet.groups.get(split, ())]
        self.first_rows = np.cumsum([0, *(rows for _, _, rows in self.groups)])
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)
        self.streams = math.gcd(batch_size, MAX_STREAMS)
        self.rows_per_step = batch_size // self.streams
        self.stretch = len(self) // self.streams
        if self.steps_per_epoch == 0:
            raise InputError(f"{len(self)} images are fewer than batch_size {batch_size}: lower batch_size")
        self._layouts: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._windows: dict[tuple[int, int, int], Future] = {}
        self._last_groups: dict[int, tuple[int, np.ndarray]] = {}
        self._reader = ThreadPoolExecutor(1)  # reads the windows to come while the device computes

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    @property
    def steps_per_epoch(self) -> int:
        return self.stretch // self.rows_per_step

    @property
    def digest(self) -> str:
        """A fingerprint of the files and of their order."""
        return digest([f"{path.name} {group} {rows}" for path, group, rows in self.groups])

    def batch(self, step: int, process: int, num_processes: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Images and indices (both on the device) of one process in one step, and the epoch."""
        epoch, number = divmod(step, self.steps_per_epoch)
        rows = range(number * self.rows_per_step, (number + 1) * self.rows_per_step)
        streams = self.share(process, num_processes)
        first, last = rows[0] // WINDOW, rows[-1] // WINDOW
        wanted = [(epoch, stream, window) for window in range(first, last + 1) for stream in streams]
        ahead = [(epoch, stream, last + 1) for stream in streams if (last + 1) * WINDOW < self.stretch]
        for key in [*wanted, *ahead]:
            if key not in self._windows:
                self._windows[key] = self._reader.submit(self._read_window, *key)
        pixels, indices = [], []
        for stream in streams:
            for row in rows:
                window_indices, window_pixels = self._windows[epoch, stream, row // WINDOW].result()
                pixels.append(window_pixels[row % WINDOW])
                indices.append(window_indices[row % WINDOW])
        for key in self._windows.keys() - {*wanted, *ahead}:
            del self._windows[key]
        images = torch.from_numpy(np.stack(pixels)).to(self.device)
        return normalise(images, self.mean, self.std), torch.tensor(indices, device=self.device), epoch

    def ids(self, step: int) -> list[str]:
        """Names of the samples in one step of all processes."""
        indices = self.batch(step, 0, 1)[1].tolist()
        groups = np.searchsorted(self.first_rows, indices, side="right") - 1
        columns = {group: self.parquet.read(*self.groups[group][:2], "id") for group in set(groups.tolist())}
        return [columns[g][i - self.first_rows[g]] for g, i in zip(groups.tolist(), indices)]

    def share(self, process: int, num_processes: int) -> range:
        """
        The streams of one process.

        Raises:
            [`InputError`]: the number of processes does not divide that of the streams.
        """
        if self.streams % num_processes:
            raise InputError(
                f"{num_processes} processes cannot share streamed batches of {self.batch_size}: choose a power of two "
                f"up to {MAX_STREAMS} that divides batch_size as the number of processes"
            )
        share = self.streams // num_processes
        return range(process * share, (process + 1) * share)

    def _layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The row groups in the order of an epoch, and the position of each one's first row in it."""
        if epoch not in self._layouts:
            order = epoch_order(len(self.groups), self.seed, epoch).numpy()
            starts = np.cumsum([0, *(self.groups[group][2] for group in order)])
            self._layouts = {epoch: (order, starts)}
        return self._layouts[epoch]

    def _read_window(self, epoch: int, stream: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices `(rows,)` and pixels `(rows, bands, H, W)` of one window, shuffled."""
        order, starts = self._layout(epoch)
        first = stream * self.stretch + window * WINDOW
        last = min(first + WINDOW, (stream + 1) * self.stretch)
        pixels, indices = [], []
        for position in range(np.searchsorted(starts, first, side="right") - 1, np.searchsorted(starts, last)):
            group = order[position]
            low, high = max(first - starts[position], 0), min(last, starts[position + 1]) - starts[position]
            pixels.append(self._read_group(stream, group)[low:high])
            indices.append(np.arange(low, high) + self.first_rows[group])
        key = ((self.seed * 1_000_003 + epoch) * MAX_STREAMS + stream) * 1_000_003 + window
        generator = torch.Generator().manual_seed(key % 2**63)
        shuffled = torch.randperm(last - first, generator=generator).numpy()
        return np.concatenate(indices)[shuffled], np.concatenate(pixels)[shuffled]

    def _read_group(self, stream: int, group: int) -> np.ndarray:
        # A group spans several windows of its stream.
        if stream not in self._last_groups or self._last_groups[stream][0] != group:
            self._last_groups[stream] = (group, self.parquet.read(*self.groups[group][:2], "pixels"))
        return self._last_groups[stream][1]
