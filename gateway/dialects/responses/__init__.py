"""OpenAI's Responses API in front of chat completions: pure translation, no I/O, no clock, no randomness."""
