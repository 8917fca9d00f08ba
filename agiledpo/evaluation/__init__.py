"""What a trained policy is worth: on held-out preferences, and by what it answers."""

from agiledpo.evaluation.evaluation import (
    AnswerFigures,
    Evaluation,
    Margins,
    PolicyFigures,
    PreferenceFigures,
    evaluate,
)
from agiledpo.evaluation.intervals import Figure
from agiledpo.evaluation.judges import CommandJudge, Comparison, Judge, RewardJudge, Verdict

__all__ = [
    "AnswerFigures",
    "CommandJudge",
    "Comparison",
    "Evaluation",
    "Figure",
    "Judge",
    "Margins",
    "PolicyFigures",
    "PreferenceFigures",
    "RewardJudge",
    "Verdict",
    "evaluate",
]
