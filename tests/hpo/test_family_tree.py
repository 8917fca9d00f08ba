"""The drawn tree shows what was recorded: its text word for word, its lines coordinate by coordinate."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgba
from matplotlib.image import imread

from agiledpo.hpo import Lineage
from agiledpo.hpo.family_picture import draw_lineage
from agiledpo.hpo.family_tree import evolved_parameters, family_tree_text, plot_lineage, value_text
from agiledpo.hpo.lanes import assign_lanes
from agiledpo.hpo.records import Born, Evaluated, Mutated, Selected


@pytest.fixture
def lineage(family) -> Lineage:
    lineage = Lineage()
    for event in family:
        lineage.record(event)
    return lineage


@pytest.fixture
def figure(lineage):
    return draw_lineage(lineage, evolved_parameters(lineage))


def founders(*hyperparameters: dict[str, object]) -> Lineage:
    lineage = Lineage()
    for agent, values in enumerate(hyperparameters):
        lineage.record(Born(agent=agent, parent=None, generation=0, pairs=0, hyperparameters=values))
    return lineage


def lines(axes) -> dict[str, list[tuple[float, float]]]:
    """Points of the lines that have a group id."""
    return {line.get_gid(): list(map(tuple, line.get_xydata().tolist())) for line in axes.lines if line.get_gid()}


def error_bars(axes) -> dict[str, list[tuple[float, float, float]]]:
    """Pairs, lower and upper end of error bars by group id."""
    found = {}
    for container in axes.containers:
        (bars,) = container[2]
        segments = np.array(bars.get_segments())
        found[container[0].get_gid()] = [
            (x, low, high) for x, low, high in zip(segments[:, 0, 0], segments[:, 0, 1], segments[:, 1, 1], strict=True)
        ]
    return found


# Text ---------------------------------------------------------------------------------------------------------------


def test_the_text_of_a_small_family(lineage):
    assert family_tree_text(lineage) == (
        "agent      pairs  fitness        lr             loss_type\n"
        "0          0-     0.660 ± 0.020  1e-05 → 8e-06  sigmoid\n"
        "└─ 3       100-   0.710 ± 0.020  1e-05 → 2e-05  sigmoid\n"
        "   └─ 4 *  200-   0.740 ± 0.020  2e-05          sigmoid → hinge+sft\n"
        "1          0-200  nan ± 0.020    1e-06          sigmoid              replaced\n"
        "2          0-40   -              0.001          sigmoid              diverged"
    )


def test_the_text_of_siblings_keeps_their_branches_apart():
    lineage = founders({"lr": 1.0})
    for agent, parent in ((1, 0), (2, 0), (3, 1), (4, 1), (5, 2)):
        lineage.record(Born(agent=agent, parent=parent, generation=1, pairs=8, hyperparameters={"lr": 1.0}))
    assert [line.split("  8-")[0].split("  0-")[0].rstrip() for line in family_tree_text(lineage).splitlines()[1:]] == [
        "0",
        "├─ 1",
        "│  ├─ 3",
        "│  └─ 4",
        "└─ 2",
        "   └─ 5",
    ]


def test_the_text_of_a_long_descent_needs_no_recursion():
    lineage = founders({"lr": 1.0})
    for agent in range(1, 1200):
        lineage.record(Born(agent=agent, parent=agent - 1, generation=1, pairs=8, hyperparameters={}))
    assert len(family_tree_text(lineage).splitlines()) == 1201


def test_the_text_before_and_without_evaluations():
    assert family_tree_text(Lineage()) == "No agent has been born yet."
    lineage = founders({"lr": 1.0})
    assert family_tree_text(lineage) == "agent  pairs  fitness\n0      0-     -"
    lineage.record(Evaluated(agent=0, generation=0, pairs=8, fitness=0.5, error=float("nan"), tie_break=0.0))
    assert family_tree_text(lineage) == "agent  pairs  fitness\n0 *    0-     0.500"


def test_only_what_evolved_is_shown():
    lineage = founders({"lr": 1.0, "beta": 0.1, "rank": 8}, {"lr": 1.0, "beta": 0.3, "rank": 8})
    assert evolved_parameters(lineage) == ["beta"]
    for parameter in ("decay", "lr"):
        lineage.record(Mutated(agent=1, generation=0, pairs=4, parameter=parameter, old=1.0, new=2.0))
    assert evolved_parameters(lineage) == ["lr", "beta", "decay"]


def test_values_in_few_characters():
    values = [5e-6, 0.12345, 1200, None, True, ("sigmoid",), ("sft", 0.5)]
    assert [value_text(value) for value in values] == ["5e-06", "0.123", "1200", "None", "True", "sigmoid", "sft+0.5"]


# Picture ------------------------------------------------------------------------------------------------------------


def test_lives_run_from_birth_to_end_in_their_lanes(figure, lineage):
    tree = figure.axes[0]
    # Agent 3 takes the lane of 2, which diverged; 4 that of 1.
    expected = {0: (0, [0, 100, 200, 300, 300]), 1: (1, [0, 100, 200, 200]), 2: (2, [0, 40])}
    expected |= {3: (2, [100, 200, 300, 300]), 4: (1, [200, 300, 300])}
    lives = {collection.get_gid(): collection for collection in tree.collections}
    assert set(lives) == {f"life-{agent}" for agent in expected}
    for agent, (lane, stops) in expected.items():
        segments = [segment.tolist() for segment in lives[f"life-{agent}"].get_segments()]
        assert segments == [[[a, lane], [b, lane]] for a, b in pairwise(stops)]


def test_lives_are_coloured_by_fitness(figure):
    colours = {collection.get_gid(): collection.get_colors() for collection in figure.axes[0].collections}
    unknown = to_rgba("#c8c8c8")
    # Fitness 0.55 is the smallest and 0.74 the largest; dark is fit.
    brightness = {gid: [float(np.mean(colour[:3])) for colour in each] for gid, each in colours.items()}
    assert brightness["life-0"] == sorted(brightness["life-0"], reverse=True)
    assert len({*map(tuple, colours["life-0"])}) == 3
    assert (
        max(b for each in brightness.values() for b in each[:1] if each is not brightness["life-2"])
        == (brightness["life-1"][0])
    )
    assert min(b for each in brightness.values() for b in each) == brightness["life-4"][0]
    assert tuple(colours["life-1"][1]) == unknown  # its second fitness is NaN
    assert tuple(colours["life-2"][0]) == unknown  # it was never evaluated


def test_branches_lead_from_the_parents_lane_to_the_childs_birth(figure):
    branches = {patch.get_gid(): patch.get_path().vertices for patch in figure.axes[0].patches if patch.get_gid()}
    assert set(branches) == {"branch-3", "branch-4", "tree-elite"}
    assert branches["branch-3"][[0, -1]].tolist() == [[91, 0], [100, 2]]
    assert branches["branch-4"][[0, -1]].tolist() == [[191, 2], [200, 1]]
    elite = branches["tree-elite"].tolist()
    assert elite[0] == [0, 0]
    assert elite[-1] == [300, 1]
    for corner in ([91, 0], [100, 2], [191, 2], [200, 1]):
        assert corner in elite


def test_a_cross_where_an_agent_diverged(figure):
    crosses = {gid: points for gid, points in lines(figure.axes[0]).items() if gid.startswith("diverged")}
    assert crosses == {"diverged-2": [(40, 2)]}


def test_fitness_with_error_bars(figure):
    axes = figure.axes[1]
    expected = {
        "fitness-0": [(100, 0.6), (200, 0.65), (300, 0.66)],
        "fitness-1": [(100, 0.55)],  # the NaN is left out
        "fitness-3": [(200, 0.7), (300, 0.71)],
        "fitness-4": [(300, 0.74)],
        "fitness-elite": [(100, 0.6), (200, 0.7), (300, 0.74)],
    }
    drawn = {container[0].get_gid(): container[0].get_xydata().tolist() for container in axes.containers}
    assert drawn["final-4"] == [[300, 0.725]]
    assert error_bars(axes)["final-4"] == [(300, pytest.approx(0.695), pytest.approx(0.755))]
    for gid, points in expected.items():
        assert drawn[gid] == [list(point) for point in points]
        assert error_bars(axes)[gid] == [(x, pytest.approx(y - 0.02), pytest.approx(y + 0.02)) for x, y in points]


def test_hyperparameters_over_time(figure):
    lr = figure.axes[2]
    assert lr.get_ylabel() == "lr"
    assert lr.get_yscale() == "log"
    assert {line.get_drawstyle() for line in lr.lines if line.get_gid()} == {"steps-post"}
    assert lines(lr) == {
        "lr-0": [(0, 1e-5), (100, 8e-6), (300, 8e-6)],
        "lr-1": [(0, 1e-6), (200, 1e-6)],
        "lr-2": [(0, 1e-3), (40, 1e-3)],
        "lr-3": [(100, 1e-5), (100, 2e-5), (300, 2e-5)],
        "lr-4": [(200, 2e-5), (300, 2e-5)],
        # Not 8e-6: agent 0 mutated after 3 was copied from it.
        "lr-elite": [(0, 1e-5), (100, 1e-5), (100, 1e-5), (100, 2e-5), (200, 2e-5), (200, 2e-5), (300, 2e-5)],
    }


def test_choices_have_an_axis_of_names(figure):
    axes = figure.axes[3]
    assert axes.get_ylabel() == "loss_type"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["sigmoid", "hinge+sft"]
    drawn = lines(axes)
    assert drawn["loss_type-elite"] == [(0, 0), (100, 0), (100, 0), (200, 0), (200, 0), (200, 1), (300, 1)]
    # Others lie beside their choice, each in its own place, and the elite's own line is not drawn twice.
    assert {round(y) for _, y in drawn["loss_type-1"]} == {0}
    assert drawn["loss_type-0"][0][0] == 100
    assert [x for x, _ in drawn["loss_type-4"]] == [300, 300]


def test_scales_follow_the_values():
    def axis(*values: object):
        return draw_lineage(founders(*({"it": value} for value in values)), ["it"]).axes[2]

    assert axis(1e-6, 1e-3).get_yscale() == "log"
    assert axis(1.0, 1.5).get_yscale() == "linear"
    assert axis(0.0, 100.0).get_yscale() == "linear"
    assert axis(-1.0, 100.0).get_yscale() == "linear"
    for values, names in (((True, False), ["True", "False"]), ((None, 1.0), ["None", "1"])):
        assert [tick.get_text() for tick in axis(*values).get_yticklabels()] == names
    assert all(float(tick).is_integer() for tick in axis(4, 5).get_yticks())


@given(st.data())
def test_no_two_agents_share_a_lane_at_one_time(data):
    """In any population of which a part is replaced at each selection there are as many lanes as places."""
    size = data.draw(st.integers(1, 6))
    lineage = founders(*[{}] * size)
    living = list(range(size))
    for generation in range(1, data.draw(st.integers(0, 6)) + 1):
        replaced = data.draw(st.lists(st.sampled_from(living), unique=True, max_size=size))
        parents = [data.draw(st.sampled_from(living)) for _ in replaced]
        survivors = [agent for agent in living if agent not in replaced]
        pairs = 10 * generation
        lineage.record(
            Selected(generation=generation, pairs=pairs, elite=living[0], survivors=survivors, replaced=replaced)
        )
        for parent in parents:
            child = len(lineage.of(Born))
            lineage.record(Born(agent=child, parent=parent, generation=generation, pairs=pairs, hyperparameters={}))
            survivors.append(child)
        living = survivors
    agents = lineage.agents
    lanes = assign_lanes(list(agents.values()), 1000)
    assert set(lanes.values()) == set(range(size))
    for lane in range(size):
        lives = [agents[agent] for agent in agents if lanes[agent] == lane]
        for earlier, later in pairwise(lives):
            assert earlier.died is not None
            assert earlier.died <= later.birth.pairs


def test_an_svg_and_a_png_are_written_the_same_each_time(lineage, tmp_path):
    for name in ("a/tree.svg", "b/tree.svg", "a/tree.png", "b/tree.png"):
        lineage.plot(tmp_path / name)
    svg = (tmp_path / "a/tree.svg").read_text()
    assert svg == (tmp_path / "b/tree.svg").read_text()
    assert (tmp_path / "a/tree.png").read_bytes() == (tmp_path / "b/tree.png").read_bytes()
    ids = {element.get("id") for element in ElementTree.fromstring(svg).iter()}
    assert {"life-0", "life-4", "diverged-2", "branch-3", "lr-elite", "loss_type-1"} <= ids
    picture = imread(tmp_path / "a/tree.png")
    assert picture.shape[1] == 1350
    assert (picture[..., :3] < 0.9).any(axis=-1).mean() > 0.01


def test_chosen_parameters_and_their_errors(lineage, tmp_path):
    lineage.plot(tmp_path / "tree.svg", parameters=["beta"])
    ids = {element.get("id") for element in ElementTree.parse(tmp_path / "tree.svg").iter()}
    assert "beta-0" in ids
    assert "lr-0" not in ids
    with pytest.raises(ValueError, match="'momentum', which no agent has; there are lr, beta, batch_size, loss_type"):
        lineage.plot(tmp_path / "other.svg", parameters=["momentum"])
    with pytest.raises(ValueError, match=r"tree\.jpg' must end in \.svg or \.png"):
        plot_lineage(lineage, tmp_path / "tree.jpg")
    with pytest.raises(ValueError, match="nothing to draw"):
        Lineage().plot(tmp_path / "other.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["tree.svg"]


def test_a_lineage_without_evaluations_is_drawn(tmp_path):
    founders({"lr": 1.0}, {"lr": 2.0}).plot(tmp_path / "tree.png")
    assert (tmp_path / "tree.png").stat().st_size > 1000


def test_drawing_leaves_pyplot_alone(tmp_path):
    code = f"""
import sys
from agiledpo.hpo import Lineage
from agiledpo.hpo.records import Born
assert "matplotlib" not in sys.modules
lineage = Lineage()
lineage.record(Born(agent=0, parent=None, generation=0, pairs=0, hyperparameters={{"lr": 1.0}}))
lineage.plot({str(tmp_path / "tree.png")!r})
print("matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == (
        "True False\n"
    )


def test_without_matplotlib_the_error_names_the_extra(tmp_path):
    code = f"""
import sys
sys.modules["matplotlib"] = None
from agiledpo.hpo import Lineage
from agiledpo.hpo.family_tree import family_tree_text
print(family_tree_text(Lineage()))
try:
    Lineage().plot({str(tmp_path / "tree.png")!r})
except ImportError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("No agent has been born yet.\n")
    assert "pip install 'agiledpo[plots]'" in out
