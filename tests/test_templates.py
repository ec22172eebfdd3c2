"""Chat templates of the reward models: the cards' strings, tokenizers as oracle, safe text."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_rewards import llama_tokenizer, without_bos

from starling_nb.data.chat import encode, mistral_tokenizer, train_tokenizer
from starling_nb.reward.templates import TEMPLATES, encode_conversation, template_text

SCHEMES = pytest.mark.parametrize("scheme", ["always", "first", "never"])
CONTROLS = ("<unk>", "<s>", "</s>", "<|end_of_turn|>", "<|pad_0|>", "<|im_start|>", "<|im_end|>")


def talk(*contents: str) -> list[dict]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def clean(text: str) -> bool:
    return not any(token in text for token in CONTROLS)


pieces = st.sampled_from([" ", "  ", "\n", "a", "The", "ing", "7", "<", "|>", "é", "日", "[INST]"])
texts = st.one_of(st.text(max_size=15), st.lists(pieces, max_size=8).map("".join)).filter(clean)
talks = st.integers(1, 3).flatmap(lambda n: st.lists(texts, min_size=2 * n, max_size=2 * n))


# --- the strings ---


def test_chatml_is_the_string_on_the_card_of_starling_rm_34b():
    assert template_text(talk("Hello!", "Hi, how can I help you?"), "chatml_yi") == (
        "<|im_start|>user\nHello!<|im_end|>\n"
        "<|im_start|>assistant\nHi, how can I help you?<|im_end|>"
    )


def test_chatml_has_a_place_for_a_system_message():
    with_system = [{"role": "system", "content": "Be kind."}, *talk("Hi", "Ho")]
    text = template_text(with_system, "chatml_yi")
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>")


def test_llama2_is_the_string_of_starlings_policy_tuning():
    text = template_text(talk(" Hello? ", "Hi\n", "And?", "So."), "llama2_starling")
    assert text == "[INST] Hello? [/INST] Hi</s> [INST] And? [/INST] So.</s>"


def test_openchat_is_the_template_of_the_policies():
    tokenizer = mistral_tokenizer()
    conversation = talk("Hello", "Hi")
    ids, cut = encode_conversation(tokenizer, conversation, "openchat")
    assert ids == encode(tokenizer, conversation, add_generation_prompt=False)
    assert tokenizer(template_text(conversation, "openchat")).input_ids == ids
    assert not cut


# --- the ids ---


@SCHEMES
@settings(max_examples=100)
@given(contents=talks)
@example(contents=["", ""])
@example(contents=[" a", " b", "\n", "  "])
def test_ids_are_those_of_the_clean_string(scheme, contents):
    """Oracle: the tokenizer on the whole string, special tokens parsed; BOS as it adds one."""
    tokenizer = llama_tokenizer(scheme)
    conversation = talk(*contents)
    for template, bos in (("llama2_starling", True), ("chatml_yi", False)):
        expected = tokenizer(template_text(conversation, template), add_special_tokens=bos)
        assert encode_conversation(tokenizer, conversation, template) == (expected.input_ids, False)
    assert tokenizer.backend_tokenizer.pre_tokenizer.prepend_scheme == scheme  # put back


@pytest.mark.parametrize("template", TEMPLATES)
def test_control_tokens_in_a_message_stay_text(template):
    tokenizer = llama_tokenizer()
    plain = encode_conversation(tokenizer, talk("x", "y"), template)[0]
    spiked = encode_conversation(tokenizer, talk("".join(CONTROLS), "".join(CONTROLS)), template)[0]
    special = set(tokenizer.convert_tokens_to_ids(list(CONTROLS)))
    assert [i for i in spiked if i in special] == [i for i in plain if i in special]
    assert plain.count(1) == (template != "chatml_yi")  # one BOS, not two
    assert plain[-1] in special


@pytest.mark.parametrize("length", [3, 17, 39, 40, 41, 400])
@pytest.mark.parametrize("template", ["llama2_starling", "chatml_yi"])
def test_cutting_at_the_left_is_what_the_cards_tokenizers_do(template, length):
    """Oracle: truncation_side="left"; it keeps a BOS, and Yi's tokenizer has none."""
    tokenizer = llama_tokenizer("first")
    oracle = tokenizer if template == "llama2_starling" else without_bos(tokenizer)
    conversation = talk("Why is it so? " * 5, "It is so.")
    text = template_text(conversation, template)
    whole = oracle(text).input_ids
    oracle.truncation_side = "left"
    expected = oracle(text, truncation=True, max_length=length).input_ids
    ids, cut = encode_conversation(tokenizer, conversation, template, length)
    assert ids == expected
    assert cut == (len(whole) > length)


def test_an_exact_fit_is_not_cut():
    for template in TEMPLATES:
        whole, _ = encode_conversation(llama_tokenizer(), talk("Why?", "So."), template)
        fits = encode_conversation(llama_tokenizer(), talk("Why?", "So."), template, len(whole))
        assert fits == (whole, False)
        ids, cut = encode_conversation(
            llama_tokenizer(), talk("Why?", "So."), template, len(whole) - 1
        )
        assert cut
        assert len(ids) == len(whole) - 1
        assert ids[-1] == whole[-1]


# --- what is refused ---


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    ("conversation", "found"),
    [([], "no message"), (talk("Hi"), "user"), (talk("a", "b", "c"), "user")],
)
def test_a_conversation_without_an_answer_is_refused(template, conversation, found):
    message = f"conversation: expected the assistant's answer at its end, found {found}"
    with pytest.raises(ValueError, match=message):
        encode_conversation(llama_tokenizer(), conversation, template)
    with pytest.raises(ValueError, match=message):
        template_text(conversation, template)


def test_roles_that_a_template_has_no_place_for_are_refused():
    system = [{"role": "system", "content": "Be kind."}, *talk("Hi", "Ho")]
    with pytest.raises(ValueError, match="found system, user, assistant; put a system text into"):
        template_text(system, "llama2_starling")
    twice = [*talk("a", "b"), {"role": "assistant", "content": "c"}]
    with pytest.raises(ValueError, match="found user, assistant, assistant"):
        encode_conversation(llama_tokenizer(), twice, "llama2_starling")
    bot = [{"role": "bot", "content": "x"}, *talk("a", "b")]
    with pytest.raises(ValueError, match=r"message 1, role: expected one of user.*found 'bot'"):
        template_text(bot, "chatml_yi")


def test_unknown_templates_and_unfit_tokenizers_are_refused():
    with pytest.raises(ValueError, match="expected one of openchat, llama2_starling, chatml_yi"):
        template_text(talk("a", "b"), "alpaca")
    with pytest.raises(
        ValueError, match=r"no token '<\|im_start\|>', which the template chatml_yi"
    ):
        encode_conversation(mistral_tokenizer(), talk("a", "b"), "chatml_yi")
    trained = train_tokenizer(["a b c"], 280)
    ids, _ = encode_conversation(trained, talk("a", "b"), "llama2_starling")
    assert trained.decode(ids) == "<s>[INST] a [/INST] b</s>"
