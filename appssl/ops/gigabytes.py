"""Limits of size that are given in the environment."""

import os

from appssl.errors import SettingsError


def allowed(variable: str, default: str) -> float:
    """GB (10^9 bytes) that an environment variable allows.

    Raises:
        SettingsError: if it is no number above 0.
    """
    text = os.environ.get(variable, default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value > 0:
        raise SettingsError(f"{variable} is {text!r}; give a number of GB above 0, such as 200.")
    return value
