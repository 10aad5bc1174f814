"""What leaves the project: checkpoints with their cards, mergekit's files, the hub."""

from evomerge.export.folder import Format, Measured, export_recipe
from evomerge.export.many_trials import export_many
from evomerge.export.merge import merge_file
from evomerge.export.trial import export_trial

__all__ = ["Format", "Measured", "export_many", "export_recipe", "export_trial", "merge_file"]
