"""Text and tables for people, and what a terminal can do."""
