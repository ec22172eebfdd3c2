"""Where the answers of learners are gathered: `wrong` and `right` mark a function as one."""

WRONG: list[tuple] = []  # exercise, pattern of the cause, function
RIGHT: list[tuple] = []  # exercise, function


def wrong(exercise, cause):
    """A wrong answer to an exercise, and what in its message names the cause."""

    def register(function):
        WRONG.append((exercise, cause, function))
        return function

    return register


def right(exercise):
    """A right answer to an exercise."""

    def register(function):
        RIGHT.append((exercise, function))
        return function

    return register
