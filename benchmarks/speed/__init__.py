"""Timing: this project's way of doing a task against other ways, in alternating rounds."""
