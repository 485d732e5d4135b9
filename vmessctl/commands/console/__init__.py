"""The verb console: attached, only watched, served over TCP, or typed on by a script."""
