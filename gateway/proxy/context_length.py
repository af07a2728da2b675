"""Refuses prompts that cannot fit, before they wait in a queue or cause a load. No tokenizer, no I/O.

It counts words (`dialects/prompt_words.py`). The tokenizers of the engines' models cut at white space first, so a token
is never longer than a word: a prompt with more words than its model takes tokens is too long, and one that fits is not
refused. English prose is refused from about 1.3 times the limit, code from about 3 times, pictures and text
without spaces never; the neuron judges everything else.

Exceptions exist. Some tokenizers join a sign at a line's end with a slash on the next line; other tokens of the text
make up for that. Some have tokens of several words (SuperBPE): give a model with such a tokenizer no `limit`. Some
engines cut a prompt silently: with a `limit` the gateway refuses it instead.

An estimate such as `dialects/token_estimate.py` would come nearer to the limit, but it would refuse prompts that fit.
"""

from __future__ import annotations

from functools import partial

from catalogue.models import Catalogue, Limit
from gateway.dialects.prompt_words import PROMPT_FIELDS, count_words
from gateway.errors import ContextLengthExceeded
from gateway.fleet.model_names import holders_of
from gateway.fleet.node import NodeModel
from gateway.fleet.state import Fleet
from gateway.proxy.body.off_loop import off_loop
from gateway.proxy.request import InferenceRequest

__all__ = ["prompt_limit", "refuse_if_too_long"]

SMALL_BODY_BYTES = 8 * 1024  # about 1,400 words of English: every current model takes that
BYTES_PER_WORD = 4  # English has 6, the space included; text with fewer is not prose


async def refuse_if_too_long(request: InferenceRequest, model: str, catalogue: Catalogue, fleet: Fleet) -> None:
    """Raise ContextLengthExceeded for a prompt that is certainly longer than any neuron takes for the model.

    The cheap checks come first: the length of the body, then its white space, then the words of its texts.
    """
    if len(request.body) <= SMALL_BODY_BYTES or (fields := PROMPT_FIELDS.get(request.path.partition(b"?")[0])) is None:
        return
    body = request.outline.text  # what this leaves out has no white space
    limit = prompt_limit(model, catalogue, fleet)
    if limit is None or len(body) <= BYTES_PER_WORD * limit:
        return
    if (
        body.count(b" ") + body.count(b"\\") <= limit
    ):  # white space is written as either of these; pictures have neither
        return
    if await off_loop(body, partial(count_words, body, fields, limit + 1)) > limit:
        raise ContextLengthExceeded(
            f"model '{model}': this prompt has more than {limit} words, and the maximum context length is {limit} "
            "tokens; a token is at most a word: shorten it",
            param=fields[0],
        )


def prompt_limit(model: str, catalogue: Catalogue, fleet: Fleet) -> int | None:
    """The most tokens that a prompt for the model may have; None if a neuron that may get it states no limit.

    The operator's limit in the catalogue overrides the neurons'. Of the neurons that have the model the largest limit
    counts, since that neuron may get the prompt. A neuron's own `max_prompt_tokens` limits every model on it.
    """
    profile = catalogue.models.get(model)
    configured = None if profile is None else _tokens(profile.limit)
    replicas = holders_of(model, fleet, catalogue)
    limits = [
        _least(_reported(replica) if configured is None else configured, replica.node.max_prompt_tokens)
        for replica in replicas
    ]
    known = [tokens for tokens in limits if tokens is not None]
    return max(known) if known and len(known) == len(limits) else configured


def _reported(replica: NodeModel) -> int | None:
    return None if replica.report is None else _tokens(replica.report.limit)


def _tokens(limit: Limit | None) -> int | None:
    return None if limit is None else _least(limit.context, limit.input)


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
