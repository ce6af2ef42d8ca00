"""``nn.MultiheadAttention`` in place: its in-projections are maps."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from targetprop.attach import function
from targetprop.attach.function import needs_gradient
from targetprop.attach.link import Attached, refuse_export
from targetprop.attach.refusals import refuse_nested


class AttachedAttention(Attached):
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
        heads, size = self.num_heads, self.embed_dim // self.num_heads

        key_padding_mask = F._canonical_mask(
            key_padding_mask,
            "key_padding_mask",
            F._none_or_dtype(attn_mask),
            "attn_mask",
            query.dtype,
        )
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        if is_causal and key_padding_mask is None and not need_weights:
            attn_mask = None
        else:
            attn_mask = F._canonical_mask(attn_mask, "attn_mask", None, "", query.dtype, False)
            is_causal = is_causal and key_padding_mask is None
        if attn_mask is not None and attn_mask.dim() == 2:
            attn_mask = attn_mask.unsqueeze(0)

        q, k, v = (self._project(i, x) for i, x in enumerate((query, key, value)))
        added = 0
        if self.bias_k is not None:
            k, v, added = (
                torch.cat([k, self.bias_k.repeat(1, batch, 1)]),
                torch.cat([v, self.bias_v.repeat(1, batch, 1)]),
                1,
            )
        q = q.reshape(length, batch * heads, size).transpose(0, 1)
        k, v = (x.reshape(x.shape[0], batch * heads, size).transpose(0, 1) for x in (k, v))
        if self.add_zero_attn:
            zero = (batch * heads, 1, size)
            k, v, added = (
                torch.cat([k, k.new_zeros(zero)], 1),
                torch.cat([v, v.new_zeros(zero)], 1),
                added + 1,
            )
        if added:
            attn_mask = None if attn_mask is None else F.pad(attn_mask, (0, added))
            key_padding_mask = (
                None if key_padding_mask is None else F.pad(key_padding_mask, (0, added))
            )
        if key_padding_mask is not None:
            spread = (
                key_padding_mask.view(batch, 1, 1, key_padding_mask.shape[1])
                .expand(-1, heads, -1, -1)
                .reshape(batch * heads, 1, key_padding_mask.shape[1])
            )
            attn_mask = spread if attn_mask is None else attn_mask + spread
        dropout = self.dropout if self.training else 0.0

        weights = None
        if need_weights:
            scaled = q * math.sqrt(1.0 / size)
            scores = (
                torch.bmm(scaled, k.mT)
                if attn_mask is None
                else torch.baddbmm(attn_mask, scaled, k.mT)
            )
            weights = F.softmax(scores, -1)
            if dropout > 0.0:
                weights = F.dropout(weights, dropout)
            out = torch.bmm(weights, v).transpose(0, 1).reshape(length, batch, self.embed_dim)
            weights = weights.view(batch, heads, length, weights.shape[-1])
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            if attn_mask is not None:
                attn_mask = (
                    attn_mask.unsqueeze(0)
                    if attn_mask.shape[0] == 1
                    else attn_mask.view(batch, heads, *attn_mask.shape[1:])
                )
            q, k, v = (x.view(batch, heads, x.shape[1], size) for x in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout, is_causal)
            out = out.permute(2, 0, 1, 3).reshape(length, batch, self.embed_dim)
        if self._feedback.direct and self.batch_first and batched:
            # An error finds its sample in the first dimension.
            return self.out_proj(out.transpose(0, 1)), weights
        # Laid out as the plain module has it, by which a dropout that follows draws its numbers.
        out = self.out_proj(out)
        if not batched:
            return out.squeeze(1), None if weights is None else weights.squeeze(0)
        return (out.transpose(0, 1) if self.batch_first else out), weights

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
