"""HTML pages: the report and the live dashboard."""
