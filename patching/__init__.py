"""From pairs and sites to the table of patched runs."""
