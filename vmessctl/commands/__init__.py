"""The handlers of the verbs, one module for each group.

The row of a verb in :mod:`vmessctl.cli.verbs` names its handler, and :mod:`vmessctl.app` calls it.
"""
