"""Configuration as data: models, hardware, campaigns and proposers, one YAML file each.

Any layer may read these files (through `importlib.resources`); this package holds no code.
"""
