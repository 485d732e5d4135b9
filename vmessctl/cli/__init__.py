"""The table of verbs, and the parser, help, completion and manual pages that are made from it. Pure."""
