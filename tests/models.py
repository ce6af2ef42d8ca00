"""Small models of every family that one trains, to test ``attach``: (model, inputs, loss)."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import targetprop as tp

CLASSES = 5


def conv_bn(inputs, outputs, size=3, stride=1, groups=1):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(inputs, outputs, 3, stride), nn.ReLU(inplace=True), conv_bn(outputs, outputs)
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else conv_bn(inputs, outputs, 1, stride)
        )

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        width = outputs // 2
        self.body = nn.Sequential(
            conv_bn(inputs, width, 1),
            nn.ReLU(),
            conv_bn(width, width, 3, stride, groups=2),
            nn.ReLU(),
            conv_bn(width, outputs, 1),
        )
        self.shortcut = conv_bn(inputs, outputs, 1, stride)

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8), nn.ReLU())
        self.blocks = nn.Sequential(block(8, 8, 1), block(8, 12, 2))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def vgg():
    return nn.Sequential(
        conv_bn(3, 6), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.2), conv_bn(6, 8), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(32, 9), nn.Tanh(),
        nn.Linear(9, CLASSES),
    )  # fmt: skip


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.head = nn.Linear(15, CLASSES)

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, F.elu(layer(x))], 1)
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 6, 4, 2, 1)
        self.middle = nn.Conv2d(6, 6, 3, padding="same", dilation=2, padding_mode="reflect")
        self.up = nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1, groups=2)
        self.out = nn.Conv2d(7, CLASSES, (3, 2), padding="same", padding_mode="circular")

    def forward(self, x):
        y = F.silu(self.middle(F.silu(self.down(x))))
        return self.out(torch.cat([x, F.silu(self.up(y))], 1)).mean((2, 3))


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.squeeze, self.excite = nn.Linear(8, 4), nn.Linear(4, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        y = F.hardswish(self.conv(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3))))))
        return self.head((y * gate[:, :, None, None]).mean((2, 3)))


class ConvNeXt(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 2, 2)
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.wide(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


class Mixer(nn.Module):
    def __init__(self, patches=16, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 2, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.tokens = nn.Sequential(nn.Linear(patches, 6), nn.GELU(), nn.Linear(6, patches))
        self.channels = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        x = self.stem(x).flatten(2).mT
        x = x + self.tokens(self.norms[0](x).mT).mT
        x = x + self.channels(self.norms[1](x))
        return self.head(x.mean(1))


class ViT(nn.Module):
    """By ``nn.MultiheadAttention`` or by ``nn.TransformerEncoderLayer``."""

    def __init__(self, layer, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 5, width) * 0.1)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        if layer:
            self.encoder = nn.TransformerEncoderLayer(
                width, 2, 16, dropout=0.1, activation="gelu", batch_first=True
            )
        else:
            self.attention = nn.MultiheadAttention(width, 2, dropout=0.1, batch_first=True)
            self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        x = self.stem(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        if hasattr(self, "encoder"):
            return self.head(self.encoder(x)[:, 0])
        y = self.norm(x)
        return self.head((x + self.attention(y, y, y)[0])[:, 0])


class CausalAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class GPT(nn.Module):
    """A decoder with a tied head."""

    def __init__(self, vocabulary=11, width=8, layers=2):
        super().__init__()
        self.embed, self.position = nn.Embedding(vocabulary, width), nn.Embedding(6, width)
        self.attention = nn.ModuleList(CausalAttention(width, 2) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))
            for _ in range(layers)
        )
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens) + self.position.weight[: tokens.shape[1]]
        for i, (attend, mlp) in enumerate(zip(self.attention, self.mlps, strict=True)):
            x = x + attend(self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(x)


class RNN(nn.Module):
    def __init__(self, width=7):
        super().__init__()
        self.width = width
        self.input, self.state, self.head = (
            nn.Linear(4, width),
            nn.Linear(width, width),
            nn.Linear(width, CLASSES),
        )

    def forward(self, x):
        h = x.new_zeros(len(x), self.width)
        for step in x.unbind(1):
            h = torch.tanh(self.input(step) + self.state(h))
        return self.head(h)


def conv1d():
    return nn.Sequential(
        nn.Conv1d(4, 6, 3, padding=2, dilation=2, padding_mode="replicate"), nn.GroupNorm(2, 6),
        nn.SiLU(), nn.ConvTranspose1d(6, 5, 4, 2, 1), nn.InstanceNorm1d(5, affine=True), nn.GELU(),
        nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(10, CLASSES),
    )  # fmt: skip


def conv3d():
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Softplus(),
        nn.ConvTranspose3d(4, 3, 2, 2), nn.RMSNorm(4), nn.Conv3d(3, 3, 2, 2, groups=3),
        nn.Flatten(), nn.Linear(24, CLASSES),
    )  # fmt: skip


def parametrised():
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 6, 3, padding=1)), nn.ELU(),
        parametrizations.spectral_norm(nn.Conv2d(6, 6, 3, 2, 1)), nn.ELU(), nn.Flatten(),
        parametrizations.orthogonal(nn.Linear(96, 8)), nn.ELU(), nn.Linear(8, CLASSES),
    )  # fmt: skip


def hooked():
    """Weights computed by hooks before each pass."""
    import torch.nn.utils.prune as prune

    net = nn.Sequential(
        nn.Linear(4, 8),
        nn.Tanh(),
        nn.Linear(8, 8),
        nn.Tanh(),
        nn.Linear(8, 8),
        nn.Tanh(),
        nn.Linear(8, CLASSES),
    )
    torch.nn.utils.weight_norm(net[2])
    torch.nn.utils.spectral_norm(net[4])
    prune.random_unstructured(net[6], "weight", 0.5)
    return net


class LoRA(nn.Module):
    """A low-rank update of a frozen layer."""

    def __init__(self, inputs, outputs, rank=2):
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = (
            nn.Linear(inputs, rank, bias=False),
            nn.Linear(rank, outputs, bias=False),
        )

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def lora():
    return nn.Sequential(LoRA(4, 8), nn.Tanh(), LoRA(8, 8), nn.Tanh(), LoRA(8, CLASSES))


def images():
    return torch.randn(6, 3, 8, 8, dtype=torch.float64)


def classes(output):
    return F.cross_entropy(output, torch.arange(len(output)) % CLASSES)


def tokens():
    return torch.arange(18).view(3, 6) * 7 % 11


def next_tokens(output):
    logits = output if isinstance(output, torch.Tensor) else output.logits
    return F.cross_entropy(logits.flatten(0, 1), torch.arange(18) % 11)


def hidden(output):
    return output.last_hidden_state.square().mean() + output.last_hidden_state.sin().mean()


def gpt2():
    transformers = __import__("pytest").importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=11,
        n_positions=8,
        n_embd=8,
        n_layer=2,
        n_head=2,
        attn_implementation="eager",
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def bert():
    transformers = __import__("pytest").importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
    )
    return transformers.BertModel(config, add_pooling_layer=False)


def hf_vit():
    transformers = __import__("pytest").importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
    )
    return transformers.ViTModel(config, add_pooling_layer=False)


MODELS = {
    "resnet_basic": (lambda: ResNet(BasicBlock), images, classes),
    "resnet_bottleneck": (lambda: ResNet(Bottleneck), images, classes),
    "vgg": (vgg, images, classes),
    "densenet": (DenseNet, images, classes),
    "unet": (UNet, images, classes),
    "squeeze_excite": (SqueezeExcite, images, classes),
    "convnext": (ConvNeXt, images, classes),
    "mixer": (Mixer, images, classes),
    "vit_attention": (lambda: ViT(False), images, classes),
    "vit_encoder": (lambda: ViT(True), images, classes),
    "gpt_tied": (GPT, tokens, next_tokens),
    "rnn": (RNN, lambda: torch.randn(6, 5, 4, dtype=torch.float64), classes),
    "conv1d": (conv1d, lambda: torch.randn(6, 4, 9, dtype=torch.float64), classes),
    "conv3d": (conv3d, lambda: torch.randn(6, 2, 2, 2, 2, dtype=torch.float64), classes),
    "parametrised": (parametrised, images, classes),
    "hooked": (hooked, lambda: torch.randn(6, 4, dtype=torch.float64), classes),
    "lora": (lora, lambda: torch.randn(6, 4, dtype=torch.float64), classes),
    "gpt2": (gpt2, tokens, next_tokens),
    "bert": (bert, tokens, hidden),
    "hf_vit": (hf_vit, images, hidden),
}


def make(name, dtype=torch.float64):
    """(model in training mode, input, loss of the output)."""
    torch.manual_seed(0)
    build, inputs, loss = MODELS[name]
    model = build().to(dtype).train()
    if isinstance(model, ViT | GPT):
        for parameter in model.parameters():  # zero biases would hide mistakes
            torch.nn.init.normal_(parameter.data, std=0.3)
    x = inputs()
    return model, x.to(dtype) if x.is_floating_point() else x, loss


def wrong(name, dtype=torch.float64, **settings):
    """A model whose ω have nothing to do with θ, without dropout: every pass is the same."""
    model, x, loss = make(name, dtype)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    feedback = tp.attach(model, rule=settings.pop("rule", "feedback_alignment"), seed=3, **settings)
    return model, x, loss, feedback


def collected(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(found, wanted):
    """The largest relative distance of a parameter's gradient, those 0 but for rounding aside."""
    assert found.keys() == wanted.keys()
    floor = 1e-3 * max(value.norm() for value in wanted.values())
    return max(
        float((found[key].to(value) - value).norm() / value.norm().clamp_min(floor))
        for key, value in wanted.items()
    )
