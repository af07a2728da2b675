"""Prompts that cannot fit are refused before they wait in line, load a model or travel. No tokenizer, no I/O.

What is counted is words (`prompt_words.py`). A tokenizer makes no token of two words: those of the engines' models cut
at white space first. So a prompt with more words than its model takes tokens is too long, and one that fits is not
refused. That is the margin: English prose is refused from about 1.3 times the limit on, code from about 3 times,
pictures and text without spaces never; whatever is in between, the neuron judges as before.

It is no proof. Some tokenizers join a sign at a line's end and a slash on the next line; text has other tokens to make
up for that. Some are made of phrases (SuperBPE): give a model with such a one no `limit`. And some engines cut a prompt
silently: a limit says that it is not to be.

An estimate, as `dialects.tokens` gives one, would come nearer to the limit and would refuse what fits.
"""

from __future__ import annotations

from catalogue.models import Catalogue, Limit
from gateway.dialects.prompt_words import PROMPTS, words
from gateway.errors import ContextLengthExceeded
from gateway.fleet.node import NodeModel
from gateway.fleet.routing.choose import neuron_model_id
from gateway.fleet.state import Fleet
from gateway.proxy.request import InferenceRequest

__all__ = ["prompt_limit", "refuse_if_too_long"]

SMALL_BODY_BYTES = 8 * 1024  # 1,400 words of English: no model of today is too small for that
BYTES_PER_WORD = 4  # English has 6, the space included; what has less is no prose, and the neuron's to judge


def refuse_if_too_long(request: InferenceRequest, model: str, catalogue: Catalogue, fleet: Fleet) -> None:
    """Raises ContextLengthExceeded for a prompt that is certainly longer than any neuron takes for the model.

    Three looks, each at more of the body than the one before: at its length, at its white space, at its texts.
    """
    body = request.body
    if len(body) <= SMALL_BODY_BYTES or (fields := PROMPTS.get(request.path.partition(b"?")[0])) is None:
        return
    limit = prompt_limit(model, catalogue, fleet)
    if limit is None or len(body) <= BYTES_PER_WORD * limit:
        return
    if body.count(b" ") + body.count(b"\\") <= limit:  # how white space is written; pictures have none
        return
    if words(body, fields, limit + 1) > limit:
        raise ContextLengthExceeded(
            f"model '{model}': this prompt has more than {limit} words, and the maximum context length is {limit} "
            "tokens; a token is at most a word: shorten it",
            param=fields[0],
        )


# The limit...


def prompt_limit(model: str, catalogue: Catalogue, fleet: Fleet) -> int | None:
    """The most tokens that a prompt for the model may have; None where somebody who may get it does not say.

    The operator's word counts before the neurons'. Of those that hold the model the most generous decides, since it
    may be the one that is asked; what a neuron takes at all (`max_prompt_tokens`) holds for every model on it.
    """
    profile = catalogue.models.get(model)
    told = None if profile is None else _tokens(profile.limit)
    holders = fleet.holders(model if profile is None else neuron_model_id(profile))
    taken = [_least(_reported(held) if told is None else told, held.node.max_prompt_tokens) for held in holders]
    known = [tokens for tokens in taken if tokens is not None]
    return max(known) if known and len(known) == len(taken) else told


def _reported(held: NodeModel) -> int | None:
    return None if held.report is None else _tokens(held.report.limit)


def _tokens(limit: Limit | None) -> int | None:
    return None if limit is None else _least(limit.context, limit.input)


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
