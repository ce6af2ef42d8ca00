"""``nn.MultiheadAttention`` in place: its in-projections are maps."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from targetprop.attach import function
from targetprop.attach.function import needs_gradient
from targetprop.attach.link import AttachedModule, refuse_export
from targetprop.attach.refusals import label, refuse_nested


class AttachedAttention(AttachedModule):
    """Its three in-projections are maps, its out-projection is an attached ``Linear``."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None,
        average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """As the plain module: softmax(QKᵀ/√d) V over heads, with autograd's derivative."""
        if self._feedback.exact or not torch.is_grad_enabled():
            return super().forward(
                query,
                key,
                value,
                key_padding_mask,
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
        refuse_export()
        refuse_nested(self, query, key, value)
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(1) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        length, batch, _ = query.shape
        by_kernel = is_causal and key_padding_mask is None and not need_weights  # ignores the mask
        self._refuse_masks(
            length, batch, len(key), key_padding_mask, None if by_kernel else attn_mask
        )
        mask, padding, is_causal = canonical(
            key_padding_mask, attn_mask, is_causal, need_weights, query.dtype
        )
        q, k, v = (self._project(i, x) for i, x in enumerate((query, key, value)))
        q, k, v, added = self._heads(q, k, v)
        mask = merged(mask, padding, added, self.num_heads)
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            out, weights = weighted(q, k, v, mask, dropout)
            weights = weights.view(batch, self.num_heads, length, weights.shape[-1])
            weights = weights.mean(1) if average_attn_weights else weights
            out = out.transpose(0, 1).reshape(length, batch, self.embed_dim)
        else:
            weights = None
            out = fused(q, k, v, mask, dropout, is_causal, (batch, self.num_heads))
            out = out.permute(2, 0, 1, 3).reshape(length, batch, self.embed_dim)
        if self._feedback.direct and self.batch_first and batched:
            # An error finds its sample in the first dimension.
            return self.out_proj(out.transpose(0, 1)), weights
        # Laid out as the plain module has it, by which a dropout that follows draws its numbers.
        out = self.out_proj(out)
        if not batched:
            return out.squeeze(1), None if weights is None else weights.squeeze(0)
        return (out.transpose(0, 1) if self.batch_first else out), weights

    def _heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """(length, batch, width) each to (batch · heads, length, size); how many keys it added."""
        batch, size, added = q.shape[1], self.embed_dim // self.num_heads, 0
        if self.bias_k is not None:
            k = torch.cat([k, self.bias_k.repeat(1, batch, 1)])
            v = torch.cat([v, self.bias_v.repeat(1, batch, 1)])
            added += 1
        q, k, v = (
            x.reshape(x.shape[0], batch * self.num_heads, size).transpose(0, 1) for x in (q, k, v)
        )
        if self.add_zero_attn:
            k, v = (torch.cat([x, x.new_zeros(len(x), 1, size)], 1) for x in (k, v))
            added += 1
        return q, k, v, added

    def _refuse_masks(
        self, length: int, batch: int, keys: int, padding: Tensor | None, mask: Tensor | None
    ) -> None:
        """Refuse masks that would be broadcast, as the plain module does.

        Raises:
            RuntimeError: one is of another shape than attention takes.
        """
        whole = ((length, keys), (batch * self.num_heads, length, keys))
        for name, given, taken in (
            ("key_padding_mask", padding, ((batch, keys),)),
            ("attn_mask", mask, whole),
        ):
            if given is not None and tuple(given.shape) not in taken:
                raise RuntimeError(
                    f"{label(self)} got {name} of shape {tuple(given.shape)}; expected "
                    f"{' or '.join(map(str, taken))}."
                )

    def _project(self, index: int, x: Tensor) -> Tensor:
        """The in-projection number ``index`` of q, k and v."""
        part = slice(index * self.embed_dim, (index + 1) * self.embed_dim)
        letter = "qkv"[index]
        bias = None if self.in_proj_bias is None else self.in_proj_bias[part]
        packed = self.in_proj_weight is not None
        weight = self.in_proj_weight[part] if packed else getattr(self, f"{letter}_proj_weight")
        if not needs_gradient(x):
            return F.linear(x, weight, bias)
        if self._feedback.rule.direct:
            # As the user's model lays them, for an error to find its sample.
            x = x.transpose(0, 1) if self.batch_first else x
            y = self._direct(
                F.linear(x.detach(), weight, bias), x, f"{letter}_proj_feedback_weight"
            )
            return y.transpose(0, 1) if self.batch_first else y
        if not packed:
            return function.linear(
                x, weight, bias, self._sent(weight, f"{letter}_proj_feedback_weight")
            )
        return function.linear(
            x, weight, bias, self._sent(self.in_proj_weight, "in_proj_feedback_weight")[part]
        )


def canonical(
    padding: Tensor | None, mask: Tensor | None, is_causal: bool, need_weights: bool, dtype: Any
) -> tuple[Tensor | None, Tensor | None, bool]:
    """(what is added to the scores, likewise of the keys, whether the kernel masks by itself).

    Raises:
        RuntimeError: ``is_causal``, a hint of what ``mask`` is, without it.
    """
    padding = F._canonical_mask(
        padding, "key_padding_mask", F._none_or_dtype(mask), "attn_mask", dtype
    )
    if is_causal and mask is None:
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
    if is_causal and padding is None and not need_weights:
        return None, None, True
    mask = F._canonical_mask(mask, "attn_mask", None, "", dtype, False)
    if mask is not None and mask.dim() == 2:
        mask = mask.unsqueeze(0)
    return mask, padding, is_causal and padding is None


def merged(mask: Tensor | None, padding: Tensor | None, added: int, heads: int) -> Tensor | None:
    """One mask, (1 or batch · heads, 1 or length, keys), of both; added keys are never masked."""
    if added:
        mask, padding = (None if m is None else F.pad(m, (0, added)) for m in (mask, padding))
    if padding is None:
        return mask
    batch, keys = padding.shape
    spread = padding.view(batch, 1, 1, keys).expand(-1, heads, -1, -1)
    spread = spread.reshape(batch * heads, 1, keys)
    return spread if mask is None else mask + spread


def weighted(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """softmax(QKᵀ/√d + mask) V, and the softmax, (batch · heads, length, ·) each."""
    q = q * math.sqrt(1.0 / q.shape[-1])
    scores = torch.bmm(q, k.mT) if mask is None else torch.baddbmm(mask, q, k.mT)
    weights = F.softmax(scores, -1)
    if dropout > 0.0:
        weights = F.dropout(weights, dropout)
    return torch.bmm(weights, v), weights


def fused(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool,
    apart: tuple[int, int],
) -> Tensor:  # fmt: skip
    """The same by torch's kernel, (batch, heads, length, size); ``apart``: batch and heads."""
    if mask is not None:
        one = mask.shape[0] == 1
        mask = mask.unsqueeze(0) if one else mask.view(*apart, *mask.shape[1:])
    q, k, v = (x.view(*apart, *x.shape[1:]) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
