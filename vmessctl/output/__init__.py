"""Text, tables and terminal output for people."""
