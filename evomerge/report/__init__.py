"""A study shown to people: tables for the terminal, figures, the report page, the dashboard."""
