"""Values that change with the step: learning rate, weight decay, teacher momentum and temperatures."""

import math

SHORT = 30  # spans that a teacher averages over: a run of as many or fewer is short


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


def last_momentum(start: float, steps: int) -> float:
    """
    Where the momentum of a teacher ends that begins at `start`: at 1, as in the papers, or at `start` in short runs.

    A teacher averages its student over 1 / (1 - momentum) steps. While a cosine takes the momentum to 1, this span
    outgrows what is left of the run, and the teacher hardly follows from then on. In a run of 300 steps from 0.99 that
    is before the middle. Up to 3,000 steps, that is 30 spans, frozen features of a teacher that keeps up are better
    (docs/study.md, "Short pretrainings"); longer runs were not compared. Spans are counted instead of steps, so that
    the rule holds for batches of any size whose momentum is scaled with it.
    """
    return start if steps * (1 - start) <= SHORT + 1e-6 else 1.0
