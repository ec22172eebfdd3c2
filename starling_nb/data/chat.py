"""OpenChat's chat template, its tokenizers, and Nectar's prompt strings.

A conversation becomes ids one message at a time, with special tokens split, so that text never
turns into a control token; the template alone adds BOS and the end of turn.
"""

import importlib.resources
import re
from collections.abc import Iterable, Sequence
from functools import cache

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

Conversation = list[dict]  # [{"role": "user" | "assistant" | "system", "content": str}, ...]

EOT = "<|end_of_turn|>"
PAD = "<|pad_0|>"
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", EOT, PAD)
MODES = ("GPT4 Correct", "GPT3 Correct", "Code")  # expert class, weaker class (C-RLFT), coding
ROLES = ("user", "assistant", "system")

# The published template of openchat-3.5-0106, with the mode as a variable and roles checked.
CHAT_TEMPLATE = (
    "{%- set mode = mode or '" + MODES[0] + "' %}"
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['user', 'assistant', 'system'] %}"
    "{{- raise_exception('expected the role user, assistant or system') }}"
    "{%- endif %}"
    "{{- mode + ' ' + message['role'].title() + ': ' + message['content'] + '" + EOT + "' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- mode + ' Assistant:' }}{%- endif %}"
)

HUMAN_TAG = "\n\nHuman: "
ASSISTANT_TAG = "\n\nAssistant: "


def openchat_text(
    conversation: Conversation, add_generation_prompt: bool = True, mode: str = MODES[0]
) -> str:
    """Return the conversation as OpenChat-3.5's string, without BOS (the tokenizer adds that).

    A message reads "GPT4 Correct User: Hello<|end_of_turn|>"; the generation prompt ends at
    "GPT4 Correct Assistant:", after which the model writes " Hi<|end_of_turn|>". mode is the
    literal prefix, one of MODES. For display and for clean text: `encode` is the safe way to ids.
    Raises ValueError for an unknown mode or role. Source: openchat-3.5-0106 model card.
    """
    text = "".join(message + EOT for message in _messages(conversation, mode))
    return text + f"{mode} Assistant:" if add_generation_prompt else text


def encode(
    tokenizer: PreTrainedTokenizerFast,
    conversation: Conversation,
    add_generation_prompt: bool = True,
    mode: str = MODES[0],
) -> list[int]:
    """Return the conversation's ids; special tokens written in a message stay plain text.

    Equals tokenizer(openchat_text(...)).input_ids id for id when no content holds a string of
    SPECIAL_TOKENS. With add_generation_prompt=False the last id is the end of turn.
    Raises ValueError for an unknown mode or role, or a tokenizer without the template's tokens.
    Source: OpenChat, conversation_template.py (tokens are made segment by segment).
    """
    opening, messages = _encode_messages(tokenizer, conversation, mode)
    eot = _token_id(tokenizer, EOT)
    ids = [_token_id(tokenizer, "<s>")]
    for message in messages:
        ids += message
        ids.append(eot)
    return ids + opening if add_generation_prompt else ids


def encode_with_mask(
    tokenizer: PreTrainedTokenizerFast, conversation: Conversation, mode: str = MODES[0]
) -> tuple[list[int], list[int]]:
    """Return (ids, mask), both (T,): encode(..., add_generation_prompt=False) and its answers.

    mask is 1 on the tokens of assistant contents and on the end of turn behind them, else 0: the
    tokens a model writes after a generation prompt. It is sound because no token of either
    tokenizer here spans the colon and the space after "Assistant:".
    Raises ValueError as `encode` does. Source: C-RLFT (arXiv 2309.11235), zero weight on prompts.
    """
    opening, messages = _encode_messages(tokenizer, conversation, mode)
    eot = _token_id(tokenizer, EOT)
    ids, mask = [_token_id(tokenizer, "<s>")], [0]
    for turn, message in zip(conversation, messages, strict=True):
        prompt = len(opening) if turn["role"] == "assistant" else len(message) + 1
        ids += [*message, eot]
        mask += [0] * prompt + [1] * (len(message) + 1 - prompt)
    return ids, mask


def decode_answer(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """Return the answer's text from the ids (T,) that follow a generation prompt.

    Stops at the first end of turn, leaves special tokens out and takes away the one space that
    the template puts before an answer. Inverse of `encode_with_mask` on an answer: exact for any
    text with a tokenizer of `train_tokenizer`; with `mistral_tokenizer` for any text without
    "▁" (U+2581), which sentencepiece turns into a space.
    """
    ids = [int(i) for i in ids]
    eot = _token_id(tokenizer, EOT)
    if eot in ids:
        ids = ids[: ids.index(eot)]
    # Behind the template's colon, since sentencepiece strips a space where a text begins.
    colon = _token_id(tokenizer, ":")
    text = str(tokenizer.decode([colon, *ids], skip_special_tokens=True))
    return text.removeprefix(":").removeprefix(" ")


@cache
def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """Return Mistral-7B's tokenizer as OpenChat extends it; one shared object.

    32000 sentencepiece pieces (mistral-common's v1 file), <|end_of_turn|> = 32000 (eos) and
    <|pad_0|> = 32001 (pad). As in sentencepiece (and LlamaTokenizer with legacy=True), a segment
    behind a special token gets its own leading "▁": the ids on the model cards depend on it.
    The rule is part of the saved tokenizer.json, so AutoTokenizer keeps it.
    """
    file = importlib.resources.files("mistral_common") / "data" / "tokenizer.model.v1"
    spm = SentencePieceProcessor(model_proto=file.read_bytes())
    vocab = {spm.id_to_piece(i): i for i in range(spm.get_piece_size())}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(vocab, key=lambda piece: -spm.get_score(vocab[piece]))
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    bpe = Tokenizer(BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=False)
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _finish(bpe)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which every digit is its own token.

    Ids 0 to 4 are SPECIAL_TOKENS, 5 to 260 the bytes, the rest merges: len(tokenizer) is
    vocab_size, or less when the texts hold too few pairs. The same texts give the same tokenizer,
    byte for byte. Raises ValueError when vocab_size leaves no room for specials and bytes.
    Source: Sennrich et al. 2016 (BPE), Radford et al. 2019 (bytes).
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(SPECIAL_TOKENS) + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size: expected at least {smallest} ({len(SPECIAL_TOKENS)} special tokens and "
            f"{len(alphabet)} bytes), found {vocab_size}"
        )
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return _finish(bpe)


def prompt_to_conversation(prompt: str) -> Conversation:
    """Return the conversation of a Nectar prompt: `parse_prompt` without its list of repairs."""
    return parse_prompt(prompt)[0]


def parse_prompt(prompt: str) -> tuple[Conversation, list[str]]:
    r"""Split a Nectar prompt into (conversation, repairs); the conversation ends with the user.

    A prompt reads "\n\nHuman: {u1}\n\nAssistant: {a1}\n\nHuman: {u2}\n\nAssistant: ". Repaired,
    one sentence each: a final tag without its trailing space (or with other blanks), blanks
    before the first tag, and a tag that repeats the speaker, which is kept as that speaker's text.
    Raises ValueError when the prompt does not begin with a Human tag or does not end with an open
    Assistant tag. A text that quotes the other speaker's tag cannot be told from a turn: compare
    the number of user messages with the row's `turns`.
    Source: Starling, reward-model-training/dataset.py, line 79, which does none of these checks.
    """
    repairs = []
    if not prompt.endswith(ASSISTANT_TAG):
        stem = prompt.rstrip()
        if not stem.endswith(ASSISTANT_TAG.rstrip()):
            raise ValueError(
                f"prompt: expected {ASSISTANT_TAG!r} at the end, found {prompt[-40:]!r}; "
                "an answer belongs in the row's answers, not in its prompt"
            )
        repairs.append(f"final {ASSISTANT_TAG!r} had {prompt[len(stem) :]!r} behind the colon")
        prompt = stem + " "
    lead, *parts = re.split(f"({HUMAN_TAG}|{ASSISTANT_TAG})", prompt)
    if lead.strip() or parts[0] != HUMAN_TAG:
        raise ValueError(f"prompt: expected {HUMAN_TAG!r} at the start, found {prompt[:40]!r}")
    if lead:
        repairs.append(f"dropped {lead!r} before the first tag")
    conversation: Conversation = []
    for tag, text in zip(parts[::2], parts[1::2], strict=True):
        role = "user" if tag == HUMAN_TAG else "assistant"
        if conversation and conversation[-1]["role"] == role:
            conversation[-1]["content"] += tag + text
            repairs.append(f"message {len(conversation)}: repeated {tag!r} kept as {role} text")
        else:
            conversation.append({"role": role, "content": text})
    answer = conversation.pop()["content"]
    if answer:
        raise ValueError(
            f"prompt: expected one open {ASSISTANT_TAG!r} at the end, "
            f"found it inside an assistant's text: {answer[-40:]!r}"
        )
    return conversation, repairs


def conversation_to_prompt(conversation: Conversation) -> str:
    """Return the conversation as a Nectar prompt; inverse of `prompt_to_conversation`.

    Raises ValueError when the roles do not alternate user, assistant, ..., user (Nectar has no
    system message) or when a content holds the other speaker's tag: it would be another turn.
    """
    roles = [message["role"] for message in conversation]
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(roles))]
    if roles != expected or len(roles) % 2 == 0:
        raise ValueError(f"conversation: expected roles user, assistant, ..., user, found {roles}")
    tags = {"user": HUMAN_TAG, "assistant": ASSISTANT_TAG}
    for number, message in enumerate(conversation, start=1):
        other = tags["assistant" if message["role"] == "user" else "user"]
        if other in message["content"]:
            raise ValueError(
                f"message {number}, content: holds {other!r}, which would be read back as "
                "another turn; change that content"
            )
    prompt = "".join(tags[message["role"]] + message["content"] for message in conversation)
    return prompt + ASSISTANT_TAG


def _messages(conversation: Conversation, mode: str) -> list[str]:
    """Return each message as template text without its end of turn."""
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(map(repr, MODES))}, found {mode!r}")
    texts = []
    for number, message in enumerate(conversation, start=1):
        if message["role"] not in ROLES:
            raise ValueError(
                f"message {number}, role: expected one of {', '.join(ROLES)}, "
                f"found {message['role']!r}"
            )
        texts.append(f"{mode} {message['role'].title()}: {message['content']}")
    return texts


def _encode_messages(
    tokenizer: PreTrainedTokenizerFast, conversation: Conversation, mode: str
) -> tuple[list[int], list[list[int]]]:
    """Return the generation prompt's ids and each message's, special tokens split."""
    opening, *messages = tokenizer(
        [f"{mode} Assistant:", *_messages(conversation, mode)],
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
    ).input_ids
    return opening, messages


def _token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Return the id of a token that the template needs."""
    number = tokenizer.backend_tokenizer.token_to_id(token)
    if number is None:
        raise ValueError(
            f"tokenizer: has no token {token!r}; take mistral_tokenizer() or train_tokenizer(...)"
        )
    return number


def _finish(bpe: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap a BPE with OpenChat's special tokens, BOS in front and the chat template."""
    bpe.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=EOT,
        pad_token=PAD,
        extra_special_tokens=["</s>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
