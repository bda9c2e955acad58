"""From the table to statistics, figures and the report. No torch."""
