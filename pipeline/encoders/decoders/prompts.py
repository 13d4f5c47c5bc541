"""What is said around a text, so that a language model's state behind it is the text's vector.

Sources: PromptEOL (arXiv 2307.16645), Pretended CoT and Knowledge (arXiv 2404.03921), MetaEOL (arXiv 2402.18458), the
slot of Token Prepending (arXiv 2412.11556). The strings are theirs to the letter, odd blanks included.
"""

from __future__ import annotations

import difflib

from pipeline.errors import UsageError
from pipeline.tokens import TEXT

SLOT = "<PST>"
"""Where Token Prepending puts its token; prompts without it are said without the slot and the blank after it."""

_IN_ONE_WORD = 'this sentence : <PST> "{text}" means in one word:"'
PROMPTS = {
    "prompteol": (f"T{_IN_ONE_WORD[1:]}",),
    "pretended-cot": (f"After thinking step by step , {_IN_ONE_WORD}",),
    "knowledge": (
        "The essence of a sentence is often captured by its main subjects and actions, while descriptive terms "
        f"provide additional but less central details. With this in mind , {_IN_ONE_WORD}",
    ),
    "metaeol": (
        "In this task, you're presented with a text excerpt. Your task is to categorize the excerpt into a broad "
        "category such as 'Education', 'Technology', 'Health', 'Business', 'Environment', 'Politics', or 'Culture'. "
        "These categories help in organizing content for better accessibility and targeting. For this task, this "
        'sentence : <PST> "{text}" should be classified under one general category in one word:"',
        "In this task, you're given a statement and you need to determine whether it's presenting an 'Opinion' or a "
        "'Fact'. This distinction is vital for information verification, educational purposes, and content analysis. "
        'For this task, this sentence : <PST> "{text}" discriminates between opinion and fact in one word:"',
        "In this task, you're given a review from an online platform. Your task is to generate a rating for the "
        "product based on the review on a scale of 1-5, where 1 means 'extremely negative' and 5 means 'extremely "
        'positive\'. For this task, this sentence : <PST> "{text}" reflects the sentiment in one word:"',
        "In this task, you're reading a personal diary entry. Your task is to identify the predominant emotion "
        'expressed, such as joy, sadness, anger, fear, or love. For this task, this sentence : <PST> "{text}" '
        'conveys the emotion in one word:"',
        "In this task, you're presented with two sentences. Your task is to assess whether the sentences convey the "
        "same meaning. Use 'identical', 'similar', 'different', or 'unrelated' to describe the relationship. To "
        f"enhance the performance of this task, {_IN_ONE_WORD}",
        "In this task, you're given a sentence and a phrase. Your task is to determine if the phrase can be a "
        "contextual synonym within the given sentence. Options include 'yes', 'no', or 'partially'. To enhance the "
        f"performance of this task, {_IN_ONE_WORD}",
        "In this task, you're examining a news article. Your task is to extract the most critical fact from the "
        'article. For this task, this sentence : <PST> "{text}" encapsulates the key fact in one word:"',
        "In this task, you're reviewing a scientific abstract. Your task is to identify the main entities (e.g., "
        "proteins, diseases) and their relations (e.g., causes, treats). For this task, this sentence : <PST> "
        '"{text}" highlights the primary entity or relation in one word:"',
    ),
}


def templates_of(prompt: str, prepending: bool) -> tuple[str, ...]:
    """The templates of a prompt, each with TEXT once and, with `prepending`, SLOT once before it; () for no prompt.

    `prompt` is a name out of PROMPTS or a template. Raises UsageError for one without its places.
    """
    if not prompt:
        if prepending:
            raise UsageError(
                "encoder.decoder.token_prepending without encoder.decoder.prompt",
                "A prompt, whose slot takes the state of the last token",
                f"Set encoder.decoder.prompt to one of {', '.join(PROMPTS)}",
            )
        return ()
    templates = PROMPTS.get(prompt) or (_checked(prompt, prepending),)
    if prepending:
        return templates
    return tuple(template.replace(f"{SLOT} ", "").replace(SLOT, "") for template in templates)


def parts_of(template: str) -> tuple[str, str | None, str]:
    """What a template says before its slot, between slot and text (None where it has no slot), and after the text."""
    before, _, after = template.partition(TEXT)
    left, slot, right = before.partition(SLOT)
    return left, right if slot else None, after


def _checked(template: str, prepending: bool) -> str:
    if template.count(TEXT) != 1:
        close = difflib.get_close_matches(template, PROMPTS, n=1)
        raise UsageError(
            f"encoder.decoder.prompt = {template!r}, with {template.count(TEXT)} places for the text",
            f"One of {', '.join(PROMPTS)}, or a template in which {TEXT} stands once",
            f"Did you mean {close[0]!r}?" if close else f"Put {TEXT} where the text goes",
        )
    if prepending and (template.count(SLOT) != 1 or parts_of(template)[1] is None):
        raise UsageError(
            f"encoder.decoder.prompt = {template!r} with encoder.decoder.token_prepending",
            f"{SLOT} once, before {TEXT}: the token that takes the state of the last one",
            f"Put {SLOT} before the text, as in {PROMPTS['prompteol'][0]!r}",
        )
    return template
