"""The default way to learn ω: a layer predicts its own response to noise through ω and corrects ω by the error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from targetprop.feedback.memory import Memory
from targetprop.feedback.patches import Patch, Probe
from targetprop.feedback.solver import FeedbackReport, State, Taps, noise_like, taps
from targetprop.laboratory.layers import Layer, Trace
from targetprop.maps import Conv2dMap, DenseMap, LinearMap, Reduced
from targetprop.properties import Row
from targetprop.ranks import ALONE, Group
from targetprop.seeds import mixed


def correction(
    layer: Layer,
    omega: Tensor,
    use: Taps,
    e: Tensor,
    response: Tensor,
    samples: int | None = None,
    peers: Group = ALONE,
) -> tuple[Tensor, Tensor]:
    """The step of ω and the mismatch, from a probe ε and the layer's recorded response a = A_θ ε.

        r = a − A_ω ε,      Δω = corr(r, ε)/(D + d),      mismatch = ‖r‖/‖a‖

    The small-noise limit of L-DRL is ‖J_G − J_Fᵀ‖²_F up to a constant (Ernoult et al. 2022). Matched feedback has S′ᵀ exact in
    J_G = A_ωᵀS′ᵀ, so ‖A_ω − A_θ‖²_F = E‖r‖² is left; Δω descends its gradient, each kernel tap at the step 1/(D + d)
    that contracts the mean-square error most under white noise, d the fan-in and D the outputs that the tap feeds. A
    pre-activation responds linearly to ε: no small-noise limit is needed, and units that lose in pooling or are silent count.
    θ is not read: all that comes of it is ``response``. With peers, ε is this process's part of ``samples`` samples.
    """
    samples = len(e) if samples is None else samples
    residual = response - layer.map.apply(e, omega)
    step = layer.map.correlate(residual, e, omega.shape)
    missed, whole = residual.square().sum(), response.square().sum()
    peers.total_(step, missed, whole)
    step = step.div_(use.counts * samples + use.energy * use.fan_in)
    # A layer whose weights are all zero has response 0 and nothing to match.
    return step, (missed / whole.clamp_min(torch.finfo(e.dtype).tiny)).sqrt()


def unreduced(layer: Layer) -> LinearMap:
    """The layer's map in the format of its weights."""
    return layer.map.inner if isinstance(layer.map, Reduced) else layer.map


def patch_probe(layer: Layer, omega: Tensor, state: State, generator: Generator) -> tuple[Patch, int]:
    """A convolution or a dense map beside ω as a patch, and the seed of its next probe, numbered by ``state["probes"]``.

    Both are the same on all peers, whatever part of the batch is theirs.
    """
    state["probes"] = state.get("probes", 0) + 1
    linear = unreduced(layer)
    groups = linear.groups if isinstance(linear, Conv2dMap) else 1
    theta, omega = (w.detach().reshape(groups, len(w) // groups, -1) for w in (layer.theta, omega))
    return Patch(theta, omega), mixed(generator.initial_seed(), state["probes"])


def patch_correction(layer: Layer, omega: Tensor, state: State, generator: Generator) -> tuple[Tensor, Tensor]:
    """Δω that makes A_ω answer as A_θ does, and the mismatch before it, by a patch probe of a convolution or a dense map."""
    probe, seed = patch_probe(layer, omega, state, generator)
    step, mismatch = probe.difference(seed)
    return step.reshape(layer.theta.shape), mismatch


@dataclass(frozen=True)
class PredictiveSolver:
    """Iterate ω ← ω + Δω until ‖r‖/‖a‖, which *is* the mismatch ‖A_ω − A_θ‖_F/‖A_θ‖_F, is under ``tolerance``.

    The noise of the step vanishes at the optimum, so ω follows θ without a window of memory. A probe of a convolution or of a
    dense map is exact (``targetprop.feedback.patches``). Other maps take as many samples of noise as give ``oversampling``
    positions per weight of a unit. The first batch is iterated until ``tolerance`` is met. Later a patch probe measures the
    mismatch from a few samples and solves in the batch after one that was over ``tolerance``; another map makes as many
    iterations as its last mismatch asks for. Mismatches are read from the device between batches, so no step waits for them.

    With ``tracking`` the algorithm gives ω and θ the same local increments through the user's optimizer (Kolen–Pollack;
    Akrout et al. 2019): the mismatch that probes have removed stays removed, and probes are needed every ``probe_every``
    batches and then ever more rarely, the layers in turn, or while the last mismatch was over ``tolerance``.

    Attributes:
        tolerance: the relative mismatch to reach.
        max_iterations: per layer and batch, after the first batch.
        first_iterations: the same on the first batch.
        oversampling: positions per iteration over d = k²·C_in, for registered maps.
        max_samples: noise samples per iteration at most, likewise.
        patches: probe convolutions and dense maps by patches; else by noise shaped like their input, as other maps.
        tracking: give ω the increments of θ.
        probe_every: batches between the first probes of a layer under tolerance; 1 without tracking.
        probe_every_at_most: up to which that interval doubles from probe to probe while the layer stays under tolerance.

    """

    rows = (
        Row(
            "LDRL(net)",
            carries="difference-corrected target",
            feedback="predicts the layer's response to noise through ω; ω gets the increments of θ (tracking)",
            local="yes",
            transport="no",
            symmetric="yes: ω both ways, shared increments",
            phases="probes (rarely), targets",
            passes="1 + about 0.1",
        ),
        Row(
            "LDRL(net, solver=PredictiveSolver(tracking=False))",
            carries="difference-corrected target",
            feedback="predicts the response, without the increments",
            local="yes",
            transport="no",
            symmetric="yes: ω both ways",
            phases="probes, targets",
            passes="1.3 to 2",
        ),
    )

    tolerance: float = 0.1
    max_iterations: int = 5
    first_iterations: int = 1000
    oversampling: float = 2.0
    max_samples: int = 1024
    patches: bool = True
    tracking: bool = True
    probe_every: int = 10
    probe_every_at_most: int = 1000

    def train(
        self, index: int, layer: Layer, trace: Trace, state: State, generator: Generator, peers: Group = ALONE
    ) -> FeedbackReport:
        """Probe and correct ω, if a probe is due."""
        if "counts" not in state:
            use = taps(layer, trace.input)
            state.update(
                batches=0, counts=use.counts, positions=use.positions, fan_in=use.fan_in, energy=use.energy, mismatch=math.inf
            )
        use = Taps(**{name: state[name] for name in ("counts", "positions", "fan_in", "energy")})
        samples = use.samples(self.oversampling, self.max_samples)
        patch = self.patches and isinstance(unreduced(layer), (DenseMap, Conv2dMap))
        contraction = 0.0 if patch else use.contraction(samples)

        def iterate(count: int) -> list[Tensor]:
            found = []
            for _ in range(count):
                if patch:
                    step, mismatch = patch_correction(layer, layer.omega, state, generator)
                else:
                    e = noise_like(trace.input, generator, samples, peers)
                    step, mismatch = correction(layer, layer.omega, use, e, layer.respond(e), samples, peers)
                layer.omega.add_(step)
                found.append(mismatch)
            return found

        state["batches"] += 1
        if state["batches"] == 1:
            iterations = 0
            while iterations < self.first_iterations and not state["mismatch"] < self.tolerance:
                count = self.needed(state["mismatch"], contraction)
                state["mismatch"] = iterate(min(count, self.first_iterations - iterations))[-1].item()
                iterations += count
            return FeedbackReport(min(iterations, self.first_iterations), mismatch=torch.tensor(state["mismatch"]))
        if state["batches"] == 2:  # the layers take turns
            state.update(interval=self.probe_every, wait=self.probe_every - index % self.probe_every)
        state["wait"] -= 1
        under = state["mismatch"] < self.tolerance
        if self.tracking and under and state["wait"] > 0:
            return FeedbackReport(0, mismatch=torch.tensor(state["mismatch"]))
        interval = min(2 * state["interval"], self.probe_every_at_most) if under else self.probe_every
        state.update(interval=interval, wait=interval)
        if patch and under:  # a few samples tell whether to solve in the next batch
            probe, seed = patch_probe(layer, layer.omega, state, generator)
            return FeedbackReport(1, mismatch=probe.mismatch(seed))
        count = self.needed(state["mismatch"], contraction)
        return FeedbackReport(count, mismatch=iterate(count)[0])

    def needed(self, mismatch: float, contraction: float) -> int:
        """Iterations that bring ``mismatch`` under tolerance if each shrinks it by ``contraction``, from 1 to the maximum."""
        if not self.tolerance < mismatch < math.inf or contraction == 0:
            return 1
        if self.tolerance <= 0:
            return self.max_iterations
        return min(self.max_iterations, math.ceil(math.log(self.tolerance / mismatch) / math.log(contraction)))

    def calibrate(self, probe: Probe, memory: Memory, seed: int, tracked: bool) -> Tensor | None:
        """The ω that answers as the layer does (see ``targetprop.feedback.patches``)."""
        return self.probe(probe, memory, seed, tracked)

    def probe(self, probe: Probe, memory: Memory, seed: int, tracked: bool) -> Tensor | None:
        """Measure an attached map, and solve for ω where its mismatch is over tolerance; the new ω, or None to keep it."""
        shortest = self.probe_every if tracked and self.tracking else 1
        mismatch = math.inf if memory.probes == 0 else float(probe.mismatch(seed))
        memory.probes += 1
        if mismatch <= self.tolerance:
            memory.after(mismatch, self.tolerance, shortest, self.probe_every_at_most)
            return None
        step, before = probe.difference(seed)
        memory.after(float(before), self.tolerance, shortest, self.probe_every_at_most)
        omega = probe.omega + step
        memory.mismatch = float(probe.having(omega).mismatch(mixed(seed, 1)))
        return omega
