"""The KV cache: storage, who owns which block, shared prefixes, prompts."""
