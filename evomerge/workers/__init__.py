"""Who does the work: one interface, in the driver's process or on Ray."""
