"""Weight gradients of wide layers on tiny images: a matrix product a kernel tap against torch's."""

import statistics
import time

import pytest
import torch

from targetprop.maps import Conv2dMap

ROUNDS = 15


@pytest.mark.parametrize(
    ("batch", "channels", "size"), [(128, 128, 4), (128, 256, 4), (128, 256, 2), (1024, 256, 2)]
)
def test_tap_by_tap_is_faster_and_the_same(batch, channels, size):
    """3×3 kernels, padding 1, channels-last; interleaved."""
    linear = Conv2dMap((1, 1), (1, 1), (1, 1), 1)
    shape = (channels, channels, 3, 3)
    torch.manual_seed(0)
    e, x = (
        torch.randn(batch, channels, size, size).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    ways = {
        "tap by tap": lambda: linear.correlate_taps(e, x, shape),
        "torch": lambda: torch.nn.grad.conv2d_weight(x, shape, e, *linear.geometry),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        found = []
        for name, way in ways.items():
            began = time.perf_counter()
            found.append(way())
            times[name].append(time.perf_counter() - began)
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
    ours, theirs = (1000 * statistics.median(values[2:]) for values in times.values())
    sizes = f"{channels}×{channels} channels, {size}×{size}, batch {batch}"
    print(f"\n{sizes}: {ours:.1f} ms, torch {theirs:.1f} ms, ×{theirs / ours:.2f}")
    assert ours < theirs
