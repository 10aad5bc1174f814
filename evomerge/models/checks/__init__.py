"""Check models before a campaign begins: do they merge, are they what they were."""

from evomerge.models.checks.checked_models import CheckedModels, check_models

__all__ = ["CheckedModels", "check_models"]
