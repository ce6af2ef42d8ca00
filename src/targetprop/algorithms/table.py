"""What each algorithm assumes and costs, stated once for the program and the README."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Properties:
    """One row.

    Attributes:
        call: how it is made.
        carries: what the feedback path carries to a layer.
        feedback: what the feedback weights are or how they learn.
        local: every weight learns from signals at its own layer only.
        transport: reads θ to set or use a feedback weight (weight transport).
        symmetric: uses one feedback weight in both directions, or shares increments of θ with ω.
        phases: of a step, beside the forward pass.
        passes: cost of a step over that of backprop, counted in products with a layer's weights.

    """

    call: str
    carries: str
    feedback: str
    local: str
    transport: str
    symmetric: str
    phases: str
    passes: str


TABLE = (
    Properties("Backprop", "error", "θᵀ", "no", "yes", "yes", "errors", "1"),
    Properties(
        "LDRL(net)",
        "difference-corrected target",
        "predicts the layer's response to noise through ω; ω gets the increments of θ (tracking)",
        "yes",
        "no",
        "yes: ω both ways, shared increments",
        "probes (rarely), targets",
        "1 + about 0.1",
    ),
    Properties(
        "LDRL(net, solver=PredictiveSolver(tracking=False))",
        "difference-corrected target",
        "as above, without the increments",
        "yes",
        "no",
        "yes: ω both ways",
        "probes, targets",
        "1.3 to 2",
    ),
    Properties(
        "LDRL(net, solver=CoupledSolver())",
        "difference-corrected target",
        "as above through auxiliary weights; ω gets the same corrections and decay (Kolen–Pollack)",
        "yes",
        "no",
        "shared increments",
        "probes, targets",
        "1 + about 0.3 K",
    ),
    Properties(
        "LDRL(net, solver=CorrelationSolver())",
        "difference-corrected target",
        "correlation of noise and response",
        "yes",
        "no",
        "no",
        "probes, targets",
        "1 + 2/3 K",
    ),
    Properties(
        "LDRL(net, solver=SGDSolver(...))",
        "difference-corrected target",
        "the paper's: K steps of SGD on the L-DRL loss",
        "yes",
        "no",
        "yes: ω both ways",
        "K noisy passes, targets",
        "1 + 4/3 K",
    ),
    Properties(
        "LDRL(net, solver=Symmetric())",
        "difference-corrected target",
        "copies θ: an oracle",
        "no",
        "yes",
        "yes",
        "targets",
        "1",
    ),
    Properties(
        "ParallelLDRL",
        "difference-corrected target",
        "one Adam step a batch on the L-DRL loss, 10 noise samples",
        "yes",
        "no",
        "yes: ω both ways",
        "noisy passes, targets",
        "14",
    ),
    Properties(
        "JacobianMatchingOracle",
        "difference-corrected target",
        "nearest Jacobian in closed form (Bao et al. 2024): an oracle",
        "no",
        "yes",
        "yes",
        "targets",
        "1",
    ),
    Properties(
        "DTP",
        "difference-corrected target",
        "denoising auto-encoder (Lee et al. 2015)",
        "yes",
        "no",
        "no",
        "K noisy passes, targets",
        "1 + K",
    ),
    Properties(
        "TargetProp",
        "target",
        "denoising auto-encoder (Bengio 2014)",
        "yes",
        "no",
        "no",
        "K noisy passes, targets",
        "1 + K",
    ),
    Properties("FixedWeightDTP", "difference-corrected target", "as initialised", "yes", "no", "no", "targets", "1"),
    Properties(
        "DRL",
        "difference-corrected target",
        "brings noise back from the output (Meulemans et al. 2020)",
        "no",
        "no",
        "no",
        "K noisy passes to the output and back, a layer at a time; targets",
        "1 + O(N K)",
    ),
    Properties(
        "DDTPLinear",
        "target, straight from the output",
        "brings noise back from the output, linearly",
        "no",
        "no",
        "no",
        "K noisy passes to the output, a layer at a time; targets",
        "1 + O(N K)",
    ),
    Properties("FeedbackAlignment", "error", "as initialised (Lillicrap et al. 2016)", "yes", "no", "no", "errors", "1"),
    Properties(
        "DirectFeedbackAlignment",
        "error, straight from the output",
        "as initialised (Nøkland 2016)",
        "yes",
        "no",
        "no",
        "errors",
        "2/3",
    ),
    Properties("WeightMirror", "error", "correlation of noise and response", "yes", "no", "no", "probes, errors", "1 + 2/3 K"),
    Properties(
        "SignSymmetry", "error", "sizes of ω, signs of θ (Liao et al. 2016)", "yes", "signs", "yes: signs", "errors", "1"
    ),
    Properties("KolenPollack", "error", "increments and decay of θ", "yes", "no", "shared increments", "errors", "1"),
)

HEADINGS = ("algorithm", "carries", "feedback weights", "local", "weight transport", "symmetric synapses", "phases", "cost")


def table() -> str:
    """The table in Markdown."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *((f"`{p.call}`", *astuple(p)[1:]) for p in TABLE)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)
