import pytest
from foresight.trials.cost import (
    BRANCHES,
    Evaluations,
    PrimitiveTimes,
    branch_cost,
    branch_counts,
    branch_overhead,
    overall_overhead,
    worst_case_nfe,
)

# Table S3: seconds of each primitive, mean stop steps. Table S4: samples, run times and overheads of each branch.
COGVIDEOX = PrimitiveTimes(4.343, 0.0392, 0.405, 0.0218, 8.541)
WAN = PrimitiveTimes(1.460, 0.0392, 0.103, 0.0218, 8.541)
TABLE_S4 = [
    pytest.param(
        COGVIDEOX,
        11.05,
        dict(zip(BRANCHES, (562, 91, 125, 168), strict=True)),
        ("217.58", "271.47", "284.36", "338.68"),
        ("0.20", "25.02", "30.95", "55.97"),
        "16.55",
        id="CogVideoX-5B",
    ),
    pytest.param(
        WAN,
        10.33,
        dict(zip(BRANCHES, (509, 106, 151, 180), strict=True)),
        ("73.40", "90.02", "100.02", "117.04"),
        ("0.55", "23.32", "37.02", "60.34"),
        "20.30",
        id="Wan2.1-1.3B",
    ),
]


@pytest.mark.parametrize("times, video_stop, samples, seconds, overheads, overall", TABLE_S4)
def test_reproduces_table_s4_to_the_printed_digit(times, video_stop, samples, seconds, overheads, overall):
    run = (times, 50, video_stop, 24.0)
    assert tuple(f"{branch_cost(branch, *run):.2f}" for branch in BRANCHES) == seconds
    assert tuple(f"{100 * branch_overhead(branch, *run):.2f}" for branch in BRANCHES) == overheads
    assert f"{100 * overall_overhead(samples, *run):.2f}" == overall


def test_unknown_branch_and_empty_average_are_named():
    with pytest.raises(ValueError, match="'3'.*2->1"):
        branch_counts("3", 50, 11, 24)
    with pytest.raises(ValueError, match="no runs"):
        overall_overhead({"0": 0}, WAN, 50, 11, 24)


def test_worst_case_is_the_whole_hierarchy_at_its_budgets():
    # 14 + 14 abandoned video steps, 49 injected ones, two probes of 30 single frames.
    assert worst_case_nfe(50, 14, 30, 2) == Evaluations(video=77, single_frame=60)


@pytest.mark.parametrize("steps", [1, 2, 8, 20, 50])
@pytest.mark.parametrize("injection_start", [1, 2, 5, 9])
def test_no_branch_exceeds_the_worst_case(steps, injection_start):
    video_budget, single_frame_budget = max(1, round(0.28 * steps)), max(1, round(0.6 * steps))
    bound = worst_case_nfe(steps, video_budget, single_frame_budget, injection_start)
    injected = max(0, steps - injection_start + 1)
    for stop in range(1, video_budget + 1):
        for probe in range(1, single_frame_budget + 1):
            paths = [
                (steps, 0),
                (stop + injected, probe),
                (stop + steps, probe),
                (2 * stop + injected, 2 * probe),
            ]
            assert all(video <= bound.video and single <= bound.single_frame for video, single in paths)
