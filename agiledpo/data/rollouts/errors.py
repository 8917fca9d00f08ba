"""What is wrong with one rollout, and with the file that holds it."""

from agiledpo.data.errors import DatasetError


class UnusableRolloutError(ValueError):
    """A line is no rollout that pairs can be made of. Whoever knows the file and the line completes the sentence.

    Attributes:
        reason: Name that such lines are counted under, such as "reward".
        field: Where in the line, such as "response.output", or None for the line as a whole.
        problem: What is wrong, without a final full stop.
        remedy: What to do about it, a full sentence.
    """

    def __init__(self, reason: str, field: str | None, problem: str, remedy: str) -> None:
        self.reason = reason
        self.field = field
        self.problem = problem
        self.remedy = remedy
        super().__init__(problem)

    def at(self, file: str, line: int) -> DatasetError:
        """The error that users see.

        Args:
            file: Name of the file.
            line: Number of the line, from 1.
        """
        where = f"line {line}" if self.field is None else f"line {line}, field {self.field!r}"
        return DatasetError(f"{where}: {self.problem}", remedy=self.remedy, dataset="rollouts", file=file)
