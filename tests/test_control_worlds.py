"""Worlds and recorded robots for policies; the verdict of TAIL's experiment."""

import numpy as np
import pytest

from acclimate import datasets, experiments
from acclimate.datasets import goal_grids as grids
from acclimate.errors import AcclimateError
from worlds import needs_data

# ---- worlds and datasets


@pytest.mark.parametrize("name", grids.TASKS)
def test_the_expert_takes_a_shortest_way(name):
    demos = grids.demonstrations(name, 3, 7)
    world = grids.world(name)
    assert demos.goals == [grids.TASKS[name].goal()]
    for i, each in enumerate(demos.trajectories):
        world.reset(seed=7_000_000 + i)
        assert each.success
        assert len(each) == world.distance[world.agent] + 1
        assert world.distance[world.agent] >= grids.NEAREST
        colour, shape = grids.COLOURS.index(world.task.colour), grids.SHAPES.index(world.task.shape)
        middle = grids.SIDE - 1
        seen = each.image[0][:, middle + world.target[0] - world.agent[0], middle + world.target[1] - world.agent[1]]
        assert seen[grids.SHAPE + shape] == seen[grids.COLOUR + colour] == 1
        assert not each.image[:, grids.WALL, middle, middle].any()  # the agent stands in the middle, and never in a wall
    again = grids.demonstrations(name, 3, 7)
    assert all((one.image == two.image).all() for one, two in zip(demos.trajectories, again.trajectories, strict=True))


def test_a_grid_is_as_its_card_says():
    world = grids.world("gap")
    with pytest.raises(AcclimateError, match="call reset first"):
        world.step(0)
    seen, info = world.reset(seed=1)
    assert info == {"goal": "pick up the red ball", "success": False}
    assert seen["image"].shape == (grids.CHANNELS, grids.VIEW, grids.VIEW)
    assert len(world.objects) == grids.OBJECTS == len(set(world.objects.values()))
    with pytest.raises(AcclimateError, match="action = 6"):
        world.step(6)
    _, reward, ended, truncated, info = world.step(grids.ACTIONS.index("pick"))
    assert (reward, ended, truncated, info["success"]) == (0.0, True, False, False)  # nothing lies here
    for wrong in (False, True):
        world.reset(seed=2)
        while world.agent != world.target:
            world.step(world.expert())
        assert world.step(grids.ACTIONS.index("done") if wrong else world.expert())[4]["success"] is not wrong
    world.reset(seed=3)
    world.agent = (0, 0)
    seen, *_ = world.step(0)
    assert (world.agent, seen["state"].tolist()) == ((0, 0), [0, 0, 1])  # blocked
    for _ in range(grids.LONGEST - 1):
        _, _, ended, truncated, _ = world.step(0)
    assert (ended, truncated) == (False, True)
    first, second = (world.reset(seed=4)[0]["image"], world.reset()[0]["image"])
    assert (first != second).any()
    with pytest.raises(AcclimateError, match="nearest: rooms"):
        grids.world("room")
    assert grids.TASKS["bands"].goal(1) == "take the yellow ball but stay off red floor"


def test_forbidden_floor_ends_an_episode():
    world = grids.world("cross")
    world.reset(seed=0)
    row, column = world.agent
    for action, (down, right) in enumerate(grids.MOVES):
        place = (row + down, column + right)
        if grids._inside(place) and not world.walls[place]:
            world.floor[place] = grids.COLOURS.index("yellow")
            _, reward, ended, _, info = world.step(action)
            assert (reward, ended, info["success"]) == (0.0, True, False)
            return
    raise AssertionError("the agent is walled in")


def test_new_tasks_join_what_was_never_joined():
    old = {(task.verb, task.colour, task.shape, bool(task.avoid)) for task in grids.PRETRAINING.values()}
    assert len(grids.PRETRAINING) == 12
    assert len(grids.NEW) == 6
    assert not old & {(task.verb, task.colour, task.shape, bool(task.avoid)) for task in grids.NEW.values()}
    known = {word for task in grids.PRETRAINING.values() for wording in (0, 1) for word in task.goal(wording).split()}
    assert {word for task in grids.NEW.values() for wording in (0, 1) for word in task.goal(wording).split()} <= known
    assert not {task.layout for task in grids.PRETRAINING.values()} & {task.layout for task in grids.NEW.values()}


def test_recorded_robots_are_read_as_they_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCLIMATE_DATA", str(tmp_path))
    (tmp_path / "other" / "demo_mujoco_expert").mkdir(parents=True)
    parts = {f"{part}_{i}": np.full((4, width), i, np.float32) for i in (0, 1) for part, width in (("observation", 11), ("action", 3))}
    np.savez(tmp_path / "other" / "demo_mujoco_expert" / "Hopper-v4.npz", **parts)
    demos = datasets.load("mujoco_demonstrations/hopper")
    assert [each.state.shape for each in demos.trajectories] == [(4, 11)] * 2
    assert demos.trajectories[1].actions.tolist() == [[1.0] * 3] * 4
    assert demos.words == ["forward", "hop", "hopper", "make", "the"]
    with pytest.raises(AcclimateError, match="nearest: hopper"):
        datasets.load("mujoco_demonstrations/hoper")
    with pytest.raises(AcclimateError, match="cannot find"):
        datasets.load("mujoco_demonstrations/ant")


@needs_data
def test_the_recorded_robots_have_the_widths_of_their_card():
    for name, widths in {"ant": (27, 8), "half_cheetah": (17, 6), "hopper": (11, 3)}.items():
        demos = datasets.load(f"mujoco_demonstrations/{name}")
        assert [len(each) for each in demos.trajectories] == [1000, 1000]
        assert (demos.trajectories[0].state.shape[1], demos.trajectories[0].actions.shape[1]) == widths


# ---- the experiment's verdict


def test_each_clause_can_fail_the_claim():
    module = experiments.load("tail")
    good = {
        "own tasks: pretrained": 0.9, "fwt: untuned": 0.2, "weights: LoRA": 1.4, "fwt: LoRA": 0.8, "fwt: full": 0.8,
        "fwt: full copies": 0.8, "fwt: bottleneck": 0.7, "fwt: prefix": 0.7, "bwt: LoRA": 0.0, "bwt: full": -0.4, "end: LoRA": 0.8,
        "end: full": 0.4, "end: replay": 0.6, "end: EWC": 0.5, "late: LoRA": 0.8, "late: full": 0.8, "robots: LoRA": 1.0,
        "robots: full": 1.0,
    }  # fmt: skip

    def judged(**changed):
        figures = {arm: [value] * 3 for arm, value in {**good, **changed}.items()}
        assert module.why(figures).count("not met") == (len(changed) if module.verdict(figures) == "does_not_hold" else 0)
        return module.verdict(figures)

    assert judged() == "holds"
    for changed in (
        {"weights: LoRA": 2.1}, {"fwt: full copies": 0.84}, {"bwt: full": -0.1}, {"bwt: LoRA": 0.01}, {"end: replay": 0.78},
        {"late: full": 0.84}, {"robots: full": 1.11},
    ):  # fmt: skip
        assert judged(**changed) == "does_not_hold"
    assert judged(**{"own tasks: pretrained": 0.5}) == "not_testable"
    assert judged(**{"fwt: untuned": 0.75}) == "not_testable"
