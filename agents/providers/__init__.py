"""Clients of language-model servers behind one small protocol."""
