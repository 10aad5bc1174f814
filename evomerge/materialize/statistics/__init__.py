"""Statistics of the sources: computed once a campaign, kept on disk, shared by workers."""
