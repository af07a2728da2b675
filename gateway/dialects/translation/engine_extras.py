"""Parameters of inference engines that neither Messages nor Responses have. A translation passes them on unchanged.

Clients send them as `extra_body` of an SDK. Names as in the engines' references for chat completions: vLLM (sampling
and extra parameters), SGLang (sampling parameters), llama.cpp (`/completion` options, which its chat endpoint takes
too), TabbyAPI, Ollama, LM Studio, and the sampling parameters of OpenAI's own chat completions.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gateway.dialects.loose_json import JsonObject, is_object

__all__ = ["ENGINE_EXTRAS", "extras_of", "with_extras"]

_OPENAI = """
    frequency_penalty logit_bias prediction presence_penalty reasoning_effort seed
"""
_VLLM = """
    add_generation_prompt add_special_tokens allowed_token_ids bad_words cache_salt chat_template
    chat_template_kwargs continue_final_message detokenize documents guided_choice guided_decoding_backend
    guided_grammar guided_json guided_regex guided_whitespace_pattern ignore_eos include_reasoning
    include_stop_str_in_output kv_transfer_params length_penalty logits_processors media_io_kwargs min_p min_tokens
    mm_processor_kwargs priority repetition_detection repetition_penalty skip_special_tokens
    spaces_between_special_tokens stop_token_ids structural_tag structured_outputs thinking_token_budget top_k
    truncate_prompt_tokens use_beam_search vllm_xargs
"""
_SGLANG = """
    custom_logit_processor custom_params data_parallel_rank ebnf extra_key json_schema lora_path min_new_tokens
    no_stop_trim regex return_hidden_states sampling_seed separate_reasoning session_params stop_regex
    stream_reasoning
"""
_LLAMA_CPP = """
    cache_prompt dry_allowed_length dry_base dry_multiplier dry_penalty_last_n dry_sequence_breakers
    dynatemp_exponent dynatemp_range grammar grammar_lazy grammar_triggers id_slot lora min_keep mirostat
    mirostat_eta mirostat_tau n_discard n_keep n_predict parse_tool_calls preserved_tokens reasoning_budget
    reasoning_format repeat_last_n repeat_penalty samplers t_max_predict_ms thinking_budget_tokens
    thinking_forced_open timings_per_token top_n_sigma typical_p xtc_probability xtc_threshold
"""
_OTHERS = """
    adaptive_decay adaptive_target add_bos_token ban_eos_token banned_strings banned_tokens draft_model
    grammar_string keep_alive max_temp min_temp negative_prompt options penalty_range regex_pattern skew
    smoothing_factor speculative_ngram temperature_last temp_exponent template_vars tfs think token_healing top_a
    ttl typical .split()
"""
ENGINE_EXTRAS = frozenset(f"{_OPENAI} {_VLLM} {_SGLANG} {_LLAMA_CPP} {_OTHERS}".split())


def extras_of(fields: Mapping[str, msgspec.Raw], own: frozenset[str]) -> JsonObject:
    """The engine's parameters in a request. Those that the client's own API defines (`own`) are translated instead."""
    return {name: value for name, value in fields.items() if name in ENGINE_EXTRAS and name not in own}


def with_extras(parameters: JsonObject, extras: JsonObject) -> JsonObject:
    """Add the client's engine parameters. They win over ours, which are derived from less specific ones."""
    if not extras:
        return parameters
    merged = {**parameters, **extras}
    ours, theirs = parameters.get("chat_template_kwargs"), extras.get("chat_template_kwargs")
    if ours and theirs is not None and is_object(theirs):
        merged["chat_template_kwargs"] = {**ours, **_object_decoder.decode(theirs)}
    return merged


_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
