"""Anthropic's Messages API in front of OpenAI chat completions: pure translation, no I/O, no clock, no randomness."""
