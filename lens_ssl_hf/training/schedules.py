"""Values that change with the step: learning rate, weight decay, teacher momentum and temperatures."""

import math


def cosine(start: float, end: float, step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """
    A linear rise from 0 to `start` over `warmup_steps`, then half a cosine to `end`, reached after the last step.

    Args:
        step (`int`): 0 to `total_steps`.
    """
    if step < warmup_steps:
        return start * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


def linear(start: float, end: float, step: int, num_steps: int) -> float:
    """A straight line from `start` to `end` over `num_steps`, then `end`."""
    return end if step >= num_steps else start + (end - start) * step / num_steps
