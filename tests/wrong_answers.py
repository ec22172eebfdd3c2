"""Answers to the exercises as learners write them, each wrong one with the cause it must be told.

Those of a lesson stand in answers_LESSON.py, named as the module of its checks.
`python tests/wrong_answers.py` prints what every wrong answer is told.
"""

from importlib import import_module

from answers import RIGHT, WRONG

from starling_nb.lesson import checks

__all__ = ["RIGHT", "WRONG"]

for lesson in checks.LESSONS:
    import_module(f"answers_{lesson}")


def main():
    for exercise, _, function in WRONG:
        _, message = getattr(checks, exercise).judge(function)
        print(f"{exercise:24} {function.__name__:28} {message.splitlines()[-1]}")
    print(f"\n{len(WRONG)} wrong answers to {len({name for name, *_ in WRONG})} exercises")


if __name__ == "__main__":
    main()
