"""The command line as language: the table of verbs; grammar, help, completion and manual made from it."""
