"""PyTorch references of the face networks, with the parameter names of published files.

Written from the papers' equations and the layers that the published files list; straightforward where ours is fast.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pidiff_jax.models.arcface import ArcFaceSpec
from pidiff_jax.models.e4e import E4eSpec
from pidiff_jax.models.ir_se import IRSESpec
from pidiff_jax.models.stylegan2 import StyleGan2Spec


class SqueezeExcite(nn.Module):
    def __init__(self, width, reduction):
        super().__init__()
        self.fc1 = nn.Conv2d(width, width // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(width // reduction, width, 1, bias=False)

    def forward(self, x):
        gate = self.fc2(torch.relu(self.fc1(F.adaptive_avg_pool2d(x, 1))))
        return x * torch.sigmoid(gate)


class Bottleneck(nn.Module):
    def __init__(self, before, width, stride, reduction):
        super().__init__()
        if before == width:
            self.shortcut_layer = nn.MaxPool2d(1, stride)
        else:
            convolution = nn.Conv2d(before, width, 1, stride, bias=False)
            self.shortcut_layer = nn.Sequential(convolution, nn.BatchNorm2d(width))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.Conv2d(before, width, 3, 1, 1, bias=False),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            SqueezeExcite(width, reduction),
        )

    def forward(self, x):
        return self.shortcut_layer(x) + self.res_layer(x)


class Backbone(nn.Module):
    """The stem and the body, as attributes of whatever network is built on them."""

    def __init__(self, spec: IRSESpec):
        super().__init__()
        first = spec.widths[0]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first)
        )
        units, self.ends, before = [], [], first
        for count, width in zip(spec.units, spec.widths, strict=True):
            for index in range(count):
                units.append(Bottleneck(before, width, 2 if index == 0 else 1, spec.se_reduction))
                before = width
            self.ends.append(len(units) - 1)
        self.body = nn.Sequential(*units)

    def features(self, pixels):
        x, found = self.input_layer(pixels), []
        for index, unit in enumerate(self.body):
            x = unit(x)
            if index in self.ends:
                found.append(x)
        return found

    forward = features


class ArcFace(Backbone):
    def __init__(self, spec: ArcFaceSpec):
        super().__init__(spec.backbone)
        width, side = spec.backbone.widths[-1], spec.input_size // 2 ** len(spec.backbone.units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Dropout(0.6),
            nn.Flatten(),
            nn.Linear(width * side * side, spec.embedding_dim),
            nn.BatchNorm1d(spec.embedding_dim),
        )

    def forward(self, pixels):
        x = self.output_layer(self.features(pixels)[-1])
        return x / x.norm(dim=1, keepdim=True)


class EqualLinear(nn.Module):
    """Weights are stored with standard deviation 1/multiplier and scaled when used; `activate` adds StyleGAN2's own."""

    def __init__(self, before, after, multiplier=1.0, activate=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before) / multiplier)
        self.bias = nn.Parameter(torch.randn(after) / multiplier)
        self.multiplier, self.activate = multiplier, activate

    def forward(self, x):
        weight = self.weight * (self.multiplier / math.sqrt(self.weight.shape[1]))
        y = F.linear(x, weight, self.bias * self.multiplier)
        return F.leaky_relu(y, 0.2) * math.sqrt(2.0) if self.activate else y


class StyleHead(nn.Module):
    def __init__(self, width, dim, side):
        super().__init__()
        layers = []
        for _ in range(math.ceil(math.log2(side))):
            layers += [nn.Conv2d(width, width, 3, 2, 1), nn.LeakyReLU()]
        self.convs = nn.Sequential(*layers)
        self.linear = EqualLinear(width, dim)

    def forward(self, x):
        return self.linear(self.convs(x).flatten(1))


class E4e(Backbone):
    """`encoder` of encoder4editing: a feature pyramid and one head per layer. Only for style_width == the last width."""

    def __init__(self, spec: E4eSpec):
        super().__init__(spec.backbone)
        *_, fine, middle, coarse = spec.backbone.widths
        assert coarse == spec.style_width
        self.latlayer1 = nn.Conv2d(middle, spec.style_width, 1)
        self.latlayer2 = nn.Conv2d(fine, spec.style_width, 1)
        side = spec.input_size // 2 ** len(spec.backbone.widths)
        self.levels = [
            0 if i < spec.coarse_index else 1 if i < spec.middle_index else 2 for i in range(spec.num_layers)
        ]
        heads = [StyleHead(spec.style_width, spec.wplus_dim, side * 2**level) for level in self.levels]
        self.styles = nn.ModuleList(heads)

    def forward(self, pixels):
        *_, fine, middle, coarse = self.features(pixels)
        pyramid = [coarse]
        for feature, lateral in ((middle, self.latlayer1), (fine, self.latlayer2)):
            size = feature.shape[-2:]
            up = F.interpolate(pyramid[-1], size=size, mode="bilinear", align_corners=True)
            pyramid.append(up + lateral(feature))
        codes = self.styles[0](coarse)[:, None].repeat(1, len(self.styles), 1)
        for index in range(1, len(self.styles)):
            codes[:, index] += self.styles[index](pyramid[self.levels[index]])
        return codes


def low_pass(gain):
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps)
    return kernel * (gain / kernel.sum())


def filtered(x, kernel, before, after):
    """Convolves every channel with the same two-dimensional kernel."""
    kernel = kernel.flip(0, 1)[None, None].repeat(x.shape[1], 1, 1, 1)
    return F.conv2d(F.pad(x, (before, after) * 2), kernel, groups=x.shape[1])


class Filter(nn.Module):
    """A low-pass filter as a buffer; `spread` puts zeros between the pixels first."""

    def __init__(self, before, after, spread):
        super().__init__()
        self.register_buffer("kernel", low_pass(4.0))
        self.before, self.after, self.spread = before, after, spread

    def forward(self, x):
        if self.spread:
            wide = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
            wide[:, :, ::2, ::2] = x
            x = wide
        return filtered(x, self.kernel, self.before, self.after)


class ModulatedConv(nn.Module):
    """Every sample is convolved with its own kernel (equations 1 and 3 of arXiv 1912.04958)."""

    def __init__(self, before, after, size, style_dim, demodulate=True, upsample=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, after, before, size, size))
        self.modulation = EqualLinear(style_dim, before)
        self.demodulate, self.upsample = demodulate, upsample
        if upsample:
            self.blur = Filter(1, 1, spread=False)

    def forward(self, x, style):
        _, after, before, size, _ = self.weight.shape
        results = []
        for sample, scale in zip(x, self.modulation(style), strict=True):
            weight = self.weight[0] / math.sqrt(before * size * size) * scale[None, :, None, None]
            if self.demodulate:
                weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
            if self.upsample:
                results.append(F.conv_transpose2d(sample[None], weight.transpose(0, 1), stride=2))
            else:
                results.append(F.conv2d(sample[None], weight, padding=size // 2))
        y = torch.cat(results)
        return self.blur(y) if self.upsample else y


class _Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1))


class _Bias(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(width))


class StyledConv(nn.Module):
    def __init__(self, before, after, style_dim, upsample=False):
        super().__init__()
        self.conv = ModulatedConv(before, after, 3, style_dim, upsample=upsample)
        self.noise, self.activate = _Scalar(), _Bias(after)

    def forward(self, x, style, noise):
        y = self.conv(x, style) + self.noise.weight * noise
        return F.leaky_relu(y + self.activate.bias[:, None, None], 0.2) * math.sqrt(2.0)


class ToRGB(nn.Module):
    def __init__(self, before, style_dim, upsample=True):
        super().__init__()
        if upsample:
            self.upsample = Filter(2, 1, spread=True)
        self.conv = ModulatedConv(before, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.randn(1, 3, 1, 1))

    def forward(self, x, style, skip=None):
        y = self.conv(x, style) + self.bias
        return y if skip is None else y + self.upsample(skip)


class PixelNorm(nn.Module):
    def forward(self, z):
        return z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()


class _Constant(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, width, 4, 4))


class _Noises(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        for index, size in enumerate(sizes):
            self.register_buffer(f"noise_{index}", torch.randn(1, 1, size, size))


class StyleGan2(nn.Module):
    """`Generator` of the rosinality port; `forward` takes W+ codes and uses the noise buffers times `noise_gain`."""

    def __init__(self, spec: StyleGan2Spec):
        super().__init__()
        d, widths = spec.style_dim, spec.channels
        hidden = [EqualLinear(d, d, 0.01, activate=True) for _ in range(spec.num_mapping_layers)]
        self.style = nn.Sequential(PixelNorm(), *hidden)
        self.input = _Constant(widths[0])
        self.conv1 = StyledConv(widths[0], widths[0], d)
        self.to_rgb1 = ToRGB(widths[0], d, upsample=False)
        self.convs, self.to_rgbs, sizes = nn.ModuleList(), nn.ModuleList(), [4]
        for level in range(1, len(widths)):
            self.convs.append(StyledConv(widths[level - 1], widths[level], d, upsample=True))
            self.convs.append(StyledConv(widths[level], widths[level], d))
            self.to_rgbs.append(ToRGB(widths[level], d))
            sizes += [4 * 2**level] * 2
        self.noises = _Noises(sizes)

    def forward(self, wplus, noise_gain=1.0):
        noises = [noise_gain * noise for noise in self.noises.buffers()]
        x = self.conv1(self.input.input.repeat(len(wplus), 1, 1, 1), wplus[:, 0], noises[0])
        picture = self.to_rgb1(x, wplus[:, 1])
        row = 1
        for level, to_rgb in enumerate(self.to_rgbs):
            for index in (2 * level, 2 * level + 1):
                x = self.convs[index](x, wplus[:, row], noises[row])
                row += 1
            picture = to_rgb(x, wplus[:, row], picture)  # the next level reads this row again
        return picture


def randomised(build, seed=0):
    """A network in inference form whose norms and slopes aren't at their trivial initial values."""
    torch.manual_seed(seed)
    model = build()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.weight.normal_(1.0, 0.3)
                module.bias.normal_(0.0, 0.3)
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.3, 2.0)
            elif isinstance(module, nn.PReLU):
                module.weight.uniform_(-0.3, 0.6)
    return model.eval()


def described(build):
    """Name -> shape of the state dict, without allocating it."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}


def foreign_shapes(table):
    """Name -> shape of the PyTorch tensors of a conversion table."""
    return {entry.foreign: entry.layout.to_foreign(np.broadcast_to(0, entry.shape)).shape for entry in table}


def state(model, prefix=""):
    return {prefix + name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def channels_first(x):
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))


def channels_last(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def assert_agrees(actual, expected, tolerance=1e-4):
    """Largest difference, absolute; expected values that are small or constant would prove nothing."""
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    assert actual.shape == expected.shape
    assert np.isfinite(expected).all() and np.abs(expected).max() > 0.5
    assert expected.std() > 1e-3 * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance)
