"""OpenAI's vector stores over collections."""
