"""The exercises of the lessons: `check.plackett_luce(my_function)` tells how that function does.

A module holds those of one lesson and is loaded when the first of them is asked for.
"""

from difflib import get_close_matches
from importlib import import_module

from starling_nb.lesson.exercises import Exercise

LESSONS = {  # module, named as the lesson -> its exercises
    "overview": ("plackett_luce", "weighted_nll", "apa_loss", "low_rank"),
    "nectar": ("split_prompt", "ranking_probability", "chi_square", "agreement", "ceiling"),
    "policy": ("openchat", "answer_mask", "class_weights", "cool"),
    "reward_model": (
        "read_reward",
        "position_ids",
        "sees",
        "packed_positions",
        "tokens_computed",
    ),
    "kwise_mle": ("plackett_luce_gradient", "all_pairs_nll", "top_m_nll", "pessimistic_value"),
    "reward_evaluation": (
        "pair_accuracy",
        "bayes_accuracy",
        "normalised",
        "calibration_scale",
        "truth_preference",
    ),
    "ppo": ("response_logprobs", "shape_rewards", "gae", "ppo_loss"),
    "apa": ("best_policy", "log_partition", "awr_loss", "p3o_loss"),
    "laser": ("noise_edge", "snr", "largest_rank", "out_of_bag"),
    "laser_dpo": ("dpo_loss", "kwise_dpo_loss", "predicting_places", "top_of_each_type"),
}
NAMES = tuple(name for names in LESSONS.values() for name in names)


def __getattr__(name: str) -> Exercise:
    """The exercise of that name; AttributeError with the nearest name when there is none."""
    for lesson, names in LESSONS.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{lesson}"), name)
    close = get_close_matches(name, NAMES, n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(NAMES)}"
    raise AttributeError(f"no exercise is called {name!r}{hint}")
