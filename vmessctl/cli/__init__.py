"""The table of verbs, and the parser, help, completion and manual pages made from it. Pure."""
