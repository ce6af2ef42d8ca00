"""Probes of a linear map by patches: matrix products of noise no larger than its kernel.

A convolution answers the same wherever it stands, so its response to one kernel-sized patch tells
all of it: it is a dense map of d = k²·C_in/groups inputs, one per group. ω is learned from
a = A_θ ε alone; θ itself is never read, copied or transposed.

For signals ε of ±1 whose patterns are orthogonal, εᵀε = n·1, the correlation of residual and noise
solves least squares exactly, without a Gram matrix and without a Cholesky factor:

    Δω = (a − A_ω ε) εᵀ/n = (A_θ − A_ω) εεᵀ/n = A_θ − A_ω

Rows of a Sylvester–Hadamard matrix are such patterns; random signs of the inputs make every row a
fair ±1 noise. That costs n ∈ [d, 2d) samples in place of the 2d samples and the 2d³ + d³/3 of a
solve with Gaussian noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Generator, Tensor

ROWS = 1024
"""Samples of one block: bounds a probe's memory at ROWS × (d + outputs) numbers."""

BLOCK = 256
"""Rows of orthogonal noise at a time: enough for speed, few beside a batch's activations."""

MEASURED = 32
"""Samples that estimate a mismatch. Its relative error is about √(1/(64 · outputs)) where the rows
of ω − θ are independent, and √(1/64), an eighth, where it is of rank one."""


class Probe(Protocol):
    """One map at one moment, as a solver sees it: its answer to noise and ω as an array to move."""

    @property
    def omega(self) -> Tensor:
        """ω, float32 or float64; not to be written to."""
        ...

    def noise(self, seed: int, count: int | None = None) -> Tensor:
        """``count`` samples of white noise; the default is twice the inputs, at most ``ROWS``."""
        ...

    def respond(self, noise: Tensor) -> Tensor:
        """a = A_θ ε, what the layer itself answers."""
        ...

    def predict(self, noise: Tensor, omega: Tensor) -> Tensor:
        """A_ω ε."""
        ...

    def correlate(self, signal: Tensor, noise: Tensor) -> Tensor:
        """∂⟨signal, A_ω ε⟩/∂ω, shaped like ω."""
        ...

    def coefficient(self) -> Tensor:
        """κ in E corr(A_ω ε, ε) = κ ω for a white ε, shaped to divide ω; 0 for an unused weight."""
        ...

    def difference(self, seed: int) -> tuple[Tensor, Tensor]:
        """(Δω that makes A_ω answer as A_θ does, the mismatch ‖A_θ − A_ω‖_F/‖A_θ‖_F before)."""
        ...

    def mismatch(self, seed: int) -> Tensor:
        """An estimate of the mismatch from a few samples."""
        ...

    def having(self, omega: Tensor) -> Probe:
        """The same layer beside another ω."""
        ...


def relative(missed: Tensor, whole: Tensor) -> Tensor:
    """√(missed/whole) of sums of squares, 0 where both are: zero weights have nothing to match."""
    return (missed / whole.clamp_min(torch.finfo(whole.dtype).tiny)).sqrt()


def seeded(seed: int, device: torch.device | str = "cpu") -> Generator:
    """A generator of its own for one probe: nothing to remember between probes but their number."""
    return Generator(device).manual_seed(seed)


def signs(count: int, seed: int, like: Tensor) -> Tensor:
    """``count`` independent ±1, drawn where ``like`` lies: a GPU need not wait for them."""
    drawn = torch.randint(2, (count,), generator=seeded(seed, like.device), device=like.device)
    return drawn.to(like.dtype).mul_(2).sub_(1)


def hadamard(order: int, like: Tensor) -> Tensor:
    """Sylvester's matrix of ±1 with orthogonal rows; ``order`` is a power of two."""
    matrix = torch.ones(1, 1, dtype=like.dtype, device=like.device)
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def orthogonal_noise(inputs: int, seed: int, like: Tensor) -> Iterator[Tensor]:
    """±1 noise in blocks (rows, inputs), εᵀε = n·1, n rows in all, the power of 2 ≥ ``inputs``."""
    order = 1 << (inputs - 1).bit_length()
    base = hadamard(min(order, BLOCK), like)
    pieces = -(-inputs // len(base))
    flip = torch.nn.functional.pad(
        signs(inputs, seed, like), (0, pieces * len(base) - inputs)
    ).view(pieces, len(base))
    # H_n = H_coarse ⊗ H_base, by rows of H_coarse.
    for row in hadamard(order // len(base), like)[:, :pieces, None]:
        yield (base[:, None] * (row * flip)).flatten(1)[:, :inputs]


@dataclass
class Patch:
    """A map as matrices: one of shape (outputs, d) for each of its groups.

    Attributes:
        theta: (groups, outputs, d): the layer, which this class asks for responses only.
        omega: ω, laid out alike.
    """

    theta: Tensor
    omega: Tensor

    def noise(self, seed: int, count: int | None = None) -> Tensor:
        """Standard normal noise (count, d), the same for every group."""
        inputs = self.omega.shape[-1]
        count = min(ROWS, 2 * inputs) if count is None else count
        device = self.omega.device
        return torch.randn(
            count, inputs, generator=seeded(seed, device), dtype=self.omega.dtype, device=device
        )

    def respond(self, noise: Tensor) -> Tensor:
        """(groups, count, outputs)."""
        return noise @ self.theta.mT

    def predict(self, noise: Tensor, omega: Tensor) -> Tensor:
        """(groups, count, outputs)."""
        return noise @ omega.mT

    def correlate(self, signal: Tensor, noise: Tensor) -> Tensor:
        """Signalᵀ ε, per group."""
        return signal.mT @ noise

    def coefficient(self) -> Tensor:
        """Each weight of a patch feeds one output."""
        return self.omega.new_ones(())

    def difference(self, seed: int) -> tuple[Tensor, Tensor]:
        """Exact, from orthogonal noise: see the module."""
        step = torch.zeros_like(self.omega)
        missed = whole = torch.zeros((), dtype=step.dtype, device=step.device)
        count = 0
        for noise in orthogonal_noise(self.omega.shape[-1], seed, self.omega):
            response = self.respond(noise)
            residual = response - self.predict(noise, self.omega)
            step.baddbmm_(residual.mT, noise.expand(len(step), -1, -1))
            missed, whole = missed + residual.square().sum(), whole + response.square().sum()
            count += len(noise)
        return step.div_(count), relative(missed, whole)

    def mismatch(self, seed: int) -> Tensor:
        """Of ``MEASURED`` rows of independent signs."""
        inputs = self.omega.shape[-1]
        noise = signs(MEASURED * inputs, seed, self.omega).view(MEASURED, inputs)
        response = self.respond(noise)
        return relative(
            (response - self.predict(noise, self.omega)).square().sum(), response.square().sum()
        )

    def having(self, omega: Tensor) -> Patch:
        """The same layer beside another ω."""
        return replace(self, omega=omega)


@dataclass
class Field:
    """A registered map, probed by noise shaped like the input it last saw.

    Attributes:
        function: (x, w) ↦ A_w x, linear in each.
        shape: of one sample of x.
        theta: the layer's weight, which this class asks for responses only.
        omega: ω, alike.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    shape: tuple[int, ...]
    theta: Tensor
    omega: Tensor

    def noise(self, seed: int, count: int | None = None) -> Tensor:
        """Standard normal noise (count, *shape); by default two positions per weight of a unit."""
        rows = max(1, len(self.omega))
        if count is None:
            positions = max(
                1, self.predict(self.omega.new_zeros(1, *self.shape), self.omega).numel() // rows
            )
            count = min(ROWS, max(8, -(-2 * self.omega.numel() // (rows * positions))))
        device = self.omega.device
        return torch.randn(
            count,
            *self.shape,
            generator=seeded(seed, device),
            dtype=self.omega.dtype,
            device=device,
        )

    def respond(self, noise: Tensor) -> Tensor:
        """A_θ ε."""
        return self.function(noise, self.theta)

    def predict(self, noise: Tensor, omega: Tensor) -> Tensor:
        """A_ω ε."""
        return self.function(noise, omega)

    def correlate(self, signal: Tensor, noise: Tensor) -> Tensor:
        """By autograd, at w = 0: the map is linear in w."""
        return torch.func.vjp(lambda w: self.function(noise, w), torch.zeros_like(self.omega))[1](
            signal
        )[0]

    def coefficient(self) -> Tensor:
        """c²·D: D outputs fed by a weight, fewer where it often meets padding, c the map's scale.

        c (equalised learning rates, muP) is measured: what 1s send one output through one weight.
        """
        one = self.omega.new_ones(1, *self.shape)
        outputs = torch.ones_like(self.predict(one, self.omega))
        impulse = torch.zeros_like(outputs)
        impulse.view(-1)[outputs.numel() // 2] = 1
        reached = self.correlate(impulse, one).flatten()
        return reached[reached.abs().argmax()] * self.correlate(outputs, one)

    def difference(self, seed: int) -> tuple[Tensor, Tensor]:
        """Least squares by conjugate gradients on ω ↦ corr(A_ω ε, ε): no coefficient is assumed."""
        noise = self.noise(seed)
        response = self.respond(noise)
        residual = response - self.predict(noise, self.omega)
        mismatch = relative(residual.square().sum(), response.square().sum())
        step = torch.zeros_like(self.omega)
        gradient = self.correlate(residual, noise)
        direction, energy = gradient, gradient.square().sum()
        start = energy
        for _ in range(100):
            if not energy > start * torch.finfo(energy.dtype).eps:
                break
            seen = self.predict(noise, direction)
            rate = energy / seen.square().sum()
            step = step + rate * direction
            residual = residual - rate * seen
            gradient = self.correlate(residual, noise)
            before, energy = energy, gradient.square().sum()
            direction = gradient + energy / before * direction
        return step, mismatch

    def mismatch(self, seed: int) -> Tensor:
        """From a few samples."""
        noise = self.noise(seed, 4)
        response = self.respond(noise)
        return relative(
            (response - self.predict(noise, self.omega)).square().sum(), response.square().sum()
        )

    def having(self, omega: Tensor) -> Field:
        """The same layer beside another ω."""
        return replace(self, omega=omega)
