"""Find out what a campaign will take before its first candidate: memory, seconds, hours, disk.

`probe` tries one candidate, or estimates it (`estimate_scoring`, `estimate_merging`) with the speed
of this machine (`machine`); `forecast` adds up, with `work`, what follows for the campaign;
`problems` and `show` tell the user.
"""
