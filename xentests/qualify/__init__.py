"""Runs the matrix of a release (architectures x suites x variants of the machine) and has it judged."""
