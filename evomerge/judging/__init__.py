"""Items to decisions, on the driver and with numpy only: splits, objectives, intervals, choice."""
