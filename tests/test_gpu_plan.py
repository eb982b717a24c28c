"""The tiles of the GPU's kernels: they cover a tensor once, and fit what they are made for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wholebatch.kernels.gpu.plan import LIMITS, Limits, make_plan

extents = st.integers(1, 70) | st.sampled_from([196, 512, 784, 1000, 3136, 8192, 50176, 802816])


@given(extents, extents, extents, st.sampled_from([2, 4]), st.sampled_from([1, 2]), st.booleans())
def test_tiles_cover_a_tensor_once(n: int, c: int, length: int, itemsize: int, inputs: int, small: bool) -> None:
    limits = Limits(whole=64, tile=32, programs=5) if small else LIMITS
    plan = make_plan(n, c, length, itemsize, inputs, limits)
    size = plan.rows * plan.channels * plan.run
    for extent in (plan.rows, plan.channels, plan.run):
        assert extent & (extent - 1) == 0
    assert size * inputs <= (limits.whole if plan.whole else limits.tile)
    assert 1 <= plan.warps <= 16
    # Along each extent the last tile begins inside.
    assert (plan.tiles - 1) * plan.channels < c <= plan.tiles * plan.channels
    rows, runs = -(-n // plan.rows), -(-length // plan.run)
    assert plan.steps == rows * runs
    assert (rows - 1) * plan.rows < n <= rows * plan.rows
    assert (runs - 1) * plan.run < length <= runs * plan.run
    if plan.whole:
        assert plan.steps == plan.programs == 1
    # Every program has a tile, and as many as any other or one fewer.
    assert 1 <= plan.programs <= min(plan.steps, limits.programs)
    programs, channels = plan.merging
    assert programs >= plan.programs
    assert programs * channels <= 4096
    a, b, d, e = plan.units
    assert (a * b, d * e) == (c, length)
    assert 16 % b == 16 % e == 0


def test_plans_by_hand() -> None:
    """What the kernels are made for; 3 launches read the input twice, 1 reads it once."""
    small = make_plan(64, 20, 1, 4, 1)
    assert (small.whole, small.rows, small.channels, small.run, small.tiles) == (True, 64, 16, 1, 2)
    tall = make_plan(65536, 64, 1, 4, 1)
    assert (tall.whole, tall.rows, tall.channels, tall.steps, tall.programs) == (False, 64, 64, 1024, 512)
    last = make_plan(256 * 56 * 56, 64, 1, 2, 1)  # channels last
    assert (last.whole, last.rows, last.channels, last.programs, last.warps) == (False, 64, 64, 502, 8)
    planes = make_plan(64, 64, 3136, 2, 1)
    assert (planes.whole, planes.rows, planes.channels, planes.run) == (False, 16, 1, 256)
    late = make_plan(64, 2048, 49, 2, 1)  # 7 x 7 planes: one program for each channel
    assert (late.whole, late.tiles, late.rows, late.run) == (True, 2048, 64, 64)


def test_a_grid_has_room_for_many_channels() -> None:
    plan = make_plan(600, 100_000, 49, 2, 1)
    assert (plan.whole, plan.channels) == (False, 2)
    assert plan.tiles * plan.channels == 100_000


def test_offsets_are_as_wide_as_they_have_to_be() -> None:
    assert not make_plan(1 << 20, 2047, 1, 2, 1).wide
    assert make_plan(1 << 20, 2048, 1, 2, 1).wide
