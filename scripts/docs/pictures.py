"""Draws the pictures of the concept pages: ``python scripts/docs/pictures.py`` writes docs/images/*.svg."""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"

# The site sets these variables for its own light and dark scheme; alone, a picture follows the system's.
_STYLE = """
.picture { --ink: #1f2937; --quiet: #5b6572; --line: #9aa4b1; --plain: #f3f5f7;
  --base: #dbe4ee; --base-line: #6b84a3; --agent: #cdebe6; --agent-line: #17857a; --best: #ffe7b8; --best-line: #b7791f;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; font-size: 15px; }
@media (prefers-color-scheme: dark) {
  .picture { --ink: #e6e9ee; --quiet: #a7b0bc; --line: #76808d; --plain: #2a2f38;
    --base: #2c3b4f; --base-line: #7f9cc0; --agent: #17453f; --agent-line: #4fc3b3;
    --best: #5a4312; --best-line: #e0b04f; }
}
.picture text { fill: var(--ink); stroke: none; }
.picture .quiet { fill: var(--quiet); font-size: 13px; }
.picture .strong { font-weight: 600; }
.picture rect { stroke-width: 1.4; }
.picture .plain { fill: var(--plain); stroke: var(--line); }
.picture .base { fill: var(--base); stroke: var(--base-line); }
.picture .agent { fill: var(--agent); stroke: var(--agent-line); }
.picture .best { fill: var(--best); stroke: var(--best-line); }
.picture .gone { fill: none; stroke: var(--line); stroke-dasharray: 5 4; }
.picture path.arrow { fill: none; stroke: var(--quiet); stroke-width: 1.6; }
.picture .tip { fill: var(--quiet); stroke: none; }
"""


@dataclass
class Picture:
    """An SVG in the making.

    Args:
        name: File name without its ending.
        width: Pixels.
        height: Pixels.
        title: What is to be seen, for who does not see it.
        narrow: It can be read on a telephone, and so need not be wider than its screen.
    """

    name: str
    width: int
    height: int
    title: str
    narrow: bool = False
    parts: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, width: float, height: float, kind: str, *lines: str) -> None:
        """A rectangle with centred lines of text, the first of them strong if there are more."""
        self.parts.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>')
        first = y + height / 2 - 9.5 * (len(lines) - 1) + 5
        for number, line in enumerate(lines):
            look = "quiet" if number else "strong" if len(lines) > 1 else ""
            self.text(x + width / 2, first + 19 * number, line, look)

    def text(self, x: float, y: float, line: str, look: str = "", anchor: str = "middle") -> None:
        """A line of text, by its anchor on the baseline."""
        chosen = f' class="{look}"' if look else ""
        self.parts.append(f'<text{chosen} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(line)}</text>')

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through the points, with a tip at the last."""
        path = " L".join(f"{x:g} {y:g}" for x, y in points)
        (x0, y0), (x1, y1) = points[-2:]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        corners = [
            (x1, y1),
            (x1 - 9 * dx + 4.5 * dy, y1 - 9 * dy - 4.5 * dx),
            (x1 - 9 * dx - 4.5 * dy, y1 - 9 * dy + 4.5 * dx),
        ]
        self.parts.append(f'<path class="arrow" d="M{path}"/>')
        self.parts.append(f'<polygon class="tip" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in corners)}"/>')

    def svg(self) -> str:
        """The file's text."""
        look = "picture narrow" if self.narrow else "picture"
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="{look}" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img">'
        )
        return "\n".join(
            [head, f"<title>{escape(self.title)}</title>", f"<style>{_STYLE}</style>", *self.parts, "</svg>\n"]
        )


def one_base() -> Picture:
    """Copies of a model beside one model with adapters."""
    it = Picture(
        "one_base",
        640,
        330,
        "Four agents as four copies of a model, and as four adapters on one base model",
        narrow=True,
    )
    it.text(152, 24, "A model for each agent", "strong")
    it.text(488, 24, "AgileDPO: one base for all", "strong")
    it.box(344, 40, 288, 130, "base", "base weights", "frozen, loaded once")
    for number in range(4):
        left = 8 + 73 * number
        it.box(left, 40, 69, 130, "base", "base", "weights")
        for x in (left, left + 336):
            it.box(x, 176, 69, 36, "agent", "LoRA")
            it.box(x, 218, 69, 36, "plain", "AdamW")
    it.text(152, 282, "8 agents: 8 bases, 5372 MB", "strong")
    it.text(488, 282, "8 agents: 1 base, 1326 MB", "strong")
    it.text(320, 312, "SmolLM2-135M in bfloat16, held after one generation; on the left AgileRL 2.8.4", "quiet")
    return it


def batch() -> Picture:
    """From a row of data to a step."""
    it = Picture(
        "batch", 880, 430, "The path of a pair: one row for prompt, chosen and rejected; head at completions; loss"
    )
    it.text(20, 26, "a pair, one row of tokens", "quiet", "start")
    it.box(20, 36, 300, 46, "plain", "prompt")
    it.box(324, 36, 160, 46, "agent", "chosen")
    it.box(488, 36, 120, 46, "best", "rejected")
    it.text(630, 56, "the prompt is computed once;", "quiet", "start")
    it.text(630, 75, "the answers do not see each other", "quiet", "start")
    it.arrow((314, 84), (314, 116))
    it.box(20, 118, 588, 62, "base", "base model + the agent's LoRA", "hidden states of all tokens")
    it.arrow((404, 182), (404, 214))
    it.arrow((548, 182), (548, 214))
    it.box(324, 216, 284, 46, "base", "language-model head, in blocks")
    it.text(630, 236, "only at completion positions;", "quiet", "start")
    it.text(630, 255, "the full logits never exist", "quiet", "start")
    it.box(
        20,
        216,
        270,
        100,
        "plain",
        "reference cache",
        "log p_ref of this pair,",
        "scored once, for all agents",
        "and all epochs",
    )
    it.arrow((466, 264), (466, 292))
    it.box(324, 294, 284, 46, "agent", "log p of chosen, of rejected")
    it.arrow((466, 342), (466, 370))
    it.arrow((155, 318), (155, 394), (322, 394))
    it.box(324, 372, 284, 46, "agent", "loss, a pure function")
    it.arrow((610, 394), (850, 394), (850, 149), (612, 149))
    it.text(840, 300, "gradient: LoRA only", "quiet", "end")
    return it


def evolution() -> Picture:
    """A generation of four agents."""
    it = Picture(
        "evolution",
        880,
        400,
        "A generation: agents learn from the same pairs, are ranked, and losers become mutated copies",
    )
    columns = [(20, "learn"), (250, "rank"), (480, "select"), (710, "mutate")]
    for x, title in columns:
        it.text(x + 75, 26, title, "strong")
    names = ["agent 0", "agent 1", "agent 2", "agent 3"]
    accuracies = ["0.71", "0.83", "0.78", "0.64"]
    for number, (name, accuracy) in enumerate(zip(names, accuracies, strict=True)):
        y = 46 + 66 * number
        best = number == 1
        it.box(20, y, 150, 50, "best" if best else "agent", name)
        it.arrow((174, y + 25), (246, y + 25))
        it.box(250, y, 150, 50, "best" if best else "agent", f"accuracy {accuracy}")
        it.arrow((404, y + 25), (476, y + 25))
    it.box(480, 46, 150, 50, "best", "agent 4", "copy of agent 1")
    it.box(480, 112, 150, 50, "best", "agent 1", "stays: the elite")
    it.box(480, 178, 150, 50, "agent", "agent 2", "stays")
    it.box(480, 244, 150, 50, "agent", "agent 5", "copy of agent 2")
    changes = [("best", "lr x 1.2"), ("best", "left alone"), ("agent", "beta x 0.8"), ("agent", "no change")]
    for number, (kind, change) in enumerate(changes):
        y = 46 + 66 * number
        it.arrow((634, y + 25), (706, y + 25))
        it.box(710, y, 150, 50, kind, change)
    it.text(95, 322, "same pairs,", "quiet")
    it.text(95, 340, "same order", "quiet")
    it.text(325, 322, "same held-out pairs,", "quiet")
    it.text(325, 340, "no beta in the measure", "quiet")
    it.text(555, 322, "a copy overwrites the loser:", "quiet")
    it.text(555, 340, "weights and optimizer state", "quiet")
    it.text(785, 322, "one hyperparameter", "quiet")
    it.text(785, 340, "at most", "quiet")
    it.arrow((785, 352), (785, 380), (95, 380), (95, 352))
    it.text(440, 374, "next generation", "quiet")
    return it


def chain() -> Picture:
    """Stages with checkpoints between them."""
    it = Picture("chain", 880, 270, "SFT, DPO and GRPO, each starting from the checkpoint of the one before")
    stages = [
        ("SFT", "answers to imitate", 20),
        ("DPO", "pairs to prefer", 355),
        ("GRPO", "rewards of own answers", 690),
    ]
    for title, what, x in stages:
        it.box(x, 40, 170, 150, "plain")
        it.text(x + 85, 64, title, "strong")
        it.box(x + 12, 80, 146, 42, "agent", "actor")
        if title == "SFT":
            it.box(x + 12, 134, 146, 42, "gone", "(none is read)")
        else:
            it.box(x + 12, 134, 146, 42, "base", "reference")
        it.text(x + 85, 214, what, "quiet")
    for x, rank in ((190, "rank 8"), (525, "rank 16")):
        it.arrow((x + 2, 101), (x + 38, 101))
        it.box(x + 40, 72, 86, 58, "best", "actor/", rank)
        it.arrow((x + 128, 101), (x + 174, 101))
        it.arrow((x + 146, 101), (x + 146, 155), (x + 174, 155))
        it.text(x + 83, 150, "checkpoint", "quiet")
    it.text(440, 252, "the checkpoint's actor becomes the next stage's actor and its reference", "quiet")
    return it


def processes() -> Picture:
    """Who does which rows, in the two ways."""
    it = Picture(
        "processes", 880, 330, "Two processes: each takes rows of every agent's step, or each has agents of its own"
    )
    it.text(215, 28, 'parallel="data"', "strong")
    it.text(665, 28, 'parallel="population"', "strong")
    for left, way in ((20, "data"), (470, "population")):
        for process in range(2):
            x = left + 205 * process
            it.box(x, 44, 185, 210, "plain")
            it.text(x + 92, 68, f"process {process}", "strong")
            it.box(x + 14, 80, 157, 36, "base", "base model")
            if way == "data":
                for agent in range(2):
                    it.box(
                        x + 14,
                        126 + 60 * agent,
                        157,
                        50,
                        "agent",
                        f"agent {agent}",
                        "rows 0, 3, 4, 7" if process == 0 else "rows 1, 2, 5, 6",
                    )
            else:
                for place in range(2):
                    agent = process + 2 * place
                    it.box(
                        x + 14,
                        126 + 60 * place,
                        157,
                        50,
                        "best" if agent == 2 else "agent",
                        f"agent {agent}",
                        "rows 0 to 7",
                    )
    it.arrow((207, 150), (223, 150))
    it.arrow((223, 210), (207, 210))
    it.text(215, 280, "a step's rows are dealt by length;", "quiet")
    it.text(215, 299, "gradients are summed at each step", "quiet")
    it.text(665, 280, "each agent is at home in one process;", "quiet")
    it.text(665, 299, "only children travel, after a selection", "quiet")
    return it


PICTURES = (one_base, batch, evolution, chain, processes)


def main() -> None:
    """Write all pictures."""
    IMAGES.mkdir(exist_ok=True)
    for draw in PICTURES:
        picture = draw()
        (IMAGES / f"{picture.name}.svg").write_text(picture.svg())


if __name__ == "__main__":
    main()
