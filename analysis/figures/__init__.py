"""Figures: `<name>_data(table)` and `<name>_chart(data)`."""
