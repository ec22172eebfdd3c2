"""Direct preference optimisation, on pairs and on whole lists: a policy as its own reward model.

The best policy for a reward r at a price beta of KL is pi* = pi_ref exp(r / beta) / Z. Turned
round, a policy is the best one for the reward beta h, h = log pi - log pi_ref, or for that and a
number for each prompt, which no likelihood of a ranking sees. So the losses of a reward model are
losses of a policy, beta h standing for the scores.
Source: Rafailov et al. 2023 (arXiv 2305.18290).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from starling_nb.data.nectar import Row
from starling_nb.device import Device, progress
from starling_nb.policy.rollout import at_least_float32
from starling_nb.reward.attention import KINDS, SHARED_PREFIX, packable, packed_attention
from starling_nb.reward.kwise import Loss, pairwise_nll, plackett_luce_nll
from starling_nb.reward.packing import PackedList, collate, encode_rows
from starling_nb.store import digest, replace_atomically
from starling_nb.training import Batch, fill_batches, length_grouped_batches, train

HEAD_TOKENS = 1024  # to which the LM head is applied at a time
SCALINGS = ("logits_scaling", "logit_scale", "final_logit_softcapping")  # of logits, by some models


def kwise_dpo_loss(ratios: Tensor, mask: Tensor | None = None, beta: float = 0.1) -> Tensor:
    """Negative log-likelihood of whole rankings under Plackett-Luce, the scores being beta h.

    ratios: h (B, K) in nats, best first.  mask: (B, K), true on each row's answers. -> (B,).
    DPO where K = 2. Raises ValueError unless beta > 0.
    Source: arXiv 2305.18290, appendix A.3.
    """
    return plackett_luce_nll(rewards(ratios, beta), mask)


def dpo_loss(
    ratios: Tensor,
    mask: Tensor | None = None,
    beta: float = 0.1,
    smoothing: float = 0.0,
    breaking: str = "full",
) -> Tensor:
    """DPO of the pairs that lists are broken into, summed over the pairs of each.

        loss = Σ_{i better than j} -(1 - ε) log σ(β (h_i - h_j)) - ε log σ(β (h_j - h_i))

    ratios, mask: as in `kwise_dpo_loss`. -> (B,).  smoothing: ε, how often a label is thought to be
    wrong (cDPO).  breaking: as in `pairwise_nll`; all are the same where K = 2.
    Raises ValueError unless beta > 0 and 0 <= smoothing < 0.5.
    Source: arXiv 2305.18290, eq. 7; Mitchell 2023, *A note on DPO with noisy preferences*.
    """
    if not 0 <= smoothing < 0.5:
        raise ValueError(f"smoothing: expected a share from 0 to below 0.5, found {smoothing}")
    scores = rewards(ratios, beta)
    loss = (1 - smoothing) * pairwise_nll(scores, mask, breaking)
    return loss + smoothing * pairwise_nll(-scores, mask, breaking) if smoothing else loss


def ipo_loss(ratios: Tensor, mask: Tensor | None = None, beta: float = 0.1) -> Tensor:
    """(h_1 - h_2 - 1/(2 beta))² of pairs: a margin to be met, where DPO would push for ever.

    ratios: h (B, 2), the better first. -> (B,).  Raises ValueError for lists of another length and
    unless beta > 0. Some codes divide h by the answer's length first, which makes another beta.
    Source: Azar et al. 2023 (arXiv 2310.12036), eq. 17.
    """
    if ratios.shape[1:] != (2,) or (mask is not None and not mask.all()):
        short = "" if mask is None else f", {int((~mask.bool()).sum())} of them masked out"
        raise ValueError(f"ratios: expected pairs (B, 2), found {tuple(ratios.shape)}{short}")
    scores = rewards(ratios, beta)
    return ((scores[:, 0] - scores[:, 1] - 0.5) / beta) ** 2


def rewards(ratios: Tensor, beta: float) -> Tensor:
    """beta h, in float32 at least; ValueError unless beta > 0."""
    if not beta > 0:
        raise ValueError(f"beta: expected above 0, found {beta}")
    return beta * ratios.to(at_least_float32(ratios.dtype))


class ListLogprobs(NamedTuple):
    """What a policy says of the answers of packed lists; 0 where there is no answer."""

    logprobs: Tensor  # (B, K) nats: log pi(answer | prompt), the sum over its tokens
    tokens: Tensor  # (B, K) of each answer, the end of turn included


def list_logprobs(policy: PreTrainedModel, batch: Batch) -> ListLogprobs:
    """Log-probabilities of all answers of packed lists, in one pass in which prompts are read once.

    batch: as `packing.collate` makes it.  A token is predicted by the state at the one before it,
    an answer's first by that at the end of the prompt, K times over. The LM head is applied where
    an answer's token is predicted.  Naive twin: each prompt and answer by itself, in
    tests/test_dpo.py.
    """
    decoder, segments = policy.get_decoder(), batch["segments"]
    states = decoder(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        use_cache=False,
        **packed_attention(decoder, segments),
    ).last_hidden_state  # (B, T, H)
    answer = segments > 0
    starts = answer & (segments != segments.roll(1, dims=1))
    prompt_end = answer.int().argmax(1, keepdim=True) - 1  # (B, 1)
    place = torch.arange(segments.shape[1], device=segments.device)
    before = torch.where(starts, prompt_end, place - 1)[answer]  # (N,) of N answer tokens
    row = answer.nonzero()[:, 0]
    chosen = token_logprobs(
        policy.get_output_embeddings(), states[row, before], batch["input_ids"][answer]
    )
    where, zeros = (row, segments[answer] - 1), chosen.new_zeros(batch["mask"].shape)
    return ListLogprobs(
        zeros.index_put(where, chosen, accumulate=True),
        zeros.index_put(where, torch.ones_like(chosen), accumulate=True),
    )


def token_logprobs(head: nn.Module, states: Tensor, ids: Tensor) -> Tensor:
    """log pi (N,) of ids (N,) given states (N, H), HEAD_TOKENS at a time.

    The gradient computes the logits again, so that N V of them never lie in memory.
    """

    def chosen(states: Tensor, ids: Tensor) -> Tensor:
        logits = head(states)  # (n, V)
        return -cross_entropy(logits.to(at_least_float32(logits.dtype)), ids, reduction="none")

    parts = zip(states.split(HEAD_TOKENS), ids.split(HEAD_TOKENS), strict=True)
    return torch.cat([checkpoint(chosen, *part, use_reentrant=False) for part in parts])


def check_readable(policy: PreTrainedModel, longest: int) -> None:
    """Raise ValueError unless `list_logprobs` reads sequences of up to `longest` tokens rightly."""
    scaled = [name for name in SCALINGS if getattr(policy.config, name, None) not in (None, 1)]
    if scaled or not packable(policy.get_decoder(), longest):
        found = f"{scaled[0]} {getattr(policy.config, scaled[0])}" if scaled else "otherwise"
        raise ValueError(
            f"{type(policy).__name__} cannot have packed rows of {longest} tokens a sequence: "
            "expected rotary or learned positions, so many of them, full attention by sdpa, and "
            f"plain logits, found {found}"
        )


@contextmanager
def attending_by_sequence(policy: PreTrainedModel) -> Iterator[None]:
    """Have a policy attend to packed rows sequence by sequence, if it is of `attention.KINDS`."""
    before = policy.config._attn_implementation
    if before == "sdpa" and policy.config.model_type in KINDS:
        policy.set_attn_implementation(SHARED_PREFIX)
    try:
        yield
    finally:
        policy.set_attn_implementation(before)


@torch.no_grad()
def score_packed(
    policy: PreTrainedModel,
    lists: Sequence[PackedList],
    device: Device | None = None,
    batch_size: int = 16,
) -> list[Tensor]:
    """log pi of the answers of each list, (K,) in nats, float32 on the CPU, in the order given."""
    lengths = [len(packed.input_ids) for packed in lists]
    order = sorted(range(len(lists)), key=lambda i: lengths[i])
    autocast = device.autocast if device else nullcontext
    found: dict[int, Tensor] = {}
    policy.eval()
    for rows in progress(fill_batches(order, lengths, batch_size), desc="log-probabilities"):
        batch = {k: v.to(policy.device) for k, v in collate([lists[i] for i in rows]).items()}
        with autocast():
            logprobs = list_logprobs(policy, batch).logprobs.cpu()
        found |= {i: row[: len(lists[i].ends)] for i, row in zip(rows, logprobs, strict=True)}
    return [found[i] for i in range(len(lists))]


def train_dpo(
    policy: PreTrainedModel,
    rows: Sequence[Row],
    *,
    tokenizer: PreTrainedTokenizerFast,
    loss: Loss = kwise_dpo_loss,
    reference: PreTrainedModel | None = None,
    nll_weight: float = 0.0,
    epochs: int = 1,
    batch_size: int = 16,
    lr: float = 4e-4,
    max_length: int = 1024,
    seed: int = 0,
    device: Device | None = None,
    validation_rows: Sequence[Row] = (),
    folder: Path | None = None,
) -> list[dict[str, float]]:
    """Tune a policy, in place, to ranked lists; return the history.

    rows: validated Nectar rows, answers best first; pairs are rows of two.
    loss: log-ratios h (B, K), mask (B, K) -> (B,), of which the mean over a batch is taken; a beta
    of your own goes in as `partial(kwise_dpo_loss, beta=0.3)`.
    reference: the policy as it is when training begins, unless given; its log-probabilities are
    computed once, and kept in `folder` while a run is not finished.
    nll_weight: times -log pi of the best answer, per token, is added: the losses raise the best
    above the others, and may do so while all of them fall.
    Parameters without requires_grad stay as they are. Batches of long lists are smaller, as in
    `length_grouped_batches`; lr is a nano model's, a thousand times too large for one of 7B.
    Optimiser, schedule, device and `folder`, where a stopped run goes on, are those of
    `starling_nb.training.train`.
    -> first the numbers of tokens and steps and the `Truncation`; then step, loss and grad_norm
    over the run; with validation rows, `list_metrics` on them before (second) and after (last).
    Raises ValueError for no rows, for one of fewer than two answers, for a policy or reference that
    cannot read packed rows, and for a folder with the reference of other rows.
    """
    sizes = [len(row["answers"]) for row in [*rows, *validation_rows]]
    if not rows or min(sizes) < 2:
        found = f"{min(sizes)} in row {sizes.index(min(sizes))}" if rows else "no row"
        raise ValueError(f"rows: expected lists of two answers or more, found {found}")
    lists, truncation = encode_rows(rows, tokenizer, max_length)
    held_out, _ = encode_rows(validation_rows, tokenizer, max_length)
    longest = max(int(packed.position_ids.max()) + 1 for packed in [*lists, *held_out])
    anchor = reference or policy
    for model in (policy, anchor):
        check_readable(model, longest)
        if device:
            model.to(device.device)  # type: ignore[arg-type]
    lengths = [len(packed.input_ids) for packed in lists]
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        batch
        for _ in range(epochs)
        for batch in length_grouped_batches(lengths, batch_size, generator)
    ]
    with attending_by_sequence(policy), attending_by_sequence(anchor):
        kept = folder and folder / "reference.safetensors"
        anchors = anchor_logprobs(anchor, [*lists, *held_out], device, kept)
        history: list[dict[str, float]] = [
            {"step": 0, "tokens": sum(lengths), "steps": len(drawn), **truncation._asdict()}
        ]
        held = anchors[len(lists) :]
        if held_out:
            start = score_packed(policy, held_out, device) if reference else held
            history.append({"step": 0, **list_metrics(start, held)})

        def batch_loss(policy: PreTrainedModel, batch: Batch) -> Tensor:
            logprobs, tokens = list_logprobs(policy, batch)
            total = loss(logprobs - batch["reference"], batch["mask"])
            if nll_weight:
                total = total - nll_weight * logprobs[:, 0] / tokens[:, 0]
            return total.mean()

        history += train(
            policy,
            [[(lists[i], anchors[i]) for i in batch] for batch in drawn],
            collate=with_reference,
            loss=batch_loss,
            lr=lr,
            seed=seed,
            device=device,
            desc="DPO",
            folder=folder,
        )
        if held_out:
            end = list_metrics(score_packed(policy, held_out, device), held)
            history.append({"step": len(drawn), **end})
    if kept:
        kept.unlink()
    return history


def anchor_logprobs(
    reference: PreTrainedModel,
    lists: Sequence[PackedList],
    device: Device | None,
    path: Path | None,
) -> list[Tensor]:
    """`score_packed` of the reference, read from a file that a stopped run left, or kept there.

    When it goes on, the policy that was its own reference may have moved. Raises ValueError for the
    file of other lists.
    """
    sizes = [len(packed.ends) for packed in lists]
    of = digest([packed.input_ids.tolist() for packed in lists])
    if path and path.exists():
        with safe_open(path, framework="pt") as file:
            found, logprobs = file.metadata(), file.get_tensor("logprobs")
        if found != {"lists": of}:
            raise ValueError(
                f"{path}: expected the reference's log-probabilities of these rows, found those of "
                "others; empty the folder to start again"
            )
        return [*logprobs.split(sizes)]
    scored = score_packed(reference, lists, device)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(path) as temporary:
            save_file({"logprobs": torch.cat(scored)}, temporary, metadata={"lists": of})
    return scored


def with_reference(items: Sequence[tuple[PackedList, Tensor]]) -> Batch:
    """The batch of packed lists, with the reference's log-probabilities (B, K) of their answers."""
    lists, anchors = zip(*items, strict=True)
    return {**collate(lists), "reference": pad_sequence(list(anchors), batch_first=True)}


def list_metrics(logprobs: Sequence[Tensor], reference: Sequence[Tensor]) -> dict[str, float]:
    """What became of lists, best answer first: means over them, of (K,) log-probabilities.

    best, worst: h of these answers in nats, where both can fall; accuracy: the share of pairs whose
    better answer has the larger h, a tie counting half.
    """
    ratios = [after - before for after, before in zip(logprobs, reference, strict=True)]
    right = [
        ((h[:, None] > h).double() + (h[:, None] == h) / 2)[torch.ones(len(h), len(h)).triu(1) > 0]
        for h in ratios
    ]
    return {
        "best": torch.stack([h[0] for h in ratios]).mean().item(),
        "worst": torch.stack([h[-1] for h in ratios]).mean().item(),
        "accuracy": torch.cat(right).mean().item(),
    }
