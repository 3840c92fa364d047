"""Tools mode: the project as a set of tools that an agent calls (Model Context Protocol)."""
