"""What a person reads: text for replies, tables, and what a terminal can do."""
