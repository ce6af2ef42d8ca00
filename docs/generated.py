"""Pages made from the code, and how the gallery runs its examples."""

import sys
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

ORDER = [
    "digits", "resnet_cifar10", "char_gpt", "vit", "lightning_loop", "huggingface_trainer",
    "accelerate_loop", "ddp", "fsdp2", "own_rule", "own_layer", "looking_inside",
]  # fmt: skip


class Order:
    """The order of the gallery: from the first thing one tries to what one writes oneself."""

    def __init__(self, folder):
        """Of any folder."""

    def __call__(self, name):
        """The place of an example."""
        return ORDER.index(Path(name).stem)

    def __repr__(self):
        """The same in every build."""
        return "Order"


LENGTHS = {
    "char_gpt.py": ["--steps", "60"],
    "digits.py": ["--epochs", "5"],
    "resnet_cifar10.py": ["--steps", "60"],
    "vit.py": ["--steps", "60", "--layers", "2"],
}
"""What the gallery passes to an example, so that all of them together take a few minutes."""


class Lengths:
    """The arguments of an example, by its file's name."""

    def __call__(self, configuration, script):
        """Those of ``script``."""
        return LENGTHS.get(Path(script["src_file"]).name, [])

    def __repr__(self):
        """The same in every build, for Sphinx to see that nothing changed."""
        return f"Lengths({LENGTHS})"


def fresh(configuration, script):
    """Let the next example begin as in a process of its own: accelerate remembers the last."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


def layers():
    """Every kind of module that ``attach`` knows, with what it computes."""
    from targetprop.attach.kinds import KINDS

    lines = ["| kind | modules | what it computes |", "|---|---|---|"]
    for kind in KINDS.values():
        names = ", ".join(f"`{t.__name__}`" for t in kind.types) or "recognised by their forward"
        lines.append(
            f"| {kind.name.replace('_', ' ')} | {names} | {kind.mixin.__doc__.splitlines()[0]} |"
        )
    return "\n".join(lines)


def rules():
    """Every rule: what travels back, and the papers."""
    from targetprop.rules import RULES

    lines = ["| `rule=` | B, through which e travels | papers |", "|---|---|---|"]
    lines += [
        f'| `"{rule.name}"` | {rule.equation} | {", ".join(rule.papers)} |'
        for rule in (make() for make in RULES.values())
    ]
    return "\n".join(lines)


def write(app):
    """Write the tables beside the pages that include them."""
    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    for name, text in {"layers": layers(), "rules": rules()}.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def inline_math(writer, node):
    """A formula within a line as MathML, which browsers draw without a script."""
    writer.body.append(convert(node.astext()))
    raise SkipNode


def display_math(writer, node):
    """A formula by itself."""
    writer.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


def setup(app):
    """Hook into Sphinx."""
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
