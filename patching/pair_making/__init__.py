"""Making pairs: from GSM8K, from word problems, and matched donors."""
