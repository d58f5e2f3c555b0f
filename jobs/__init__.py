"""jobs: the command line, and everything that talks to a person or a scheduler."""
