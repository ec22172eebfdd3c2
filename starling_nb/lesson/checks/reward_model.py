"""The exercises of lesson 03: where a reward is read, positions, and lists packed in one row."""

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from starling_nb.lesson.exercises import Exercise
from starling_nb.reward.model import last_attended
from starling_nb.reward.packing import PackedList, block_mask, pack_list


def states(*shape: int) -> Tensor:
    """Hidden states of small whole numbers, float64."""
    return (torch.arange(torch.Size(shape).numel()).view(shape) * 7 % 11 - 5).double()


def weights(*values: float) -> Tensor:
    """A head (h,), float64."""
    return torch.tensor(values, dtype=torch.float64)


def read_at(hidden: Tensor, places: Tensor, w: Tensor) -> Tensor:
    """w · h at one place (B,) of each row."""
    return hidden[torch.arange(len(hidden)), places] @ w


read_reward = Exercise(
    name="read_reward",
    expects="hidden (B, T, h), attention_mask (B, T) of 0 and 1, padded on the left, on the right "
    "or on both sides, w (h,) -> (B,): the product of w and h at the last attended token",
    solution=lambda hidden, attention_mask, w: read_at(hidden, last_attended(attention_mask), w),
    cases=[
        (
            torch.tensor([[[1, 3], [2, 1], [4, 5]]], dtype=torch.float64),
            torch.tensor([[1, 1, 0]]),
            weights(1, -2),
        ),
        (states(2, 3, 2), torch.tensor([[0, 1, 1], [1, 1, 1]]), weights(1, 0.5)),
        (states(2, 4, 3), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]), weights(0.5, -1, 0.25)),
        (
            states(3, 5, 2),
            torch.tensor([[0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]),
            weights(0.3, 1),
        ),
    ],
    mistakes={
        "read at the last place: of a row padded on the right that is padding": (
            lambda hidden, mask, w: hidden[:, -1] @ w
        ),
        "the sum of the mask counts tokens: padding on the left moves the last one on": (
            lambda hidden, mask, w: read_at(hidden, mask.sum(1) - 1, w)
        ),
        "read one place before the first padding, as the published classes do: with padding on "
        "the left that is place -1, right only where none follows": (
            lambda hidden, mask, w: read_at(hidden, mask.argmin(1) - 1, w)
        ),
        "read at the first attended token: it has seen nothing of the answer": (
            lambda hidden, mask, w: read_at(hidden, mask.argmax(1), w)
        ),
        "the mean over the attended tokens: only the last one has seen all": (
            lambda hidden, mask, w: (hidden @ w * mask).sum(1) / mask.sum(1)
        ),
        "the sum over the attended tokens: only the last one has seen all": (
            lambda hidden, mask, w: (hidden @ w * mask).sum(1)
        ),
        "the mean over all places, padding too: read the last attended token": (
            lambda hidden, mask, w: hidden.mean(1) @ w
        ),
        "a reward for every token: read one a row": lambda hidden, mask, w: hidden @ w,
        "the shape is (B, 1): one number a row is (B,)": (
            lambda hidden, mask, w: read_at(hidden, last_attended(mask), w[:, None])
        ),
        "a sigmoid was added: a reward is any real number": (
            lambda hidden, mask, w: read_at(hidden, last_attended(mask), w).sigmoid()
        ),
        "where the first row ends, all are read: each ends at a place of its own": (
            lambda hidden, mask, w: hidden[:, last_attended(mask)[0]] @ w
        ),
        "the place is counted from the row's end: take T - 1 less it": (
            lambda hidden, mask, w: read_at(hidden, mask.flip(1).argmax(1), w)
        ),
        "one place early: a reward is of the last token, it predicts no next one": (
            lambda hidden, mask, w: read_at(hidden, last_attended(mask) - 1, w)
        ),
        "one place late: places are counted from 0": (
            lambda hidden, mask, w: read_at(hidden, last_attended(mask) + 1, w)
        ),
    },
)


def counted(attention_mask: Tensor, dim: int = -1) -> Tensor:
    """0, 1, 2, ... on the attended tokens, and 0 on the padding before them."""
    return (attention_mask.cumsum(dim) - 1).clamp(min=0)


def places(attention_mask: Tensor) -> Tensor:
    """(B, T): 0, 1, ... T - 1 in each row."""
    return torch.arange(attention_mask.shape[1]).expand_as(attention_mask)


def padding(attention_mask: Tensor) -> Tensor:
    """(B, 1): how many places of a row are padding."""
    return (1 - attention_mask).sum(1, keepdim=True)


position_ids = Exercise(
    name="position_ids",
    expects="attention_mask (B, T) of 0 and 1, padded on the left -> (B, T) int64: 0, 1, 2, ... on "
    "the attended tokens of each row, 0 on the padding before them",
    solution=lambda attention_mask: counted(attention_mask),
    cases=[
        (torch.tensor([[0, 1, 1]]),),
        (torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),),
        (torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]]),),
    ],
    mistakes={
        "counted from the row's first place, padding or not: count from its first token": places,
        "the padding is 0, but the tokens are counted from the row's first place": (
            lambda mask: places(mask) * mask
        ),
        "one row of positions for all: each is padded by another number of places": (
            lambda mask: torch.arange(mask.shape[1])
        ),
        "one too many: the first token is at 0": lambda mask: mask.cumsum(-1),
        "the padding is at -1: no embedding has that place, keep it at 0": (
            lambda mask: mask.cumsum(-1) - 1
        ),
        "the padding counts down below 0: keep it at 0": lambda mask: places(mask) - padding(mask),
        "the padding counts down to the first token: keep it at 0": (
            lambda mask: (places(mask) - padding(mask)).abs()
        ),
        "the padding is at 1, as earlier transformers set it in `generate`: here 0 is asked for": (
            lambda mask: (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
        ),
        "counted from the right: the first token is at 0, not the last": (
            lambda mask: counted(mask.flip(-1)).flip(-1) * mask
        ),
        "counted down the columns: each row is a text of its own": lambda mask: counted(mask, 0),
        "the count goes on from row to row: each begins at 0": (
            lambda mask: counted(mask.flatten()).view_as(mask)
        ),
        "the first row's positions for all: each is padded by another number of places": (
            lambda mask: counted(mask)[:1].expand_as(mask)
        ),
    },
)


def sides(segments: Tensor) -> tuple[Tensor, Tensor]:
    """The segments of the query (T, 1) and of the key (1, T)."""
    return segments[:, None], segments[None]


def allowed(segments: Tensor) -> Tensor:
    """(T, T): whether the key is of the prompt or of the query's own segment, in any order."""
    query, key = sides(segments)
    return (key == 0) | (key == query)


sees = Exercise(
    name="sees",
    expects="segments (T,), 0 on the prompt and k on answer k -> (T, T) bool, [query, key]: a "
    "token of the prompt sees the prompt up to itself, one of an answer the prompt and its own "
    "answer up to itself",
    solution=lambda segments: block_mask(segments[None])[0, 0],
    cases=[
        (torch.tensor([0, 1, 2]),),
        (torch.tensor([0, 0, 1, 1, 2]),),
        (torch.tensor([0, 0, 0, 1, 2, 2, 3, 3]),),
    ],
    mistakes={
        "this is the plain causal mask: an answer sees the answers before it": (
            lambda segments: torch.ones(len(segments), len(segments)).tril().bool()
        ),
        "a token sees what comes after it: no key may stand behind its query": allowed,
        "the prompt sees the answers: they come after it": (
            lambda segments: allowed(segments) | (segments == 0)[:, None]
        ),
        "an answer is blind to the prompt: without it there is nothing to judge": (
            lambda segments: torch.eq(*sides(segments)).tril()
        ),
        "an answer sees the prompt alone: it sees itself too, up to the query": (
            lambda segments: (segments == 0).expand(len(segments), -1).tril()
        ),
        "turned round: rows are queries, columns are keys": lambda segments: (
            allowed(segments).tril().T
        ),
        "a token does not see itself: up to itself is with itself": (
            lambda segments: allowed(segments).tril(-1)
        ),
        "True stands where a token may not look": lambda segments: ~allowed(segments).tril(),
        "the prompt's tokens see each other in both directions: a causal model reads it in order": (
            lambda segments: allowed(segments).tril() | torch.add(*sides(segments)).eq(0)
        ),
        "the order of segments is taken, not of places: answers see earlier ones, and a token "
        "what comes after it in its own": lambda segments: torch.ge(*sides(segments)),
        "an answer that stands last sees all: each sees its own alone": lambda segments: (
            allowed(segments) | (segments == segments.max())[:, None]
        ).tril(),
    },
)


def packed(prompt: int, answers: Sequence[int]) -> PackedList:
    """A list with so many tokens in its prompt and in its answers."""
    return pack_list([0] * prompt, [[0] * size for size in answers])


def restarted(prompt: int, answers: Sequence[int], starts: Sequence[int]) -> list[int]:
    """The prompt's positions, and each answer's from its start on."""
    found = list(range(prompt))
    for start, size in zip(starts, answers, strict=True):
        found += range(start, start + size)
    return found


packed_positions = Exercise(
    name="packed_positions",
    expects="prompt P, the number of its tokens, answers [A_1, ..., A_K], the numbers of theirs -> "
    "(P + sum of the A_k,) int64: 0 .. P-1 on the prompt, and on every answer from P on again",
    solution=lambda prompt, answers: packed(prompt, answers).position_ids,
    cases=[(2, [1, 2]), (1, [3, 3]), (3, [2, 1, 2])],
    mistakes={
        "the positions run on: every answer follows the prompt, not the answer before it": (
            lambda p, answers: torch.arange(p + sum(answers))
        ),
        "the answers begin at 0: they follow the prompt": (
            lambda p, answers: restarted(p, answers, [0] * len(answers))
        ),
        "the answers begin at P - 1: that is the prompt's last token": (
            lambda p, answers: restarted(p, answers, [p - 1] * len(answers))
        ),
        "the answers begin at P + 1: one position is left out": (
            lambda p, answers: restarted(p, answers, [p + 1] * len(answers))
        ),
        "counted from 1: the first position is 0": (
            lambda p, answers: packed(p, answers).position_ids + 1
        ),
        "each answer begins one later than the one before: all begin at P": (
            lambda p, answers: restarted(p, answers, range(p, p + len(answers)))
        ),
        "the prompt is missing: its positions come first": (
            lambda p, answers: packed(p, answers).position_ids[p:]
        ),
        "the prompt stands before each answer: packed, it comes once": lambda p, answers: [
            i for size in answers for i in range(p + size)
        ],
        "the answers are padded to the longest: packed, there is no padding": (
            lambda p, answers: restarted(p, [max(answers)] * len(answers), [p] * len(answers))
        ),
        "these are the segments: the positions are asked for": (
            lambda p, answers: packed(p, answers).segments
        ),
        "after the first answer the positions begin at 0: all answers follow the prompt": (
            lambda p, answers: restarted(p, answers, [p, *[0] * (len(answers) - 1)])
        ),
    },
)


Count = Callable[[int, Sequence[int]], float]


def alone(prompt: int, answers: Sequence[int]) -> int:
    """Tokens of the K sequences, each by itself."""
    return len(answers) * prompt + sum(answers)


def padded(prompt: int, answers: Sequence[int]) -> int:
    """Tokens of the K sequences, each as long as the longest."""
    return len(answers) * (prompt + max(answers))


def counts(prompt: int, answers: Sequence[int]) -> tuple[float, float, float]:
    """Tokens computed: packed in one row, padded to the longest, and all pairs unpadded."""
    pairs = (len(answers) - 1) * alone(prompt, answers)  # an answer is in K - 1 pairs
    return prompt + sum(answers), padded(prompt, answers), pairs


def first(count: Count) -> Callable[..., tuple]:
    """`counts` with another first number."""
    return lambda prompt, answers: (count(prompt, answers), *counts(prompt, answers)[1:])


def second(count: Count) -> Callable[..., tuple]:
    """`counts` with another second number."""

    def changed(prompt: int, answers: Sequence[int]) -> tuple:
        packed, _, pairs = counts(prompt, answers)
        return packed, count(prompt, answers), pairs

    return changed


def third(count: Count) -> Callable[..., tuple]:
    """`counts` with another third number."""
    return lambda prompt, answers: (*counts(prompt, answers)[:2], count(prompt, answers))


tokens_computed = Exercise(
    name="tokens_computed",
    expects="prompt P, the number of its tokens, answers [A_1, ..., A_K], the numbers of theirs -> "
    "three numbers: the tokens of the packed row; of the K sequences, padded to the longest; and "
    "of the two sequences of each of the K (K - 1) / 2 pairs, without padding",
    solution=counts,
    cases=[(10, [3, 5]), (7, [4, 1, 2]), (4, [6, 2, 3, 5])],
    mistakes={
        "the first number has the prompt K times: packed, it is computed once": first(alone),
        "the first number lacks the prompt": first(lambda p, answers: sum(answers)),
        "the second number is without padding: each of the K sequences is as long as the longest": (
            second(alone)
        ),
        "the second number lacks the prompt, which each of the K sequences repeats": (
            second(lambda p, answers: len(answers) * max(answers))
        ),
        "the second number has the prompt once: each of the K sequences repeats it": (
            second(lambda p, answers: p + len(answers) * max(answers))
        ),
        "the second number is of one sequence: there are K": (
            second(lambda p, answers: p + max(answers))
        ),
        "the third number has one sequence a pair: there are two": (
            third(lambda p, answers: (len(answers) - 1) * alone(p, answers) / 2)
        ),
        "the third number has every pair twice, in either order": (
            third(lambda p, answers: 2 * (len(answers) - 1) * alone(p, answers))
        ),
        "the third number has every sequence once: an answer is in K - 1 pairs": third(alone),
        "the third number has every sequence K times: an answer is in no pair with itself": (
            third(lambda p, answers: len(answers) * alone(p, answers))
        ),
        "the third number has the prompt once a pair: both sequences repeat it": (
            third(lambda p, answers: sum(p + a + b for a, b in combinations(answers, 2)))
        ),
        "the third number lacks the prompt, which both sequences of a pair repeat": (
            third(lambda p, answers: (len(answers) - 1) * sum(answers))
        ),
        "the third number is padded to the longest sequence: without padding is asked for": (
            third(lambda p, answers: (len(answers) - 1) * padded(p, answers))
        ),
        "the third number is padded to the longer of each pair: without padding is asked for": (
            third(lambda p, answers: sum(padded(p, pair) for pair in combinations(answers, 2)))
        ),
        "the third number has the pairs of the best answer alone: all pairs are asked for": (
            third(lambda p, answers: sum(alone(p, [answers[0], a]) for a in answers[1:]))
        ),
        "the order is turned: packed, padded, pairs": lambda p, answers: counts(p, answers)[::-1],
    },
)
