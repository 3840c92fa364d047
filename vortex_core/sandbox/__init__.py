"""Untrusted source: the allow-list, the jail, and loading through both."""
