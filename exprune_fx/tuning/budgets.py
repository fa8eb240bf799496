"""The budgets and stages of which plans are put together."""

BUDGETS = tuple(0.0005 * 2 ** (step / 2) for step in range(20))
"""Shares of a neuron's energy, to 0.36."""

STAGES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of a site's terms; each is a prefix head of one stage."""
