"""Workers as Ray actors, on one machine or on a cluster."""
