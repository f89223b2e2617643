"""
Attention over few tokens, for NVIDIA GPUs. Fused kernels work in tiles of 64 to 128 tokens, of which a cutout's 5 or
17 leave most empty: they take a third of a training step. Here a head of an image is one tile, and one program of the
GPU, which reads its queries, keys and values once. The backward pass adds nothing up across programs, so that it gives
the same bits each time.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from .backbones import attend_unmasked

MAX_TOKENS = 64


@triton.jit
def _rows(pointer, stride_batch, stride_head, stride_token, heads, size: tl.constexpr, block: tl.constexpr):
    """Pointers to the `(block, size)` tile of the head that this program works on."""
    program = tl.program_id(0).to(tl.int64)
    start = pointer + (program // heads) * stride_batch + (program % heads) * stride_head
    return start + tl.arange(0, block)[:, None] * stride_token + tl.arange(0, size)[None, :]


@triton.jit
def _probabilities(query, key, scale, tokens, block: tl.constexpr):
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    scores = tl.where(tl.arange(0, block)[None, :] < tokens, scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.jit
def _forward_kernel(
    query, key, value, output, batch_stride, head_stride, token_stride, out_batch_stride, out_head_stride,
    out_token_stride, heads, tokens, scale, size: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    mask = tl.arange(0, block)[:, None] < tokens
    q = tl.load(_rows(query, batch_stride, head_stride, token_stride, heads, size, block), mask, 0.0)
    k = tl.load(_rows(key, batch_stride, head_stride, token_stride, heads, size, block), mask, 0.0)
    v = tl.load(_rows(value, batch_stride, head_stride, token_stride, heads, size, block), mask, 0.0)
    p = _probabilities(q, k, scale, tokens, block)
    o = tl.dot(p.to(v.dtype), v, input_precision="ieee")
    to = _rows(output, out_batch_stride, out_head_stride, out_token_stride, heads, size, block)
    tl.store(to, o.to(output.dtype.element_ty), mask)


@triton.jit
def _backward_kernel(
    query, key, value, gradient, grad_query, grad_key, grad_value, batch_stride, head_stride, token_stride,
    out_batch_stride, out_head_stride, out_token_stride, heads, tokens, scale, size: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    mask = tl.arange(0, block)[:, None] < tokens
    q = tl.load(_rows(query, batch_stride, head_stride, token_stride, heads, size, block), mask, 0.0)
    k = tl.load(_rows(key, batch_stride, head_stride, token_stride, heads, size, block), mask, 0.0)
    v = tl.load(_rows(value, batch_stride, head_stride, token_stride, heads, size, block), mask, 0.0)
    do = tl.load(_rows(gradient, out_batch_stride, out_head_stride, out_token_stride, heads, size, block), mask, 0.0)
    p = _probabilities(q, k, scale, tokens, block)
    dv = tl.dot(tl.trans(p.to(do.dtype)), do, input_precision="ieee")  # rows beyond the tokens have no gradient
    dp = tl.dot(do, tl.trans(v), input_precision="ieee")
    ds = (p * (dp - tl.sum(dp * p, axis=1)[:, None]) * scale).to(q.dtype)
    dq = tl.dot(ds, k, input_precision="ieee")
    dk = tl.dot(tl.trans(ds), q, input_precision="ieee")
    kind = grad_query.dtype.element_ty
    tl.store(_rows(grad_query, batch_stride, head_stride, token_stride, heads, size, block), dq.to(kind), mask)
    tl.store(_rows(grad_key, batch_stride, head_stride, token_stride, heads, size, block), dk.to(kind), mask)
    tl.store(_rows(grad_value, batch_stride, head_stride, token_stride, heads, size, block), dv.to(kind), mask)


def _launch(kernel, tensors: list[torch.Tensor], like: torch.Tensor, out: torch.Tensor, scale: float) -> None:
    batch, heads, tokens, size = like.shape
    block = max(16, triton.next_power_of_2(tokens))  # the matrix units take no less than 16
    strides = [*like.stride()[:3], *out.stride()[:3]]
    wrap_triton(kernel)[(batch * heads,)](
        *tensors, *strides, heads, tokens, scale, size=size, block=block, num_warps=max(1, block // 16)
    )


def _as_tokens(tensor: torch.Tensor) -> torch.Tensor:
    """`(batch, heads, tokens, size)` that lies in memory as `(batch, tokens, heads, size)`, as a ViT makes it."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


@triton_op("lens_ssl_hf::short_attention", mutates_args={})
def short_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """
    `softmax(query key^T scale) value`, differentiable.

    Args:
        query, key, value (`torch.Tensor` of shape `(batch, heads, tokens, size)`):
            on a GPU; at most 64 tokens, `size` a power of 2 from 16 on.
        scale (`float`): of the products.

    Returns:
        `torch.Tensor` of the shape and type of `query`.
    """
    query, key, value = map(_as_tokens, (query, key, value))
    output = torch.empty_like(query)
    _launch(_forward_kernel, [query, key, value, output], query, output, scale)
    return output


@triton_op("lens_ssl_hf::short_attention_backward", mutates_args={})
def _short_attention_backward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value, gradient = map(_as_tokens, (query, key, value, gradient))
    gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
    _launch(_backward_kernel, [query, key, value, gradient, *gradients], query, gradient, scale)
    return gradients[0], gradients[1], gradients[2]


def _keep(ctx, inputs: tuple, output: torch.Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return *_short_attention_backward(*ctx.saved_tensors, gradient, ctx.scale), None


short_attention.register_autograd(_backward, setup_context=_keep)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls: the kernel for what it can do, and the fused one without a mask for the rest."""
    tokens, size = query.shape[2:]
    is_a_tile = tokens <= MAX_TOKENS and size >= 16 and size & (size - 1) == 0
    if query.dtype == torch.bfloat16 and is_a_tile and dropout == 0:
        return short_attention(query, key, value, scaling).transpose(1, 2), None
    return attend_unmasked(module, query, key, value, attention_mask, scaling, dropout)
