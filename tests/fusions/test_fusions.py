"""Fusions on one clock, against closed forms."""

import pytest
import torch

from usam import Audio, Frames, build_fusion
from usam.types import prefix_mask


def clips(*samples, rate=16000):
    lengths = torch.tensor(samples)
    size = int(lengths.max())
    return Audio(torch.zeros(len(samples), size), prefix_mask(lengths, size), rate)


def stream(values, rate, lengths=None):
    x = torch.tensor(values, dtype=torch.float32)
    lengths = torch.tensor(lengths if lengths is not None else [x.shape[1]] * len(x))
    return Frames(x.unsqueeze(-1), prefix_mask(lengths, x.shape[1]), rate)


def test_going_down_in_rate_averages():
    fusion = build_fusion("concat", dims={"a": 1, "b": 1}, rate=25)
    slow = stream([[5.0, 6.0]], 25)
    fused = fusion({"a": stream([[1.0, 3.0, 10.0, 20.0]], 50), "b": slow}, clips(1280))
    assert fused.x[0].tolist() == [[2.0, 5.0], [15.0, 6.0]]


def test_a_rate_that_does_not_divide_takes_each_frame_by_its_share():
    fusion = build_fusion("concat", dims={"a": 1}, rate=50)
    fused = fusion({"a": stream([[0.0, 3.0, 6.0]], 75)}, clips(640))  # 1.5 source frames a target frame
    assert fused.x[0, :, 0].tolist() == pytest.approx([(0 + 0.5 * 3) / 1.5, (0.5 * 3 + 6) / 1.5])


def test_going_up_in_rate_interpolates_between_centres():
    fusion = build_fusion("concat", dims={"a": 1}, rate=50)
    fused = fusion({"a": stream([[0.0, 4.0]], 25)}, clips(1280))
    assert fused.x[0, :, 0].tolist() == pytest.approx([0.0, 1.0, 3.0, 4.0])


def test_the_default_clock_is_the_slowest_encoder_in_name_order():
    fusion = build_fusion("concat", dims={"z": 1, "a": 2})
    fused = fusion(
        {"z": stream([[1.0] * 4], 50), "a": Frames(torch.full((1, 2, 2), 7.0), prefix_mask(torch.tensor([2]), 2), 25)},
        clips(1280),
    )
    assert fused.rate == 25
    assert fused.x[0].tolist() == [[7.0, 7.0, 1.0]] * 2


def test_it_never_reads_past_the_last_real_frame():
    fusion = build_fusion("concat", dims={"a": 1}, rate=25)
    padded = stream([[1.0, 3.0, 5.0, 999.0]], 50, lengths=[3])
    fused = fusion({"a": padded}, clips(1280))
    assert fused.x[0, :, 0].tolist() == [2.0, 5.0]  # not the mean of 5 and 999


def test_a_stream_that_ends_early_is_held_and_an_empty_one_is_zero():
    fusion = build_fusion("concat", dims={"a": 1, "b": 1}, rate=25)
    short = stream([[1.0, 3.0], [0.0, 0.0]], 50, lengths=[2, 0])
    fused = fusion({"a": short, "b": stream([[1.0] * 3] * 2, 25)}, clips(1920, 1920))
    assert fused.x[0, :, 0].tolist() == [2.0, 3.0, 3.0]
    assert fused.x[1, :, 0].tolist() == [0.0, 0.0, 0.0]


def test_the_sum_is_a_mean_at_the_start():
    fusion = build_fusion("sum", dims={"a": 1, "b": 1})
    for name in "ab":
        torch.nn.init.ones_(fusion.maps[name].weight)
        torch.nn.init.zeros_(fusion.maps[name].bias)
    fused = fusion({"a": stream([[2.0]], 50), "b": stream([[4.0]], 50)}, clips(320))
    assert fused.x.item() == pytest.approx(3.0)
    assert fused.aux["weights"].tolist() == [[0.5, 0.5]]


def test_a_clip_without_a_frame_still_gets_one():
    fusion = build_fusion("concat", dims={"a": 1})
    empty = Frames(torch.zeros(1, 0, 1), torch.zeros(1, 0, dtype=torch.bool), 50)
    fused = fusion({"a": empty}, clips(10))
    assert fused.x.shape == (1, 1, 1)
    assert fused.mask.tolist() == [[True]]
