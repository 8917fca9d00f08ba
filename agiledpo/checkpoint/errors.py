"""What is wrong with a checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, is damaged, or does not belong to what it is loaded into.

    The message names the file, says what is wrong with it and what to do.
    """
