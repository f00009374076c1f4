"""The outer side: a store of what was made once, and machines that run, freeze and clone."""
