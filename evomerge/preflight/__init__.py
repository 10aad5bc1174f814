"""What a campaign will take, found before its first candidate: memory, seconds, hours, disk."""
