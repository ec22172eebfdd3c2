r"""The chat templates of the released reward models, and conversations as their token ids.

Three templates, by name. Each ends with the token at which the reward is read.

    openchat         GPT4 Correct User: {u}<|end_of_turn|>GPT4 Correct Assistant: {a}<|end_of_turn|>
    llama2_starling  [INST] {u} [/INST] {a}</s> [INST] {u} [/INST] {a}</s>
    chatml_yi        <|im_start|>user\n{u}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>

`openchat`, with BOS in front, is that of the models trained here (`starling_nb.data.chat`).
`llama2_starling`, with BOS in front, is what Starling's policy tuning gave its reward model, texts
stripped (Starling, trlx/examples/hh/utils.py). Other sources differ from it: the card of
Starling-RM-7B-alpha also writes "<s>" in front, which makes two BOS, and "</s>" behind the user's
text; Llama-2's own template, of the published training code, has a space before "</s>".
`chatml_yi` is that of the card of Starling-RM-34B: no BOS, and no newline behind the last token.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from starling_nb.data.chat import ROLES, Conversation, encode, openchat_text

BOS, EOS, IM_START, IM_END = "<s>", "</s>", "<|im_start|>", "<|im_end|>"


def llama2_pieces(conversation: Conversation) -> list[str]:
    """Text, control token, text, control token, ...; ValueError unless user and assistant take
    turns: the template has no place for anything else."""
    roles = [message["role"] for message in conversation]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(
            "conversation: llama2_starling expects the roles user, assistant, ..., assistant, "
            f"found {', '.join(map(str, roles))}; put a system text into the first user message"
        )
    texts = [message["content"].strip() for message in conversation]
    turns = [f"[INST] {u} [/INST] {a}" for u, a in zip(texts[::2], texts[1::2], strict=True)]
    return [piece for i, turn in enumerate(turns) for piece in (" " * (i > 0) + turn, EOS)]


def chatml_pieces(conversation: Conversation) -> list[str]:
    """Text, control token, text, control token, ...; ValueError for a role outside ROLES."""
    pieces: list[str] = []
    for number, message in enumerate(conversation, start=1):
        if message["role"] not in ROLES:
            raise ValueError(
                f"message {number}, role: expected one of {', '.join(ROLES)}, "
                f"found {message['role']!r}"
            )
        turn = f"{message['role']}\n{message['content']}"
        pieces += ["\n" if pieces else "", IM_START, turn, IM_END]
    return pieces


PIECES = {"llama2_starling": llama2_pieces, "chatml_yi": chatml_pieces}
TEMPLATES = ("openchat", *PIECES)


def template_text(conversation: Conversation, template: str) -> str:
    """The conversation as the template's string, without BOS; for display and for clean text.

    Raises ValueError for an unknown template, for roles that the template has no place for, and
    for a conversation that does not end with an assistant's message.
    """
    _check_answered(conversation)
    if template == "openchat":
        return openchat_text(conversation, add_generation_prompt=False)
    return "".join(_pieces_of(template)(conversation))


def encode_conversation(
    tokenizer: PreTrainedTokenizerFast,
    conversation: Conversation,
    template: str,
    max_length: int | None = None,
) -> tuple[list[int], bool]:
    """The conversation's ids, cut at the left to `max_length`, and whether it was cut.

    Control tokens written in a message stay plain text. Equals the ids of `template_text` id for
    id when no message holds one. The end, where the score is read, is always kept; so is the BOS of
    llama2_starling, as a tokenizer with truncation_side="left" keeps it.
    Raises ValueError as `template_text` does, and for a tokenizer without the template's tokens.
    """
    bos: list[int] = []
    _check_answered(conversation)
    if template == "openchat":
        ids = encode(tokenizer, conversation, add_generation_prompt=False)
    else:
        first, *rest = _pieces_of(template)(conversation)
        if template == "llama2_starling":
            bos = [_control_id(tokenizer, BOS, template)]
        ids = _text_ids(tokenizer, [first], at_start=True)[0] if first else []
        texts = iter(_text_ids(tokenizer, rest[1::2], at_start=False))
        for i, piece in enumerate(rest):
            ids += next(texts) if i % 2 else [_control_id(tokenizer, piece, template)]
    room = len(ids) if max_length is None else max_length - len(bos)
    return bos + ids[-room:], len(ids) > room


def _check_answered(conversation: Conversation) -> None:
    last = conversation[-1]["role"] if conversation else "no message"
    if last != "assistant":
        raise ValueError(f"conversation: expected the assistant's answer at its end, found {last}")


def _pieces_of(template: str):
    if template not in PIECES:
        raise ValueError(f"template: expected one of {', '.join(TEMPLATES)}, found {template!r}")
    return PIECES[template]


def _control_id(tokenizer: PreTrainedTokenizerFast, token: str, template: str) -> int:
    """The id of a token that the template needs."""
    number = tokenizer.backend_tokenizer.token_to_id(token)
    if number is None:
        raise ValueError(
            f"tokenizer: has no token {token!r}, which the template {template} needs; take the "
            "tokenizer of the checkpoint's base model, or name the checkpoint's own template"
        )
    return number


def _text_ids(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], at_start: bool
) -> list[list[int]]:
    """Ids of texts, special tokens split, at the start of the whole string or further on.

    A Metaspace set to "first" (Llama's tokenizer with legacy=False) puts its "▁" only before the
    very first word of a string, so not before a text that follows a control token.
    """
    metaspace = tokenizer.backend_tokenizer.pre_tokenizer
    first_only = not at_start and getattr(metaspace, "prepend_scheme", None) == "first"
    if not texts:
        return []
    try:
        if first_only:
            metaspace.prepend_scheme = "never"
        return tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
        ).input_ids
    finally:
        if first_only:
            metaspace.prepend_scheme = "first"
